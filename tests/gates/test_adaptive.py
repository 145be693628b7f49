"""Gates that follow their targets, ask the labels or ask several voices: against loops over rows, and theory."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfdistill import rng
from selfdistill.core.parts import BindArgs, Gate, Term
from selfdistill.core.step import Batch, Forward, Rows, TrainingClock
from selfdistill.core.targets import Target
from selfdistill.errors import RecipeError
from selfdistill.gates import (
    Annealed,
    ClassProgress,
    FallingLoss,
    LowVariance,
    SelfAdaptive,
    Singleton,
    Spared,
    TruncatedGaussian,
    Unanimous,
)
from selfdistill.losses import CrossEntropy
from selfdistill.teachers import CurrentStudent
from selfdistill.testing.specimens import pool, tiny

C = 3


def some(rows: int, seed: int, sharp: float = 2.0) -> Tensor:
    """Distributions, (rows, C)."""
    return (sharp * torch.randn(rows, C, generator=torch.Generator().manual_seed(seed))).softmax(1)


def a_step(
    ids: Tensor, clock: TrainingClock | None = None, y: Tensor | None = None, x: Tensor | None = None
) -> Forward:
    rows = torch.zeros(len(ids), C) if x is None else x
    return Forward(nn.Identity(), Batch({"x": Rows(rows, y, ids)}), clock or TrainingClock()).run()


def asked(gate: Gate, state: nn.Module, forward: Forward, target: Tensor, valid: Tensor | None = None) -> Tensor:
    term = Term(CurrentStudent(), CrossEntropy(), gate=gate)
    return gate.weigh(state, torch.zeros_like(target), Target(target, "probabilities", valid), forward, term)


def learns(gate: Gate, state: nn.Module, forwards: list[Forward]) -> None:
    gate.update(state, forwards, Term(CurrentStudent(), CrossEntropy(), gate=gate))


@pytest.mark.parametrize("mapping", ["convex", "linear", "concave"])
@pytest.mark.parametrize("warm_up", [True, False])
def test_class_progress_counts_the_rows_that_were_last_sure(mapping: str, warm_up: bool) -> None:
    """Against dictionaries, over several batches in which rows come again and change their mind."""
    gate, last = ClassProgress(0.6, mapping, warm_up), dict[int, int]()
    state = gate.start(nn.Identity(), BindArgs())
    gate.prepare(state, pool(TrainingClock())._replace(unlabelled=torch.arange(20)))
    shape = {"convex": lambda b: b / (2 - b), "linear": lambda b: b, "concave": lambda b: math.log2(1 + b)}[mapping]
    lowered = 0
    for k in range(6):
        ids = torch.randperm(20, generator=torch.Generator().manual_seed(k))[:8]
        p, step = some(8, k), a_step(ids)
        counts = [sum(c == best for best in last.values()) for c in range(C)]
        most = max(*counts, 20 - len(last)) if warm_up else max(1, *counts)
        wanted = [float(row.max() > 0.6 * shape(counts[int(row.argmax())] / most)) for row in p]
        assert asked(gate, state, step, p).tolist() == wanted
        lowered += sum(bool(w and row.max() <= 0.6) for w, row in zip(wanted, p, strict=True))
        learns(gate, state, [step])
        last.update({int(i): int(row.argmax()) for i, row in zip(ids, p, strict=True) if row.max() > 0.6})
    assert lowered > 0, "no threshold was below the fixed one"


def test_class_progress_lets_everything_pass_until_a_row_is_sure() -> None:
    """All thresholds are 0, with and without warm-up."""
    for warm_up in (True, False):
        gate = ClassProgress(0.99, warm_up=warm_up)
        assert (
            asked(gate, gate.start(nn.Identity(), BindArgs()), a_step(torch.arange(5)), some(5, 0)).tolist() == [1] * 5
        )


def test_class_progress_is_the_same_in_micro_batches() -> None:
    """It weighs by what was before the step, and learns all of it."""
    gate, ids, p = ClassProgress(0.5), torch.arange(12), some(12, 3)
    whole, parts = (gate.start(nn.Identity(), BindArgs()) for _ in range(2))
    for _ in range(3):
        steps = [a_step(ids), a_step(ids[:5]), a_step(ids[5:])]
        trust = [
            asked(gate, whole, steps[0], p),
            asked(gate, parts, steps[1], p[:5]),
            asked(gate, parts, steps[2], p[5:]),
        ]
        assert trust[0].equal(torch.cat(trust[1:]))
        learns(gate, whole, steps[:1])
        learns(gate, parts, steps[1:])
    assert torch.equal(whole.state_dict()["values"], parts.state_dict()["values"])


def test_self_adaptive_follows_confidence_and_classes() -> None:
    """t and q by hand; a row that says nothing does not count."""
    gate = SelfAdaptive(0.8)
    state, t, q = gate.start(nn.Identity(), BindArgs()), 1 / C, torch.full((C,), 1 / C)
    for k in range(5):
        p, step = some(7, k), a_step(torch.arange(7))
        valid = torch.arange(7) != k
        t = 0.8 * t + 0.2 * float(p[valid].amax(1).mean())
        q = 0.8 * q + 0.2 * p[valid].mean(0)
        wanted = [float(row.max() >= t * q[row.argmax()] / q.max()) for row in p]
        assert asked(gate, state, step, p, valid).tolist() == wanted
        learns(gate, state, [step])
        assert float(state.get_buffer("mean")) == pytest.approx(t, abs=1e-6)
        torch.testing.assert_close(state.get_buffer("marginal"), q)


def test_self_adaptive_at_the_limit_is_the_mean_of_the_batch() -> None:
    """With decay 0 the threshold of the most frequent class is the mean confidence of the batch itself."""
    gate = SelfAdaptive(0.0)
    p = torch.tensor([[0.9, 0.05, 0.05], [0.5, 0.3, 0.2], [0.8, 0.1, 0.1]])
    assert asked(gate, gate.start(nn.Identity(), BindArgs()), a_step(torch.arange(3)), p).tolist() == [1, 0, 1]


@pytest.mark.parametrize("narrow", [1.0, 2.0])
def test_truncated_gaussian_is_the_normal_density_below_the_mean(narrow: float) -> None:
    """Against torch's normal distribution, in proportion to its density at the mean; 1 above."""
    gate = TruncatedGaussian(0.5, narrow, aligned=False)
    state, mean, variance = gate.start(nn.Identity(), BindArgs()), 1 / C, 1.0
    for k in range(4):
        p, step = some(9, k), a_step(torch.arange(9))
        c = p.amax(1)
        mean, variance = 0.5 * mean + 0.5 * float(c.mean()), 0.5 * variance + 0.5 * float(c.var())
        normal = torch.distributions.Normal(mean, math.sqrt(variance) / narrow)
        bell = (normal.log_prob(c) - normal.log_prob(torch.tensor(mean))).exp()
        torch.testing.assert_close(asked(gate, state, step, p), torch.where(c < mean, bell, torch.ones_like(bell)))
        learns(gate, state, [step])


