"""The audit: decisions against brute force and simulation, roll-back and stop in real runs, noise on both splits."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from selfdistill import fit
from selfdistill.data.dataset import Data, load
from selfdistill.errors import DataError
from selfdistill.evaluation.audit import Audit, champion, exhausted, row_losses
from selfdistill.methods import born_again, mean_teacher
from selfdistill.models.registry import parse


def wrong(generator: np.random.Generator, rows: int, p: float) -> list[float]:
    """Losses of a model that is right with probability p."""
    return [float(b) for b in generator.random(rows) >= p]


def test_strict_is_mcnemar_by_enumeration() -> None:
    decision = Audit("strict", planned=1).decide(1, [0.0] * 7 + [1.0] * 3, [1.0] * 6 + [0.0] * 4, against=0)
    assert (decision.better, decision.worse) == (6, 3)
    signs = list(itertools.product([0, 1], repeat=9))
    assert decision.p == pytest.approx(sum(sum(s) >= 6 for s in signs) / len(signs))
    assert not decision.accepted
    assert "rolled back" in decision.why


@pytest.mark.parametrize("policy", ["strict", "safe"])
def test_false_acceptance_over_ten_generations_stays_below_the_level(policy: str) -> None:
    """An equal model for `strict`; for `safe` one that is worse by exactly the delta that was asked for."""
    generator, rows, delta = np.random.default_rng(0), 200, 0.05
    audit = Audit(policy, level=0.05, delta=delta, planned=10)
    runs = 1000
    accepted = 0
    for _ in range(runs):
        easy = generator.random(rows) < 0.75  # both right there; elsewhere each at its own luck
        for generation in range(1, 11):
            ours, theirs = generator.random(rows), generator.random(rows)
            lower = 0.5 - (delta / 0.25 if policy == "safe" else 0.0)
            candidate, before = ~(easy | (ours < lower)), ~(easy | (theirs < 0.5))
            if audit.decide(generation, [*map(float, candidate)], [*map(float, before)], against=0).accepted:
                accepted += 1
                break
    assert accepted / runs <= 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


def test_safe_keeps_an_equal_model_four_times_in_five() -> None:
    generator = np.random.default_rng(1)
    kept = [
        Audit(planned=1).decide(1, wrong(generator, 300, 0.8), wrong(generator, 300, 0.8), against=0).accepted
        for _ in range(1000)
    ]
    assert np.mean(kept) == pytest.approx(0.8, abs=0.04)


def test_a_much_worse_model_is_rolled_back_by_both_policies() -> None:
    for policy in ("safe", "strict"):
        assert not Audit(policy).decide(1, [1.0] * 30 + [0.0] * 70, [0.0] * 100, against=0).accepted


def test_the_foreword_says_what_the_split_can_see() -> None:
    assert "60 validation rows, smallest detectable change 8.3 points" in Audit(planned=1).foreword(60)
    assert "no change is detectable" in Audit(planned=1).foreword(3)
    assert "off" in Audit("off").foreword(60)


@pytest.mark.parametrize(("rows", "worse"), [(14, 2), (14, 0), (60, 1), (400, 3), (3, 0)])
def test_a_decision_quotes_the_figure_of_the_foreword(rows: int, worse: int) -> None:
    """Where that is large, or the loss that passes unseen, nothing is claimed; what is decided stays the same."""
    audit, lost = Audit(planned=2), [1.0] * worse + [0.0] * (rows - worse)
    before = [0.0] * worse + [1.0] * worse + [0.0] * (rows - 2 * worse)
    found, sees = audit.decide(1, lost, before, against=0), audit.foreword(rows)
    assert found.accepted
    figures = re.findall(r"[0-9.]+ points", found.why)
    assert figures == re.findall(r"detectable change ([0-9.]+ points)", sees)
    assert ("not distinguishable" in found.why) == (rows < 60)
    assert ("not worse than generation 0" in found.why) == (rows >= 60)


def test_a_delta_that_was_asked_for_is_the_one_that_is_quoted() -> None:
    found = Audit(delta=0.3, planned=1).decide(1, [0.0] * 50, [0.0] * 50, against=0)
    assert "accepted: not worse by 30.0 points than generation 0 (" in found.why


def test_champion_and_stop_rule_by_search() -> None:
    losses = [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert champion(losses, [0, 1, 3]) == 1
    assert not exhausted(losses, 2)
    assert exhausted([*losses, losses[1]], 2)
    assert not exhausted(losses, None)


@pytest.mark.parametrize(
    "bad",
    [{"policy": "kind"}, {"level": 0.7}, {"delta": -0.1}, {"patience": 0}, {"measure": "f1"}],
    ids=lambda bad: next(iter(bad)),
)
def test_bad_numbers_get_one_line(bad: dict[str, Any]) -> None:
    with pytest.raises(DataError) as caught:
        Audit(**bad)
    assert "\n" not in str(caught.value)


def test_different_rows_are_refused() -> None:
    with pytest.raises(DataError, match="same split"):
        Audit().decide(1, [0.0], [0.0, 1.0], against=0)


def train(data: Data, generations: int, **settings: Any) -> Any:
    said: list[str] = []
    build = parse("mlp", data.shape, len(data.classes))
    method = born_again(generations=generations, xi=0.9, temperature=4.0)
    return fit(build, data, method, steps=60, tell=said.append, **settings), said


def test_a_rejected_generation_neither_teaches_nor_is_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    from selfdistill.training.state import RunState
    from selfdistill.training.supervised import NetworkTask

    seen: list[int] = []
    before = NetworkTask.previous_model

    def previous(self: NetworkTask, state: RunState, generation: int) -> Any:
        if generation:
            seen.append(state.accepted[-1])
        return before(self, state, generation)

    monkeypatch.setattr(NetworkTask, "previous_model", previous)
    result, said = train(load("digits", labels=200), 3, audit="strict")
    decisions = [g.decision for g in result.generations]
    assert [d["accepted"] for d in decisions] == [True, False, False]  # 60 steps of distillation gain nothing visible
    assert seen == [0, 0]
    assert result.final_generation == 0
    assert any("rolled back" in line for line in said)
    weights = result.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in result.generations[0].weights.items())


def test_off_takes_the_last_and_patience_ends_early() -> None:
    data = load("digits", labels=200)
    assert train(data, 2, audit="off")[0].final_generation == 1
    result, said = train(data, 6, audit="strict", patience=1)
    assert len(result.generations) < 6
    assert any("no further gain" in line for line in said)


def test_with_40_percent_noise_on_both_splits_the_audit_picks_the_better_model() -> None:
    """Generation 0 has fitted well; the candidate is an untrained or half-trained one: clean labels agree with it."""
    data = load("digits", label_noise=0.4)
    good = fit(parse("mlp", data.shape, 10), data, born_again(generations=1), steps=150, audit="safe")
    poor = fit(parse("mlp", data.shape, 10), data, born_again(generations=1), steps=15, audit="safe")
    losses = [r.generations[0].losses for r in (good, poor)]
    assert int(data.noisy[data.audit].sum()) == 80
    assert not Audit(planned=1).decide(1, losses[1], losses[0], against=0).accepted
    assert Audit("strict", planned=1).decide(1, losses[0], losses[1], against=0).accepted
    truth = [(r.model(data.rows(data.test)).argmax(-1) == data.y[data.test]).float().mean() for r in (good, poor)]
    assert truth[0] > truth[1]


@pytest.mark.parametrize("measure", ["nll", "brier"])
def test_other_measures_are_tested_by_students_test_on_their_losses(measure: str) -> None:
    logits, y = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    worse = logits.clone()
    worse[torch.arange(40), y] -= 1.0
    p = torch.softmax(logits.double(), -1)
    hand = [
        -float(p[i, y[i]].log())
        if measure == "nll"
        else sum((float(p[i, c]) - float(c == int(y[i]))) ** 2 for c in range(3))
        for i in range(40)
    ]
    ours, theirs = row_losses(logits, y, measure), row_losses(worse, y, measure)
    assert ours == pytest.approx(hand)
    decision = Audit("strict", planned=1, measure=measure).decide(1, ours, theirs, against=0)
    expected = stats.ttest_rel(theirs, ours, alternative="greater")
    assert decision.p == pytest.approx(expected.pvalue)
    assert decision.accepted
    assert not Audit(planned=1, measure=measure).decide(1, theirs, ours, against=0).accepted
    assert Audit(planned=1, measure=measure, delta=5.0).decide(1, theirs, ours, against=0).accepted


def test_an_audit_split_without_a_class_is_refused() -> None:
    data = load("digits", labels=200)
    few = replace(data, audit=data.audit[data.y[data.audit] != 3])
    with pytest.raises(DataError, match="none of class 3"):
        train(few, 2)
    train(few, 2, audit="off")


class Ruined(nn.Module):
    """A model whose weights are pulled to nothing from the second epoch on: a teacher gone wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(x.flatten(1))
        return out


