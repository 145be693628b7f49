"""Collapse telemetry: null curves against a simulated linear model, tests against sums, the alarm in real runs."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from selfdistill.cli import main
from selfdistill.data.dataset import Data, load
from selfdistill.errors import DataError
from selfdistill.experiments.network_task import NetworkTaskType
from selfdistill.methods import born_again, curriculum
from selfdistill.methods.generations import self_training
from selfdistill.models.registry import parse
from selfdistill.report.run_page import render
from selfdistill.training import drift
from selfdistill.training.drift import Drift, accumulated, expected, follows, forgetting, replaced
from selfdistill.training.fit import fit

# curves ---------------------------------------------------------------------------------------------------------------


def chain(keep: str, trainings: int, rows: int = 60, width: int = 5, noise: float = 0.5) -> np.ndarray:
    """Weights (chains, trainings + 1, width) of linear models, each fitted to new rows that the last one has labelled
    with noise; weights 0 are the true ones. "accumulate" fits to all rows so far."""
    source, chains = np.random.default_rng(0), 1500
    found = np.zeros((chains, trainings + 1, width))
    found[:, 0] = source.normal(size=(chains, width))
    for c in range(chains):
        xs, ys = [], []
        for n in range(1, trainings + 1):
            x = source.normal(size=(rows, width))
            xs.append(x)
            ys.append(x @ found[c, n - 1] + noise * source.normal(size=rows))
            if keep == "replace":
                xs, ys = xs[-1:], ys[-1:]
            found[c, n] = np.linalg.lstsq(np.concatenate(xs), np.concatenate(ys), rcond=None)[0]
    return found


def squared(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a - b) ** 2).sum(-1).mean())


@pytest.mark.parametrize(("keep", "curve"), [("replace", replaced), ("accumulate", accumulated)])
def test_the_curves_are_those_of_the_linear_model(keep: str, curve: Callable[[int], float]) -> None:
    """T rows, d weights: the first error is sigma^2 d / (T - d - 1); later ones and distances follow the curve."""
    weights = chain(keep, 6)
    first = 0.5**2 * 5 / (60 - 5 - 1)
    for n in range(1, 7):
        assert squared(weights[:, n], weights[:, 0]) == pytest.approx(curve(n) * first, rel=0.1)
    moved = [squared(weights[:, k + 1], weights[:, 1]) for k in range(1, 6)]
    for k, distance in enumerate(moved, 1):
        assert distance / moved[0] == pytest.approx(expected(curve, k), rel=0.12)
    assert follows([math.sqrt(m) for m in moved]) == keep


def test_accumulated_is_bounded_and_replaced_is_not() -> None:
    assert accumulated(1) == replaced(1) == 1.0
    assert [accumulated(n) for n in (10, 1000)] == pytest.approx([1.5497677, math.pi**2 / 6 - 1e-3], abs=1e-6)
    for curve in (accumulated, replaced):
        with pytest.raises(DataError, match="count them from 1"):
            curve(0)


def test_what_has_not_moved_follows_no_curve() -> None:
    assert follows([]) is follows([0.2]) is follows([0.0, 0.0]) is None


@pytest.mark.parametrize(("labels", "before"), list(itertools.product((7, 60), (0, 3))))
def test_forgetting_is_the_binomial_sum(labels: int, before: int) -> None:
    q = before / labels + 0.01
    for missed in range(labels + 1):
        tail = sum(math.comb(labels, k) * q**k * (1 - q) ** (labels - k) for k in range(missed, labels + 1))
        assert forgetting(missed, before, labels) == pytest.approx(tail, rel=1e-9)
    assert forgetting(0, 0, 0) == 1.0
    with pytest.raises(DataError, match="counts from 0"):
        forgetting(8, 0, 7)


# real runs ------------------------------------------------------------------------------------------------------------


def train(data: Data, method: Any, **options: Any) -> tuple[Any, list[str], list[str]]:
    """The result, what was warned of, and what was told."""
    warned: list[str] = []
    told: list[str] = []
    build = parse("mlp", data.shape, len(data.classes))
    given = {"steps": 150, "audit": "off", "warn": warned.append, "tell": told.append, **options}
    return fit(build, data, method, **given), warned, told


@pytest.fixture(scope="module")
def collapsing() -> tuple[Any, list[str], list[str]]:
    return train(load("digits", labels=60), self_training(generations=5, keep="replace", hard=True))


def test_the_record_is_what_the_weights_say(collapsing: Any) -> None:
    result, data = collapsing[0], load("digits", labels=60)
    said = []
    for one in result.generations:
        result.model.load_state_dict(one.weights)
        with torch.no_grad():
            said.append(result.model.eval()(data.rows(torch.arange(len(data.y)))).argmax(-1))
    right = [s == data.y for s in said]
    moved = [float((s != said[0])[data.unlabelled].float().mean()) for s in said]
    assert result.generations[0].drift == {}
    for g, one in enumerate(result.generations[1:], 1):
        d = Drift(**one.drift)
        assert (d.generation, d.looked, d.labels, d.audited) == (g, 1177, 60, 60)
        assert d.moved == pytest.approx(moved[g])
        assert d.growth == pytest.approx((moved[g] / moved[1]) ** 2)
        assert d.missed == int((~right[g])[data.labelled].sum())
        assert d.missed_before == int((~right[0])[data.labelled].sum())
        assert d.lost == int((right[0] & ~right[g])[data.audit].sum())
        assert d.won == int((right[g] & ~right[0])[data.audit].sum())
        assert d.level == 0.05 / 4
        assert d.p_missed == forgetting(d.missed, d.missed_before, 60)


def test_a_chain_that_replaces_its_labels_raises_the_alarm_once(collapsing: Any) -> None:
    result, warned, told = collapsing
    alarms = [one.drift["alarm"] for one in result.generations[1:]]
    assert sum(alarms) > 1
    (line,) = warned
    assert f"collapse: generation {alarms.index(True) + 1} gets " in line
    assert "accumulate or anchor with real labels" in line
    assert "\n" not in line
    drifts = [line for line in told if line.startswith("drift: ")]
    assert len(drifts) == 4
    assert "3.0 if pseudo-labels replace the old ones, 1.7 if they accumulate" in drifts[2]


@pytest.mark.parametrize("method", [self_training(generations=4), curriculum(stages=2)])
def test_chains_that_keep_real_labels_are_measured_and_raise_none(method: Any) -> None:
    result, warned, _ = train(load("digits", labels=60), method)
    drifts = [one.drift for one in result.generations[1:]]
    assert warned == []
    assert [d["p_missed"] for d in drifts] == [None] * len(drifts)
    assert all(0 < d["moved"] < 0.2 for d in drifts)


def test_methods_without_pseudo_labels_are_not_measured() -> None:
    result, _, told = train(load("digits", labels=100), born_again(generations=2), steps=20)
    assert [one.drift for one in result.generations] == [{}, {}]
    assert not any("drift" in line for line in told)


@pytest.mark.parametrize(
    ("p_missed", "lost", "won", "alarm"),
    [
        (0.009, 0, 0, True),
        (0.011, 0, 0, False),
        (None, 0, 0, False),
        (0.009, 1, 5, True),  # 6 rows: better with p 0.11
        (0.009, 0, 5, False),  # better with p 0.03: what was forgotten was wrong
        (None, 6, 0, False),  # p 0.016
        (None, 7, 0, True),  # p 0.008
        (1.0, 20, 3, True),
    ],
)
def test_an_alarm_needs_labels_missed_without_contradiction_or_audit_rows_lost(
    p_missed: float | None, lost: int, won: int, alarm: bool
) -> None:
    assert drift.is_alarm(p_missed, lost, won, 0.01) == alarm


def test_lost_audit_rows_raise_the_alarm_where_real_labels_still_teach() -> None:
    made: list[nn.Module] = []

    def build() -> nn.Module:
        made.append(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        return made[-1]

    def spoil(clock: Any, batches: Any, loss: float) -> None:
        if (clock.generation, clock.step) == (1, 99):
            with torch.no_grad():
                for model in made:
                    model.get_parameter("1.weight").mul_(-1.0)

    warned: list[str] = []
    given: dict[str, Any] = {"steps": 100, "audit": "off", "watch": spoil, "warn": warned.append, "lr": 0.01}
    result = fit(build, load("digits", labels=60), self_training(generations=2), **given)
    assert result.generations[1].drift["alarm"]
    (line,) = warned
    assert "validation rows and wins" in line
    assert "train fewer generations, or validate them (--audit safe)" in line


def test_no_more_rows_than_needed_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "MOST", 50)
    result, _, _ = train(load("digits", labels=60), self_training(generations=3), steps=20)
    assert [one.drift["looked"] for one in result.generations[1:]] == [50, 50]
    assert result.passes.evaluation >= 2 * 2 * 150


def test_the_command_line_tells_and_the_folder_keeps_it(tmp_path: Path) -> None:
    method = "self_training(generations=4, keep='replace', hard=True)"
    arguments = [
        "run",
        "digits",
        "--labels",
        "60",
        "--steps",
        "120",
        "--audit",
        "off",
        "--no-control",
        "--method",
        method,
    ]
    done = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "run")])
    assert done.exit_code == 0, done.output
    assert "drift: generation 3 predicts" in done.output
    assert done.output.count("collapse: generation") == 1
    generations = json.loads((tmp_path / "run" / "run.json").read_text())["result"]["generations"]
    assert [bool(g["drift"]) for g in generations] == [False, True, True, True]
    page = render(tmp_path / "run", NetworkTaskType())
    assert "Drift" in page
    assert "collapse: generation" in page
