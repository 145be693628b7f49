"""A stream of tasks: its scores in closed form, its rows, the reservoir that goes on, and its resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.core.objective import Method
from selfdistill.data.dataset import Data, from_tensors
from selfdistill.errors import DataError
from selfdistill.methods import der_pp, lwf, plain
from selfdistill.models.registry import parse
from selfdistill.teachers.replay import Reservoir
from selfdistill.training.fit import Result
from selfdistill.training.stream import class_tasks, fit_stream, rows_of_tasks, score_classes, stream_scores
from selfdistill.training.trainer import Trainer


def clouds() -> Data:
    """Four classes of 30 rows on a square, with validation and test rows among them."""
    y = torch.arange(120) % 4
    x = torch.tensor([[-2.0, -2.0], [-2.0, 2.0], [2.0, -2.0], [2.0, 2.0]])[y]
    x = x + 0.3 * torch.randn(120, 2, generator=torch.Generator().manual_seed(0))
    return from_tensors(x, y, audit=torch.arange(0, 20), test=torch.arange(20, 60))


def train(method: Method, out: Path | None = None, **more: Any) -> tuple[Result, dict[str, Any], Data]:
    data = clouds()
    classes = class_tasks(data, 2, 0)
    build = parse("mlp(width=16)", data.shape, 4)
    tasks = rows_of_tasks(data, classes, data.labelled)
    options: dict[str, Any] = {"epochs": 15, "batch_size": 10, "lr": 0.01, "device": "cpu", **more}
    result = fit_stream(build, data, method, tasks, out=out, **options)
    return result, score_classes(result, build, data, classes, 0), data


def test_scores_of_a_matrix_by_hand() -> None:
    matrix = torch.tensor([[0.9, 0.2, 0.1], [0.5, 0.8, 0.3], [0.6, 0.4, 1.0]])
    scores = stream_scores(matrix, torch.tensor([0.5, 0.1, 0.1]))
    expected = {"accuracy": 2.0 / 3, "forgetting": 0.35, "backward": -0.35, "forward": 0.15}
    assert scores == pytest.approx(expected)


def test_replay_keeps_the_first_task_and_plain_training_loses_it() -> None:
    _, naive, _ = train(plain())
    result, replayed, data = train(der_pp(20, 10))
    assert naive["accuracy"] < replayed["accuracy"] - 0.15
    assert naive["forgetting"] > 0.3
    assert replayed["accuracy"] > 0.9
    assert replayed["forgetting"] < 0.2
    assert result.objective is not None
    state = next(state for state in result.objective.states.values() if isinstance(state, Reservoir))
    held = set(torch.cat([data.audit, data.test]).tolist())
    assert int(state.seen) == len(data.labelled)
    assert not held & set(state.id.tolist())


@pytest.mark.parametrize("method", [der_pp(20, 10), lwf()])
def test_cut_in_the_second_task_it_ends_with_the_same_bits(
    method: Method, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _, _ = train(method)

    class PowerError(Exception):
        pass

    step, steps = Trainer.step, list[int]()

    def cut(self: Any) -> float:
        if len(steps) == 70:
            raise PowerError
        steps.append(1)
        return step(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", cut)
        with pytest.raises(PowerError):
            train(method, tmp_path / "run", save_steps=9)
    resumed, _, _ = train(method, tmp_path / "run", resume=True, save_steps=9)
    for one, other in zip(whole.generations, resumed.generations, strict=True):
        assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def test_rows_that_are_held_out_never_teach() -> None:
    data = clouds()
    build = parse("mlp(width=4)", data.shape, 4)
    with pytest.raises(DataError, match="never teach"):
        fit_stream(build, data, plain(), [data.labelled, data.test], device="cpu")
    with pytest.raises(DataError, match="task 2 of 2 has no labelled row"):
        fit_stream(build, data, plain(), [data.labelled, data.labelled[:0]], device="cpu")


@pytest.mark.parametrize("number", [0, 1, 5])
def test_a_number_of_tasks_that_the_classes_do_not_make(number: int) -> None:
    with pytest.raises(DataError, match="2 to 4 tasks"):
        class_tasks(clouds(), number, 0)