def _spoil(from_step: int) -> Any:
    def watch(clock: Any, batches: Any, loss: float) -> None:
        if clock.step == from_step:
            for model in MADE:
                with torch.no_grad():
                    model.layer.weight.mul_(-1.0)

    return watch


MADE: list[Ruined] = []


def _build() -> Ruined:
    MADE.append(Ruined())
    return MADE[-1]


def test_checks_within_a_generation_roll_a_spoilt_state_back() -> None:
    data = load("digits")
    method = mean_teacher(weight=1.0)
    MADE.clear()
    result = fit(_build, data, method, epochs=4, watch=_spoil(3 * 18 - 2), audit_epochs=1, lr=0.01)
    checks = [line["decision"] for line in result.history]
    assert [check["accepted"] for check in checks] == [True, True, False, True]
    assert checks[2]["restored"]
    MADE.clear()
    unchecked = fit(_build, data, method, epochs=3, watch=_spoil(3 * 18 - 2), lr=0.01)
    accuracy = [r.history[-1]["audit"]["accuracy"] for r in (result, unchecked)]
    assert accuracy[0] > accuracy[1] + 0.3


def test_a_run_with_checks_resumes_exactly(tmp_path: Path) -> None:
    data, method = load("digits", labels=200), mean_teacher(weight=1.0)
    given: dict[str, Any] = {"epochs": 4, "audit_epochs": 1, "audit": "strict", "lr": 0.02}
    build = parse("mlp", data.shape, 10)
    whole = fit(build, data, method, out=tmp_path / "whole", **given)

    def stop(clock: Any, batches: Any, loss: float) -> None:
        if clock.step == clock.per_epoch * 2 + 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(build, data, method, out=tmp_path / "cut", watch=stop, save_steps=5, **given)
    resumed = fit(build, data, method, out=tmp_path / "cut", resume=True, **given)
    assert resumed.history == whole.history
    theirs, ours = whole.model.state_dict(), resumed.model.state_dict()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