def test_alignment_raises_the_trust_in_rare_classes() -> None:
    """Two rows as sure as each other: that of the class which is seldom said weighs more."""
    often = torch.tensor([0.8, 0.1, 0.1]).expand(8, C)
    p = torch.cat([often, torch.tensor([[0.1, 0.8, 0.1]])])
    gate = TruncatedGaussian(0.0)
    trust = asked(gate, gate.start(nn.Identity(), BindArgs()), a_step(torch.arange(9)), p)
    assert float(trust[-1]) == 1.0
    assert float(trust[0]) < 0.99


@pytest.mark.parametrize("gate", [SelfAdaptive(0.7), TruncatedGaussian(0.7), ClassProgress(0.5)], ids=str)
def test_what_a_gate_learnt_is_in_its_state(gate: Gate) -> None:
    """Loaded into a fresh state it weighs alike; without a step with gradient nothing is learnt."""
    state, fresh = gate.start(nn.Identity(), BindArgs()), gate.start(nn.Identity(), BindArgs())
    untouched = copy.deepcopy(fresh.state_dict())
    for k in range(3):
        step = a_step(torch.arange(6))
        asked(gate, state, step, some(6, k))
        learns(gate, state, [step])
    fresh.load_state_dict(copy.deepcopy(state.state_dict()))
    assert asked(gate, state, a_step(torch.arange(6)), some(6, 9)).equal(
        asked(gate, fresh, a_step(torch.arange(6)), some(6, 9))
    )
    idle = gate.start(nn.Identity(), BindArgs())
    asked(gate, idle, a_step(torch.arange(6)), some(6, 0))
    assert {k: v.tolist() for k, v in idle.state_dict().items()} == {k: v.tolist() for k, v in untouched.items()}


