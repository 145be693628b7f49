"""Records of cells: read with distrust, and missing ones named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, DataError
from ..expressions import one_line
from .settings import Cell, Setting

FORMAT = 2  # 1: generations were audited
Records = dict[str, dict[int, dict[str, Any]]]  # method -> seed -> record


def read(cell: Cell, out: Path) -> dict[str, Any] | None:
    """A cell's record; None where it is not trained yet.

    Raises:
        CheckpointError: the record is damaged.
        DataError: it is of another setting of this name.
    """
    path = cell.path(out)
    return _read(path, cell.setting) if path.exists() else None


def _read(path: Path, setting: Setting) -> dict[str, Any]:
    try:
        record = dict(json.loads(path.read_text(encoding="utf-8")))
        was, seed, status = record["setting"], record["seed"], record["status"]
        if not isinstance(record["method"], str) or seed != int(path.stem) or status not in ("finished", "failed"):
            raise ValueError("it is not what its name says")
        if record["format"] != FORMAT:
            raise ValueError(f"format {record['format']!r}, this version reads {FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({one_line(error, 80)}); delete it and go on") from error
    now = setting.to_json()
    differs = [f"{k} {was.get(k)!r}, now {v!r}" for k, v in now.items() if was.get(k) != v]
    if differs:
        raise DataError(f"{path} is of another setting ({'; '.join(differs)}); delete it, or give another --out")
    return record


def records_of(setting: Setting, out: Path) -> Records:
    """All that is there of a setting, whatever was asked for; raises as `read`."""
    found: Records = {}
    for path in sorted((out / setting.name).glob("*/*.json")):
        record = _read(path, setting)
        found.setdefault(record["method"], {})[record["seed"]] = record
    return found


def spans(numbers: list[int]) -> str:
    """Whole numbers in words.

    >>> spans([0, 1, 2, 5])
    '0-2, 5'
    """
    parts: list[list[int]] = []
    for n in sorted(numbers):
        if parts and n == parts[-1][-1] + 1:
            parts[-1].append(n)
        else:
            parts.append([n])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)
