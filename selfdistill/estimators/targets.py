"""Targets, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import check_array, column_or_1d
from sklearn.utils.multiclass import check_classification_targets

from .rows import Floats


def _given(y: Any, estimator: Any) -> NDArray[Any]:
    if y is None:
        raise ValueError(f"{type(estimator).__name__} requires y to be passed, but the target y is None")
    return np.asarray(column_or_1d(y, warn=True))


def real_targets(y: Any, estimator: Any) -> Floats:
    """Targets (rows,) as real numbers.

    Raises:
        ValueError: a target is missing, infinite, or no number, or they are all the same.
    """
    try:
        found = check_array(_given(y, estimator), ensure_2d=False, dtype=np.float64, input_name="y")
    except ValueError as error:
        if "contains NaN" in str(error):
            raise ValueError("Input y contains NaN; give the rows without a target as X_unlabeled") from None
        raise
    if len(found) > 1 and (found == found[0]).all():
        raise ValueError(f"y is {found[0]:g} in all {len(found)} rows: there is nothing to learn; check the column")
    return np.asarray(found, dtype=np.float64)


def class_targets(y: Any, estimator: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The labels, sorted, and the place of each row's among them.

    Raises:
        ValueError: y has no classes, or one only.
    """
    found = _given(y, estimator)
    check_classification_targets(found)
    labels, places = np.unique(found, return_inverse=True)
    if len(labels) < 2:
        raise ValueError(f"y has one class only, {str(labels[0])!r}: give rows of another")
    return labels, places.astype(np.int64)
