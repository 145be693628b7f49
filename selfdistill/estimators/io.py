"""Fitted estimators as files: skops, never pickle.

A file may name the types below and those that skops itself trusts: scikit-learn's estimators, and functions of numpy
and scipy on numbers. A type alone does not make its content safe: scikit-learn follows the nodes of a tree without
looking, so those are checked here.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..data.tables import skops
from ..errors import CheckpointError, DataError
from ..io import trust
from ..io.expressions import one_line
from ..io.files import remove_unfinished
from ..io.schema import read_regular

#: the types and functions that a file may name, beside those that skops trusts; what a partial binds is checked as well
TYPES = frozenset(
    {
        "functools.partial",
        "numpy.dtype",
        "numpy.mean",
        "scipy.interpolate._bsplines.BSpline",
        "scipy.sparse._csc.csc_matrix",
        "scipy.sparse._csr.csr_matrix",
        "selfdistill.estimators.auto.AutoClassifier",
        "selfdistill.estimators.auto.AutoRegressor",
        "selfdistill.estimators.network.NetworkClassifier",
        "selfdistill.estimators.network.NetworkRegressor",
        "selfdistill.estimators.self_distillation.PeerTaughtRegressor",
        "selfdistill.estimators.self_distillation.SelfDistilledClassifier",
        "selfdistill.estimators.self_distillation.SelfDistilledRegressor",
        "selfdistill.estimators.self_distillation.SelfTrainedClassifier",
        "selfdistill.estimators.stacking.Stack",
        "selfdistill.estimators.students.LogProbabilityClassifier",
        "selfdistill.estimators.wrappers.ClassNames",
        "selfdistill.estimators.wrappers.FrameEncoder",
        "selfdistill.estimators.wrappers.IndicatorEncoder",
        "selfdistill.estimators.wrappers.MeanEnsemble",
        "selfdistill.estimators.wrappers.RowLimit",
        "sklearn._loss.loss.HalfTweedieLoss",
        "sklearn._loss.loss.HalfTweedieLossIdentity",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.feature_selection._univariate_selection.f_classif",
        "sklearn.feature_selection._univariate_selection.f_regression",
        "sklearn.gaussian_process._gpc._BinaryGaussianProcessClassifierLaplace",
        "sklearn.gaussian_process.kernels.ConstantKernel",
        "sklearn.gaussian_process.kernels.Product",
        "sklearn.gaussian_process.kernels.RBF",
        "sklearn.gaussian_process.kernels.Sum",
        "sklearn.gaussian_process.kernels.WhiteKernel",
        "sklearn.metrics._dist_metrics.EuclideanDistance64",
        "sklearn.metrics._dist_metrics.ManhattanDistance64",
        "sklearn.metrics._scorer._PassthroughScorer",
        "sklearn.metrics._scorer._Scorer",
        "sklearn.model_selection._split.KFold",
        "sklearn.model_selection._split.StratifiedKFold",
        "sklearn.multiclass._ConstantPredictor",
        "sklearn.neighbors._ball_tree.BallTree",
        "sklearn.neighbors._kd_tree.KDTree",
        "sklearn.neural_network._stochastic_optimizers.AdamOptimizer",
        "sklearn.neural_network._stochastic_optimizers.SGDOptimizer",
        "sklearn.tree._tree.Tree",
        "sklearn.utils._bunch.Bunch",
        "sklearn.utils._metadata_requests.MetadataRequest",
        "sklearn.utils._metadata_requests.MethodMetadataRequest",
        "sklearn.utils.validation.check_array",
    }
)


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


def file_size(estimator: Any) -> int:
    """The size of an estimator's file in bytes.

    Raises:
        DataError: as of `save`.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "estimator.skops"
        save(estimator, path)
        return path.stat().st_size


def load(path: str | Path, trust_code: bool = False) -> Any:
    """Read what `save` wrote; types that are not on the list of this module are refused.

    Args:
        path: the file.
        trust_code: whether other types and functions that the file names may be used.

    Raises:
        CheckpointError: the file is missing or damaged, or names a type that is not trusted.

    >>> import tempfile
    >>> from sklearn.datasets import load_iris
    >>> from selfdistill.estimators import SelfTrainedClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> file = Path(tempfile.mkdtemp()) / "model.skops"
    >>> save(SelfTrainedClassifier().fit(X, y), file)
    >>> load(file).predict(X[:2]).tolist()
    [0, 0]
    """
    io, path = skops(), Path(path)
    try:
        content = read_regular(path)
        foreign = _foreign(io, data=content)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); give a file that `save` wrote") from error
    except Exception as error:  # a damaged file can raise anything
        raise CheckpointError(f"{path} is damaged or foreign ({one_line(error, 80)}); save the model again") from error
    with trust.trust_code(trust_code):
        for name in foreign:
            trust.require_trust(*name.rpartition(".")[::2], path, path.parent)
    try:
        estimator = io.loads(content, trusted=io.get_untrusted_types(data=content))
        for tree, columns in _trees(estimator, set()):
            _check_tree(tree, columns)
    except Exception as error:
        raise CheckpointError(f"{path} is damaged or foreign ({one_line(error, 80)}); save the model again") from error
    return estimator


def _foreign(io: Any, **source: Any) -> list[str]:
    """The types that ``data`` or a ``file`` names, and that are not to be trusted."""
    return [name for name in io.get_untrusted_types(**source) if name not in TYPES]


def _trees(part: Any, seen: set[int], columns: int = 0) -> Iterator[tuple[Any, int]]:
    """The decision trees of an estimator, wherever they are in it, with the number of columns that they may ask for."""
    if id(part) in seen or isinstance(part, (str, bytes, int, float, type(None))):
        return
    seen.add(id(part))
    if type(part).__name__ in ("Tree", "TreePredictor"):
        yield part, columns
        return
    if isinstance(part, np.ndarray):
        items = part.ravel().tolist() if part.dtype == object else []
    elif isinstance(part, (list, tuple)):
        items = list(part)
    else:
        inside = part if isinstance(part, dict) else vars(part) if hasattr(part, "__dict__") else {}
        items, columns = list(inside.values()), inside.get("n_features_in_", columns)
    for item in items:
        yield from _trees(item, seen, columns)


def _check_tree(tree: Any, columns: int) -> None:
    """Refuse a tree that leads out of its own nodes: scikit-learn would read memory that is not its own.

    Raises:
        ValueError: a node asks for a child, a column or categories that are not there.
    """
    if type(tree).__name__ == "Tree":
        nodes = tree.__getstate__()["nodes"]
        left, right, feature = (nodes[name] for name in ("left_child", "right_child", "feature"))
        inner = left != -1
    else:
        nodes = tree.nodes
        left, right, feature = (nodes[name] for name in ("left", "right", "feature_idx"))
        inner = nodes["is_leaf"] == 0
        sets = nodes["bitset_idx"][inner & (nodes["is_categorical"] == 1)]
        if (sets >= min(len(tree.raw_left_cat_bitsets), len(tree.binned_left_cat_bitsets))).any():
            raise ValueError("a node of a tree has categories that are not there")
    place = np.arange(len(nodes))[inner]
    for child in (left[inner].astype(np.int64), right[inner].astype(np.int64)):
        if (child <= place).any() or (child >= len(nodes)).any():  # a child stands after its parent
            raise ValueError("a node of a tree has a child that is not there")
    if not len(nodes) or (feature[inner] < 0).any() or (feature[inner] >= columns).any():
        raise ValueError("a node of a tree asks for a column that is not there")
