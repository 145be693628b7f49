"""What must hold of a divergence whatever its code: limits, signs, zeros, masks, traps of sampling, and digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from selfdistill.core.logits import Projection, SparseLogProbs
from selfdistill.errors import DataError, RecipeError, SelfdistillError
from selfdistill.losses.chunked.definitions import (
    K2,
    Divergence,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SampledReverseKL,
    SkewKL,
    TotalVariation,
)
from selfdistill.losses.chunked.divergences import divergence, estimates, importance, log_probabilities
from selfdistill.losses.chunked.sweep import TopK
from tests.losses.chunked import naive

KINDS = [
    ForwardKL(),
    ReverseKL(),
    JensenShannon(0.2),
    JensenShannon(0.7),
    SkewKL(),
    SkewKL(reverse=True),
    TotalVariation(),
]
SUPPORTS = [
    None,
    TopK(3),
    TopK(3, "student"),
    TopK(3, "union"),
    TopK(9),
    torch.tensor([[0, 5], [1, 2], [8, 3], [4, 0]]),
]


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def values(z: Tensor, t: Tensor | SparseLogProbs, kind: Divergence, **options: Any) -> Tensor:
    return divergence(z, t, kind, **options).values


def gradient(z: Tensor, t: Tensor | SparseLogProbs, kind: Divergence, **options: Any) -> Tensor:
    z = z.clone().requires_grad_()
    (g,) = torch.autograd.grad(divergence(z, t, kind, **options).total, z)
    return g


# limits ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("support", [None, TopK(4, "union")], ids=["full", "union"])
@pytest.mark.parametrize(("end", "kl"), [(0.0, ForwardKL()), (1.0, ReverseKL())])
def test_jensen_shannon_is_continuous_in_beta_up_to_the_ends(end: float, kl: Divergence, support: TopK | None) -> None:
    """The distance from the KL shrinks in proportion to that from the end, in value and gradient, without noise."""
    z, t = normal(4, 9, seed=0), normal(4, 9, seed=1)
    at_end, slope = values(z, t, kl, support=support), gradient(z, t, kl, support=support)
    torch.testing.assert_close(values(z, t, JensenShannon(end), support=support), at_end, rtol=1e-14, atol=0)
    off = []
    for step in (1e-3, 1e-6, 1e-9, 1e-12):
        near = JensenShannon(abs(end - step))
        off.append((values(z, t, near, support=support) - at_end).abs().max().item())
        assert off[-1] < 50 * step
        assert (gradient(z, t, near, support=support) - slope).abs().max() < 50 * step
    assert off[0] / off[1] == pytest.approx(1e3, rel=0.05)
    assert off[1] / off[2] == pytest.approx(1e3, rel=0.05)


def test_near_the_ends_float32_keeps_its_digits() -> None:
    z, t = normal(64, 500, seed=0), normal(64, 500, seed=1)
    for beta in (1e-7, 1e-5, 0.3, 1 - 1e-5):
        exact, single = values(z, t, JensenShannon(beta)), values(z.float(), t.float(), JensenShannon(beta))
        torch.testing.assert_close(single.double(), exact, rtol=3e-6, atol=0)


# signs and zeros ------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10**6), st.sampled_from([1e-4, 0.1, 3.0, 40.0]), st.sampled_from([torch.float32, torch.float64]))
def test_no_support_gives_a_negative_or_an_endless_value(seed: int, scale: float, dtype: torch.dtype) -> None:
    z, t = scale * normal(4, 9, seed=seed, dtype=dtype), scale * normal(4, 9, seed=seed + 1, dtype=dtype)
    for kind in KINDS:
        for support in SUPPORTS:
            found = values(z, t, kind, support=support)
            assert bool((found >= 0).all())
            assert bool(torch.isfinite(found).all())
            assert bool(torch.isfinite(gradient(z, t, kind, support=support)).all())


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_values_before_the_cut_at_0_are_not_negative_either(kind: Divergence) -> None:
    """Buckets make a true divergence of fewer entries: no more than that of the full vocabulary, and above 0."""
    z, t = normal(4, 9, seed=2), normal(4, 9, seed=3)
    whole = values(z, t, kind)
    for support in SUPPORTS[1:]:
        part = values(z, t, kind, support=support)
        assert bool((part > 1e-6).all())
        assert bool((part <= whole + 1e-12).all())


@pytest.mark.parametrize("support", SUPPORTS, ids=repr)
@pytest.mark.parametrize("kind", [*KINDS, ForwardKL(0.05), ReverseKL(0.05)], ids=repr)
def test_equal_distributions_are_at_0_with_gradient_0(kind: Divergence, support: TopK | Tensor | None) -> None:
    z = normal(4, 9, seed=4)
    t = z if kind == TotalVariation() else z + 3.0  # which has a kink there: rounding would choose a side
    assert values(z, t, kind, support=support).abs().max() < 1e-14
    assert gradient(z, t, kind, support=support).abs().max() < 1e-14


def test_what_a_teacher_rules_out_counts_as_probability_0() -> None:
    """-inf among the logits, on one side or both: 0 log 0 is 0."""
    z, t = normal(2, 6, seed=5), normal(2, 6, seed=6)
    t[:, 4:], z[:, 5] = -torch.inf, -torch.inf
    p, q = F.softmax(z, -1)[:, :4], F.softmax(t, -1)[:, :4]
    torch.testing.assert_close(values(z, t, ForwardKL()), naive.forward(q, p).sum(1))
    for kind in (ForwardKL(), JensenShannon(), SkewKL(), TotalVariation()):
        assert bool(torch.isfinite(values(z, t, kind)).all())
        assert bool(torch.isfinite(gradient(z, t, kind)).all())


def test_cached_targets_that_leave_no_tail_stay_finite() -> None:
    """Rounded probabilities may sum to 1 or more: the tail is then as small as the rounding."""
    z, ids = normal(2, 6, seed=7, dtype=torch.float32), torch.tensor([[0, 1], [2, 3]])
    cached = SparseLogProbs(ids, torch.tensor([[0.7, 0.3001], [0.5, 0.5]]).log())
    for kind in KINDS:
        assert bool(torch.isfinite(values(z, cached, kind)).all())
        assert bool(torch.isfinite(gradient(z, cached, kind)).all())
    surprise = -(torch.tensor([[0.7, 0.3], [0.5, 0.5]]) * F.log_softmax(z, -1).gather(1, ids)).sum(1)
    entropy = torch.tensor([0.6109, 0.6931])
    torch.testing.assert_close(values(z, cached, ForwardKL()), surprise - entropy, atol=2e-3, rtol=0)


# padding and masks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("support", [None, TopK(3, "union")], ids=["full", "union"])
def test_padding_has_no_probability_whatever_stands_there(support: TopK | None) -> None:
    z, t = normal(4, 9, seed=8), normal(4, 12, seed=9)
    real = values(z, t[:, :9], JensenShannon(), support=support)
    padded = torch.cat([z, torch.full((4, 5), 30.0, dtype=z.dtype)], 1)
    torch.testing.assert_close(values(padded, t, JensenShannon(), support=support, vocabulary=9), real)
    g = gradient(padded, t, JensenShannon(), support=support, vocabulary=9)
    assert bool((g[:, 9:] == 0).all())
    torch.testing.assert_close(g[:, :9], gradient(z, t[:, :9], JensenShannon(), support=support))


def test_a_mask_drops_tokens_and_changes_nothing_else() -> None:
    """What is masked may even be nan, or have no label: it is not read."""
    keep, labels = torch.tensor([True, False, True, True, False, True]), torch.tensor([1, -100, 2, 0, 99, 3])
    hidden, matrix, t = normal(6, 5, seed=10), normal(9, 5, seed=11).requires_grad_(), normal(6, 9, seed=12)
    hidden[~keep], t[~keep] = torch.nan, torch.nan
    hidden.requires_grad_()
    weight, small = normal(6, seed=13), hidden.detach()[keep].requires_grad_()
    for again in (False, True):
        some = divergence(
            Projection(hidden, matrix),
            t,
            ReverseKL(),
            mask=keep,
            weight=weight,
            labels=labels,
            chunk=2,
            recompute=again,
        )
        only = divergence(
            Projection(small, matrix), t[keep], ReverseKL(), weight=weight[keep], labels=labels[keep], recompute=again
        )
        assert some.tokens == only.tokens == 4
        assert some.cross_entropy is not None
        assert only.cross_entropy is not None
        torch.testing.assert_close(some.values[keep], only.values)
        torch.testing.assert_close(some.cross_entropy[keep], only.cross_entropy)
        assert bool((some.values[~keep] == 0).all())
        g, w = torch.autograd.grad(some.total, (hidden, matrix))
        g2, w2 = torch.autograd.grad(only.total, (small, matrix))
        torch.testing.assert_close((g[keep], w), (g2, w2))
        assert bool((g[~keep] == 0).all())


def test_masked_tokens_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No logit is computed for them."""
    computed, mm = [], torch.mm

    def counted(a: Tensor, b: Tensor, **options: Any) -> Tensor:
        computed.append(len(a))
        return mm(a, b, **options)

    monkeypatch.setattr(torch, "mm", counted)
    keep = torch.arange(10) < 3
    matrix = normal(9, 5, seed=1)
    divergence(
        Projection(normal(10, 5, seed=0), matrix), Projection(normal(10, 5, seed=2), matrix), ForwardKL(), mask=keep
    )
    assert computed == [3, 3]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("support", [None, TopK(3, "union")], ids=["full", "union"])
