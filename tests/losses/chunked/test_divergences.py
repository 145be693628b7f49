"""Every divergence on every support in float64, against straight lines that hold all logits (`naive`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from selfdistill.core.logits import FEW, MANY, Gradients, Projection, SparseLogProbs, read
from selfdistill.losses.chunked import sweep
from selfdistill.losses.chunked.definitions import (
    K2,
    Divergence,
    ForwardKL,
    JensenShannon,
    PartialKL,
    ReverseKL,
    SampledReverseKL,
    SkewKL,
    TotalVariation,
)
from selfdistill.losses.chunked.divergences import divergence, log_probabilities
from selfdistill.losses.chunked.sweep import TopK, Truncated
from tests.losses.chunked import naive

TOKENS, OUTPUTS, VOCABULARY = 7, 16, 13
KINDS: dict[Divergence, naive.Entries] = {
    ForwardKL(): naive.forward,
    ForwardKL(0.05): naive.clipped(naive.forward, 0.05),
    ReverseKL(): naive.reverse,
    ReverseKL(0.05): naive.clipped(naive.reverse, 0.05),
    JensenShannon(0.0): naive.forward,
    JensenShannon(0.1): naive.js(0.1),
    JensenShannon(0.5): naive.js(0.5),
    JensenShannon(0.9): naive.js(0.9),
    JensenShannon(1.0): naive.reverse,
    SkewKL(0.0): naive.forward,
    SkewKL(0.1): naive.skew(0.1),
    SkewKL(0.3, reverse=True): naive.skew(0.3, reverse=True),
    TotalVariation(): naive.variation,
}
SUPPORTS = ["full", "teacher", "student", "union", "ids", "all ids"]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Sides(NamedTuple):
    """A student that learns and a teacher of another width, both with a bias; the last outputs are padding."""

    hidden: Tensor
    matrix: Tensor
    bias: Tensor
    teacher: Projection
    labels: Tensor
    weight: Tensor

    @property
    def student(self) -> Projection:
        return Projection(self.hidden, self.matrix, self.bias)

    @property
    def leaves(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.hidden, self.matrix, self.bias

    def p(self, temperature: float = 1.0) -> Tensor:
        return naive.probabilities(self.hidden @ self.matrix.T + self.bias, VOCABULARY, temperature)

    def q(self, temperature: float = 1.0) -> Tensor:
        hidden, matrix, bias = self.teacher[:3]
        assert bias is not None
        return naive.probabilities(hidden @ matrix.T + bias, VOCABULARY, temperature)


@pytest.fixture
def sides() -> Sides:
    hidden, matrix, bias = normal(TOKENS, 6, seed=0), normal(OUTPUTS, 6, seed=1), normal(OUTPUTS, seed=2)
    teacher = Projection(normal(TOKENS, 5, seed=3), normal(OUTPUTS + 2, 5, seed=4), normal(OUTPUTS + 2, seed=5))
    labels = torch.tensor([0, 12, 3, 3, 7, 1, 5])
    learns = [x.requires_grad_() for x in (hidden, matrix, bias)]
    return Sides(learns[0], learns[1], learns[2], teacher, labels, normal(TOKENS, seed=6))


def support_of(name: str, sides: Sides, k: int = 4) -> tuple[TopK | Tensor | None, list[list[int]] | None]:
    """The support for the package, and its ids for the reference."""
    by_student, by_teacher = naive.top(sides.p(), k), naive.top(sides.q(), k)
    if name in ("full", "all ids"):
        every = [list(range(VOCABULARY))] * TOKENS
        return (None, None) if name == "full" else (torch.tensor(every), every)
    if name == "ids":
        ids = [[(3 * i + j * j) % VOCABULARY for j in range(1, 4)] for i in range(TOKENS)]
        return torch.tensor(ids), ids
    union = [sorted({*a, *b}) for a, b in zip(by_student, by_teacher, strict=True)]
    return TopK(k, name), {"teacher": by_teacher, "student": by_student, "union": union}[name]


def agree(ours: tuple[Tensor | None, ...], naively: tuple[Tensor | None, ...]) -> None:
    """To 1e-12 of the largest entry."""
    for a, b in zip(ours, naively, strict=True):
        assert a is not None
        assert b is not None
        assert b.abs().max() > 0
        assert (a - b).abs().max() <= 1e-12 * b.abs().max()


def values(sides: Sides, teacher: Projection | SparseLogProbs, kind: Divergence, **options: Any) -> Tensor:
    """Differentiable values."""
    return divergence(sides.student, teacher, kind, vocabulary=VOCABULARY, recompute=True, **options).values


@pytest.mark.parametrize("name", SUPPORTS)
@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_values_and_gradients_are_those_of_full_logits(
    sides: Sides, kind: Divergence, name: str, temperature: float
) -> None:
    """Both doors: weights given beforehand, and any upstream gradient afterwards; with padding and with labels."""
    support, ids = support_of(name, sides)
    entries, tempered = KINDS[kind], replace(kind, temperature=temperature)
    values = naive.compare(entries, sides.q(temperature), sides.p(temperature), ids)
    surprise = -sides.p().gather(1, sides.labels[:, None]).squeeze(1).log()
    loss = (sides.weight * values + 0.3 * surprise).sum()
    wanted = torch.autograd.grad(loss, sides.leaves, retain_graph=True)
    options: dict[str, Any] = {"support": support, "vocabulary": VOCABULARY, "chunk": 3}

    found = divergence(
        sides.student, sides.teacher, tempered, weight=sides.weight, labels=sides.labels, label_weight=0.3, **options
    )
    agree((found.values, found.cross_entropy, found.total), (values, surprise, loss))
    agree(torch.autograd.grad(found.total, sides.leaves), wanted)

    again = divergence(sides.student, sides.teacher, tempered, labels=sides.labels, recompute=True, **options)
    agree((again.values, again.cross_entropy, again.total), (values, surprise, (values + surprise).sum()))
    assert again.cross_entropy is not None
    ours, theirs = (again.values * again.cross_entropy.exp()).sum(), (values * surprise.exp()).sum()
    agree(torch.autograd.grad(ours, sides.leaves), torch.autograd.grad(theirs, sides.leaves))


@pytest.mark.parametrize("kind", [*KINDS, K2(), SampledReverseKL()], ids=repr)
def test_cached_targets_are_the_teacher_on_these_ids(sides: Sides, kind: Divergence) -> None:
    """True probabilities with the tail's mass give what the teacher at hand gives."""
    ids = sides.labels if kind.sampled else torch.tensor(naive.top(sides.q(), 4))
    log_q = sides.q().log().gather(1, ids.view(TOKENS, -1)).view(ids.shape)
    cached = values(sides, SparseLogProbs(ids, log_q), kind)
    online = values(sides, sides.teacher, kind, support=ids)
    agree((cached,), (online,))
    agree(torch.autograd.grad(cached.sum(), sides.leaves), torch.autograd.grad(online.sum(), sides.leaves))


