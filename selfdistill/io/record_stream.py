"""A listener of the lines that trainings write into their logs, ``metrics.jsonl`` and ``steps.jsonl``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

Listener = Callable[[Path, Mapping[str, Any]], None]  # hears of the log and of a line in it

_listener: ContextVar[Listener | None] = ContextVar("records", default=None)


@contextmanager
def heard_by(listener: Listener | None) -> Iterator[None]:
    """Within it a listener hears of each line of each log.

    >>> with heard_by(lambda path, entry: print(path, entry["loss"])):
    ...     emit(Path("metrics.jsonl"), {"loss": 0.5})
    metrics.jsonl 0.5
    """
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def emit(path: Path, entry: Mapping[str, Any]) -> None:
    """Tell the listener, if there is one, of a line that was written."""
    if listener := _listener.get():
        listener(path, entry)
