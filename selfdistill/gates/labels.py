"""Gates from labelled rows: their losses, scores, number and gradients; and fixed subsets of rows for peers."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import rng
from ..core import distributed
from ..core.memory import Buffers, SampleMemory
from ..core.outputs import element_shape
from ..core.parts import BaseTerm, BindArgs, Gate, GenerationData, Schedule, value_at
from ..core.step import Forward, Passes, members
from ..core.targets import DISTRIBUTIONS, Target
from ..errors import RecipeError

SCHEDULES = ("linear", "log", "exp")


@dataclass(frozen=True)
class Annealed(Gate):
    """1 where the student's probability of the label is at most n_t, else 0: training signal annealing (TSA).

    n_t = 1 / C + (1 - 1 / C) a(t), with a(t) = t (``linear``), 1 - exp(-5 t) (``log``) or exp(5 (t - 1)) (``exp``),
    t the completed share of training.

    Source: Xie et al., Unsupervised Data Augmentation, NeurIPS 2020, training signal annealing.

    Raises:
        RecipeError: an unknown schedule.
    """

    schedule: str = "linear"
    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS
    prefers: ClassVar[str | None] = None  # the student decides

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise RecipeError(f"the schedule is 'linear', 'log' or 'exp', not {self.schedule!r}")

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        t, uniform = forward.clock.progress, 1.0 / student.shape[-1]
        share = {"linear": t, "log": 1.0 - math.exp(-5.0 * t), "exp": math.exp(5.0 * (t - 1.0))}[self.schedule]
        best = target.best().clamp(min=0).unsqueeze(-1)
        probability = F.softmax(student, dim=-1).gather(-1, best).squeeze(-1)
        return (probability <= uniform + (1.0 - uniform) * share).to(student.dtype)


def labelled_rows(forward: Forward, view: str, head: str) -> tuple[Tensor, Tensor, Tensor] | None:
    """Ids (rows,), labels (rows,) and the student's log-probabilities (rows, ..., classes) of a view's labelled rows;
    None where the batch has no such view, or none of its rows a class."""
    if not forward.rows(view) or forward.batch[view].y is None or forward.labels(view).is_floating_point():
        return None
    labelled = forward.labels(view) >= 0
    log_p = F.log_softmax(forward.student(view, head), dim=-1)
    return (
        (forward.ids(view)[labelled], forward.labels(view)[labelled], log_p[labelled]) if bool(labelled.any()) else None
    )


def at_label(values: Tensor, labels: Tensor) -> Tensor:
    """The entry of each row's label, (rows, ...), of (rows, ..., classes)."""
    index = labels.reshape(len(labels), *(1,) * (values.dim() - 1)).expand(*values.shape[:-1], 1)
    return values.gather(-1, index).squeeze(-1)


class _Threshold(SampleMemory):
    """The last loss of each labelled row, and their mean when the warm-up ended (0 before)."""

    first: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", torch.zeros(()))


