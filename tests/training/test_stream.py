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
from selfdistill.training.stream import (
    class_tasks,
    fit_adapt,
    fit_stream,
    rows_of_tasks,
    score_classes,
    stream_scores,
)
from selfdistill.training.supervised import NetworkTask
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


# adaptation -------------------------------------------------------------------------------------------------------


def adapted(domains: list[torch.Tensor], **more: Any) -> Result:
    data = clouds()
    build = parse("mlp(width=16)", data.shape, 4)
    torch.manual_seed(1)
    options: dict[str, Any] = {"steps": 3, "batch_size": 5, "device": "cpu", **more}
    return fit_adapt(build, data, plain(), build(), domains, **options)


def test_a_domain_begins_anew_or_with_the_weights_before() -> None:
    domains = list(clouds().labelled.split(20))
    starts = [{one.start for one in adapted(domains, warm=warm).generations} for warm in (False, True)]
    assert [len(each) for each in starts] == [3, 3]
    still = adapted(domains, warm=True, lr=1e-12, weight_decay=0.0)
    source = adapted(domains[:1], warm=True, lr=1e-12, weight_decay=0.0)
    for name, tensor in still.generations[-1].weights.items():
        torch.testing.assert_close(tensor, source.generations[0].weights[name])


def test_the_least_certain_rows_teach_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: the rows and pseudo-labels of a domain from the logits of the source."""
    data, seen = clouds(), list[Data]()
    begin = NetworkTask.begin

    def spy(self: NetworkTask, state: Any) -> int:
        seen.append(self.data)
        return begin(self, state)

    monkeypatch.setattr(NetworkTask, "begin", spy)
    rows = data.labelled[:20]
    adapted([rows], leave_out=0.25)
    torch.manual_seed(1)
    logits = parse("mlp(width=16)", data.shape, 4)()(data.rows(rows)).detach()
    keep = torch.softmax(logits, -1).amax(-1).topk(15).indices
    assert set(seen[0].labelled.tolist()) == set(rows[keep].tolist())
    assert seen[0].y[rows[keep]].tolist() == logits[keep].argmax(-1).tolist()
    assert int((seen[0].y >= 0).sum()) == 15 + len(data.audit)  # no other label is left, least of all of test rows


@pytest.mark.parametrize(
    ("domains", "more", "words"),
    [
        ([torch.arange(60, 80), torch.arange(0)], {}, "domain 2 of 2 has no row"),
        ([torch.arange(30, 80)], {}, "test split"),
        ([torch.arange(60, 80)], {"leave_out": 1.0}, "share of rows that is left out"),
        ([], {}, "no domain"),
    ],
)
def test_domains_that_cannot_be_learnt_are_refused(domains: Any, more: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        adapted(domains, **more)