def test_no_tensor_holds_the_logits_of_more_than_a_chunk(support: TopK | None, recompute: bool) -> None:
    """Whatever operation makes it, forward or backward: so memory does not grow with the tokens."""
    largest = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes = [x.numel() for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, Tensor)]
            largest.append(max(sizes, default=0))
            return out

    hidden, matrix = normal(60, 2, seed=0).requires_grad_(), normal(50, 2, seed=1).requires_grad_()
    other, labels = normal(60, 2, seed=2), torch.arange(60) % 50
    options: dict[str, Any] = {"support": support, "labels": labels, "chunk": 4, "recompute": recompute}
    with Watch():
        found = divergence(Projection(hidden, matrix), Projection(other, matrix), JensenShannon(), **options)
        torch.autograd.grad(found.total, (hidden, matrix))
    assert max(largest) == 4 * 50


@pytest.mark.parametrize("recompute", [False, True])
def test_nothing_but_masked_tokens_is_0_with_gradient_0(recompute: bool) -> None:
    hidden, matrix = normal(3, 5, seed=0).requires_grad_(), normal(9, 5, seed=1).requires_grad_()
    none, labels = torch.zeros(3, dtype=torch.bool), torch.full((3,), -100)
    for teacher in (normal(3, 9, seed=2), SparseLogProbs(torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 1))):
        found = divergence(
            Projection(hidden, matrix), teacher, JensenShannon(), mask=none, labels=labels, recompute=recompute
        )
        assert (found.total.item(), found.mean.item(), found.tokens) == (0.0, 0.0, 0)
        assert found.values.tolist() == [0.0, 0.0, 0.0]
        gradients = torch.autograd.grad(found.mean, (hidden, matrix))
        assert all(bool((g == 0).all()) for g in gradients)


