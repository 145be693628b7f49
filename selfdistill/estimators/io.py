"""Fitted estimators as files: skops, never pickle."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..data.tables import skops
from ..errors import CheckpointError, DataError
from ..io.expressions import one_line

KNOWN = ("functools.partial", "numpy.dtype")  # of boosting with categories and of imputers; what it binds is judged too


TRUSTED = ("sklearn.", "selfdistill.estimators.")  # modules whose types a file may name, beside what skops knows


def save(estimator: Any, path: str | Path) -> None:
    """Write a fitted estimator, of ours or of scikit-learn.

    Args:
        estimator: anything made of scikit-learn's and our own types; functions of your own in it cannot be kept.
        path: the file, by custom ``*.skops``.

    Raises:
        DataError: something in it cannot be kept without pickle, or the file cannot be written.
    """
    io, path = skops(), Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # on disk: in memory it would be there twice
    try:
        io.dump(estimator, unfinished)
        foreign = _foreign(io, file=unfinished)
        if not foreign:
            unfinished.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); give another path") from error
    except Exception as error:  # skops says what it does not know by many types
        raise DataError(f"{type(estimator).__name__} cannot be saved ({one_line(error, 120)})") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()
    if foreign:
        raise DataError(
            f"{type(estimator).__name__} holds {foreign[0]}, which `load` would not trust; use scikit-learn alone"
        )


def load(path: str | Path) -> Any:
    """Read what `save` wrote; nothing in the file is run, and types from anywhere else are refused.

    Raises:
        CheckpointError: the file is missing, damaged, or names types that are neither ours nor scikit-learn's.

    >>> import tempfile
    >>> from sklearn.datasets import load_iris
    >>> from selfdistill.estimators import SelfTrainedClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> file = Path(tempfile.mkdtemp()) / "model.skops"
    >>> save(SelfTrainedClassifier().fit(X, y), file)
    >>> load(file).predict(X[:2]).tolist()
    [0, 0]
    """
    io = skops()
    try:
        content = Path(path).read_bytes()
        foreign = _foreign(io, data=content)
        if not foreign:
            return io.loads(content, trusted=io.get_untrusted_types(data=content))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); give a file that `save` wrote") from error
    except Exception as error:  # a damaged file can raise anything
        raise CheckpointError(f"{path} is damaged or foreign ({one_line(error, 80)}); save the model again") from error
    raise CheckpointError(f"{path} names {foreign[0]}, which is neither ours nor scikit-learn's; it is not loaded")


def _foreign(io: Any, **source: Any) -> list[str]:
    """The types that ``data`` or a ``file`` names, and that are not to be trusted."""
    return [name for name in io.get_untrusted_types(**source) if name not in KNOWN and not name.startswith(TRUSTED)]
