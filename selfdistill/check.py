"""Does the method fit the model and the data? Asked before step 0, answered with what is there and what was wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .core import Method
from .errors import DataError, SpaceError
from .heads import space_of
from .losses import check_spaces
from .tasks.data import Data

if TYPE_CHECKING:
    from .trainer import Trainer


def check_method(method: Method, data: Data | None = None) -> None:
    """Compare the spaces that the parts of each term declare.

    Raises:
        SpaceError: a loss cannot compare what its term gives it, a gate cannot judge its target, a view is missing.
        DataError: the data lack what the method needs.
    """
    names = {look.name for look in method.views.looks}
    for name, term in method.terms.items():
        student, target = space_of(term.head), term.teacher.space(term.head)
        fault = check_spaces(term.loss, student, target)
        judged = term.gate.spaces
        if fault is None and judged is not None and target not in judged:
            fault = f"{type(term.gate).__name__} judges a target of {' or '.join(sorted(judged))}, not of {target}"
        if fault is None:
            missing = [v for v in (term.view, term.teacher.own_view(term)) if v is not None and v not in names]
            if missing:
                fault = f"view {missing[0]!r} is not among the method's views ({', '.join(sorted(names))})"
        if fault:
            raise SpaceError(f"term {name!r}: {fault}")
    if data is not None and data.task != "classify":
        raise DataError(f"the target of {data.name} is a number with many values; the methods here classify")
    if data is not None and method.views.need_unlabelled() and not len(data.unlabelled):
        raise DataError("this method learns from unlabelled rows and the data have none; give --labels N or --unlabelled PATH")


def dry_run(trainer: Trainer) -> None:
    """One step without learning: shapes are checked where the trouble would otherwise come up later, or never.

    Raises:
        SpaceError: an output's width is not the number of classes, or an output has no such head.
    """
    from .trainer import kept_buffers

    objective, classes = trainer.objective, len(trainer.data.classes)
    with torch.no_grad(), kept_buffers(trainer.model):
        for batch in trainer.batches()[:1]:
            step = objective.look(batch)
            for name, term in trainer.method.terms.items():
                if not step.rows(term.view):
                    continue
                output = step.student(term.view, term.head)
                if space_of(term.head) == "logits" and output.shape[-1] != classes:
                    raise SpaceError(
                        f"term {name!r}: the model's output {term.head!r} has width {output.shape[-1]} and the data have "
                        f"{classes} classes; build the model with {classes} outputs"
                    )
            objective.measure(batch)

