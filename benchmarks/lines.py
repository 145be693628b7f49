"""What a benchmark has measured, a line of JSON each, so that the same command goes on where it was cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class Lines:
    """The records of a file that were made with the same settings; those of other settings stay, unread."""

    def __init__(self, path: Path, asked: dict[str, Any]) -> None:
        self.path, self.asked = path, asked
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.records = [record for line in lines if (record := json.loads(line))["asked"] == asked]

    def add(self, record: dict[str, Any]) -> None:
        """Write a record at once: whoever is cut afterwards has it."""
        self.records.append({"asked": self.asked, **record})
        with self.path.open("a") as out:
            out.write(json.dumps(self.records[-1]) + "\n")
