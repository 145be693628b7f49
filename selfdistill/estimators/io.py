"""Fitted estimators as files: skops, never pickle."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..data.tables import skops
from ..errors import CheckpointError, DataError
from ..io.expressions import one_line
from ..io.files import remove_unfinished

# types of boosting with categories and of imputers; what a partial binds is checked as well
KNOWN = ("functools.partial", "numpy.dtype")


TRUSTED = ("sklearn.", "selfdistill.estimators.")  # modules whose types a file may name, beside those that skops trusts


def save(estimator: Any, path: str | Path) -> None:
    """Write a fitted estimator, of ours or of scikit-learn.

    Args:
        estimator: anything made of types of scikit-learn and of this package; your own functions in it cannot be saved.
        path: the file, by custom ``*.skops``.

    Raises:
        DataError: a part of it cannot be saved without pickle, or the file cannot be written.
    """
    io, path = skops(), Path(path)
    remove_unfinished(path.parent, path.name)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # on disk: in memory it would need twice the space
    try:
        io.dump(estimator, unfinished)
        foreign = _foreign(io, file=unfinished)
        if not foreign:
            unfinished.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}); give another path") from error
    except Exception as error:  # skops raises many types of errors
        raise DataError(f"{type(estimator).__name__} cannot be saved ({one_line(error, 120)})") from error
    finally:
        with suppress(OSError):
            unfinished.unlink()
    if foreign:
        raise DataError(
            f"{type(estimator).__name__} holds {foreign[0]}, which `load` would not trust; use scikit-learn alone"
        )


def load(path: str | Path) -> Any:
    """Read what `save` wrote; no code of the file is run, and types of other packages are refused.

    Raises:
        CheckpointError: the file is missing, damaged, or names types of other packages than this one and scikit-learn.

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
    raise CheckpointError(f"{path} names {foreign[0]}, a type of another package; it is not loaded")


def _foreign(io: Any, **source: Any) -> list[str]:
    """The types that ``data`` or a ``file`` names, and that are not to be trusted."""
    return [name for name in io.get_untrusted_types(**source) if name not in KNOWN and not name.startswith(TRUSTED)]
