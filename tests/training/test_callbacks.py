"""A generation that ends at chance says so once, and no other does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from selfdistill import fit
from selfdistill.data.dataset import Data, from_tensors
from selfdistill.methods import born_again, plain
from selfdistill.models.registry import parse
from selfdistill.training import callbacks

COLLAPSED, CHANCE = "audit rows are called", "which is chance"


class Constant(nn.Module):
    """The same logits for every row."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.tensor([0.0, 5.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.bias + 0.0 * x[:, :3]


def clouds(labels: str = "right") -> Data:
    """Three clouds of 60 rows, of which 72 audit; labels may be drawn at random, or be mostly one class."""
    draw = torch.Generator().manual_seed(1)
    y = torch.arange(180) % 3
    x = torch.randn(180, 3, generator=draw) * 0.3 + 2.0 * torch.eye(3)[y]
    if labels == "random":
        y = torch.randint(3, (180,), generator=draw)
    if labels == "mostly bee":
        y = torch.where(torch.arange(180) % 5 > 1, 1, torch.arange(180) % 3)
    return from_tensors(x, y, ["ant", "bee", "cat"], audit=torch.arange(72), test=0.0)


def told(data: Data, build: Callable[..., nn.Module], epochs: int = 17, **more: object) -> list[str]:
    said: list[str] = []
    fit(build, data, plain(), epochs=epochs, batch_size=36, lr=0.02, warn=said.append, **more)  # type: ignore[arg-type]
    return said


def mlp(data: Data) -> Callable[..., nn.Module]:
    return parse("mlp(width=64)", data.shape, 3)


def test_one_class_for_all_rows_is_warned_of_with_its_name_and_count() -> None:
    (said,) = told(clouds(), Constant)
    assert "72 of 72 audit rows are called 'bee'" in said


def test_labels_that_are_learnt_by_heart_and_say_nothing_of_other_rows_are_warned_of() -> None:
    data = clouds("random")
    (said,) = told(data, mlp(data), epochs=60)
    assert CHANCE in said


def test_a_training_that_learns_is_not_warned_of() -> None:
    data = clouds()
    assert told(data, mlp(data), epochs=20) == []


def test_where_most_labels_are_one_class_it_is_a_fair_answer() -> None:
    assert told(clouds("mostly bee"), Constant) == []


def test_without_vitals_nothing_is_asked() -> None:
    assert told(clouds(), Constant, vitals=False) == []


def test_a_handful_of_audit_rows_proves_nothing() -> None:
    data = from_tensors(torch.randn(60, 3), torch.arange(60) % 3, audit=torch.arange(18), test=0.0)
    assert told(data, Constant, epochs=30) == []


def test_a_training_of_a_few_steps_need_not_have_learnt_anything() -> None:
    assert told(clouds(), Constant, epochs=16) == []  # three steps each


def test_the_log_has_it_in_the_last_line_of_each_generation(tmp_path: Path) -> None:
    fit(Constant, clouds(), born_again(generations=2), out=tmp_path, epochs=17, batch_size=36, warn=lambda line: None)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    warned = [any(COLLAPSED in w for w in line.get("warnings", [])) for line in lines]
    assert warned == ([False] * 16 + [True]) * 2


def test_the_pass_is_counted_and_spent_only_where_it_may_tell_something() -> None:
    data = clouds()
    for build, rows in ((Constant, 18 * 72), (mlp(data), 17 * 72)):  # an audit an epoch, and one look at its answers
        found = fit(build, data, plain(), epochs=17, batch_size=36, lr=0.02, audit="off", warn=lambda line: None)
        assert found.passes.evaluation == rows


@pytest.mark.parametrize(("right", "chance"), [(1, False), (2, True), (6, True), (8, True), (9, False)])
def test_chance_is_the_binomial_s(right: int, chance: bool) -> None:
    """Of twenty rows, each right with probability .25: P(X <= 1) = .024, P(X >= 8) = .102 and P(X >= 9) = .041."""
    assert callbacks.by_chance(right / 20, 20, 0.25) is chance
