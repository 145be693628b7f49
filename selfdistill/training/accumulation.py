"""What a term is divided by when its batch comes in pieces: the counts of all micro-batches and processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..core import distributed
from ..core.objective import Objective
from ..teachers import FrozenCopy


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
