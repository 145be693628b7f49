"""Losses on distributions and on values: divergences, likelihoods, entropies, and sharpened targets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.parts import Loss, as_loss
from ..core.targets import DISTRIBUTIONS, Target, tempered
from ..errors import RecipeError, SpaceError

__all__ = [
    "KL",
    "Absolute",
    "CrossEntropy",
    "DirichletNLL",
    "GaussianKL",
    "GaussianNLL",
    "KLFromStudent",
    "LogOneMinusInner",
    "LogVariances",
    "MeanNLL",
    "PairCrossEntropy",
    "Squared",
    "check_spaces",
]


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """-sum_c t_c log p_c, with p = softmax(z / T) and the target at the same temperature; no factor T^2.

    ``hard`` replaces the target by its best class. ``smoothing`` e mixes it with the uniform distribution over the
    *other* classes: 1 - e stays on the class, e / (C - 1) goes to each other one (torch spreads e over all C).

    >>> round(CrossEntropy()(torch.zeros(1, 4), Target(torch.tensor([2]), "classes")).item(), 4)
    1.3863
    """

    temperature: float = 1.0
    hard: bool = False
    smoothing: float = 0.0
    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_spaces: ClassVar[frozenset[str]] = DISTRIBUTIONS
    flat = property(lambda self: self.hard)  # 0 where the student is sure of the best class and the target is not
    signed = property(lambda self: self.smoothing < 0)

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        log_p = F.log_softmax(tempered(student, self.temperature), dim=-1)
        if self.hard or target.space == "classes":
            if target.space == "classes":
                best = target.value.clamp(min=0)
            else:
                target.fits(student.shape[-1])
                best = target.best()
            nll = F.nll_loss(log_p.flatten(0, -2), best.flatten(), reduction="none").view(best.shape)
            if not self.smoothing:
                return nll
            others = -log_p.sum(-1) - nll
            return (1.0 - self.smoothing) * nll + self.smoothing / (student.shape[-1] - 1) * others
        t = target.probabilities(student.shape[-1], self.temperature)
        if self.smoothing:
            t = (1.0 - self.smoothing) * t + self.smoothing * (1.0 - t) / (student.shape[-1] - 1)
        return -(t * log_p).sum(-1)

    def of_values(self) -> Squared:
        """Its counterpart for values.

        Raises:
            SpaceError: hard labels and smoothing have none.
        """
        if self.hard or self.smoothing:
            option = "a best class" if self.hard else "smoothing over other classes"
            raise SpaceError(f"{self} asks for {option}, and values have no classes")
        return Squared(mean=True)


@dataclass(frozen=True)
class KL(Loss):
    """T^2 sum_c t_c (log t_c - log p_c): forward KL from target to student at one temperature (Hinton et al. 2015).

    The factor T^2 keeps the gradient's size when T grows: it tends to the logit difference over C.

    >>> KL(temperature=4.0)(torch.ones(1, 3), Target(torch.zeros(1, 3), "logits")).item()
    0.0
    """

    temperature: float = 1.0
    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_spaces: ClassVar[frozenset[str]] = DISTRIBUTIONS

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        log_p = F.log_softmax(tempered(student, self.temperature), dim=-1)
        t = target.probabilities(student.shape[-1], self.temperature)
        log_t = target.log_probabilities(student.shape[-1], self.temperature)
        parts = (t * (log_t - log_p)).masked_fill(t == 0, 0.0)  # the difference first: less is cancelled
        return self.temperature**2 * parts.sum(-1)

    def of_values(self) -> Squared:
        """Its counterpart for values, in which no temperature is left."""
        return Squared(mean=True)


@dataclass(frozen=True)
class Squared(Loss):
    """Sum over components of (student - target)^2; ``mean`` divides by their number.

    Logits are compared as probabilities: softmax of both sides (the consistency cost of Mean Teacher).

    >>> Squared()(torch.tensor([[1.0, 3.0]]), Target(torch.tensor([[1.0, 1.0]]), "values")).item()
    4.0
    """

    mean: bool = False
    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits", "values", "features"})
    target_spaces: ClassVar[frozenset[str]] = DISTRIBUTIONS | {"values", "features"}

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        if target.space in DISTRIBUTIONS:
            difference = F.softmax(student, dim=-1) - target.probabilities(student.shape[-1])
        else:
            target.fits(student.shape[-1])
            difference = student - target.value
        squares = difference.square()
        return squares.mean(-1) if self.mean else squares.sum(-1)

    def of_values(self) -> Squared:
        """Itself: it takes values as they are."""
        return self


@dataclass(frozen=True)
class SquaredLogits(Loss):
    """Mean over components of (student - target)^2 of logits as they are (dark experience replay, 2020).

    Components that the target does not know (`UNKNOWN`) are left out.

    >>> SquaredLogits()(torch.tensor([[1.0, 3.0]]), Target(torch.tensor([[1.0, 1.0]]), "logits")).item()
    2.0
    """

    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        target.fits(student.shape[-1])
        known = target.value > UNKNOWN / 2
        return torch.where(known, student - target.value, 0.0).square().sum(-1) / known.sum(-1).clamp(min=1)

    def of_values(self) -> Squared:
        """Its counterpart for values, which are numbers as they are."""
        return Squared(mean=True)


UNKNOWN = -1e9  # the logit of a class of which a teacher knows nothing


@dataclass(frozen=True)
class KnownKL(KL):
    """`KL` of student and target over the classes alone that the target knows, whose logit is not `UNKNOWN`.

    >>> student, target = torch.tensor([[1.0, 2.0, 9.0]]), Target(torch.tensor([[3.0, 4.0, UNKNOWN]]), "logits")
    >>> abs(KnownKL(2.0)(student, target).item()) < 1e-6
    True
    """

    target_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        target.fits(student.shape[-1])
        return super().__call__(student.masked_fill(target.value <= UNKNOWN / 2, UNKNOWN), target)


@dataclass(frozen=True)
class LogOneMinusInner(Loss):
    """log(1 - <p, t>): negative, and minimising it raises the agreement of p with the history t (ELR, Liu et al. 2020).

    p is clamped to [clamp, 1 - clamp] before the inner product, as the authors do, so that the logarithm stays finite.
    """

    clamp: float = 1e-4
    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"probabilities"})
    signed: ClassVar[bool] = True

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        target.fits(student.shape[-1])
        p = F.softmax(student, dim=-1).clamp(self.clamp, 1.0 - self.clamp)
        return torch.log(1.0 - (p * target.value).sum(-1))


@dataclass(frozen=True)
class Absolute(Loss):
    """Mean over components of abs(student - target): its minimum is the median of the targets.

    >>> Absolute()(torch.tensor([[1.0, 3.0]]), Target(torch.tensor([[1.0, 1.0]]), "values")).item()
    1.0
    """

    student_spaces: ClassVar[frozenset[str]] = frozenset({"values"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"values"})

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        target.fits(student.shape[-1])
        return (student - target.value).abs().mean(-1)


@dataclass(frozen=True)
class GaussianNLL(Loss):
    """s^(2 beta) ((y - m)^2 exp(-z) + z + log 2 pi) / 2 for a head (m, z) with z = log s^2, and a target value y.

    The factor s^(2 beta) carries no gradient: it takes the weight 1 / s^2 back that makes the plain likelihood (beta 0)
    learn least where it errs most; at beta 1 the mean learns as by a squared error. ``shared`` puts the mean of the
    peers' log variances in the place of each one's own: elements (rows, K).

    Source: Seitzer et al., On the Pitfalls of Heteroscedastic Uncertainty Estimation with Probabilistic Neural
    Networks, ICLR 2022.

    Raises:
        RecipeError: beta outside [0, 1].

    >>> round(GaussianNLL()(torch.tensor([[1.0, 0.0]]), Target(torch.tensor([[1.0]]), "values")).item(), 4)
    0.9189
    """

    beta: float = 0.0
    shared: bool = False
    student_spaces: ClassVar[frozenset[str]] = frozenset({"gaussian"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"values"})

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta <= 1.0:
            raise RecipeError(f"beta lies in [0, 1]: 0 is the likelihood, 1 weighs all rows alike; not {self.beta}")

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        target.fits(1)
        mean, log_variance = student.unbind(-1)
        if self.shared:
            if student.dim() < 3:
                raise SpaceError("a shared log variance is that of several peers; use the head 'peer_gaussians'")
            log_variance = log_variance.mean(-1, keepdim=True).expand_as(mean)
        error = (target.value.squeeze(-1) - mean).square()
        nll = 0.5 * (error * torch.exp(-log_variance) + log_variance + math.log(2.0 * math.pi))
        return torch.exp(self.beta * log_variance.detach()) * nll if self.beta else nll


@dataclass(frozen=True)
class GaussianKL(Loss):
    """KL(target || student) of two normal distributions given as (mean, log variance).

    log(s2 / s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2, with 1 the target and 2 the student.
    """

    student_spaces: ClassVar[frozenset[str]] = frozenset({"gaussian"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"gaussian"})

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        m2, z2 = student.unbind(-1)
        m1, z1 = target.value.unbind(-1)
        return 0.5 * (z2 - z1 + (torch.exp(z1) + (m1 - m2).square()) * torch.exp(-z2) - 1.0)


@dataclass(frozen=True)
class MeanNLL(Loss):
    """((m_t - m)^2 exp(-z_t) + z_t) / 2: the negative log likelihood of the mean under the target; no gradient to z."""

    student_spaces: ClassVar[frozenset[str]] = frozenset({"gaussian"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"gaussian"})

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        mean, log_variance = target.value.unbind(-1)
        return 0.5 * ((mean - student[..., 0]).square() * torch.exp(-log_variance) + log_variance)


@dataclass(frozen=True)
class LogVariances(Loss):
    """(z_t - z)^2, the squared distance of two log variances; no gradient to the means."""

    student_spaces: ClassVar[frozenset[str]] = frozenset({"gaussian"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"gaussian"})

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        return (target.value[..., 1] - student[..., 1]).square()


@dataclass(frozen=True)
class PairCrossEntropy(Loss):
    """For each row i the mean over rows j of the batch, i too, of CE(t_ij, softmax(a_i - a_j)), a the head ``ranks``.

    Of values y, t_ij is (1, 0) where y_i > y_j, (0, 1) where y_i < y_j, and even between equals. Of ranks it is the
    more probable side of softmax(a'_i - a'_j), and a pair below ``confidence`` counts as 0. Rows without a target are
    left out of all pairs. With several micro-batches, pairs are within one.

    Source: Huang, Fu and Tsao, RankUp, NeurIPS 2024.
    """

    confidence: float = 0.0
    student_spaces: ClassVar[frozenset[str]] = frozenset({"ranks"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"values", "ranks"})

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        log_p = F.log_softmax(student.unsqueeze(1) - student.unsqueeze(0), dim=-1)  # (rows, partners, ..., 2)
        if target.space == "values":
            target.fits(1)
            y = target.value.squeeze(-1)
            order = 0.5 + 0.5 * torch.sign(y.unsqueeze(1) - y.unsqueeze(0))
            loss = -(order * log_p[..., 0] + (1.0 - order) * log_p[..., 1])
        else:
            target.fits(2)
            confidence, best = F.softmax(target.value.unsqueeze(1) - target.value.unsqueeze(0), dim=-1).max(-1)
            loss = -log_p.gather(-1, best.unsqueeze(-1)).squeeze(-1) * (confidence >= self.confidence)
        if target.valid is None:
            return loss.mean(1)
        partners = target.valid.to(loss.dtype)
        return (loss * partners).sum(1) / partners.sum(0).clamp(min=1.0)


def check_spaces(loss: Loss, student: str, target: str) -> str | None:
    """The reason why a loss cannot compare these spaces; None if it can. A plain function is not checked."""
    name = type(loss).__name__
    sides = (("student", loss.student_spaces, student), ("target", loss.target_spaces, target))
    for side, spaces, space in sides:
        if spaces is not None and space not in spaces:
            return f"{name} compares a {side} of {' or '.join(sorted(spaces))}, not of {space}"
    if {student, target} <= {"values", "features"} and student != target:
        return f"{name} was given a student of {student} and a target of {target}"
    if isinstance(loss, Squared) and (student == "logits") != (target in DISTRIBUTIONS):
        return f"{name} was given a student of {student} and a target of {target}"
    return None


@dataclass(frozen=True)
class Entropy(Loss):
    """-sum_c p_c log p_c of the student alone, whatever the target says: minimising it makes the student decide.

    Source: Grandvalet and Bengio, Semi-supervised Learning by Entropy Minimization, NeurIPS 2004.

    >>> import torch
    >>> round(Entropy()(torch.zeros(1, 4), Target(torch.zeros(1, 4), "logits")).item(), 4)
    1.3863
    """

    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    flat: ClassVar[bool] = True

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        log_p = F.log_softmax(student, dim=-1)
        return -(log_p.exp() * log_p).sum(-1)


@dataclass(frozen=True)
class Excluding(Loss):
    """-sum_c m_c log(1 - p_c) / sum_c m_c for a target mask m of excluded classes.

    log(1 - p) is computed from 1 - exp(log p) with log p at most -1e-7, so that it stays finite at p = 1.

    Source: Rizve et al., UPS, ICLR 2021, negative cross-entropy.

    >>> m = Target(torch.tensor([[0.0, 1.0, 1.0, 1.0]]), "excluded")
    >>> round(Excluding()(torch.zeros(1, 4), m).item(), 4)  # -log(3/4)
    0.2877
    """

    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"excluded"})

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        target.fits(student.shape[-1])
        log_rest = torch.log(-torch.expm1(F.log_softmax(student, dim=-1).clamp(max=-1e-7)))  # log(1 - p)
        return -(target.value * log_rest).sum(-1) / target.value.sum(-1).clamp(min=1.0)


@dataclass(frozen=True)
class ClassPrior(Loss):
    """KL(uniform || mean of p over the rows of the batch), the same number for every row: it keeps all classes in use.

    With several micro-batches the mean is that of one of them.

    Source: Tanaka et al., Joint Optimization Framework for Learning with Noisy Labels, CVPR 2018.

    >>> ClassPrior()(torch.tensor([[9.0, 0.0], [0.0, 9.0]]), Target(torch.zeros(2, 2), "logits")).abs().max() < 1e-6
    tensor(True)
    """

    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_spaces: ClassVar[frozenset[str]] = DISTRIBUTIONS

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        log_p = F.log_softmax(student, dim=-1)
        log_mean = torch.logsumexp(log_p, dim=0) - math.log(len(student))  # (..., classes): finite where p underflows
        prior = -log_mean.mean(-1) - math.log(student.shape[-1])
        return prior.expand(student.shape[:-1])


@dataclass(frozen=True)
class Sharpened(Loss):
    """``loss`` against t^(1/T), normalised: a sharper target at temperatures below 1, a softer one above.

    The gate still weighs the original target. (`CrossEntropy` and `KL` apply their temperature to both sides.)

    Source: Xie et al., Unsupervised Data Augmentation, NeurIPS 2020 (T = 0.4); Berthelot et al., MixMatch, NeurIPS
    2019 (T = 0.5).

    Raises:
        RecipeError: a temperature that is not above 0, or a loss that compares no distributions.

    >>> import torch
    >>> said = Target(torch.tensor([[0.6, 0.4]]), "probabilities")
    >>> round(Sharpened(CrossEntropy(), 0.5)(torch.tensor([[1.0, 0.0]]), said).item(), 4)  # against 9/13, 4/13
    0.621
    """

    loss: Loss = CrossEntropy()
    temperature: float = 0.4
    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_spaces: ClassVar[frozenset[str]] = DISTRIBUTIONS
    flat = property(lambda self: self.loss.flat)
    signed = property(lambda self: self.loss.signed)

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise RecipeError(f"a temperature is above 0, not {self.temperature}")
        object.__setattr__(self, "loss", as_loss(self.loss))
        if self.loss.target_spaces is not None and "probabilities" not in self.loss.target_spaces:
            raise RecipeError(f"Sharpened needs a loss on distributions, not {type(self.loss).__name__}")

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        sharpened = target.probabilities(student.shape[-1], self.temperature)
        return self.loss(student, Target(sharpened, "probabilities", target.valid))


@dataclass(frozen=True)
class AmongOthers(Loss):
    """KL(t || p^) over the classes with a target above 0, p^ = softmax over those alone.

    A target that leaves the label's class out compares the others, whatever the student gives to the label.

    >>> target = Target(torch.tensor([[0.0, 0.5, 0.5]]), "probabilities")
    >>> AmongOthers()(torch.tensor([[9.0, 1.0, 1.0]]), target).item()
    0.0
    """

    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"probabilities"})
    flat: ClassVar[bool] = True  # 0 where the two differ about the label's class alone

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        target.fits(student.shape[-1])
        t = target.value
        excluded = t <= 0
        log_p = F.log_softmax(student.masked_fill(excluded, torch.finfo(student.dtype).min), dim=-1)
        return (t * (t.clamp(min=1e-30).log() - log_p)).masked_fill(excluded, 0.0).sum(-1)


@dataclass(frozen=True)
class SelfWeighted(Loss):
    """-(s^2 + 1 - mean s^2) log s with s = p_y: a row counts more the more probable its label is.

    The weight carries no gradient; the mean is over the rows of the micro-batch that have a label (USKD, Yang et al.
    2023).

    >>> logits = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    >>> [round(x, 4) for x in SelfWeighted()(logits, Target(torch.tensor([0, 1]), "classes")).tolist()]
    [0.6931, 0.6931]
    """

    mixes: ClassVar[bool] = True  # it looks at other rows of the batch
    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"classes"})

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        label = target.value.clamp(min=0).unsqueeze(-1)
        log_s = F.log_softmax(student, dim=-1).gather(-1, label).squeeze(-1)
        squares = log_s.detach().exp().square()
        valid = torch.ones_like(squares) if target.valid is None else target.valid.to(squares.dtype)
        mean = (squares * valid).sum(0) / valid.sum(0).clamp(min=1.0)
        return -(squares + 1.0 - mean) * log_s


@dataclass(frozen=True)
class KLFromStudent(Loss):
    """T^2 sum_c p_c (log p_c - log t_c): reverse KL, from the student to the target, at one temperature.

    A hard target would be infinitely far: no t_c counts as less than the smallest normal number of its dtype.

    >>> KLFromStudent(temperature=2.0)(torch.ones(1, 3), Target(torch.zeros(1, 3), "logits")).item()
    0.0
    """

    temperature: float = 1.0
    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"logits", "probabilities"})

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        log_p = F.log_softmax(tempered(student, self.temperature), dim=-1)
        log_t = target.log_probabilities(student.shape[-1], self.temperature)
        log_t = log_t.clamp(min=math.log(torch.finfo(log_t.dtype).tiny))
        return self.temperature**2 * (log_p.exp() * (log_p - log_t)).sum(-1)


@dataclass(frozen=True)
class DirichletNLL(Loss):
    """The negative log likelihood of an ensemble's members under a Dirichlet distribution, concentrations exp(z / T).

    Equation::

        sum_c lgamma(a_c) - lgamma(sum_c a_c) - sum_c (a_c - 1) mean_m log p_mc,  a = exp(z / T)
        p_m = (1 - s) softmax(z_m / T) + s / C

    The target has the logits of the members side by side. The loss is that of a density, so it may be negative.

    Source: Malinin, Mlodozeniec and Gales, Ensemble Distribution Distillation, ICLR 2020; the smoothing s keeps members
    that are sure from an infinite loss.

    >>> round(DirichletNLL()(torch.zeros(1, 2), Target(torch.zeros(1, 6), "members")).item(), 4)
    0.0
    """

    temperature: float = 1.0
    smoothing: float = 1e-4
    student_spaces: ClassVar[frozenset[str]] = frozenset({"logits"})
    target_spaces: ClassVar[frozenset[str]] = frozenset({"members"})
    signed: ClassVar[bool] = True

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        classes = student.shape[-1]
        if target.value.shape[-1] % classes:
            raise SpaceError(f"{target.value.shape[-1]} logits are no whole number of members with {classes} classes")
        p = F.softmax(tempered(target.value.unflatten(-1, (-1, classes)), self.temperature), dim=-1)
        log_mean = ((1.0 - self.smoothing) * p + self.smoothing / classes).log().mean(-2)
        a = torch.exp(tempered(student, self.temperature))
        return torch.lgamma(a).sum(-1) - torch.lgamma(a.sum(-1)) - ((a - 1.0) * log_mean).sum(-1)
