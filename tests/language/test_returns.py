"""Rewards of later tokens: the term against its formula, and that against the gradient of the whole divergence."""

from __future__ import annotations

import itertools

import torch

from selfdistill.losses.chunked.definitions import ReverseKL
from selfdistill.terms.tokens import TeacherReturns
from tests.language.test_terms import CONTEXT, PAIRS, ROWS, bound, judged
from tests.language.tiny import agree, batch_of, distil, doubled, student


def test_later_tokens_are_rewarded_by_the_mean_of_what_follows() -> None:
    model = student()
    base = doubled(model)
    objective = bound(model, distil=distil(divergence=ReverseKL()), returns=TeacherReturns(weight=0.5))
    lm = doubled(model)
    values = []
    for (q, p), i in zip(judged(lm, base, model), ROWS, strict=True):
        said = PAIRS[i][1]
        now, theirs = p[range(len(said)), said], q[range(len(said)), said]
        for t in range(len(said)):
            reward = (theirs - now)[t + 1 :].detach()
            later = reward.mean() if len(reward) else torch.zeros((), dtype=torch.float64)
            values.append((p[t].exp() * (p[t] - q[t])).sum() - 0.5 * later * now[t])
    agree(model, objective(batch_of(PAIRS, context=(CONTEXT, ROWS))), lm, torch.stack(values).mean())


def test_single_steps_and_later_rewards_make_the_gradient_of_the_divergence_of_whole_answers() -> None:
    """Over all answers of three tokens; with sums of rewards, where the length does not normalise them."""
    torch.manual_seed(0)
    words, length = 3, 3
    w = torch.randn(length, words + 1, words, dtype=torch.float64, requires_grad=True)
    other = torch.randn(length, words + 1, words, dtype=torch.float64).log_softmax(-1)
    whole, estimated = torch.zeros(()).double(), torch.zeros(()).double()
    for y in itertools.product(range(words), repeat=length):
        before = [words, *y[:-1]]
        steps = [w[t, before[t]].log_softmax(-1) for t in range(length)]
        p = torch.stack([steps[t][y[t]] for t in range(length)])
        q = torch.stack([other[t, before[t], y[t]] for t in range(length)])
        whole = whole + p.sum().exp() * (p - q).sum()
        for t in range(length):
            single = (steps[t].exp() * (steps[t] - other[t, before[t]])).sum()
            estimated = estimated + p.sum().exp().detach() * (single - (q - p).detach()[t + 1 :].sum() * p[t])
    (true,) = torch.autograd.grad(whole, w, retain_graph=True)
    (mine,) = torch.autograd.grad(estimated, w)
    torch.testing.assert_close(mine, true, atol=1e-12, rtol=0.0)