@pytest.mark.parametrize(("schedule", "half"), [("linear", 0.5), ("log", 1 - math.exp(-2.5)), ("exp", math.exp(-2.5))])
def test_annealed_releases_labels_as_training_goes_on(schedule: str, half: float) -> None:
    """At half of it 1/C + (1 - 1/C) a(1/2); at the end everything is released."""
    gate, y = Annealed(schedule), torch.tensor([0, 0])
    limit = 1 / C + (1 - 1 / C) * half
    p = torch.tensor([[limit - 0.01, 0.0, 0.0], [limit + 0.01, 0.0, 0.0]])
    p[:, 1] = 1 - p[:, 0]
    term = Term(CurrentStudent(), CrossEntropy(), gate=gate)
    for progress, wanted in ((50, [1, 0]), (100, [1, 1])):
        step = a_step(torch.arange(2), TrainingClock(step=progress, epochs=100))
        assert gate.weigh(nn.Module(), p.clamp(min=1e-9).log(), Target(y, "classes"), step, term).tolist() == wanted


def test_falling_loss_is_a_confidence_that_rises() -> None:
    """Shut in the warm-up; then exp(-r_t) with r the labelled rows' loss, by hand, down to the floor."""
    gate = FallingLoss(2.0, 1.0, 0.1, warm_up=0.2, period=0.2, labelled="x")
    state = gate.start(nn.Identity(), BindArgs())
    y, x = torch.tensor([0, 1, -1]), torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 5.0]])
    first = sum(-float(x[i].log_softmax(0)[c]) for i, c in enumerate(y[:2].tolist())) / 2
    p = torch.tensor([[math.exp(-r), 0.0, 1 - math.exp(-r)] for r in (0.05, 0.2, 0.3, 0.6)])
    for k in range(10):
        step = a_step(torch.arange(3), TrainingClock(step=k, epochs=10), y, x)
        limit = -1.0 if k < 2 else max(0.1, first / 2 ** int((k / 10 - 0.2 + 1e-9) / 0.2))
        assert asked(gate, state, step, p).tolist() == [float(-math.log(row.max()) <= limit) for row in p]
        learns(gate, state, [step])
    assert float(state.get_buffer("first")) == pytest.approx(first, rel=1e-5)


def test_the_phases_of_a_falling_loss_part_its_trust() -> None:
    """Of one state, and at each step one of them at most."""
    whole, falling, floor = (FallingLoss(4.0, 1.0, 0.3, 0.1, 0.2, phase, "x") for phase in ("both", "falling", "floor"))
    term = Term(CurrentStudent(), CrossEntropy())
    assert whole.key(term) == falling.key(term) == floor.key(term)
    state, parts = whole.start(nn.Identity(), BindArgs()), set()
    for k in range(10):
        step = a_step(torch.arange(4), TrainingClock(step=k, epochs=10), torch.tensor([0, 1, 2, 0]))
        a, b, c = (asked(gate, state, step, some(4, k, 4.0)) for gate in (whole, falling, floor))
        assert a.equal(b + c)
        parts |= {(bool(b.any()), bool(c.any()))}
        learns(whole, state, [step])
    assert {(True, False), (False, True)} <= parts


def test_spared_rows_are_a_share_and_the_same_ones() -> None:
    """Of 4,000 ids between 18 and 22 % (six deviations), whatever else is in the batch."""
    gate, ids = Spared(0.2), torch.arange(4000)
    trust = asked(gate, nn.Module(), a_step(ids), torch.zeros(4000, C))
    assert 0.78 < float(trust.mean()) < 0.82
    assert trust[1000:1100].equal(asked(gate, nn.Module(), a_step(ids[1000:1100]), torch.zeros(100, C)))


def test_conformal_sets_cover_as_they_promise() -> None:
    """Over 400 calibrations of 39 rows the true class is in the set in 80 to 82.5 % of new rows, to simulation error.

    The singletons among the sets are what the gate keeps.
    """
    gate, share = Singleton(0.2, 0.5, "x"), 0.5
    ids = torch.arange(400)
    ids = ids[rng.uniform(("spared",), ids, 1)[:, 0] < share][:39]
    covered, singles, n = 0.0, 0, 400
    for k in range(n):
        z = 2 * rng.normal(("coverage", k), torch.arange(139), C)
        u = rng.uniform(("label", k), torch.arange(139), 1)
        y = (z.softmax(1).cumsum(1) < u).sum(1).clamp(max=C - 1)
        state = gate.start(nn.Identity(), BindArgs())
        learns(gate, state, [a_step(ids, y=y[:39], x=z[:39])])
        new, p = y[39:], z[39:].softmax(1)
        inside = 1 - p <= gate.limit(state)
        covered += float(inside[torch.arange(100), new].float().mean())
        kept = asked(gate, state, a_step(torch.arange(100)), p)
        assert kept.tolist() == (inside.sum(1) == 1).float().tolist()
        singles += int(kept.sum())
    assert 0.8 - 0.01 < covered / n < 0.8 + 1 / 40 + 0.01
    assert 0 < singles < 100 * n


