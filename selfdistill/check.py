"""Does the method fit the model and the data? Asked before step 0, answered with what is there and what was wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .core import Method, Teacher, Term
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
    for name, term in method.terms.items():
        fault = _spaces(term) if isinstance(term, Term) else None  # a term of its own kind checks itself
        fault = fault or _views(term, {look.name: look.rows for look in method.views.looks})
        if fault:
            raise SpaceError(f"term {name!r}: {fault}")
    if data is not None and data.task != "classify":
        raise DataError(f"the target of {data.name} is a number with many values; the methods here classify")
    if data is not None and method.views.need_unlabelled() and not len(data.unlabelled):
        raise DataError(
            "this method learns from unlabelled rows and the data have none; give --labels N or --unlabelled PATH"
        )


def _spaces(term: Term) -> str | None:
    """What the term's loss or gate cannot judge; None if nothing."""
    try:
        student, target = space_of(term.head), term.teacher.space(term.head)
    except SpaceError as error:
        return str(error)
    judged = term.gate.spaces
    if judged is not None and target not in judged:
        return f"{type(term.gate).__name__} judges a target of {' or '.join(sorted(judged))}, not of {target}"
    return check_spaces(term.loss, student, target)


def _views(term: Term, rows_of: dict[str, str]) -> str | None:
    """A view that the method does not make, or that shows the teacher other rows than the student."""
    seen = [getattr(part, "view", None) for part in term.parts()]
    seen += [part.own_view(term) for part in term.parts() if isinstance(part, Teacher)]
    looked = [term.view, *(view for view in seen if view is not None)]
    missing = [view for view in looked if view not in rows_of]
    if missing:
        return f"view {missing[0]!r} is not among the method's views ({', '.join(sorted(rows_of))})"
    kinds = {rows_of[view] for view in looked}
    if len(kinds - {"pair"}) > 1 or kinds == {"pair", "unlabelled"}:
        return f"views {' and '.join(map(repr, looked))} show different rows ({' and '.join(sorted(kinds))})"
    return None


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
                        f"term {name!r}: the model's output {term.head!r} has width {output.shape[-1]} and the data "
                        f"have {classes} classes; build the model with {classes} outputs"
                    )
            objective.measure(batch)
