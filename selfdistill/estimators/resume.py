"""Progress of a fit, and its finished trainings as files: an interrupted fit goes on where it ended."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
from scipy import sparse

from ..errors import DataError, SelfdistillError
from .io import load, save

Progress = Callable[[int, int, str], None]


_BLOCK = 1 << 16  # values that are spelt out at once


_open: ContextVar[tuple[Path | None, Progress | None]] = ContextVar("keeping", default=(None, None))


@contextmanager
def keeping(folder: str | Path | None, progress: Progress | None = None) -> Iterator[None]:
    """Within, the estimators of this package keep every finished training, and tell of it.

    A training that ended before on the very same rows, targets, weights, learner and place in the chain is read from
    its file instead; so a fit that was interrupted goes on, and ends with the product that it would have had. What
    skops cannot keep, such as a class of your own, is trained each time.

    Args:
        folder: where the files are; made if it is not there. None keeps nothing.
        progress: called after each training with how many are done, how many are planned for the whole fit as far as
            is known (an audit may end a chain early), and which one it was in words.

    Raises:
        DataError: the folder cannot be made.

    >>> from sklearn.datasets import load_diabetes
    >>> from sklearn.linear_model import Ridge
    >>> from selfdistill.estimators import SelfDistilledRegressor
    >>> X, y = load_diabetes(return_X_y=True)
    >>> with keeping(None, lambda done, planned, what: print(f"{done} of {planned}: {what}")):
    ...     model = SelfDistilledRegressor(Ridge(), xi=0.5, audit="off").fit(X, y)
    1 of 2: generation 0 on all rows
    2 of 2: generation 1 on all rows
    """
    if folder is not None:
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder} cannot be made a folder ({error.strerror}); give another place") from error
    token = _open.set((folder, progress))
    try:
        yield
    finally:
        _open.reset(token)


class Ledger:
    """What one fit has trained so far, of how much. In another process it remembers what to tell at home."""

    def __init__(self, folder: Path | None = None, progress: Progress | None = None) -> None:
        self.folder = folder
        self.progress = progress
        self.done = self.planned = 0
        self.unsaid: list[str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "progress": None, "unsaid": []}

    def left(self, trainings: int) -> None:
        """So many trainings are still to come."""
        self.planned = self.done + trainings

    def tell(self, what: str) -> None:
        """A training has ended."""
        if self.unsaid is not None:
            self.unsaid.append(what)
            return
        self.done += 1
        self.planned = max(self.planned, self.done)
        if self.progress is not None:
            self.progress(self.done, self.planned, what)

    def mark(self, *rows: Any) -> str | None:
        """The digest of what a table holds; None where nothing is kept, so nobody asks."""
        return None if self.folder is None else digest(*rows)


def opened() -> Ledger:
    """The ledger of a fit that begins now."""
    return Ledger(*_open.get())


@dataclass(frozen=True)
class Page:
    """The trainings of one generation on one part of the rows."""

    ledger: Ledger
    about: str

    def train(self, member: int, learner: Any, given: Sequence[Any], learn: Callable[[], Any]) -> Any:
        """What ``learn`` returns, or returned before for this learner at this place and what is ``given``."""
        what = self.about if member == 0 else f"{self.about}, peer {member}"
        file = self._file(what, learner, given)
        model = None if file is None else _read(file)
        if model is None:
            token = _open.set((None, None))  # a learner may be one of ours: its trainings are not this fit's
            try:
                model = learn()
            finally:
                _open.reset(token)
            if file is not None:
                _write(file, model)
        self.ledger.tell(what)
        return model

    def _file(self, what: str, learner: Any, given: Sequence[Any]) -> Path | None:
        if self.ledger.folder is None:
            return None
        try:
            who = spelt(learner)
        except TypeError:  # a learner with a lambda, say, which nothing could keep
            return None
        versions = [sklearn.__version__, version("selfdistill"), np.__version__]
        return self.ledger.folder / f"{digest(*versions, what, type(learner).__qualname__, who, *given)}.skops"


def on_page(work: Callable[..., Any], page: Page, *given: Any) -> tuple[Any, list[str]]:
    """A call in whatever process, and what it could not tell from there."""
    before = len(page.ledger.unsaid or [])
    made = work(*given, page)
    return made, (page.ledger.unsaid or [])[before:]


def _read(file: Path) -> Any:
    try:
        found = load(file)
    except SelfdistillError:  # not there, damaged or foreign: then it is trained
        return None
    fits = isinstance(found, dict) and found.get("key") == file.stem
    return found.get("model") if fits else None


def _write(file: Path, model: Any) -> None:
    unfinished = file.with_name(f".{file.stem}.{os.getpid()}.tmp")
    with suppress(SelfdistillError, OSError):  # what cannot be kept is trained again next time
        save({"key": file.stem, "model": model}, unfinished)
        unfinished.replace(file)
    with suppress(OSError):
        unfinished.unlink()


# what is in a table ---------------------------------------------------------------------------------------------------


def digest(*parts: Any) -> str:
    """A short name for values: text, numbers, arrays, sparse matrices, frames; the same for the same content.

    >>> digest(np.arange(3), "a") == digest(np.arange(3), "a"), digest(np.arange(3)) == digest(np.arange(3.0))
    (True, False)
    """
    found = blake2b(digest_size=16)
    for part in parts:
        if sparse.issparse(part):
            rows = part.tocsr()
            _add(found, f"sparse {rows.shape}", rows.data, rows.indices, rows.indptr)
        elif hasattr(part, "columns"):
            _add(found, f"{type(part).__module__} frame of {len(part)}")
            for name in part.columns:
                column = part[name]
                kinds = getattr(column, "cat", None) if str(column.dtype) == "category" else None
                _add(
                    found, repr(name), str(column.dtype), "" if kinds is None else repr(list(kinds.categories)), column
                )
        else:
            _add(found, part)
    return found.hexdigest()


def spelt(part: Any) -> str:
    """A learner or a setting of one in words: its type and all its settings, whatever is nested in what.

    Raises:
        TypeError: something in it has no name to be told by.

    >>> from sklearn.linear_model import Ridge
    >>> spelt(Ridge(alpha=2.0)) == spelt(Ridge(alpha=2.0)), spelt(Ridge(alpha=2.0)) == spelt(Ridge())
    (True, False)
    """
    if part is None or isinstance(part, (bool, int, float, str, bytes, np.generic)):
        return repr(part)
    if isinstance(part, (list, tuple)):
        return f"{type(part).__name__}({', '.join(map(spelt, part))})"
    if isinstance(part, dict):
        return f"{{{', '.join(f'{spelt(key)}: {spelt(value)}' for key, value in part.items())}}}"
    if isinstance(part, np.ndarray) or sparse.issparse(part) or hasattr(part, "columns"):
        return digest(part)
    name = f"{getattr(part, '__module__', '')}.{getattr(part, '__qualname__', '')}"
    if isinstance(part, type) or (callable(part) and hasattr(part, "__qualname__")):
        if "<" in name:
            raise TypeError(f"{name} has no name of its own")
        return name
    if is_dataclass(part):
        settings = {field.name: getattr(part, field.name) for field in fields(part)}
    elif hasattr(part, "get_params"):
        settings = part.get_params(deep=False)
    else:
        raise TypeError(f"a {type(part).__name__} has no settings to be told by")
    return f"{type(part).__module__}.{type(part).__qualname__}({spelt(settings)})"


def _add(found: Any, *values: Any) -> None:
    for value in values:
        if not hasattr(value, "dtype"):
            _spell(found, repr(value))
            continue
        whole = np.atleast_1d(np.asarray(value))
        _spell(found, f"{whole.dtype.str} {whole.shape}")
        for begin in range(0, len(whole), _BLOCK):
            part = whole[begin : begin + _BLOCK]
            if part.dtype.kind in "biufcmM":
                found.update(part.tobytes())
            else:
                _spell(found, repr(part.tolist()))
        if hasattr(value, "is_null"):  # polars: not a number and not there are two things
            found.update(value.is_null().to_numpy().tobytes())


def _spell(found: Any, text: str) -> None:
    content = text.encode()
    found.update(len(content).to_bytes(8, "little") + content)