@dataclass(frozen=True)
class FallingLoss(Gate[_Threshold]):
    """1 where the target's own loss -log max_c t_c is at most r_t, which falls from the mean loss of labelled rows.

    Until ``warm_up`` of the generation trust is 0 and the losses of the labelled rows (view ``labelled``) are stored;
    their mean is r. Then r_t = ``scale`` x r / ``base``^k, k counting periods of ``period`` of the generation, and
    never below ``floor``. ``phase`` restricts the trust to r_t above the floor (``"falling"``) or on it (``"floor"``),
    so that two terms can treat the phases differently.

    Source: Xu et al., Dash, ICML 2021; the last warm-up visit of each row stands for one pass over them.

    Raises:
        RecipeError: a base below 1, a floor or period that is not above 0, or an unknown phase.
    """

    base: float = 1.27
    scale: float = 1.0001
    floor: float = 0.05
    warm_up: float | Schedule = 10 / 1024
    period: float | Schedule = 9 / 1024
    phase: str = "both"
    labelled: str = "labelled"
    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS

    def __post_init__(self) -> None:
        if self.phase not in ("both", "falling", "floor"):
            raise RecipeError(f"phase is 'both', 'falling' or 'floor', not {self.phase!r}")
        if not (self.base >= 1 and self.floor > 0 and (callable(self.period) or self.period > 0)):
            raise RecipeError(
                "the threshold falls by a base of at least 1, each period above 0, to a floor above 0; not "
                f"base {self.base}, period {self.period}, floor {self.floor}"
            )

    def key(self, term: BaseTerm) -> Hashable:
        return FallingLoss, self.warm_up, self.labelled, term.head  # all that the stored losses depend on

    def start(self, model: nn.Module, args: BindArgs) -> _Threshold:
        return _Threshold()

    def threshold(self, state: _Threshold, forward: Forward) -> float | None:
        """The largest loss that passes at this step; None in the warm-up."""
        first = float(state.first)
        if not first > 0:
            return None
        clock = forward.clock
        elapsed = max(0.0, clock.progress - value_at(self.warm_up, clock))
        periods = int(elapsed / value_at(self.period, clock))
        return max(self.scale * first / self.base**periods, self.floor)

    def weigh(self, state: _Threshold, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        loss, limit = -target.log_probabilities(student.shape[-1]).amax(-1), self.threshold(state, forward)
        if limit is None or (self.phase != "both" and (self.phase == "floor") != (limit <= self.floor)):
            return torch.zeros_like(loss)
        return (loss <= limit).to(student.dtype)

    def update(self, state: _Threshold, forwards: Sequence[Forward], term: BaseTerm) -> None:
        clock = forwards[0].clock
        if bool(state.first > 0):
            return
        for rows in (labelled_rows(forward, self.labelled, term.head) for forward in forwards):
            if rows is not None:
                ids, labels, log_p = rows
                state.write(ids, -at_label(log_p, labels).reshape(len(ids), -1).mean(1, keepdim=True))
        if clock.at(clock.step + 1).progress >= value_at(self.warm_up, clock) and len(state):
            state.first = state.stored.mean()


def is_spared(ids: Tensor, share: float) -> Tensor:
    """A mask of the ids in the share that is set aside: a function of the id alone."""
    return rng.uniform(("spared",), ids, 1)[:, 0] < share


@dataclass(frozen=True)
class Spared(Gate):
    """0 for a share of the rows, by their ids, and 1 for all others: rows set aside for calibration.

    Raises:
        RecipeError: a share outside [0, 1).
    """

    share: float = 0.2
    prefers: ClassVar[str | None] = None  # the id decides

    def __post_init__(self) -> None:
        if not 0.0 <= self.share < 1.0:
            raise RecipeError(f"Spared: share lies in [0, 1), not {self.share}")

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        trust = (~is_spared(forward.ids(term.view), self.share)).to(student.dtype)
        return trust.reshape(len(trust), *(1,) * (student.dim() - 2)).expand(student.shape[:-1])


@dataclass(frozen=True)
class Singleton(Gate[SampleMemory]):
    """1 where the split-conformal set {c : 1 - t_c <= q} of the target t has exactly one class, else 0.

    q is the ceil((n + 1)(1 - ``risk``))-th smallest of the student's last scores 1 - p_y of the n labelled rows (view
    ``labelled``) that the gate `Spared` of the same ``share`` keeps out of training. A set then holds the true class
    with probability in [1 - risk, 1 - risk + 1 / (n + 1)], if rows are exchangeable and the student is fixed. With
    n < 1 / risk - 1 trust is 0.

    Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005 (split conformal prediction).

    Raises:
        RecipeError: a risk or share outside (0, 1).
    """

    risk: float = 0.1
    share: float = 0.2
    labelled: str = "labelled"
    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS

    def __post_init__(self) -> None:
        if not (0.0 < self.risk < 1.0 and 0.0 < self.share < 1.0):
            raise RecipeError(f"risk and share lie between 0 and 1, not {self.risk} and {self.share}")

    def start(self, model: nn.Module, args: BindArgs) -> SampleMemory:
        return SampleMemory()

    def limit(self, state: SampleMemory) -> float:
        """The score up to which a class belongs to the set; infinite with too few calibration rows."""
        scores = state.stored.flatten().sort().values
        rank = math.ceil((len(scores) + 1) * (1.0 - self.risk) - 1e-9)
        return float(scores[rank - 1]) if 0 < rank <= len(scores) else math.inf

    def weigh(self, state: SampleMemory, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        inside = 1.0 - target.probabilities(student.shape[-1]) <= self.limit(state)
        return (inside.sum(-1) == 1).to(student.dtype)

    def update(self, state: SampleMemory, forwards: Sequence[Forward], term: BaseTerm) -> None:
        for rows in (labelled_rows(forward, self.labelled, term.head) for forward in forwards):
            if rows is None or not bool((calibration := is_spared(rows[0], self.share)).any()):
                continue
            ids, labels, log_p = (part[calibration] for part in rows)
            state.write(ids, (1.0 - at_label(log_p, labels).exp()).reshape(len(ids), -1))


@dataclass(frozen=True)
class CleanGradient(Gate):
    """Trust in proportion to how far a step on a row lowers the loss of rows with clean labels; 0 where it raises it.

    Equation::

        u_i = -dL(theta - grad_theta sum_j e_j l_j) / de_i at e = 0 = <grad L, grad l_i>,  trust = max(u_i, 0) / max u
        l_i = the term's loss of row i,  L = its mean over the rows of the view ``clean``

    The virtual step is one of plain gradient descent from the student's current weights; its derivative is exact, and
    a rate would cancel. With `PerTrust` the weights are those of the paper: they add up to 1, and where none is above
    0, nothing is learnt. Rows are weighed within one micro-batch, and over all processes.

    Source: Ren et al., Learning to Reweight Examples for Robust Deep Learning, ICML 2018, equations 7 to 9.
    """

    clean: str = "clean"
    spaces: ClassVar[frozenset[str] | None] = DISTRIBUTIONS
    prefers: ClassVar[str | None] = None  # the clean rows decide
    mixes: ClassVar[bool] = True

    def extra_passes(self, term: BaseTerm, rows_of: Callable[[str], float]) -> tuple[float, float]:
        rows, clean = rows_of(term.view), rows_of(self.clean)
        return rows + clean, 2.0 * rows + clean

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        if term.loss is None or distributed.is_sharded(forward.owner):
            raise RecipeError("CleanGradient needs a term with a loss, and unsharded weights: leave --parallel out")
        y = forward.labels(self.clean)
        with torch.enable_grad():
            gain = self._gain(forward, term, Target(y, "classes", y >= 0), target).clamp(min=0.0)
        most = distributed.gather(gain.max().reshape(1)).max()
        trust = gain / torch.where(most > 0, most, 1.0)
        return trust.reshape(len(trust), *(1,) * (student.dim() - 2)).expand(student.shape[:-1])

    def _gain(self, forward: Forward, term: BaseTerm, labels: Target, target: Target) -> Tensor:
        """u_i of each row, but for a common factor, (rows,)."""
        model, rows = forward.owner, forward.rows(term.view)
        learnt = {name: p.detach().requires_grad_() for name, p in model.named_parameters() if p.requires_grad}
        weights = list(learnt.values())

        def losses(view: str, target: Target) -> Tensor:
            x = forward.batch[view].x
            output = forward.with_weights(model, learnt, x, term.head)
            assert term.loss is not None
            target = target.spread(output)
            values = term.loss(output, target)
            values = values if target.valid is None else values.masked_fill(~target.valid, 0.0)
            return values.reshape(len(x), -1).sum(1)

        def slope(total: Tensor, again: bool = False) -> Tensor:
            slopes = torch.autograd.grad(total, weights, create_graph=again, materialize_grads=True)
            return torch.cat([one.flatten() for one in slopes])

        some = forward.rows(self.clean) > 0
        towards = slope(losses(self.clean, labels).sum() if some else 0.0 * weights[0].sum())
        towards = distributed.add(towards)
        step = torch.zeros(rows, device=towards.device, requires_grad=True)  # e
        taken = slope((step * losses(term.view, target)).sum(), again=True)
        forward.passes += Passes(backward=members(model) * rows)  # once more through the step
        (gain,) = torch.autograd.grad(taken @ towards, step)
        return gain


class _Share(Buffers):
    """The share of rows that have labels."""

    share: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("share", torch.ones(()))


@dataclass(frozen=True)
class LabelledShare(Gate[_Share]):
    """Trust M / N in every target, M of the N rows having labels: few labels reduce the weight of unlabelled rows.

    In a loop of your own without ``objective.prepare(pool)`` it is 1.

    Source: Laine and Aila, Temporal Ensembling for Semi-Supervised Learning, ICLR 2017.
    """

    prefers: ClassVar[str | None] = None

    def start(self, model: nn.Module, args: BindArgs) -> _Share:
        return _Share()

    def prepare(self, state: _Share, pool: GenerationData) -> None:
        rows = len(pool.labelled) + len(pool.unlabelled)
        state.share = torch.full_like(state.share, len(pool.labelled) / max(1, rows))

    def weigh(self, state: _Share, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        return state.share.to(student).expand(element_shape(student))


@dataclass(frozen=True)
class PeerShard(Gate):
    """1 where a row belongs to the peer, else 0: each of K peers has its own K-th of the samples.

    A sample's peer is a hash of its id, (2654435761 id mod 2^32) div 2^16 mod K. An output without peers has all rows.
    """

    prefers: ClassVar[str | None] = None

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        if student.dim() < 3:
            return student.new_ones(element_shape(student))
        peers = student.shape[1]
        owner = forward.ids(term.view) * 2654435761 % 2**32 // 2**16 % peers
        mask = owner[:, None] == torch.arange(peers, device=owner.device)
        return mask.to(student.dtype).expand(element_shape(student))


@dataclass(frozen=True)
class Bagged(Gate):
    """1 where a row is in the peer's bag, else 0: each peer has a fixed random ``share`` of the samples.

    A bootstrap of n rows has 1 - 1/e of them. All mod 2^32: h = 2654435761 id + 668265263 (k + 1), then twice
    h = c (h xor h div 2^15) with c = 2246822519, then 3266489917; a sample is peer k's if h is below ``share`` x 2^32.
    An output without peers has all rows.

    Raises:
        RecipeError: a share outside (0, 1].
    """

    share: float = 0.632
    prefers: ClassVar[str | None] = None

    def __post_init__(self) -> None:
        if not 0.0 < self.share <= 1.0:
            raise RecipeError(f"Bagged: share is that of the samples of a peer, in (0, 1], not {self.share}")

    def weigh(self, state: nn.Module, student: Tensor, target: Target, forward: Forward, term: BaseTerm) -> Tensor:
        if student.dim() < 3:
            return student.new_ones(element_shape(student))
        ids = forward.ids(term.view)
        hashes = (
            ids[:, None] * 2654435761 + 668265263 * torch.arange(1, student.shape[1] + 1, device=ids.device)
        ) % 2**32
        for factor in (2246822519, 3266489917):
            hashes = (hashes ^ hashes >> 15) * factor % 2**32  # a product beyond 2^63 wraps, which changes no remainder
        return (hashes < self.share * 2**32).to(student.dtype).expand(element_shape(student))
