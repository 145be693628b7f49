"""Meta pseudo-labels: the teacher's feedback as q_k (v_k - <q, v>), v a directional derivative of the student's log p.

With smoothing e the label of class c is (1 - e) q_c + e (1 - q_c) / (C - 1), whose slope in q_c scales v.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tests.harness import CLASSES, Recorded, beside, short_share

OTHER = {
    "meta": 3.0, "rate": 0.2, "weight": 2.0, "ramp": 0.5, "temperature": 0.5, "confidence": 0.33, "smoothing": 0.05,
    "tune": 0.4, "ratio": 2.0,
}  # fmt: skip


def soft(z: Tensor, t: Tensor) -> Tensor:
    """Mean cross-entropy against a distribution."""
    return -(t * z.log_softmax(1)).sum(1).mean()


def feedback(
    student: nn.Module, u: Tensor, z: Tensor, x: Tensor, y: Tensor, rate: float, e: float
) -> tuple[float, Tensor]:
    """The student's labelled loss after a step of plain gradient descent, and its gradient in the teacher's logits."""
    norms = [m for m in student.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.track_running_stats = False
    q, names = z.softmax(1), [name for name, _ in student.named_parameters()]
    smooth = (1 - e) * q + e * (1 - q) / (CLASSES - 1)

    def says(*weights: Tensor) -> Tensor:
        return functional_call(student, dict(zip(names, weights, strict=True)), (u,)).log_softmax(1)  # type: ignore[no-any-return]

    weights = [p.detach().clone().requires_grad_() for p in student.parameters()]
    slopes = torch.autograd.grad(-(smooth * says(*weights)).sum(1).mean(), weights)
    moved = [(p - rate * s).detach().requires_grad_() for p, s in zip(weights, slopes, strict=True)]
    loss = F.cross_entropy(functional_call(student, dict(zip(names, moved, strict=True)), (x,)), y)
    along = torch.autograd.grad(loss, moved)
    v = torch.autograd.functional.jvp(says, tuple(weights), along)[1]
    v = rate / len(u) * (1 - e - e / (CLASSES - 1)) * v
    for norm in norms:
        norm.track_running_stats = True
    return loss.item(), q * (v - (q * v).sum(1, keepdim=True))


def oracle(
    run: Recorded,
    meta: float = 1.0,
    rate: float = 0.1,
    weight: float = 1.0,
    ramp: float = 0.4,
    temperature: float = 0.7,
    confidence: float = 0.6,
    smoothing: float = 0.15,
    tune: float = 0.75,
    ratio: float | None = None,
) -> tuple[list[float], nn.Module]:
    pair = run.model()
    student, teacher = pair.members  # type: ignore[misc]
    optimizer, losses = run.optimizer(pair), list[float]()
    for clock, batch in run.batches():
        x, y, weak, u = batch["labelled"].x, batch["labelled"].y, batch["weak"].x, batch["strong"].x
        assert len(u) == beside(clock, ratio, 7.0, 300_000)
        t = clock.step / (clock.epochs * clock.per_epoch)
        sx, tx, su, tu = student(x), teacher(x), student(u), teacher(u)
        with torch.no_grad():
            student(weak)
            tw = teacher(weak)
        own = (1 - smoothing - smoothing / (CLASSES - 1)) * F.one_hot(y, CLASSES) + smoothing / (CLASSES - 1)
        q = tu.detach().softmax(1)
        taught = soft(su, (1 - smoothing) * q + smoothing * (1 - q) / (CLASSES - 1))
        sure = (tw.softmax(1).amax(1) >= confidence).float()
        alike = (-((tw / temperature).softmax(1) * tu.log_softmax(1)).sum(1) * sure).mean()
        late = t >= short_share(clock, 1 - tune, 0.9, 300_000)
        loss = (
            soft(tx, own)
            + weight * min(1.0, t / short_share(clock, ramp, 1 / 60, 300_000)) * alike
            + (F.cross_entropy(sx, y) if late else taught)
        )
        reported = loss.item()
        if meta and not late:
            after, signal = feedback(student, u, tu.detach(), x, y, rate, smoothing)
            reported, loss = reported + meta * after, loss + meta * (signal * tu).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(reported)
    return losses, pair
