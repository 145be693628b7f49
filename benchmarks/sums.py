"""Sums of two numbers from 1 to 15, with worked demonstrations and a checker: a task that a small model half knows.

    python benchmarks/sums.py FOLDER      writes sums.jsonl there

A completion is right if the last number in it is the sum. A demonstration is "7 + 8 = 15".
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

MOST = 15


def main(folder: str) -> None:
    pairs = [(a, b) for a in range(1, MOST + 1) for b in range(1, MOST + 1)]
    rows = [
        {"prompt": f"What is {a} + {b}?", "demonstration": f"{a} + {b} = {a + b}", "answer": str(a + b),
         "checker": "numeric"} for a, b in pairs
    ]  # fmt: skip
    place = Path(folder) / "sums.jsonl"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{place}: {len(rows)} prompts")


if __name__ == "__main__":
    main(*sys.argv[1:])