def test_a_conformal_set_of_too_few_rows_has_every_class() -> None:
    """(n + 1)(1 - risk) > n: no limit, no singleton, no trust."""
    gate = Singleton(0.1, 0.999, "x")
    state = gate.start(nn.Identity(), BindArgs())
    learns(gate, state, [a_step(torch.arange(8), y=torch.zeros(8, dtype=torch.int64))])
    assert not asked(gate, state, a_step(torch.arange(4)), some(4, 0, 9.0)).any()


class Voices(nn.Module):
    """Peers (rows, 3, C) that are the input, and their mean."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": x.mean(1), "peers": x}


def spoken(votes: list[list[int]]) -> Forward:
    x = 5 * torch.nn.functional.one_hot(torch.tensor(votes), C).float()
    return Forward(Voices(), Batch({"x": Rows(x, None, torch.arange(len(votes)))}), TrainingClock()).run()


def test_unanimous_peers_all_say_the_target() -> None:
    """For the mean all three; for a peer the two others."""
    votes = [[0, 0, 0], [0, 0, 1], [2, 1, 1]]
    gate, best = Unanimous(), torch.tensor([0, 0, 1])
    term = Term(CurrentStudent(), CrossEntropy(), gate=gate)
    step = spoken(votes)
    assert gate.weigh(nn.Module(), torch.zeros(3, C), Target(best, "classes"), step, term).tolist() == [1, 0, 0]
    each = Term(CurrentStudent(), CrossEntropy(), head="peers", gate=gate)
    target = Target(best[:, None].expand(3, 3), "classes")
    wanted = [[float(all(v == b for j, v in enumerate(row) if j != k)) for k in range(3)]
              for row, b in zip(votes, best.tolist(), strict=True)]  # fmt: skip
    assert wanted == [[1, 1, 1], [0, 0, 1], [1, 0, 0]]
    assert gate.weigh(nn.Module(), torch.zeros(3, 3, C), target, step, each).tolist() == wanted


def test_steady_targets_deviate_little_between_peers() -> None:
    """The standard deviation of the target's class, by hand."""
    x = torch.randn(20, 4, C, generator=torch.Generator().manual_seed(0))
    forward = Forward(Voices(), Batch({"x": Rows(x, None, torch.arange(20))}), TrainingClock()).run()
    gate = LowVariance(0.2, head="peers")
    best = x.mean(1).argmax(1)
    p = [[x[i, k].softmax(0)[best[i]].item() for k in range(4)] for i in range(20)]
    wanted = [float(math.sqrt(sum((a - sum(row) / 4) ** 2 for a in row) / 3) <= 0.2) for row in p]
    assert 0 < sum(wanted) < 20
    term = Term(CurrentStudent(), CrossEntropy(), gate=gate)
    assert gate.weigh(nn.Module(), x.mean(1), Target(x.mean(1), "logits"), forward, term).tolist() == wanted


def test_steady_passes_need_dropout_to_deviate() -> None:
    """With it, what is kept depends on the spread that is allowed; without it, everything is steady."""
    kept = {}
    for dropout in (0.0, 0.5):
        model = tiny(0, dropout).train()
        batch = Batch(
            {"x": Rows(torch.randn(30, 6, generator=torch.Generator().manual_seed(1)), None, torch.arange(30))}
        )
        forward = Forward(model, batch, TrainingClock()).run()
        for spread in (0.0, 0.05, 1.0):
            torch.manual_seed(0)
            gate = LowVariance(spread)
            term = Term(CurrentStudent(), CrossEntropy(), gate=gate)
            target = Target(forward.student("x"), "logits")
            kept[dropout, spread] = int(gate.weigh(nn.Module(), forward.student("x"), target, forward, term).sum())
    assert kept[0.0, 0.05] == 30
    assert kept[0.5, 0.0] == 0 < kept[0.5, 0.05] < kept[0.5, 1.0] == 30


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ClassProgress(mapping="cubic"), "'convex', 'linear' or 'concave'"),
        (lambda: SelfAdaptive(1.0), r"\[0, 1\)"),
        (lambda: TruncatedGaussian(narrow=0.0), "above 0"),
        (lambda: Annealed("cosine"), "'linear', 'log' or 'exp'"),
        (lambda: FallingLoss(phase="rising"), "'both', 'falling' or 'floor'"),
        (lambda: FallingLoss(base=0.5), "at least 1"),
        (lambda: Spared(1.0), r"\[0, 1\)"),
        (lambda: Singleton(risk=0.0), "between 0 and 1"),
        (lambda: LowVariance(passes=1), "passes is at least 2"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make()
