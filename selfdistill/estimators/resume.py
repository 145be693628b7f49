"""Progress of a fit, and its finished trainings as files: an interrupted fit resumes after the last of them."""

from __future__ import annotations

import os
import time
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
from ..io.files import remove_unfinished, trim_memory
from ..training import budget
from .io import load, save

Progress = Callable[[int, int, str], None]


LEARNERS = "learners"  # a training of a learner counts as many passes as its table has rows


_BLOCK = 1 << 16  # values that are hashed at once


_active: ContextVar[tuple[Path | None, Progress | None, float]] = ContextVar("keeping", default=(None, None, 0.0))


@contextmanager
def keeping(folder: str | Path | None, progress: Progress | None = None, shortest: float = 0.0) -> Iterator[None]:
    """Within it, the estimators of this package save every finished training and report their progress.

    A training that has a file of the same rows, targets, weights, learner and place in the chain of generations is
    read from it instead. So an interrupted fit resumes, and ends with the model that it would have had. What skops
    cannot save, such as an estimator of your own, is trained each time.

    Args:
        folder: where the files are; made if it is not there. None saves nothing.
        progress: called after each training with the number of finished ones, the number planned for the whole fit (an
            audit may end it early), and a description of the training.
        shortest: seconds of a training below which it is not kept: to write a forest takes longer than to train it.

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
            remove_unfinished(folder)
        except OSError as error:
            raise DataError(f"{folder} cannot be made a folder ({error.strerror}); give another place") from error
    token = _active.set((folder, progress, shortest))
    try:
        yield
    finally:
        _active.reset(token)


class FitProgress:
    """How many trainings of a fit have finished, of how many. In another process it collects what to report."""

    def __init__(self, folder: Path | None = None, progress: Progress | None = None, shortest: float = 0.0) -> None:
        self.folder = folder
        self.progress = progress
        self.shortest = shortest
        self.done = self.planned = self.rows = 0
        self.unreported: list[str] | None = None
        self.begun = time.monotonic()

    @classmethod
    def begin(cls) -> FitProgress:
        """The progress of a fit that begins now."""
        return cls(*_active.get())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "progress": None, "unreported": []}

    def plan(self, trainings: int) -> None:
        """Set the number of trainings that are still to come."""
        self.planned = self.done + trainings

    def report(self, description: str) -> None:
        """A training has finished."""
        if self.unreported is not None:
            self.unreported.append(description)
            return
        self.done += 1
        if (meter := budget.active()) is not None:
            meter.passes[LEARNERS] = meter.passes.get(LEARNERS, 0.0) + self.rows
            meter.write(due=False)
        self.planned = max(self.planned, self.done)
        if self.progress is not None:
            self.progress(self.done, self.planned, description)

    def affords(self, trainings: int, what: str) -> bool:
        """Whether the budget has room for so many further trainings; where it has none, ``what`` is cut."""
        meter = budget.active()
        if meter is None:
            return True
        each = (time.monotonic() - self.begun) / max(1, self.done) / budget.MARGIN
        if meter.affords(budget.Cost(trainings * each, float(trainings * self.rows))):
            return True
        meter.cut(f"{what}: {trainings} further trainings do not fit")
        return False

    def digest(self, *rows: Any) -> str | None:
        """The digest of the rows of a table; None where nothing is saved, and none is needed."""
        return None if self.folder is None else digest(*rows)


@dataclass(frozen=True)
class TrainingCache:
    """The finished trainings of one generation on one part of the rows."""

    progress: FitProgress
    description: str

    def train(self, member: int, learner: Any, inputs: Sequence[Any], fit: Callable[[], Any]) -> Any:
        """The model that ``fit`` returns, or returned before for this learner, this generation and these inputs."""
        description = self.description if member == 0 else f"{self.description}, peer {member}"
        file = self._file(description, learner, inputs)
        model = None if file is None else _read(file)
        if model is None:
            token = _active.set((None, None, 0.0))  # a learner may be one of ours: its trainings are not this fit's
            trim_memory()  # or it would begin above what the one before took, and the predictions since
            begun = time.monotonic()
            try:
                model = fit()
            finally:
                _active.reset(token)
            if file is not None and time.monotonic() - begun >= self.progress.shortest:
                _write(file, model)
        self.progress.report(description)
        return model

    def run(self, work: Callable[..., Any], *arguments: Any) -> tuple[Any, list[str]]:
        """A call of ``work`` in whatever process, and the reports that it could not make from there."""
        before = len(self.progress.unreported or [])
        models = work(*arguments, self)
        return models, (self.progress.unreported or [])[before:]

    def _file(self, description: str, learner: Any, inputs: Sequence[Any]) -> Path | None:
        if self.progress.folder is None:
            return None
        try:
            settings = describe(learner)
        except TypeError:  # a learner with a lambda, say, which no file could hold
            return None
        versions = [sklearn.__version__, version("selfdistill"), np.__version__]
        name = digest(*versions, description, type(learner).__qualname__, settings, *inputs)
        return self.progress.folder / f"{name}.skops"


NO_CACHE = TrainingCache(FitProgress(), "")  # saves nothing and reports to nobody


def _read(file: Path) -> Any:
    try:
        content = load(file)
    except SelfdistillError:  # missing, damaged or foreign: it is trained again
        return None
    return content.get("model") if isinstance(content, dict) and content.get("key") == file.stem else None


def _write(file: Path, model: Any) -> None:
    unfinished = file.with_name(f".{file.stem}.{os.getpid()}.tmp")
    with suppress(SelfdistillError, OSError):  # what cannot be saved is trained again next time
        save({"key": file.stem, "model": model}, unfinished)
        unfinished.replace(file)
    with suppress(OSError):
        unfinished.unlink()


# digests --------------------------------------------------------------------------------------------------------------


def digest(*parts: Any) -> str:
    """A short name for values: text, numbers, arrays, sparse matrices, frames; the same for the same content.

    >>> digest(np.arange(3), "a") == digest(np.arange(3), "a"), digest(np.arange(3)) == digest(np.arange(3.0))
    (True, False)
    """
    hashed = blake2b(digest_size=16)
    for part in parts:
        if sparse.issparse(part):
            rows = part.tocsr()
            _add(hashed, f"sparse {rows.shape}", rows.data, rows.indices, rows.indptr)
        elif hasattr(part, "columns"):
            _add(hashed, f"{type(part).__module__} frame of {len(part)}")
            for name in part.columns:
                column = part[name]
                pandas = str(column.dtype) == "category" and hasattr(column, "cat")
                categories = repr(list(column.cat.categories)) if pandas else ""
                _add(hashed, repr(name), str(column.dtype), categories, column)
        else:
            _add(hashed, part)
    return hashed.hexdigest()


def describe(part: Any) -> str:
    """A learner, or a setting of one, in words: its type and all its settings, however nested.

    Raises:
        TypeError: it has a part that no name and no settings describe.

    >>> from sklearn.linear_model import Ridge
    >>> describe(Ridge(alpha=2.0)) == describe(Ridge(alpha=2.0)), describe(Ridge(alpha=2.0)) == describe(Ridge())
    (True, False)
    """
    if part is None or isinstance(part, (bool, int, float, str, bytes, np.generic)):
        return repr(part)
    if isinstance(part, (list, tuple)):
        return f"{type(part).__name__}({', '.join(map(describe, part))})"
    if isinstance(part, dict):
        return f"{{{', '.join(f'{describe(key)}: {describe(value)}' for key, value in part.items())}}}"
    if isinstance(part, np.ndarray) or sparse.issparse(part) or hasattr(part, "columns"):
        return digest(part)
    if isinstance(part, type) or (callable(part) and hasattr(part, "__qualname__")):
        name = f"{getattr(part, '__module__', '')}.{part.__qualname__}"  # method descriptors have no module
        if "<" in name:
            raise TypeError(f"{name} has no name of its own")
        return name
    if is_dataclass(part):
        settings = {field.name: getattr(part, field.name) for field in fields(part)}
    elif hasattr(part, "get_params"):
        settings = part.get_params(deep=False)
    else:
        raise TypeError(f"a {type(part).__name__} has no settings that describe it")
    return f"{type(part).__module__}.{type(part).__qualname__}({describe(settings)})"


def _add(hashed: Any, *values: Any) -> None:
    for value in values:
        if not hasattr(value, "dtype"):
            _add_text(hashed, repr(value))
            continue
        array = np.atleast_1d(np.asarray(value))
        _add_text(hashed, f"{array.dtype.str} {array.shape}")
        for begin in range(0, len(array), _BLOCK):
            block = array[begin : begin + _BLOCK]
            if block.dtype.kind in "biufcmM":
                hashed.update(block.tobytes())
            else:
                _add_text(hashed, repr(block.tolist()))
        if hasattr(value, "is_null"):  # polars: nan and missing are two things
            hashed.update(value.is_null().to_numpy().tobytes())


def _add_text(hashed: Any, text: str) -> None:
    content = text.encode()
    hashed.update(len(content).to_bytes(8, "little") + content)
