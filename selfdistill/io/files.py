"""Text files written atomically: a reader sees the whole file or none."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ..errors import DataError

DATA_CARD = "data.json"  # in a model folder: what new data are read with
LINE_SECONDS = 10.0  # between two lines of progress in a file


def writable(path: Path, option: str) -> None:
    """Say before the work, not after it, that there is no place for its result."""
    parent = path.resolve().parent
    if path.is_dir():
        why = "it is a folder"
    elif not parent.is_dir():
        why = "its folder does not exist"
    elif not os.access(path if path.exists() else parent, os.W_OK):
        why = "not permitted"
    else:
        return
    raise DataError(f"{path} cannot be written ({why}); give another {option}")


def write(path: Path, text: str, option: str = "--out") -> None:
    """All of it or nothing: a file that was there before is replaced, never cut short; ``option`` named the file."""
    path = path.resolve()
    device = path.exists() and not path.is_file()  # a pipe or /dev/null is written to, not replaced
    unfinished = path if device else path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        if not device:
            unfinished.replace(path)
    except OSError as error:
        if not device:
            with suppress(OSError):
                unfinished.unlink()
        raise DataError(f"{path} cannot be written ({error.strerror}); give another {option}") from error
