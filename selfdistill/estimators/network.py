"""PyTorch modules as scikit-learn estimators, trained by the engine; they take soft targets as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn

from .. import rng
from ..core.objective import Method
from ..core.outputs import element_shape
from ..core.parts import Always, BaseTerm, BindArgs, Gate, Loss, PerTrust, Teacher, Term
from ..core.step import Forward
from ..core.targets import Target
from ..data.copies import Floats, row_hashes
from ..losses import CrossEntropy, Squared
from ..models.networks import mlp
from .tables import class_targets, real_targets


class TrainingTargets(nn.Module):
    """The target (samples, components) and the weight (samples,) of each sample, by its id."""

    def __init__(self, targets: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("targets", targets)
        self.register_buffer("weights", weights)
        self.targets: Tensor
        self.weights: Tensor


@dataclass(frozen=True, eq=False)
class TargetsOfData(Teacher[TrainingTargets]):
    """Teaches the targets that were given with the data."""

    module: TrainingTargets
    target_space: str

    def start(self, model: nn.Module, args: BindArgs) -> TrainingTargets:
        return self.module

    def space(self, head: str) -> str:
        return self.target_space

    def target(self, state: TrainingTargets, forward: Forward, term: BaseTerm) -> Target:
        return Target(state.targets[forward.ids(term.view)], self.target_space)


@dataclass(frozen=True, eq=False)
class WeightsOfData(Gate[TrainingTargets]):
    """Weighs each sample by the weight that was given with the data."""

    module: TrainingTargets
    prefers: ClassVar[str | None] = None

    def start(self, model: nn.Module, args: BindArgs) -> TrainingTargets:
        return self.module

    def weigh(
        self, state: TrainingTargets, student: Tensor, target: Target, forward: Forward, term: BaseTerm
    ) -> Tensor:
        return state.weights[forward.ids(term.view)].expand(element_shape(student))


@dataclass(eq=False, repr=False)
class Network(BaseEstimator):  # type: ignore[misc]
    """The common part of `NetworkClassifier` and `NetworkRegressor`."""

    module: Callable[[int, int], nn.Module] | None = None
    _: KW_ONLY
    width: int = 128
    depth: int = 2
    steps: int = 1000
    batch_size: int = 256
    lr: float = 2e-3
    weight_decay: float = 1e-3
    precision: str = "float64"
    random_state: Any = 0

    def _rows(self, X: Any, reset: bool) -> Tensor:
        return torch.from_numpy(np.array(validate_data(self, X, reset=reset, dtype=np.float64)))

    def _train(self, X: Any, targets: Floats, weights: Floats | None, space: str, loss: Loss) -> None:
        """Train a fresh module; ``targets`` (rows, components)."""
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if self.precision not in ("float32", "float64"):
            raise ValueError(f"precision is 'float32' or 'float64', not {self.precision!r}")
        dtype = getattr(torch, self.precision)
        rows = self._rows(X, reset=True).numpy()
        check_consistent_length(rows, targets)
        rows, targets, counts = merge_copies(rows, targets, weights)
        x, w = torch.from_numpy(rows), torch.from_numpy(counts / counts.max()).to(dtype)
        share = w.double() / w.double().sum()
        self._center, self._scale = _mean_and_std(x, share)
        x = self._standardise(x)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._sizes = x.shape[1], targets.shape[1]
            self.module_ = self._build(*self._sizes).train()
            data = TrainingTargets(torch.from_numpy(targets).to(dtype), w)
            gate: Gate = Always() if (counts == counts[0]).all() else WeightsOfData(data)
            head = "logits" if space == "probabilities" else "values"
            term = Term(TargetsOfData(data, space), loss, head=head, gate=gate, reduction=PerTrust())
            objective = Method({"targets": term}).bind(self.module_, vitals=False)
            optimizer = torch.optim.AdamW(self.module_.parameters(), self.lr, weight_decay=self.weight_decay)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
            for ids in _batches(len(x), min(self.batch_size, len(x)), self.steps, seed):
                optimizer.zero_grad(set_to_none=True)
                objective({"x": x[ids], "y": torch.zeros(len(ids), dtype=torch.int64), "id": ids}).backward()
                optimizer.step()
                schedule.step()
                objective.update()
        self.module_.eval()

    def _standardise(self, x: Tensor) -> Tensor:
        scaled = (x - torch.from_numpy(self._center)) / torch.from_numpy(self._scale)
        return scaled.to(getattr(torch, self.precision))

    def _build(self, inputs: int, outputs: int) -> nn.Module:
        build = self.module or (lambda i, o: mlp((i,), o, width=self.width, depth=self.depth))
        return build(inputs, outputs).to(getattr(torch, self.precision))

    def __getstate__(self) -> dict[str, Any]:
        """Weights as arrays, so that no file needs pickle."""
        state: dict[str, Any] = super().__getstate__()
        if "module_" in state:
            state = {**state, "module_": {k: v.numpy() for k, v in self.module_.state_dict().items()}}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "module_" in state:
            weights = {name: torch.tensor(value) for name, value in state["module_"].items()}
            self.module_ = self._build(*self._sizes)
            self.module_.load_state_dict(weights)
            self.module_.eval()

    @torch.no_grad()
    def _outputs(self, X: Any) -> Floats:
        x = self._standardise(self._rows(X, reset=False))
        return np.concatenate([self.module_(part).double().numpy() for part in x.split(8192)])


def _mean_and_std(x: Tensor, share: Tensor) -> tuple[Floats, Floats]:
    """Mean and standard deviation of each column, rows weigh by their share."""
    center = share @ x
    return center.numpy(), (share @ (x - center).square()).sqrt().clamp(min=1e-8).numpy()


def merge_copies(X: Floats, targets: Floats, weights: Floats | None) -> tuple[Floats, Floats, Floats]:
    """Each distinct row and target once, with the sum of its weights, in the order of their hashes; none of weight 0.

    So a row of weight 2 is the row twice, and the order of the rows does not matter, to the last bit.
    """
    w = np.ones(len(X)) if weights is None else weights
    rows = np.flatnonzero(w)
    hashes = row_hashes(np.hstack([X, targets])[rows], 0)
    _, first, distinct = np.unique(hashes, return_index=True, return_inverse=True)
    return X[rows][first], targets[rows][first], np.bincount(distinct, w[rows]).astype(np.float64)


def _batches(rows: int, size: int, steps: int, seed: int) -> Any:
    """Ids of each step: epoch after epoch every row once, in a new order."""
    left, epoch = torch.empty(0, dtype=torch.int64), 0
    for _ in range(steps):
        if len(left) < size:
            left, epoch = torch.cat([left, rng.permutation((seed, "rows", epoch), rows)]), epoch + 1
        yield left[:size]
        left = left[size:]


class NetworkClassifier(ClassifierMixin, Network):  # type: ignore[misc]
    """A PyTorch classifier of table rows, trained by the engine; soft targets cost what hard ones cost.

    Args:
        module: a factory (columns, classes) -> module; a multilayer perceptron by default.
        width, depth: of that perceptron.
        steps, batch_size, lr, weight_decay: of AdamW, with a cosine schedule.
        precision: float64, so that a row of weight 2 is the row twice to all digits, or float32, up to twice as fast.
        random_state: seeds weights and batches.

    Columns are standardised. ``fit`` takes labels (rows,), or distributions (rows, classes) with ``classes``.

    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> NetworkClassifier(steps=100).fit(X, y).score(X, y) > 0.9
    True
    """

    takes_probabilities = True

    def fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> NetworkClassifier:
        """Train on labels (rows,) or distributions (rows, ``classes``)."""
        if classes is not None and np.ndim(y) == 2:
            self.classes_, targets = np.asarray(classes), np.asarray(y, dtype=np.float64)
        else:
            self._rows(X, reset=True)
            self.classes_, codes = class_targets(y, self)
            targets = np.eye(len(self.classes_))[codes]
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=np.float64)
        self._train(X, targets, weights, "probabilities", CrossEntropy())
        return self

    def predict_proba(self, X: Any) -> Floats:
        """Probabilities (rows, classes)."""
        check_is_fitted(self, "module_")
        return np.asarray(torch.from_numpy(self._outputs(X)).softmax(-1).numpy())

    def predict(self, X: Any) -> NDArray[Any]:
        """The likeliest class of each row."""
        check_is_fitted(self, "module_")
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])


class NetworkRegressor(RegressorMixin, Network):  # type: ignore[misc]
    """A PyTorch regressor of table rows, trained by the engine; parameters as of `NetworkClassifier`.

    >>> from sklearn.datasets import load_diabetes
    >>> X, y = load_diabetes(return_X_y=True)
    >>> NetworkRegressor(steps=100).fit(X, y).score(X, y) > 0.4
    True
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> NetworkRegressor:
        """Train on values (rows,)."""
        self._rows(X, reset=True)
        values = real_targets(y, self)
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=np.float64)
        check_consistent_length(X, values)
        self._mean = float(np.average(values, weights=weights))
        self._spread = float(np.sqrt(np.average((values - self._mean) ** 2, weights=weights))) or 1.0
        self._train(X, (values[:, None] - self._mean) / self._spread, weights, "values", Squared())
        return self

    def predict(self, X: Any) -> Floats:
        """Values (rows,)."""
        check_is_fitted(self, "module_")
        return np.asarray(self._outputs(X)[:, 0] * self._spread + self._mean)