# sampled tokens -------------------------------------------------------------------------------------------------------


def expected_gradient(kind: Divergence, z: Tensor, t: Tensor) -> Tensor:
    """Over every token y with its probability under p: exact, without sampling noise."""
    vocabulary = z.shape[1]
    every, p = torch.arange(vocabulary), F.softmax(z, -1)[0]
    return gradient(z.expand(vocabulary, -1), t.expand(vocabulary, -1), kind, support=every, weight=p).sum(0)


def test_sampled_forms_descend_the_reverse_kl_in_expectation() -> None:
    z, t = normal(1, 7, seed=14), normal(1, 7, seed=15)
    reverse, forward = gradient(z, t, ReverseKL())[0], gradient(z, t, ForwardKL())[0]
    for kind in (SampledReverseKL(), K2()):
        torch.testing.assert_close(expected_gradient(kind, z, t), reverse, rtol=1e-12, atol=1e-14)
    assert (reverse - forward).abs().max() > 0.1


def test_backpropagating_k3_descends_the_other_divergence() -> None:
    """The trap: k3 estimates KL(p || q), but its gradient on sampled tokens is that of KL(q || p); that of k1 is 0."""
    z, t = normal(1, 7, seed=14), normal(1, 7, seed=15)
    leaf = z.clone().requires_grad_()
    log_p, log_q = F.log_softmax(leaf, -1)[0], F.log_softmax(t, -1)[0]
    p, r = log_p.exp().detach(), log_q - log_p
    (k3,) = torch.autograd.grad((p * (r.exp() - 1 - r)).sum(), leaf, retain_graph=True)
    (k1,) = torch.autograd.grad((p * -r).sum(), leaf)
    torch.testing.assert_close(k3, gradient(z, t, ForwardKL()), rtol=1e-12, atol=1e-14)
    assert (k3 - gradient(z, t, ReverseKL())).abs().max() > 0.1
    assert k1.abs().max() < 1e-14
    found = estimates(log_p, log_q)
    assert not found.k3.requires_grad
    exact = values(z, t, ReverseKL())[0]
    torch.testing.assert_close(((p * found.k1).sum(), (p * found.k3).sum()), (exact, exact))
    torch.testing.assert_close(found.k2, r.detach().square() / 2)


