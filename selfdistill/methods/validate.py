"""Validation of a method: its spaces, its views and the data that it needs are checked before the first step."""

from __future__ import annotations

from collections.abc import Sequence

from ..core.objective import Method, untaught
from ..core.outputs import space_of, tells_copies
from ..core.parts import BaseTerm, Teacher, Term
from ..data.dataset import Data
from ..errors import CheckpointError, DataError, RecipeError, SpaceError
from ..losses import check_spaces
from ..teachers import External


def check_method(method: Method, data: Data | None = None) -> None:
    """Compare the spaces that the parts of each term declare.

    Raises:
        SpaceError: a loss cannot compare what its term gives it, a gate cannot judge its target, a view is missing.
        DataError: the data lack what the method needs.
        RecipeError: an external teacher was trained on other rows or other classes.
    """
    for name, term in method.terms.items():
        fault = _spaces(term) if isinstance(term, Term) else None  # a term of its own kind checks itself
        fault = fault or _views(term, method.rows_of())
        if fault:
            raise SpaceError(f"term {name!r}: {fault}")
    if data is not None:
        _check_task(method, data)
    if data is not None and method.views.need_unlabelled() and not len(data.unlabelled):
        raise DataError(
            "this method learns from unlabelled rows and the data have none; give --labels N or --unlabelled PATH"
        )

    if data is not None and method.views.need_clean() and not len(data.clean):
        raise DataError(
            f"{data.name}: the method needs rows with clean labels; give --labels FILE with labels that a person "
            "decided, or validation rows"
        )
    for name, term in method.terms.items():
        origin = term.teacher and term.teacher.origin
        if data is not None and isinstance(origin, External) and origin.source is not None:
            _check_external(name, origin.source, data)


def _check_task(method: Method, data: Data) -> None:
    """Check that the heads fit the task: logits for classes, others for values, features for data without labels."""
    if data.task == "features" and not untaught(method):
        raise DataError(
            f"{data.name}: no row has a label, and this method learns from labels; label some rows, or give a method "
            "without labels, such as byol()"
        )
    for name, term in method.terms.items():
        space = space_of(term.head)
        if data.task == "classify" and space in ("values", "gaussian", "ranks"):
            raise DataError(
                f"term {name!r} predicts a value (head {term.head!r}) and the target of {data.name} is one of "
                f"{len(data.classes)} classes; give another method, or a target that is a number of many values"
            )
        if data.task == "regress" and space == "logits":
            raise DataError(
                f"the target of {data.name} is a number of many values and term {name!r} is about classes (head "
                f"{term.head!r}); turn the method into one of values by selfdistill.core.regression.of_values"
            )


def _check_external(name: str, source: str, data: Data) -> None:
    """Check that a teacher from a folder was trained on rows of this shape and on these classes, in this order."""
    from ..data import tables
    from ..models.store import model_card

    try:
        card = model_card(source)
    except CheckpointError as error:
        raise RecipeError(f"term {name!r}: {error}") from error
    columns = tuple(tables.feature_names(data.preprocessor)) if data.preprocessor is not None else ()
    required = {"rows of shape": data.shape, "classes": data.classes, "columns": columns}
    available = {"rows of shape": card["shape"], "classes": card.get("classes"), "columns": card.get("columns", ())}
    if data.reader is not None:  # the same numbers under another tokenizer are other words
        required["the tokenizer"], available["the tokenizer"] = (data.reader.mark,), (card.get("tokenizer"),)
    for subject, value in required.items():
        if available[subject] is not None and tuple(available[subject]) != value:
            raise RecipeError(
                f"term {name!r}: the teacher {source} knows {subject} {_few(available[subject])} and {data.name} has "
                f"{_few(value)}; give a teacher trained on such data"
            )


def _few(values: Sequence[object]) -> str:
    text = ", ".join(map(str, values[:6]))
    return f"({text}{', ...' if len(values) > 6 else ''})"


def _spaces(term: Term) -> str | None:
    """The reason why the term's loss or gate cannot take its student or target; None if both can."""
    try:
        student, target = space_of(term.head), term.teacher.space(term.head)
    except SpaceError as error:
        return str(error)
    for part in term.parts() if tells_copies(term.head) else ():
        if (head := part.head) not in (None, term.head):
            return f"{type(part).__name__} asks the head {head!r}, whose classes are others than those of {term.head!r}"
    spaces = term.gate.spaces
    if spaces is not None and target not in spaces:
        return f"{type(term.gate).__name__} judges a target of {' or '.join(sorted(spaces))}, not of {target}"
    return check_spaces(term.loss, student, target)


def _views(term: BaseTerm, rows_of: dict[str, str]) -> str | None:
    """The fault of a view that the method lacks, or whose rows differ from the student's; None without one."""
    views = [part.view for part in term.parts()]
    views += [part.student_view(term) for part in term.parts() if isinstance(part, Teacher)]
    names = [term.view, *(view for view in views if view is not None)]
    missing = [view for view in names if view not in rows_of]
    if missing:
        return f"view {missing[0]!r} is not among the method's views ({', '.join(sorted(rows_of))})"
    origin = None if term.teacher is None else term.teacher.origin
    if origin is not None and origin.mixed and rows_of[term.view] != "mixed":
        return f"{type(origin).__name__} are the labels of mixtures, and the rows of view {term.view!r} are not mixed"
    kinds = {rows_of[view] for view in names}
    if len(kinds - {"pair"}) > 1 or kinds == {"pair", "unlabelled"}:
        return f"views {' and '.join(map(repr, names))} show different rows ({' and '.join(sorted(kinds))})"
    return None
