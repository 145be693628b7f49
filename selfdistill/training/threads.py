"""The number of threads of a training: small steps are no faster on two, and far slower on a busy machine.

Threads that wait for each other spin. `selfdistill run digits --label-noise 0.4` beside other work on two cores took
85 s of CPU time on two threads and 13 s on one; gradient boosting of 1,000 rows of 20 columns took 61 s and 0.2 s.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..io.files import cores

SMALL = 50e6  # floating-point operations of one forward pass, below which one thread does it


SMALL_TABLE = 1_000_000  # cells, below which one thread learns a table


def for_model(model: nn.Module, x: Tensor) -> int:
    """Threads for a model and inputs ``x``: one if the pass is small, else the current number of torch.

    The answer depends on the model and the shape alone, never on a clock: sums of another number of threads differ in
    their last bits, and equal requests shall give equal runs.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.random.fork_rng(devices=[]), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(x)
    return 1 if counter.get_total_flops() < SMALL else torch.get_num_threads()


def requested() -> int:
    """The maximal number of threads: the cores, or fewer by OMP_NUM_THREADS."""
    setting = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores(), int(setting)) if setting.isdecimal() and int(setting) else cores()


def for_table(rows: int, columns: int) -> int:
    """Threads for a learner on so many rows and columns: one if they are few, else `requested`.

    >>> for_table(178, 13)
    1
    """
    return 1 if rows * columns < SMALL_TABLE else requested()


@contextmanager
def limited_to(threads: int) -> Iterator[None]:
    """Run with this many threads, and put the number back."""
    previous = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(previous)
