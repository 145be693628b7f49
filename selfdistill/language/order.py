"""Which prompts a step takes."""

from __future__ import annotations

import math

from torch import Tensor

from .. import draws
from ..core import Clock


class Order:
    """Which rows a step takes: shuffles addressed by seed, generation and epoch."""

    def __init__(self, rows: int, batch_size: int, seed: int, generation: int) -> None:
        self.rows, self.seed, self.generation = rows, seed, generation
        self.steps_per_epoch = max(1, math.ceil(rows / batch_size))

    def drawn(self, clock: Clock) -> Tensor:
        order = draws.permutation((self.seed, "prompts", self.generation, clock.epoch), self.rows)
        step, steps = clock.step - clock.epoch * clock.per_epoch, self.steps_per_epoch
        return order[step * self.rows // steps : (step + 1) * self.rows // steps]