def test_sampled_forms_are_their_formulas(sides: Sides) -> None:
    picked = sides.labels[:, None]
    log_p, log_q = sides.p(2.0).gather(1, picked).squeeze(1).log(), sides.q(2.0).gather(1, picked).squeeze(1).log()
    formulas = {
        SampledReverseKL(temperature=2.0): (log_p - log_q).detach() * log_p,
        K2(temperature=2.0): (log_p - log_q).square() / 2,
    }
    for kind, values in formulas.items():
        found = divergence(
            sides.student, sides.teacher, kind, support=sides.labels, weight=sides.weight, vocabulary=VOCABULARY
        )
        agree((found.values,), (values,))
        loss = (sides.weight * values).sum()
        agree(
            torch.autograd.grad(found.total, sides.leaves), torch.autograd.grad(loss, sides.leaves, retain_graph=True)
        )
    ours = log_probabilities(sides.student, sides.labels, temperature=2.0, vocabulary=VOCABULARY)
    agree((ours,), (log_p,))
    agree(torch.autograd.grad(ours.exp().sum(), sides.leaves), torch.autograd.grad(log_p.exp().sum(), sides.leaves))


@pytest.mark.parametrize("name", ["full", "union"])
def test_logits_as_they_are_give_the_same(sides: Sides, name: str) -> None:
    z = (sides.hidden @ sides.matrix.T + sides.bias).detach().requires_grad_()
    hidden, matrix, bias = sides.teacher[:3]
    assert bias is not None
    support, _ = support_of(name, sides)
    options: dict[str, Any] = {"support": support, "vocabulary": VOCABULARY, "chunk": 2}
    found = divergence(z, hidden @ matrix.T + bias, JensenShannon(0.3), labels=sides.labels, **options)
    same = divergence(sides.student, sides.teacher, JensenShannon(0.3), labels=sides.labels, **options)
    agree((found.values, found.total), (same.values, same.total))
    (g,) = torch.autograd.grad(found.total, z)
    agree((g @ sides.matrix, g.T @ sides.hidden, g.sum(0)), torch.autograd.grad(same.total, sides.leaves))


