"""Does a generation end at chance? Asked of its audit rows, once, when its training is over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ..core import Clock
from ..evaluate import answers
from ..step import Passes, members
from ..teachers import Labels
from . import record

if TYPE_CHECKING:
    from ..trainer import Trainer

ONE = 0.9  # share of the rows above which answers are called one class
SPREAD = 0.5  # share that the commonest label must stay below: else one class may be a good answer
FELL = 0.8  # of its first value: a labelled loss below it has fallen
LEVEL = 0.05
FEWEST = 20  # rows; of fewer nothing is said
SETTLED = 50  # steps; before, nothing need be learnt


def entry(trainer: Trainer, clock: Clock, audit: Mapping[str, float] | None) -> dict[str, Any]:
    """What an epoch's line of the log says (`record.entry`), and after a generation's last one a warning of its end.

    Args:
        trainer: whose history has the epochs before.
        clock: of the epoch's last step.
        audit: metrics of the audit split; None without one.
    """
    found = record.entry(trainer.objective.pulse, trainer.history, clock.generation)
    data, done = trainer.data, clock.step + 1 >= max(clock.length, SETTLED)
    if not done or audit is None or not trainer.settings.vitals or data.task != "classify":
        return found
    y = data.y[data.audit]
    most = float(y.bincount().max()) / len(y)
    if len(y) < FEWEST or most >= SPREAD:
        return found
    said = None
    if audit["accuracy"] <= most + 1 - ONE:  # more is right than one class could be: nothing is asked
        trainer.passes += Passes(evaluation=members(trainer.model) * len(y))
        said = one_class(answers(trainer.model, data, data.audit, trainer.device), data.classes)
    if said is None and fell(_labelled(trainer, clock.generation)) and by_chance(audit["accuracy"], len(y), most):
        said = (
            f"the labelled loss fell, and {audit['accuracy']:.0%} of {len(y)} audit rows are right, which is chance: "
            "what was learnt does not carry over; see whether labels belong to their rows"
        )
    return {**found, "warnings": [*found.get("warnings", []), said]} if said else found


def one_class(logits: Tensor, classes: Sequence[str]) -> str | None:
    """A warning where answers (rows, classes) are nearly all one class; None where they are not.

    >>> import torch
    >>> one_class(torch.eye(3)[[0, 1, 2, 1]], "abc")
    >>> one_class(torch.eye(3)[[1, 1, 1, 1]], "abc").partition(":")[0]
    "4 of 4 audit rows are called 'b'"
    """
    counts = logits.argmax(-1).bincount(minlength=len(classes))
    most = int(counts.max())
    if most <= ONE * len(logits):
        return None
    return (
        f"{most} of {len(logits)} audit rows are called {classes[int(counts.argmax())]!r}: the training has collapsed; "
        "take more steps, less weight on what the model says itself, or another method"
    )


def fell(losses: Sequence[float]) -> bool:
    """Did losses, one an epoch, fall by a fifth and more?

    >>> fell([2.3, 1.1]), fell([2.3, 2.4]), fell([2.3])
    (True, False, False)
    """
    return len(losses) > 1 and losses[-1] < FELL * losses[0]


def by_chance(accuracy: float, rows: int, most: float) -> bool:
    """Could who knows nothing, and says a class of this share, be right as often? By exact binomial tests at 0.05.

    Who is right more seldom than that knows something, and says the opposite.

    >>> by_chance(0.14, 100, 0.1), by_chance(0.2, 100, 0.1), by_chance(0.0, 100, 0.1)
    (True, False, False)
    """
    from scipy.stats import binom

    right = round(accuracy * rows)
    return min(float(binom.sf(right - 1, rows, most)), float(binom.cdf(right, rows, most))) > LEVEL


def _labelled(trainer: Trainer, generation: int) -> list[float]:
    """The loss of the first term that learns from labels, by epoch of a generation; the epoch at hand is not in yet."""
    terms = trainer.method.terms.items()
    name = next((name for name, term in terms if isinstance(getattr(term, "teacher", None), Labels)), None)
    lines = [line["terms"].get(name) for line in trainer.history if line["generation"] == generation]
    return [line["loss"] for line in lines if line and line["loss"] is not None]
