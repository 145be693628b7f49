"""A budget bounds a run: its time, its memory, its sample passes; what it cuts is recorded and told.

The cost is planned before it is spent: a training measures its first steps, and begins again with as many steps as
fit, so that its learning rate ends with it. A guard ends what takes longer than planned with the best accepted model.
``budget.json`` in the run folder keeps what was spent and planned, so that a resumed run goes on with the rest.
"""

from __future__ import annotations

import hashlib
import math
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..core import distributed
from ..errors import CheckpointError, DataError
from ..io.expressions import one_line
from ..io.schema import read_json
from ..io.tensors import write_json

UNITS = {"s": ("seconds", 1.0), "min": ("seconds", 60.0), "h": ("seconds", 3600.0), "passes": ("passes", 1.0)}
UNITS |= {"MiB": ("memory", 2.0**20), "GiB": ("memory", 2.0**30)}
KINDS = {"seconds": "time", "memory": "memory", "passes": "passes"}
EXAMPLE = "a budget is a number with a unit (s, min, h, MiB, GiB, passes), such as 10min or 10min|4GiB|20000passes"
MARGIN = 0.9  # of the time that is left, what is planned: the rest is for evaluations, files and the test
PILOT = 0.04  # of the time that is left, what the measured first steps may take
FIRST_STEPS = 12  # at the most
WRITTEN = 1.0  # seconds between two writes of what was spent
FILE = "budget.json"
LONG = 120.0  # seconds from which on a command says beforehand how long it will take