def test_the_size_of_chunks_and_blocks_changes_nothing(sides: Sides, monkeypatch: pytest.MonkeyPatch) -> None:
    def everything(chunk: int | None) -> tuple[Tensor, ...]:
        found = divergence(
            sides.student, sides.teacher, SkewKL(), weight=sides.weight, labels=sides.labels, vocabulary=VOCABULARY,
            chunk=chunk,
        )  # fmt: skip
        assert found.cross_entropy is not None
        return (found.values, found.cross_entropy, *torch.autograd.grad(found.total, sides.leaves))

    whole = everything(None)
    for chunk, block in ((1, 1), (4, 2 * VOCABULARY), (7, 5 * VOCABULARY)):
        monkeypatch.setattr(sweep, "BLOCK", block)
        agree(everything(chunk), whole)


def test_tokens_may_have_any_leading_shape(sides: Sides) -> None:
    """(batch, length, width): results and weights have the shape (batch, length)."""
    hidden, matrix, bias = normal(2, 3, 6, seed=0), sides.matrix, sides.bias
    teacher = normal(2, 3, 5, seed=1) @ normal(OUTPUTS, 5, seed=2).T
    weight, mask = torch.tensor([[2.0], [0.5]]), torch.tensor([[True, True, False], [False, True, True]])
    ids = torch.tensor([[[0, 4], [1, 3], [5, 2]]] * 2)
    found = divergence(
        Projection(hidden, matrix, bias),
        teacher,
        ReverseKL(),
        support=ids,
        weight=weight,
        mask=mask,
        labels=ids[..., 0],
    )
    flat = divergence(
        Projection(hidden.flatten(0, 1), matrix, bias), teacher.flatten(0, 1), ReverseKL(), support=ids.flatten(0, 1)
    )
    assert found.values.shape == (2, 3)
    assert found.tokens == 4
    agree((found.values,), (flat.values.view(2, 3) * mask,))
    assert found.cross_entropy is not None
    total = (weight * found.values + found.cross_entropy).sum()
    agree((found.total, found.mean), (total, total / 4))


