"""The protocols of a task and of a callback.

A `Task` says which model a generation begins with, which batches a step takes, and how a model is evaluated. A
`Callback` measures, warns or repairs at fixed points of a run. Neither knows the trainer that calls it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import rng
from ..core import distributed
from ..core.objective import Objective
from ..core.step import Batch, TrainingClock
from ..teachers import FrozenCopy
from .settings import PRECISIONS
from .state import Evaluation, RunState


class Callback:
    """Something that is done at fixed points of a run. A method that is left out does nothing.

    A callback may change the state: roll weights back, count passes, add to the entry of the metrics log. All
    processes call it, and it must not communicate unless all of them do.
    """

    def before_training(self, state: RunState) -> None:
        """Once in a run, when generation 0 has begun; not when a run is resumed."""

    def on_model(self, state: RunState) -> None:
        """The model of a generation is new, and no objective is bound to it yet."""

    def on_generation_start(self, state: RunState) -> None:
        """The model, the objective and the optimizer of a generation are new; a resumed run loads theirs after it."""

    def on_step_end(self, state: RunState, clock: TrainingClock, batches: Sequence[Batch], loss: float) -> None:
        """The optimizer and all teachers have moved; ``clock`` is that of the step, ``state.clock`` of the next."""

    def before_evaluation(self, state: RunState) -> None:
        """The last step of an epoch is done, and its model is about to be evaluated."""

    def on_epoch_end(self, state: RunState, clock: TrainingClock, entry: dict[str, Any]) -> None:
        """The epoch was evaluated; entries added to ``entry`` go to the metrics log.

        Lines under ``"warnings"`` are told too.
        """

    def on_generation_end(self, state: RunState) -> None:
        """The generation was audited and is the last of ``state.generations``; its successor has not begun."""


class Task:
    """A learning task: a model, the source of its batches, and its evaluation.

    A task of fixed data draws rows; one that acts steps an environment in `batches` by the model as it is; one whose
    data arrive in parts takes the next part in `begin`. Whatever changes in a task during a run is in its
    `state_dict`, so that a resumed run goes on exactly. What it draws at random it draws by addresses (`rng`).

    Attributes:
        problem: ``"classify"``, ``"regress"``, ``"generate"`` or ``"features"``: what the audit can measure. Losses
            that are real numbers, such as negative returns, are those of ``"regress"``.
        audit_rows: how many rows `evaluate` has a loss for; 0 if it has none.
        every_generation: whether all generations are needed, as the tasks of a stream are: a budget shortens them and
            drops none.
        keeps_best: whether something asks for the weights of a generation's best epoch; else no copy of them is held.
    """

    problem: str = "classify"
    audit_rows: int = 0
    every_generation: bool = False
    keeps_best: bool = True

    @property
    def identity(self) -> Mapping[str, Any]:
        """The settings that must not change between a run and its resumption, beside the method, model and settings."""
        return {}

    def title(self, generation: int) -> str:
        """The name of a generation in warnings."""
        return f"generation {generation}"

    def model(self, state: RunState, generation: int) -> nn.Module:
        """The model that a generation begins with; the engine has seeded its random numbers.

        Most tasks make a new one. One that goes on from the last accepted generation loads
        ``state.generations[state.accepted[-1]].weights``, if there is one.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say which model it trains")

    def begin(self, state: RunState) -> int:
        """Make ready for the generation ``state.clock.generation``: label a pool, take the next part of the data.

        A resumed run calls it too, on the `state_dict` that the task had when the generation began, and loads what was
        saved later after it.

        Returns:
            The number of steps in an epoch.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how long an epoch is")

    def batches(self, state: RunState) -> list[Batch]:
        """The micro-batches of this process for the step at ``state.clock``; they are measured once.

        Under several processes each takes its own rows, and all return as many micro-batches.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say what a step learns from")

    def evaluate(self, state: RunState) -> Evaluation:
        """The model as it is, on rows that it does not learn from; called after each epoch and before each audit."""
        return Evaluation()

    def baseline(self, state: RunState) -> Evaluation | None:
        """The model before training, evaluated; it is a candidate of the audit like any generation.

        None if there is no such model worth keeping, as for random weights. Called once, before `begin`.
        """
        return None

    def restored_model(self, state: RunState, generation: int) -> nn.Module:
        """A generation as it ended, in eval mode."""
        model = new_model(self, state, generation)
        model.load_state_dict(state.generations[generation].weights)
        return model.eval()

    def previous_model(self, state: RunState, generation: int) -> nn.Module | None:
        """The model that teaches a generation: the last one that was accepted; None for the first."""
        return self.restored_model(state, state.accepted[-1]) if generation and state.accepted else None

    def bind(self, state: RunState, previous: nn.Module | None) -> Objective:
        """The objective of a generation, on ``state.model``."""
        return state.method.bind(state.model, previous=previous, autocast=autocast(state), vitals=state.settings.vitals)

    def wrap(self, state: RunState) -> Any:
        """Wrap the model in DDP or another engine of PyTorch; returns the module to call."""
        forward: Any = torch.compile(state.model) if state.settings.compile else state.model
        if distributed.size() == 1:
            return forward
        if state.settings.parallel == "fsdp":
            distributed.shard(state.model)
            for part in state.objective.states.values():
                distributed.shard_children(part)
            return forward
        # a method need not use every head, and DDP waits for gradients that never come unless it is told
        return distributed.replicated(forward, heads=self.has_heads(state))

    def has_heads(self, state: RunState) -> bool:
        """Whether the model has several outputs, some of which may get no gradient; used under DDP."""
        return True

    def counts(
        self, state: RunState, batches: Sequence[Batch], seed: Callable[[int], None]
    ) -> dict[str, Tensor] | None:
        """The divisor of each term, over all micro-batches and processes.

        Called where there are several of either. ``seed(number)`` makes a micro-batch draw what it will draw when it
        is learnt from. None leaves it to the one micro-batch of each process.
        """
        return None if len(batches) == 1 else counts(state.objective, batches, seed)

    def objection(self, state: RunState) -> str | None:
        """Why the generation that has ended must not be accepted, whatever its audit says; None if nothing speaks
        against it.
        """
        return None

    def callbacks(self) -> Sequence[Callback]:
        """The callbacks of the task, in their order."""
        return ()

    def state_dict(self) -> dict[str, Any]:
        """The changing state of the task during a run: a tree of tensors, numbers, strings and lists.

        The first process's is saved, and all take it back.
        """
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take back a `state_dict`."""

    def resume(self, state: RunState) -> None:
        """Everything was loaded from a checkpoint; make anew what depends on it."""


class FunctionCallback(Callback):
    """Calls a function after every step with the clock, the micro-batches and the loss."""

    def __init__(self, function: Callable[[TrainingClock, list[Batch], float], None]) -> None:
        self.function = function

    def on_step_end(self, state: RunState, clock: TrainingClock, batches: Sequence[Batch], loss: float) -> None:
        self.function(clock, list(batches), loss)


def new_model(task: Task, state: RunState, generation: int) -> nn.Module:
    """The model that a generation begins with; it depends on the seed and the generation alone."""
    torch.manual_seed(rng.seed(state.settings.seed, "init", generation))
    return task.model(state, generation).to(state.device).train()  # a factory may have left it in eval mode


def autocast(state: RunState) -> Callable[[], Any]:
    """The context of forward passes in the precision of the settings."""
    dtype = PRECISIONS[state.settings.precision]
    if dtype is None:
        return contextlib.nullcontext
    return lambda: torch.autocast(state.device.type, dtype)


@contextlib.contextmanager
def kept_buffers(objective: Objective) -> Iterator[None]:
    """Whatever a forward pass does to the buffers of the student and of held teachers is undone."""
    held = [state.module for state in objective.states.modules() if isinstance(state, FrozenCopy)]  # inside others too
    before = [(buffer, buffer.clone()) for module in (objective.student, *held) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


def counts(
    objective: Objective, batches: Iterable[Mapping[str, Any]], seeded: Callable[[int], object] = lambda micro: None
) -> dict[str, Tensor]:
    """The count of each term over all micro-batches and processes: a pass without gradient, for `Objective.combine`.

    It draws what a pass from here on draws, and leaves the random state as it was.

    Args:
        objective: nothing of it changes.
        batches: the micro-batches of this process.
        seeded: called before each with its number, so that the pass draws what the pass that learns will draw.

    >>> from selfdistill.methods import plain
    >>> objective = plain().bind(torch.nn.Linear(3, 2))
    >>> two = [{"x": torch.ones(n, 3), "y": torch.zeros(n, dtype=torch.int64)} for n in (4, 1)]
    >>> counts(objective, two)
    {'label': tensor(5.)}
    """
    found, device = dict[str, Tensor](), next(objective.student.parameters()).device
    drawn = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with torch.no_grad(), kept_buffers(objective), drawn:
        for i, batch in enumerate(batches):
            seeded(i)
            for name, m in objective.measure(batch).items():
                found[name] = found.get(name, torch.zeros_like(m.tally.count)) + m.tally.count
    return {name: distributed.add(count) for name, count in found.items()}