def test_importance_weights_are_capped_ratios_or_their_means() -> None:
    log_p = torch.tensor([[-1.0, -2.0, -1.0], [-1.0, torch.nan, torch.nan]]).requires_grad_()
    sampler = torch.tensor([[-1.0, -1.0, -9.0], [-0.5, -1.0, -1.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    ratios = torch.tensor([[1.0, torch.tensor(-1.0).exp(), 2.0], [torch.tensor(-0.5).exp(), 0.0, 0.0]])
    found = importance(log_p, sampler, cap=2.0, mask=mask)
    torch.testing.assert_close(found, ratios)
    assert not found.requires_grad
    means = torch.stack([ratios[0].mean().expand(3), ratios[1] * mask[1]])
    torch.testing.assert_close(importance(log_p, sampler, cap=2.0, mask=mask, per="sequence"), means)
    with pytest.raises(RecipeError, match="'word'"):
        importance(log_p, sampler, per="word")


def test_weights_multiply_values_and_gradients() -> None:
    """Importance weights as `weight`: each token's gradient is scaled, after the clip of its entries."""
    z, t, w = normal(4, 9, seed=16), normal(4, 9, seed=17), torch.tensor([0.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    plain = gradient(z, t, ForwardKL(0.02))
    torch.testing.assert_close(gradient(z, t, ForwardKL(0.02), weight=w), w[:, None] * plain)
    learnt = w.clone().requires_grad_()
    with pytest.raises(RecipeError, match="recompute"):
        divergence(z, t, ForwardKL(), weight=learnt)
    found = divergence(z, t, ForwardKL(), weight=learnt, recompute=True)
    (g,) = torch.autograd.grad(found.total, learnt)
    torch.testing.assert_close(g, values(z, t, ForwardKL()))


# digits ---------------------------------------------------------------------------------------------------------------


def near_twins(vocabulary: int = 2000) -> tuple[Projection, Projection]:
    """A self-teacher: hidden states that differ by a hundredth, all in bfloat16."""
    matrix = 0.3 * normal(vocabulary, 64, seed=18)
    hidden = normal(32, 64, seed=19)
    teacher = hidden + 0.02 * normal(32, 64, seed=20)
    low = [x.bfloat16() for x in (hidden, matrix, teacher)]
    return Projection(low[0], low[1]), Projection(low[2], low[1])


@pytest.mark.parametrize("kind", [ForwardKL(), ReverseKL(), JensenShannon(), JensenShannon(0.01)], ids=repr)
def test_near_identical_distributions_in_bfloat16_are_told_apart(kind: Divergence) -> None:
    student, teacher = near_twins()
    far = [side.hidden.double() @ side.matrix.double().T for side in (student, teacher)]
    exact = values(far[0], far[1], kind)
    ours = divergence(student, teacher, kind).values
    assert ours.dtype == torch.float32
    assert ((ours - exact).abs() / exact).max() < 0.01
    if kind == ForwardKL():
        log_p, log_q = (F.log_softmax(side.hidden @ side.matrix.T, -1) for side in (student, teacher))
        naively = F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1)
        assert ((naively - exact).abs() / exact).median() > 0.5


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_of_bfloat16_are_rounded_once(recompute: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Summed over many chunks and tiles in float32, in bfloat16 at the end, even under autocast."""
    monkeypatch.setattr("selfdistill.core.logits.TILE", 64 * 300)
    student, teacher = near_twins()
    leaves = [x.clone().requires_grad_() for x in (student.hidden, student.matrix)]
    double = [x.detach().double().requires_grad_() for x in leaves]
    student = Projection(double[0], double[1])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = divergence(Projection(leaves[0], leaves[1]), teacher, ForwardKL(), chunk=1, recompute=recompute)
    got = torch.autograd.grad(found.total / 3, leaves)
    far = teacher._replace(hidden=teacher.hidden.double(), matrix=teacher.matrix.double())
    wanted = torch.autograd.grad(divergence(student, far, ForwardKL()).total / 3, double)
    for a, b in zip(got, wanted, strict=True):
        assert a.dtype == torch.bfloat16
        assert (a.double() - b).norm() / b.norm() < 2**-8


def test_log_probabilities_are_minus_the_cross_entropy_of_torch() -> None:
    z, ids = normal(5, 9, seed=21).requires_grad_(), torch.tensor([0, 8, 3, 3, 1])
    ours = log_probabilities(z, ids)
    theirs = -F.cross_entropy(z, ids, reduction="none")
    torch.testing.assert_close(ours, theirs)
    (a,), (b,) = (torch.autograd.grad(x.exp().sum(), z) for x in (ours, theirs))
    torch.testing.assert_close(a, b)


# bad input ------------------------------------------------------------------------------------------------------------

WIDE, NARROW = (
    Projection(torch.zeros(4, 5), torch.zeros(9, 6)),
    Projection(torch.zeros(4, 5), torch.zeros(9, 5), torch.zeros(8)),
)
Z, T, IDS = torch.zeros(4, 9), torch.zeros(4, 9), torch.zeros(4, 1, dtype=torch.long)
FEW, HIGH = SparseLogProbs(IDS, IDS.float()), SparseLogProbs(IDS, torch.full((4, 1), 0.5))
BAD: dict[str, tuple[Any, str]] = {
    "widths": (lambda: divergence(WIDE, T, ForwardKL()), "student's hidden states"),
    "teacher's widths": (lambda: divergence(Z, WIDE, ForwardKL()), "the teacher's"),
    "bias": (lambda: divergence(NARROW, T, ForwardKL()), "bias"),
    "one row": (lambda: divergence(torch.zeros(9), T, ForwardKL()), "logits are"),
    "tokens": (lambda: divergence(Z, torch.zeros(3, 9), ForwardKL()), "4 tokens, the teacher 3"),
    "outputs": (lambda: divergence(Z, torch.zeros(4, 8), ForwardKL()), "vocabulary="),
    "vocabulary": (lambda: divergence(Z, T, ForwardKL(), vocabulary=10), "vocabulary=10"),
    "k": (lambda: divergence(Z, T, ForwardKL(), support=TopK(10)), "vocabulary of 9"),
    "side": (lambda: divergence(Z, T, ForwardKL(), support=TopK(2, "both")), "'both'"),
    "beta": (lambda: JensenShannon(1.5), "beta lies between 0 and 1"),
    "beta nan": (lambda: JensenShannon(float("nan")), "beta"),
    "alpha": (lambda: SkewKL(-0.1), "alpha"),
    "temperature": (lambda: ForwardKL(temperature=0.0), "temperature"),
    "ids out of range": (lambda: divergence(Z, T, ForwardKL(), support=IDS + 9), "0 to 8"),
    "ids repeat": (lambda: divergence(Z, T, ForwardKL(), support=torch.zeros(4, 2, dtype=torch.long)), "repeat"),
    "ids' shape": (lambda: divergence(Z, T, ForwardKL(), support=IDS[:, 0]), "k each"),
    "ids are real": (lambda: divergence(Z, T, ForwardKL(), support=IDS + 0.5), "whole numbers"),
    "sampled without ids": (lambda: divergence(Z, T, K2()), "support= takes their ids"),
    "cached and support": (lambda: divergence(Z, FEW, ForwardKL(), support=TopK(1)), "leave out"),
    "cached shapes": (lambda: divergence(Z, SparseLogProbs(IDS, torch.zeros(4, 2)), ForwardKL()), "log-probabilities"),
    "cached probabilities": (lambda: divergence(Z, HIGH, ForwardKL()), "above 0"),
    "sampler's shape": (lambda: importance(Z, Z[:, :1]), "log_sampler (4, 1) does not fit log_p (4, 9)"),
    "sampler's mask": (lambda: importance(Z, Z, mask=torch.ones(9, dtype=torch.bool)), "mask (9,)"),
    "sampler's cap": (lambda: importance(Z, Z, cap=0.0), "cap above 0"),
    "estimates' shape": (lambda: estimates(Z, Z[0]), "log_q (9,)"),
    "labels": (lambda: divergence(Z, T, ForwardKL(), labels=torch.full((4,), -100)), "mask tokens without one"),
    "labels' shape": (lambda: divergence(Z, T, ForwardKL(), labels=IDS), "labels"),
    "mask's shape": (lambda: divergence(Z, T, ForwardKL(), mask=torch.ones(3, dtype=torch.bool)), "mask"),
    "mask of numbers": (lambda: divergence(Z, T, ForwardKL(), mask=torch.ones(4)), "True or False"),
    "weight": (lambda: divergence(Z, T, ForwardKL(), weight=torch.ones(3)), "weight"),
    "chunk": (lambda: divergence(Z, T, ForwardKL(), chunk=0), "chunk"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_in_one_line(name: str) -> None:
    call, words = BAD[name]
    with pytest.raises(SelfdistillError) as caught:
        call()
    assert isinstance(caught.value, DataError | RecipeError)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
