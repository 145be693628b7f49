"""Trust: a function that a file names, such as that of a model, is run only where the caller trusts the file.

What a person types or writes in Python is their own code. What a file names came with the file: of a downloaded run, it
is a stranger's.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from ..errors import CheckpointError
from .expressions import one_line

_trust: ContextVar[bool] = ContextVar("trust", default=False)


_CALL = re.compile(r"\s*\w+\s*(\(.*\))?\s*", re.DOTALL)


_FUNCTION = re.compile(r"\s*(?P<place>.+?):(?P<name>[^\W\d]\w*)\s*(?P<options>\(.*\))?\s*", re.DOTALL)


@contextmanager
def trust_code(trust: bool = True) -> Iterator[None]:
    """Within it, functions that files name may be run; it never takes back a trust that was given around it.

    >>> with trust_code():
    ...     with trust_code(False):
    ...         is_trusted()
    True
    >>> is_trusted()
    False
    """
    token = _trust.set(trust or _trust.get())
    try:
        yield
    finally:
        _trust.reset(token)


def is_trusted() -> bool:
    """Whether functions that files name may be run now."""
    return _trust.get()


def split_function(spec: str) -> tuple[str, str, str] | None:
    """The place, name and options of a "module:function(...)" or "file.py:function"; None for any other name.

    >>> split_function("net:build(width=8)"), split_function("cnn(width=8)")
    (('net', 'build', '(width=8)'), None)
    """
    match = None if _CALL.fullmatch(spec) else _FUNCTION.fullmatch(spec)
    return None if match is None else (match["place"], match["name"], match["options"] or "")


def require_trust(place: str, name: str, file: Path | str, folder: Path | None = None) -> None:
    """Refuse a function or type that a file names, unless it is trusted; refuse what is never run.

    Args:
        place: its module, or the file that defines it.
        name: its name there.
        file: the file that names it, for the message.
        folder: the run or model folder; no code in it is ever run.

    Raises:
        CheckpointError: it is not trusted, it lies in the folder, or it is of Python's own library.

    >>> require_trust("net", "build", "model/config.json")
    Traceback (most recent call last):
    selfdistill.errors.CheckpointError: model/config.json names net:build, code that is not part of selfdistill and \
could do anything; if you trust it, allow it by --trust-code (in Python, trust_code=True)
    """
    named, never = f"{file} names {one_line(f'{place}:{name}', 80)}", "is never run, not even with --trust-code"
    if folder is not None and _lies_in(place, folder.resolve()):
        raise CheckpointError(f"{named}, which lies in {folder} itself; code in a model's or run's folder {never}")
    if not is_trusted():
        raise CheckpointError(
            f"{named}, code that is not part of selfdistill and could do anything; if you trust it, allow it by "
            "--trust-code (in Python, trust_code=True)"
        )
    if place.partition(".")[0] in sys.stdlib_module_names:
        raise CheckpointError(f"{named}, which is of Python's own library and makes no model; it {never}")


def _lies_in(place: str, folder: Path) -> bool:
    """Whether a module, as found from here, or a file lies below a folder; nothing is imported."""
    if place.endswith(".py"):
        return _is_below(Path(place), folder)
    top = place.partition(".")[0]
    here = [Path.cwd() / top, Path.cwd() / f"{top}.py"]
    if any(path.exists() and _is_below(path, folder) for path in here):
        return True
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    places = [*(spec.submodule_search_locations or []), spec.origin] if spec else []
    return any(_is_below(Path(one), folder) for one in places if one)


def _is_below(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder)