class Peak:
    """Peak memory from here on: of the GPU if there is one, else resident memory (Linux resets it, others do not)."""

    def __init__(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    def megabytes(self) -> float:
        """The peak, in millions of bytes."""
        if torch.cuda.is_available():
            return torch.cuda.max_memory_allocated() / 1e6
        with suppress(OSError, AttributeError):
            found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
            assert found is not None
            return int(found[1]) * 1024 / 1e6
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


@dataclass(frozen=True)
class Budget:
    """The bounds of a run; None bounds nothing. ``memory`` is in bytes."""

    seconds: float | None = None
    memory: float | None = None
    passes: float | None = None


def parse_budget(text: str) -> Budget:
    """The bounds that a text names.

    Args:
        text: Numbers with units, separated by ``|`` or commas.

    Returns:
        The budget.

    Raises:
        DataError: a number without a known unit, none above 0, or two bounds of one kind.

    >>> parse_budget("10min|4GiB|20000passes")
    Budget(seconds=600.0, memory=4294967296.0, passes=20000.0)
    """
    bounds: dict[str, float] = {}
    for part in re.split(r"[|,]", text):
        match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*([A-Za-z]+)\s*", part)
        kind, factor = UNITS.get(match[2], ("", 0.0)) if match else ("", 0.0)
        try:
            amount = factor * float(match[1]) if match else 0.0
        except ValueError:
            kind, amount = "", 0.0
        if not kind:
            raise DataError(
                f"--budget {one_line(part.strip() or text, 60)!r} has no number or no known unit; {EXAMPLE}"
            )
        if not 0 < amount < math.inf:
            raise DataError(f"--budget {one_line(part.strip(), 60)} bounds nothing; give a finite number above 0")
        if kind in bounds:
            raise DataError(f"--budget {one_line(text, 60)} bounds the {KINDS[kind]} twice; give one of the two")
        bounds[kind] = amount
    return Budget(**bounds)


def most_trials(planned: int, explore: float | None, each: int = 0) -> int:
    """The trials of which trying takes at most a share of all trainings; at least one, and all without a share.

    Args:
        planned: how many there are.
        explore: the share, from 0 to 1.
        each: the trainings of a trial, where the winner is trained anew; 0 where it is one of the trials.

    >>> most_trials(6, None), most_trials(6, 0.5), most_trials(6, 0.8), most_trials(6, 0.0), most_trials(20, 0.95, 5)
    (6, 2, 5, 1, 3)
    """
    if explore is None or explore >= 1:
        return planned
    ratio = explore / (1 - explore) + 1e-9
    return max(1, min(planned, math.floor(ratio / each if each else ratio + 1)))


def foretell(seconds: float, remedy: str, tell: Callable[[str], None]) -> None:
    """Say before or soon after the start how long something will take, and what makes it shorter, if it is long.

    >>> foretell(1500.0, "give a smaller --steps", print)
    this will take about 25 minutes; for a first answer give a smaller --steps
    >>> foretell(100.0, "give a smaller --steps", print)
    """
    if seconds >= LONG:
        minutes = seconds / 60
        span = f"{minutes:.0f} minutes" if minutes < 90 else f"{minutes / 60:.1f} hours"
        tell(f"this will take about {span}; for a first answer {remedy}")


class Expense(NamedTuple):
    """Seconds and sample passes."""

    seconds: float = 0.0
    passes: float = 0.0


_COST = {"seconds": (float, None), "passes": (float, None)}
_STATE = {
    "seconds": float,
    "passes": {str: float},
    "peak": float,
    "steps": {str: int},
    "until": {str: _COST},
    "cut": [str],
}


class Meter:
    """What a run may spend, what it has spent, and what was cut.

    Args:
        text: the budget as it was asked for.
        folder: of the run; nothing is kept without it.
        tell: called with each line about what is cut.

    Attributes:
        trainings: how many are still to come, the one under way included; each has a control or none.
        beside: the cost of a step of the control, which takes as many.
        follows: whether what trains now is a control, which plans no steps of its own.
        shared: the name under which the steps of all trainings are planned, where they are to be the same.
        highest: the peak memory, in bytes, when it was last looked at.
        alike: whether each of its generations takes the steps of the method's.

    Raises:
        DataError: the text is no budget, or the process alone takes more memory.
        CheckpointError: what an earlier process spent cannot be read.
    """

    def __init__(self, text: str, folder: Path | None = None, tell: Callable[[str], None] = print) -> None:
        self.budget, self.text, self.folder, self.tell = parse_budget(text), text, folder, tell
        self.trainings, self.beside, self.follows, self.alike, self._method = 1, Expense(), False, False, ""
        self.shared = ""
        self.steps: dict[str, int] = {}
        self.until: dict[str, Expense] = {}
        self.cuts: list[str] = []
        self.passes: dict[str, float] = {}  # of each training
        self._earlier, self.highest = 0.0, 0.0
        if folder is not None and (folder / FILE).exists():
            self._read(folder / FILE)
        self._peak, self._begun, self._written = Peak(), time.monotonic(), 0.0
        self.check_memory("the process alone")

    def _read(self, path: Path) -> None:
        try:
            saved = read_json(path, _STATE)
        except (OSError, ValueError) as error:
            why = one_line(error, 120)
            raise CheckpointError(f"{path} is damaged or foreign ({why}); start again in a new --out") from error
        self.steps, self.cuts, self.highest = dict(saved["steps"]), list(saved["cut"]), float(saved["peak"])
        self.until = {key: _bounds(value) for key, value in saved["until"].items()}
        self.passes, self._earlier = dict(saved["passes"]), float(saved["seconds"])

    def write(self, due: bool = True) -> None:
        """Write what was spent and planned, where it is ``due`` or the last time was a second ago."""
        now = time.monotonic()
        if self.folder is None or distributed.rank() or not (due or now - self._written > WRITTEN):
            return
        self._written = now
        if self.folder.is_dir():
            until = {key: _finite(value) for key, value in self.until.items()}
            state = {"seconds": self.spent.seconds, "passes": self.passes, "peak": self.peak, "steps": self.steps}
            write_json(self.folder / FILE, {**state, "until": until, "cut": self.cuts})

    @property
    def spent(self) -> Expense:
        """The cost so far, over all processes that took the run on."""
        return Expense(self._earlier + time.monotonic() - self._begun, math.fsum(self.passes.values()))

    @property
    def peak(self) -> float:
        """Peak memory in bytes, over all processes that took the run on."""
        self.highest = max(self.highest, 1e6 * self._peak.megabytes())
        return self.highest

    def cut(self, line: str) -> None:
        """Record and tell what the budget cuts; the same line once."""
        if line not in self.cuts:
            self.cuts.append(line)
            if distributed.rank() == 0:
                self.tell(f"--budget {self.text}: {line}")
        self.write()

    def summary(self) -> dict[str, Any]:
        """The budget as a result holds it: the bounds, what was spent, and what was cut."""
        spent = {"seconds": round(self.spent.seconds, 2), "passes": self.spent.passes}
        return {"bound": self.text, **spent, "peak_mib": round(self.peak / 2**20, 1), "cut": list(self.cuts)}

    def left(self) -> Expense:
        """What is left; infinite where nothing bounds it."""
        bound = _bounds({"seconds": self.budget.seconds, "passes": self.budget.passes})
        return Expense(*(max(0.0, whole - spent) for whole, spent in zip(bound, self.spent, strict=True)))

    def affords(self, cost: Expense) -> bool:
        """Whether so much more is within the bounds, and the memory too."""
        enough = all(more <= rest for more, rest in zip(cost, self.left(), strict=True))
        return enough and (self.budget.memory is None or self.peak <= self.budget.memory)

    def check_memory(self, what: str, more: float = 0.0) -> None:
        """Refuse what does not fit into the memory, before it is trained; ``more`` bytes are still to be taken.

        Raises:
            DataError: it takes more than the budget allows.
        """
        if self.budget.memory is not None and (needed := self.peak + more) > self.budget.memory:
            raise DataError(
                f"{what} takes {needed / 2**20:,.0f} MiB of memory, and --budget {self.text} allows "
                f"{self.budget.memory / 2**20:,.0f}; give more, or a smaller model or --batch-size"
            )

    def allowance(self, folder: Path | None, method: object) -> Allowance:
        """What one training may spend: its share of what is left, or what it was given before it was cut."""
        inside = self.folder is not None and folder is not None and folder.is_relative_to(self.folder)
        key = folder.relative_to(self.folder).as_posix() if folder and self.folder and inside else "."
        if key not in self.until:
            share = 1 if self.follows else max(1, self.trainings)
            self.until[key] = Expense(*(a + b / share for a, b in zip(self.spent, self.left(), strict=True)))
        self.write()
        name = self.shared or hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", repr(method)).encode()).hexdigest()[:12]
        if self.follows:
            return Allowance(self, key, self._method if self.alike else f"{name} follows", self.until[key], Expense())
        self.trainings, self._method = self.trainings - 1, name
        return Allowance(self, key, name, self.until[key], self.beside)


def _bounds(cost: Mapping[str, float | None]) -> Expense:
    return Expense(*(math.inf if value is None else value for value in (cost["seconds"], cost["passes"])))


def _finite(cost: Expense) -> dict[str, float | None]:
    return {name: None if value == math.inf else value for name, value in cost._asdict().items()}


@dataclass
class Allowance:
    """What one training may spend: until the meter shows ``until``, less what its control takes.

    Args:
        meter: of the run.
        key: of the training.
        name: of the method, by which its planned steps are kept.
        until: where it ends.
        beside: the cost of a step of the control.
    """

    meter: Meter
    key: str
    name: str
    until: Expense
    beside: Expense
    steps: int = 0  # that it has taken

    def planned(self, generation: int) -> int | None:
        """The steps of a generation that were planned before; None where none were."""
        return self.meter.steps.get(f"{self.name}/{generation}")

    def plan(
        self,
        generation: int,
        generations: int,
        step: Expense,
        requested: int,
        per_epoch: int,
        tail: float = 0.0,
        later: float = 1.0,
    ) -> int:
        """The steps of a generation that fit. Each generation gets an equal share, and at least an epoch.

        Args:
            generation: its number, and ``generations`` how many there are to be.
            step: the cost of a step.
            requested: the steps that were asked for.
            per_epoch: the steps of an epoch.
            tail: the seconds that the end of a generation takes.
            later: the cost of a step of the generations after this one, in steps of this one.

        Returns:
            The steps; 0 where what is left is not worth a further generation.

        Raises:
            DataError: not one step fits.
        """
        each = Expense((step.seconds + self.beside.seconds) / MARGIN, step.passes + self.beside.passes)
        number, enough = 1 + later * (generations - generation - 1), min(requested, per_epoch)
        rests = (self._rest(0, 0.0) - tail, self._rest(1, 0.0))
        fitting = [rest / cost for rest, cost in zip(rests, each, strict=True) if cost and rest < math.inf]
        whole = max(0.0, min(fitting, default=number * requested))
        steps = min(requested, math.floor(whole / max(1.0, min(number, whole // enough))))
        steps = -distributed.most(-steps)
        if steps < enough and generation:
            return 0
        if steps < 1:
            raise DataError(
                f"--budget {self.meter.text} has no room for a step, which takes {sum(each[:1]):.2g} s and "
                f"{each.passes:,.0f} passes{', its control included' if any(self.beside) else ''}; give a larger one"
            )
        self.meter.steps[f"{self.name}/{generation}"] = steps
        self.meter.write()
        return steps

    def _rest(self, kind: int, step: float) -> float:
        """What is left of one kind after a step of this cost and the control's steps."""
        return self.until[kind] - self.meter.spent[kind] - step - self.beside[kind] * (self.steps + bool(step))

    def over(self, passes: float, steps: int, step: float) -> str | None:
        """Why a training must end now; None where it may go on.

        Args:
            passes: that it has taken.
            steps: that it has taken.
            step: the passes of its last step, as many as the next one takes.
        """
        self.steps = steps
        self.spend(passes, due=False)
        if self._rest(0, 0.0) <= 0:
            return "the time is over"
        if self._rest(1, step) < 0:
            return "the passes are used up"
        memory = self.meter.budget.memory
        return (
            f"the memory has grown to {self.meter.peak / 2**20:,.0f} MiB"
            if memory and self.meter.peak > memory
            else None
        )

    def goes_on(self, costs: Sequence[Expense], number: int, generations: int) -> bool:
        """Whether one more of the first steps is worth measuring: at the most a small share of a generation's part."""
        seconds, passes = (sum(kind) for kind in zip(*costs, strict=True))
        left, more = Expense(self._rest(0, 0.0) / generations, self._rest(1, 0.0) / generations), costs[-1]
        share = PILOT if len(costs) > 2 else 6 * PILOT  # the first step is slower than the others
        enough = seconds + more.seconds > share * left.seconds or passes + more.passes > PILOT * left.passes
        return len(costs) < number and not enough

    def cut(self, generation: int, steps: int, requested: int, reason: str, last: bool = True) -> None:
        """Note that a generation ends before its last step, and as the ``last`` one where it was not planned so."""
        part = "" if generation == 0 else f"generation {generation}: "
        place = "" if self.key == "." else f"{self.key}: "
        ended = self.planned(generation) != steps
        if ended:
            self.meter.steps[f"{self.name}/{generation}"] = steps
            if last:
                self.meter.steps[f"{self.name}/{generation + 1}"] = 0
        kept = f"{steps:,} step{'' if steps == 1 else 's'} in place of {requested:,}" if steps else "left out"
        self.meter.cut(f"{place}{part}{kept}: {reason}")

    def spend(self, passes: float, part: str = "", due: bool = True) -> None:
        """Note the passes that the training, or a part of it, has taken; written where it is ``due``."""
        self.meter.passes[self.key + part] = passes
        self.meter.write(due)


_active: ContextVar[Meter | None] = ContextVar("budget", default=None)


def active() -> Meter | None:
    """The meter of the run under way; None where no budget bounds it."""
    return _active.get()


@contextmanager
def following(alike: bool = False) -> Iterator[None]:
    """Within it a control trains, on what is left: for the steps that it is given or, if it is ``alike``, in each
    generation for those of the method that trained before.
    """
    if (meter := active()) is None:
        yield
        return
    before = meter.follows, meter.alike
    meter.follows, meter.alike = True, alike
    try:
        yield
    finally:
        meter.follows, meter.alike = before


@contextmanager
def unbounded() -> Iterator[None]:
    """Within it nothing is bounded: what is tried out there is counted by whoever tries it."""
    token = _active.set(None)
    try:
        yield
    finally:
        _active.reset(token)


def expect(trainings: int, beside: Callable[[Meter], Expense] | None = None) -> None:
    """Tell the budget how many trainings are to come; ``beside`` measures a step of the control that each has."""
    if (meter := active()) is not None:
        meter.trainings = trainings
        meter.beside = Expense() if beside is None else beside(meter)


@contextmanager
def limited(text: str | None, folder: Path | None, tell: Callable[[str], None]) -> Iterator[Meter | None]:
    """Bound what is trained within it by a budget; None bounds nothing.

    Raises:
        DataError: the text is no budget, or the process alone takes more memory.
        CheckpointError: what an earlier process spent cannot be read.
    """
    meter = None if text is None else Meter(text, folder, tell)
    token = _active.set(meter)
    try:
        yield meter
    finally:
        _active.reset(token)
        if meter is not None:
            meter.write()
