"""The terms on completions, against the formulas row by row in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.core.parts import Term
from selfdistill.core.step import Batch
from selfdistill.errors import SpaceError
from selfdistill.gates import Confident
from selfdistill.language.completions import Language
from selfdistill.language.contexts import NoContext
from selfdistill.losses import KL
from selfdistill.losses.chunked.definitions import ForwardKL, JensenShannon, ReverseKL
from selfdistill.losses.chunked.sweep import TopK
from selfdistill.models.causal_lm import Causal
from selfdistill.teachers import Frozen
from selfdistill.teachers.weights import GeometricMixture
from selfdistill.terms.tokens import PerSequence, PerToken, PolicyGradient, PreferenceTerm, TeacherReturns
from tests.language.tiny import agree, batch_of, distil, doubled, label, shaken, spoken, student

PAIRS = [([10, 11, 12], [20, 21, 22, 23, 1]), ([13], [24, 25]), ([14, 15, 16, 17], [26, 27, 28, 1])]
CONTEXT = [([10, 11, 30, 31, 12], PAIRS[0][1]), ([33, 34, 14, 15], PAIRS[2][1])]  # row 1 has none
ROWS = [0, 2]
Formula = Callable[[Tensor, Tensor], Tensor]  # log q, log p (tokens, vocabulary) -> (tokens,)


@pytest.fixture
def model() -> Causal:
    return student()


def bound(model: Causal, **terms: Any) -> Any:
    """The objective, its teacher made; then the student has moved on."""
    objective = Language(dict(terms), against=NoContext()).bind(model)
    shaken(model)
    return objective


def mean(values: list[Tensor], over: str) -> Tensor:
    """Of all tokens, or of the means of sequences that have any."""
    if over == "token":
        return torch.cat(values).mean()
    return torch.stack([v.mean() for v in values if len(v)]).mean()


@pytest.mark.parametrize("over", ["token", "sequence"])
@pytest.mark.parametrize("lora", [0, 4])
def test_next_token(over: str, lora: int) -> None:
    model = student(lora)
    objective = bound(model, label=label(mean_over=over))
    lm = doubled(model)
    said = spoken(lm, PAIRS, model.vocabulary)
    nll = [-log_p[range(len(c)), c] for log_p, (_, c) in zip(said, PAIRS, strict=True)]
    agree(model, objective(batch_of(PAIRS)), lm, mean(nll, over))


def forward(log_q: Tensor, log_p: Tensor) -> Tensor:
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def reverse(log_q: Tensor, log_p: Tensor) -> Tensor:
    return forward(log_p, log_q)


def js(log_q: Tensor, log_p: Tensor) -> Tensor:
    log_m = ((log_q.exp() + log_p.exp()) / 2).log()
    return 2 * forward(log_q, log_m) + 2 * forward(log_p, log_m)  # divided by beta (1 - beta) = 1/4


def entry_clipped(log_q: Tensor, log_p: Tensor) -> Tensor:
    return (log_q.exp() * (log_q - log_p)).clamp(max=0.05).sum(-1)


def bucketed(of: str, k: int, inner: Formula) -> Formula:
    """Over the k most probable of one of the two, and one bucket for all others."""

    def formula(log_q: Tensor, log_p: Tensor) -> Tensor:
        ids = (log_q if of == "teacher" else log_p).topk(k, -1).indices

        def short(log: Tensor) -> Tensor:
            top = log.gather(-1, ids)
            return torch.cat([top, (1 - top.exp().sum(-1, keepdim=True)).log()], -1)

        return inner(short(log_q), short(log_p))

    return formula


CASES: dict[str, tuple[dict[str, Any], Formula]] = {
    "forward": ({}, forward),
    "reverse": ({"divergence": ReverseKL()}, reverse),
    "js": ({"divergence": JensenShannon(0.5)}, js),
    "opsd": ({"divergence": ForwardKL(clip=0.05)}, entry_clipped),
    "skip": ({"skip": 3}, forward),
    "sdft": ({"skip": 3, "mean_over": "sequence", "per": "sequence"}, forward),
    "sequence": ({"mean_over": "sequence"}, forward),
    "sdpo": ({"divergence": JensenShannon(0.5), "support": TopK(5, "student")}, bucketed("student", 5, js)),
    "opcd": ({"divergence": ReverseKL(), "support": TopK(3, "student")}, bucketed("student", 3, reverse)),
    "top of the teacher": ({"support": TopK(4, "teacher")}, bucketed("teacher", 4, forward)),
}


def judged(
    lm: object, base: object, model: Causal, skip: int = 0, pairs: list[Any] = CONTEXT
) -> list[tuple[Tensor, Tensor]]:
    """(log q, log p) of each row with a context, from a token on."""
    theirs = spoken(base, pairs, model.vocabulary)
    mine = spoken(lm, [PAIRS[i] for i in ROWS], model.vocabulary)
    return [(q.detach()[skip:], p[skip:]) for q, p in zip(theirs, mine, strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_distil(case: str, model: Causal) -> None:
    options, formula = CASES[case]
    base = doubled(model)
    objective = bound(model, distil=distil(**options))
    lm = doubled(model)
    both = judged(lm, base, model, int(options.get("skip", 0)))
    expected = mean([formula(q, p) for q, p in both], str(options.get("mean_over", "token")))
    agree(model, objective(batch_of(PAIRS, context=(CONTEXT, ROWS))), lm, expected)


@pytest.mark.parametrize("case", [*CASES, "high entropy"])
def test_the_count_is_known_without_a_pass_unless_the_gate_needs_one(case: str, model: Causal) -> None:
    term = distil(**CASES[case][0]) if case in CASES else distil(quantile=0.5)
    batch = batch_of(PAIRS, context=(CONTEXT, ROWS))
    count = bound(model, distil=term).measure(batch)["distil"].tally.count
    known = term.count_of(batch)
    assert (known is None) == (case == "high entropy") == (not term.separable)
    assert known is None or float(known) == float(count) > 0


def test_rows_shorter_than_the_skip_do_not_count(model: Causal) -> None:
    pairs, context = [PAIRS[0], PAIRS[1]], [CONTEXT[0], ([9, 9, 13], PAIRS[1][1])]
    objective = bound(model, distil=distil(skip=3, mean_over="sequence"))
    both, alone = (
        objective(batch_of(pairs, context=(context, [0, 1]))),
        objective(batch_of(pairs[:1], context=(context[:1], [0]))),
    )
    torch.testing.assert_close(both, alone)


def test_without_any_context_nothing_is_learnt(model: Causal) -> None:
    objective = bound(model, distil=distil())
    loss = objective(batch_of(PAIRS, context=([], [])))
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_labels_share_the_pass_of_the_student(model: Causal) -> None:
    base = doubled(model)
    objective = bound(model, distil=distil(skip=1), label=replace(label(), weight=0.7))
    lm = doubled(model)
    values = [forward(q, p) for q, p in judged(lm, base, model, 1)]
    said = spoken(lm, PAIRS, model.vocabulary)
    nll = [-log_p[range(len(c)), c] for log_p, (_, c) in zip(said, PAIRS, strict=True)]
    loss = objective(batch_of(PAIRS, context=(CONTEXT, ROWS)))
    assert objective.passes().forward == len(PAIRS)
    agree(model, loss, lm, mean(values, "token") + 0.7 * mean(nll, "token"))


def test_a_loss_that_needs_all_logits_is_refused(model: Causal) -> None:
    with pytest.raises(SpaceError, match="'distil': KL needs all logits at once"):
        bound(model, distil=Term(Frozen("context"), KL()))
    with pytest.raises(SpaceError, match="Confident needs all logits at once"):
        bound(model, distil=replace(distil(), gate=Confident()))


def test_contrast_turns_from_the_wrong_context(model: Causal) -> None:
    against = [([10, 11, 40, 12], PAIRS[0][1]), ([41, 42, 14, 15], PAIRS[2][1])]
    base = doubled(model)
    objective = bound(model, distil=distil(GeometricMixture(Frozen("context"), Frozen("against"), -0.5)))
    lm = doubled(model)
    values = []
    wrong = [q for q, _ in judged(lm, base, model, pairs=against)]
    for (q, p), w in zip(judged(lm, base, model), wrong, strict=True):
        values.append(forward(torch.log_softmax(1.5 * q - 0.5 * w, -1), p))
    batch = batch_of(PAIRS, context=(CONTEXT, ROWS), against=(against, ROWS))
    agree(model, objective(batch), lm, mean(values, "token"))


def test_quantile_keeps_the_tokens_of_largest_entropy(model: Causal) -> None:
    base = doubled(model)
    objective = bound(model, distil=distil(quantile=0.5))
    lm = doubled(model)
    q, p = (torch.cat(rows) for rows in zip(*judged(lm, base, model), strict=True))
    entropy = -(p.exp() * p).sum(-1)
    kept = entropy.detach().argsort(descending=True)[: -(-len(entropy) // 2)]  # 9 tokens: the middle one is kept
    agree(model, objective(batch_of(PAIRS, context=(CONTEXT, ROWS))), lm, forward(q, p)[kept].mean())


@pytest.mark.parametrize("per", ["token", "sequence"])
def test_importance_weights_of_another_sampler(per: str, model: Causal) -> None:
    base = doubled(model)
    objective = bound(model, distil=distil(cap=1.5, per=per))
    lm = doubled(model)
    drawn = torch.zeros(3, 5)
    values, weights = [], list[Tensor]()
    for i, ((q, p), row) in enumerate(zip(judged(lm, base, model), ROWS, strict=True)):
        said = PAIRS[row][1]
        own = p[range(len(said)), said].detach()
        drawn[row, : len(said)] = (own + torch.linspace(-0.6, 0.5, len(said)) * (1 + i)).float()
        w = (own - drawn[row, : len(said)]).exp().clamp(max=1.5)
        weights.append(w)
        values.append((w.mean() if per == "sequence" else w) * forward(q, p))
    assert any(bool((w == 1.5).any()) for w in weights)
    agree(model, objective(batch_of(PAIRS, drawn=drawn, context=(CONTEXT, ROWS))), lm, mean(values, "token"))


def test_sampled_divergence_reads_the_completion(model: Causal) -> None:
    base = doubled(model)
    objective = bound(model, distil=TeacherReturns(immediate=True))
    lm = doubled(model)
    values = []
    for (q, p), i in zip(judged(lm, base, model), ROWS, strict=True):
        at = (range(len(PAIRS[i][1])), PAIRS[i][1])
        values.append((p[at] - q[at]).detach() * p[at])
    agree(model, objective(batch_of(PAIRS, context=(CONTEXT, ROWS))), lm, mean(values, "token"))


@pytest.mark.parametrize("over", ["token", "sequence"])
def test_advantage_is_grpo(over: str, model: Causal) -> None:
    pairs = [*PAIRS, ([13], [35, 36, 1])]
    rewards, groups = [1.0, 0.25, 0.0, 1.0], [5, 7, 5, 7]
    objective = bound(
        model, advantage=PolicyGradient(clip=0.2, reduction=PerToken() if over == "token" else PerSequence())
    )
    lm = doubled(model)
    drawn = torch.zeros(4, 5)
    shift = [-0.5, 0.1, 0.4, -0.1]  # the ratio leaves the clip's range on both sides
    values, cut = [], 0
    for i, (log_p, (_, said)) in enumerate(zip(spoken(lm, pairs, model.vocabulary), pairs, strict=True)):
        mine = [r for r, g in zip(rewards, groups, strict=True) if g == groups[i]]
        m = sum(mine) / len(mine)
        a = (rewards[i] - m) / ((sum((r - m) ** 2 for r in mine) / len(mine)) ** 0.5 + 1e-4)
        own = log_p[range(len(said)), said]
        drawn[i, : len(said)] = (own.detach() + shift[i]).float()
        ratio = (own - drawn[i, : len(said)]).exp()
        gain = []
        for r in ratio:
            held = max(0.8, min(1.2, r.item())) * a
            gain.append(r * a if (r * a).item() <= held else torch.tensor(held, dtype=torch.float64))
        cut += sum(not g.requires_grad for g in gain)
        values.append(-torch.stack(gain))
    assert cut
    agree(model, objective(batch_of(pairs, rewards, groups, drawn)), lm, mean(values, over))


def test_advantage_without_a_sampler_reinforces(model: Causal) -> None:
    objective = bound(model, advantage=PolicyGradient(scaled=False))
    lm = doubled(model)
    logs = spoken(lm, PAIRS, model.vocabulary)
    a = {0: 0.5, 1: 0.0, 2: -0.5}
    values = [-a[i] * lp[range(len(c)), c] for i, (lp, (_, c)) in enumerate(zip(logs, PAIRS, strict=True))]
    expected, loss = mean(values, "token"), objective(batch_of(PAIRS, [1.0, 0.5, 0.0], [4, 4, 4]))
    assert float(loss.detach()) == pytest.approx(-(5 * 0.5 - 4 * 0.5) / 11)  # the ratio is 1
    agree(model, loss - loss.detach() + expected.detach().float(), lm, expected)  # and the gradient that of -A log p


def test_preferred_is_spin(model: Causal) -> None:
    other = [([10, 11, 12], [50, 51, 1]), ([13], [52, 53, 54]), ([14, 15, 16, 17], [55])]
    base = doubled(model)
    objective = bound(model, preferred=PreferenceTerm(Frozen(), lam=0.3))
    lm = doubled(model)

    def ratio(pairs: list[tuple[list[int], list[int]]]) -> Tensor:
        mine, theirs = spoken(lm, pairs, model.vocabulary), spoken(base, pairs, model.vocabulary)
        return torch.stack([(p - q.detach())[range(len(c)), c].sum()
                            for p, q, (_, c) in zip(mine, theirs, pairs, strict=True)])  # fmt: skip

    expected = torch.log1p(torch.exp(-0.3 * (ratio(PAIRS) - ratio(other)))).mean()
    agree(model, objective(batch_of(PAIRS, other=(other, [0, 1, 2]))), lm, expected)


def test_parts_of_a_batch_give_its_gradient(model: Causal) -> None:
    terms = {"distil": distil(skip=1, mean_over="sequence"), "label": label()}
    objective = bound(model, **terms)
    whole = batch_of(PAIRS, context=(CONTEXT, ROWS))
    parts: list[Batch] = [
        batch_of(PAIRS[:1], context=(CONTEXT[:1], [0])),
        batch_of(PAIRS[1:], context=(CONTEXT[1:], [1])),
    ]
    loss = objective(whole)
    loss.backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    measured = [objective.measure(part) for part in parts]
    counts = {name: sum(m[name].tally.count for m in measured) for name in terms}
    halves = [objective.combine(m, counts) for m in measured]
    torch.testing.assert_close(sum(halves), loss)
    sum(halves).backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name], atol=1e-6, rtol=1e-4, msg=name)
