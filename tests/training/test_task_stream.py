"""A task whose data arrive in parts: each part replaces the one before, of which a reservoir of a few rows is kept.

A part is learnt in a generation that goes on from the last accepted one, beside a memory of what the model said of each
row. The classes of the first part are the prior task that a generation must not forget.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill import rng
from selfdistill.core.objective import Method
from selfdistill.core.parts import Term
from selfdistill.core.step import Batch, Passes, Rows
from selfdistill.data.sampler import Order
from selfdistill.losses import KL, CrossEntropy
from selfdistill.teachers import Labels, LastEpoch
from selfdistill.training.fit import Result
from selfdistill.training.state import Evaluation, RunState
from selfdistill.training.task import Task
from tests.training.test_task_acting import PowerError, same, train

METHOD = Method({"label": Term(Labels(), CrossEntropy()), "memory": Term(LastEpoch(), KL(), weight=0.5)}, generations=2)
CLASSES, KEPT = 4, 12


def clouds() -> tuple[Tensor, Tensor]:
    """Four classes of 40 rows side by side, those of the two parts in turn."""
    y = torch.arange(160) % CLASSES
    noise = torch.randn(160, 2, generator=torch.Generator().manual_seed(0))
    return torch.tensor([[-3.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [3.0, 0.0]])[y] + 0.3 * noise, y


class Stream(Task):
    """Classes 0 and 1 are the first part, 2 and 3 the second; every fourth row is held out."""

    def __init__(self, keep: int = KEPT) -> None:
        (self.x, self.y), self.keep = clouds(), keep
        held = torch.arange(len(self.y)) // CLASSES % 4 == 0
        self.held, self.parts = held.nonzero()[:, 0], [(~held & (self.y // 2 == k)).nonzero()[:, 0] for k in (0, 1)]
        self.rows, self.reservoir, self.audit_rows = self.parts[0][:0], self.parts[0][:0], len(self.held)

    def model(self, state: RunState, generation: int) -> nn.Module:
        model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, CLASSES))
        if generation and state.accepted:
            model.load_state_dict(state.generations[state.accepted[-1]].weights)
        return model

    def begin(self, state: RunState) -> int:
        """The next part and the reservoir teach; then some of the part enter the reservoir."""
        part, seed, generation = self.parts[state.clock.generation], state.settings.seed, state.clock.generation
        self.rows = torch.cat([part, self.reservoir])
        kept = part[rng.permutation((seed, "reservoir", generation), len(part))[: self.keep]]
        self.reservoir = torch.cat([self.reservoir, kept])
        self.order = Order(len(self.rows), 16, seed, generation)
        return self.order.steps_per_epoch

    def batches(self, state: RunState) -> list[Batch]:
        ids = self.rows[self.order.sample(state.clock)]
        return [Batch({"x": Rows(self.x[ids], self.y[ids], ids)})]

    @torch.no_grad()
    def evaluate(self, state: RunState) -> Evaluation:
        wrong = (state.model(self.x[self.held]).argmax(-1) != self.y[self.held]).double()
        return Evaluation({"accuracy": 1 - float(wrong.mean())}, wrong.tolist(), passes=Passes(evaluation=len(wrong)))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "reservoir": self.reservoir}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.rows, self.reservoir = saved["rows"], saved["reservoir"]


def stream(out: Path | None = None, keep: int = KEPT, **more: Any) -> Result:
    options: dict[str, Any] = {"steps": None, "epochs": 25, "lr": 0.05, "audit": "safe", "save_steps": 30, **more}
    return train(out, task=Stream(keep), method=METHOD, **options)


def accuracy(result: Result, generation: int, part: int) -> float:
    """Of a generation, on the held-out rows of a part."""
    task = Stream()
    w, ids = result.generations[generation].weights, task.held[task.y[task.held] // 2 == part]
    hidden = torch.tanh(F.linear(task.x[ids], w["0.weight"], w["0.bias"]))
    logits = F.linear(hidden, w["2.weight"], w["2.bias"])
    return float((logits.argmax(-1) == task.y[ids]).double().mean())


def test_the_second_part_is_learnt_and_the_reservoir_keeps_the_first() -> None:
    result = stream()
    assert accuracy(result, 0, 0) > 0.9
    assert accuracy(result, 0, 1) == 0.0
    assert accuracy(result, 1, 1) > 0.9
    assert accuracy(result, 1, 0) > 0.9
    assert result.generations[1].decision["accepted"]
    assert result.final_generation == 1


def test_without_a_reservoir_the_first_part_is_forgotten_and_an_audit_that_wants_a_gain_says_no() -> None:
    result = stream(keep=0, audit="strict")
    assert accuracy(result, 1, 0) < 0.5
    assert not result.generations[1].decision["accepted"]
    assert result.final_generation == 0


@pytest.mark.parametrize("cut", [(0, 45), (1, 3), (1, 70)])
def test_cut_in_the_middle_it_ends_with_the_same_bits(cut: tuple[int, int], tmp_path: Path) -> None:
    whole = stream()
    with pytest.raises(PowerError):
        stream(tmp_path / "cut", cut=cut)
    assert same(stream(tmp_path / "cut", resume=True), whole)


def test_the_rows_of_the_part_are_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken back in another order, they end otherwise."""
    with pytest.raises(PowerError):
        stream(tmp_path / "cut", cut=(1, 70))
    load = Stream.load_state_dict
    monkeypatch.setattr(
        Stream, "load_state_dict", lambda self, saved: load(self, {**saved, "rows": saved["rows"].flip(0)})
    )
    assert not same(stream(tmp_path / "cut", resume=True), stream())
