"""A task that collects its data by acting: a policy walks along a chain, and learns from the rewards of its own steps.

The engine knows nothing of it: its batches come from an environment that the model of the moment steps, and what the
environment and the memory hold is saved with the task.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill import rng
from selfdistill.core.objective import Method
from selfdistill.core.parts import BaseTerm, StateOf, Tally, TermResult
from selfdistill.core.step import Batch, Forward, Passes, Rows, TrainingClock
from selfdistill.training.fit import Result, drive
from selfdistill.training.settings import Settings
from selfdistill.training.state import Evaluation, RunState
from selfdistill.training.task import FunctionCallback, Task
from selfdistill.training.trainer import Trainer

PLACES, STEPS = 6, 24  # of the chain; of the walk between two updates


@dataclass(frozen=True)
class PolicyGradient(BaseTerm):
    """The mean of -(reward - mean reward) log p(action), over the steps of a walk; REINFORCE with a baseline."""

    def tally(self, state_of: StateOf, forward: Forward) -> TermResult:
        rewards = forward.batch["reward"].x
        surprise = F.cross_entropy(forward.student(self.view), forward.labels(self.view), reduction="none")
        count = rewards.new_tensor(float(len(rewards)))
        return TermResult(Tally(((rewards - rewards.mean()) * surprise).sum(), count), count, count)


METHOD = Method({"act": PolicyGradient()}, generations=2)


class Chain(Task):
    """Places in a row; a step right (action 1) is worth 1 and a step left 0. Batches hold the walk before too."""

    audit_rows = PLACES

    def __init__(self) -> None:
        self.place = torch.tensor(0)
        self.memory = {"place": torch.zeros(0).long(), "action": torch.zeros(0).long(), "reward": torch.zeros(0)}

    def model(self, state: RunState, generation: int) -> nn.Module:
        model = nn.Linear(PLACES, 2)
        if state.accepted and generation:
            model.load_state_dict(state.generations[state.accepted[-1]].weights)
        return model

    def begin(self, state: RunState) -> int:
        return 4

    def batches(self, state: RunState) -> list[Batch]:
        walk = self._walk(state)
        both = {name: torch.cat([self.memory[name], values]) for name, values in walk.items()}
        self.memory = walk
        x = F.one_hot(both["place"], PLACES).float()
        return [Batch({"x": Rows(x, both["action"]), "reward": Rows(both["reward"])})]

    @torch.no_grad()
    def _walk(self, state: RunState) -> dict[str, Tensor]:
        """Steps of the model as it is, from where the walk before it ended."""
        clock, address = state.clock, (state.settings.seed, "walk", state.clock.generation)
        draws = rng.uniform(address, torch.arange(STEPS) + clock.step * STEPS, 1)[:, 0]
        places, actions = [], []
        for u in draws:
            right = state.model(F.one_hot(self.place, PLACES).float()).softmax(-1)[1]
            places.append(self.place)
            actions.append((u < right).long())
            self.place = (self.place + 2 * actions[-1] - 1).clamp(0, PLACES - 1)
        state.passes += Passes(teacher=STEPS)
        action = torch.stack(actions)
        return {"place": torch.stack(places), "action": action, "reward": action.float()}

    @torch.no_grad()
    def evaluate(self, state: RunState) -> Evaluation:
        """The share of places from which the policy rather goes right."""
        losses = 1.0 - state.model(torch.eye(PLACES)).argmax(-1).double()
        return Evaluation({"accuracy": 1 - float(losses.mean())}, losses.tolist(), passes=Passes(evaluation=PLACES))

    def baseline(self, state: RunState) -> Evaluation:
        return self.evaluate(state)

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "memory": dict(self.memory)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.place, self.memory = saved["place"], dict(saved["memory"])


class PowerError(Exception):
    """The power fails."""


def train(
    out: Path | None = None,
    *,
    resume: bool = False,
    cut: tuple[int, int] | None = None,
    task: Task | None = None,
    method: Method = METHOD,
    **more: Any,
) -> Result:
    """A run, cut after the step (generation, step) before that is saved."""

    def fail(clock: TrainingClock, batches: list[Batch], loss: float) -> None:
        if (clock.generation, clock.step) == cut:
            raise PowerError

    settings = Settings(**{"steps": 20, "lr": 0.2, "schedule": "constant", "save_steps": 5, "audit": "strict", **more})
    if out:
        out.mkdir(exist_ok=True)
    trainer = Trainer(task or Chain(), method, settings, folder=out, callbacks=[FunctionCallback(fail)])
    return drive(trainer, resume)


def same(one: Result, other: Result) -> bool:
    pairs = zip(one.generations, other.generations, strict=True)
    equal = all(torch.equal(a.weights[name], b.weights[name]) for a, b in pairs for name in a.weights)
    return equal and one.history == other.history and one.passes == other.passes


def test_it_learns_by_acting_and_is_audited_from_the_model_before_training_on() -> None:
    result = train(audit="safe")
    assert result.history[-1]["audit"]["accuracy"] == 1.0
    assert result.generations[0].decision["accepted"]
    assert result.generations[0].decision["against"] == -1
    assert result.passes.teacher == 2 * 20 * STEPS


def test_what_is_not_shown_to_be_better_is_rolled_back() -> None:
    """Nearly without learning the strict audit keeps the model before training."""
    result = train(lr=1e-9)
    assert [done.decision["accepted"] for done in result.generations] == [False, False]
    assert result.final_generation == -1
    assert "not shown to be better than the model before training" in result.generations[0].decision["why"]


@pytest.mark.parametrize("cut", [(0, 7), (0, 19), (1, 12)])
def test_cut_in_the_middle_it_ends_with_the_same_bits(cut: tuple[int, int], tmp_path: Path) -> None:
    whole = train()
    with pytest.raises(PowerError):
        train(tmp_path / "cut", cut=cut)
    assert same(train(tmp_path / "cut", resume=True), whole)


def test_where_it_stood_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the environment's state the end is another one."""
    with pytest.raises(PowerError):
        train(tmp_path / "cut", cut=(0, 7))
    monkeypatch.setattr(Chain, "load_state_dict", lambda self, saved: None)
    assert not same(train(tmp_path / "cut", resume=True), train())
