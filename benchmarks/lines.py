"""What a benchmark has measured, a line of JSON each, so that the same command goes on where it was cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selfdistill.io.files import append_line, read_lines


class Lines:
    """The records of a file that were made with the same settings; those of other settings stay, unread."""

    def __init__(self, path: Path, asked: dict[str, Any]) -> None:
        self.path, self.asked = path, asked
        self.records = [record for line in read_lines(path)[0] if (record := json.loads(line))["asked"] == asked]

    def add(self, record: dict[str, Any]) -> None:
        """Write a record at once: whoever is cut afterwards has it."""
        self.records.append({"asked": self.asked, **record})
        append_line(self.path, json.dumps(self.records[-1]))