@pytest.mark.parametrize("frozen", ["matrix and bias", "hidden"])
def test_what_is_frozen_gets_no_gradient_and_costs_none(
    sides: Sides, frozen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a frozen matrix (LoRA) its gradient is not even allocated."""
    made: list[list[bool]] = []

    class Watched(Gradients):
        def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
            made.append([g is not None for g in (self.first, self.weight, self.bias)])
            return super().result()

    monkeypatch.setattr(sweep, "Gradients", Watched)
    full = divergence(sides.student, sides.teacher, ForwardKL(), vocabulary=VOCABULARY)
    wanted = torch.autograd.grad(full.total, sides.leaves)
    learns = [False, True, True] if frozen == "hidden" else [True, False, False]
    parts = [x if on else x.detach() for x, on in zip(sides.leaves, learns, strict=True)]
    for again in (False, True):
        student = Projection(parts[0], parts[1], parts[2])
        total = divergence(student, sides.teacher, ForwardKL(), vocabulary=VOCABULARY, recompute=again).total
        leaves = [x for x, on in zip(parts, learns, strict=True) if on]
        agree(torch.autograd.grad(total, leaves), tuple(g for g, on in zip(wanted, learns, strict=True) if on))
        assert made[-1] == learns
    with torch.no_grad():
        assert not divergence(sides.student, sides.teacher, ForwardKL(), vocabulary=VOCABULARY).total.requires_grad
    assert len(made) == 3


def test_no_gradient_flows_to_the_teacher(sides: Sides) -> None:
    hidden, matrix, bias = (x.clone().requires_grad_() for x in sides.teacher[:3] if x is not None)
    teacher = Projection(hidden, matrix, bias)
    divergence(sides.student, teacher, JensenShannon(), vocabulary=VOCABULARY).total.backward()
    divergence(sides.student, teacher, JensenShannon(), vocabulary=VOCABULARY, recompute=True).total.backward()
    assert sides.hidden.grad is not None
    assert all(x is not None and x.grad is None for x in teacher[:3])


def test_gradients_are_scaled_by_what_comes_from_above_and_handed_out_once(sides: Sides) -> None:
    wanted = torch.autograd.grad(
        divergence(sides.student, sides.teacher, ForwardKL(), vocabulary=VOCABULARY).total, sides.leaves
    )
    total = divergence(sides.student, sides.teacher, ForwardKL(), vocabulary=VOCABULARY).total
    scaled = torch.autograd.grad(total / 3, sides.leaves, retain_graph=True)
    agree(tuple(3 * g for g in scaled), wanted)
    with pytest.raises(Exception, match="handed out once"):
        total.backward()


@pytest.mark.parametrize("tokens", [FEW, FEW + 1])
def test_logits_of_a_whole_vocabulary_are_those_of_the_formula(tokens: int) -> None:
    hidden, matrix = torch.randn(tokens, 5), torch.randn(MANY // FEW, 5)
    found = read(Projection(hidden, matrix), slice(0, tokens), torch.empty(tokens, len(matrix)))
    assert torch.allclose(found, torch.einsum("tw,vw->tv", hidden, matrix), atol=1e-5)


@pytest.mark.parametrize("side", ["teacher", "student", "union"])
@pytest.mark.parametrize("renormalised", [True, False])
def test_a_truncated_support_leaves_out_the_rest(sides: Sides, side: str, renormalised: bool) -> None:
    _, ids = support_of(side, sides)
    kind: Divergence = ReverseKL() if renormalised else PartialKL()
    rows = []
    for every_p, every_q, few in zip(sides.p(), sides.q(), ids or [], strict=True):
        p, q = every_p[few], every_q[few]
        mine, theirs = p / p.sum(), q / q.sum()
        rows.append((mine * (mine / theirs).log()).sum() if renormalised else (q * (q / p).log()).sum())
    wanted = torch.stack(rows)
    support = Truncated(4, side, renormalised)
    ours = values(sides, sides.teacher, kind, support=support)
    found = divergence(
        sides.student, sides.teacher, kind, support=support, weight=sides.weight, vocabulary=VOCABULARY, chunk=3
    )
    agree((ours, found.values, found.total), (wanted, wanted, (sides.weight * wanted).sum()))
    gradients = torch.autograd.grad((sides.weight * wanted).sum(), sides.leaves, retain_graph=True)
    agree(torch.autograd.grad(found.total, sides.leaves), gradients)
    agree(torch.autograd.grad((sides.weight * ours).sum(), sides.leaves), gradients)


def test_a_partial_divergence_over_all_tokens_is_the_forward_one_and_may_else_be_negative(sides: Sides) -> None:
    everything = values(sides, sides.teacher, PartialKL(), support=Truncated(VOCABULARY, renormalised=False))
    torch.testing.assert_close(everything, values(sides, sides.teacher, ForwardKL()))
    few = values(sides, sides.teacher, PartialKL(), support=Truncated(2, "student", renormalised=False))
    assert float(few.detach().min()) < 0
