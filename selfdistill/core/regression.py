"""A recipe of classes as one of values: the same teachers, gates and schedules, squared errors in place of logarithms.

A value with error is a normal distribution of variance 1: its cross-entropy and its KL are half a squared distance, so
what compares distributions over classes has a counterpart here. What has none (a threshold of confidence, smoothing,
pairs of one class) is refused with its name.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import SpaceError
from .objective import Method
from .outputs import VALUES, space_of
from .parts import Term


def for_task(method: Method, task: str) -> Method:
    """The method for a task: ``"regress"`` asks for its form for values, ``"classify"`` takes it as it is."""
    return of_values(method) if task == "regress" else method


def of_values(method: Method) -> Method:
    """The same method for a target of values, standardised by the labels that teach.

    Heads of logits become heads of values, cross-entropy and KL squared errors (xi CE(t, p) + (1 - xi) CE(y, p)
    becomes xi (t - f)^2 + (1 - xi) (y - f)^2). A method of values is returned as it is.

    Raises:
        SpaceError: a part of it speaks of classes alone; the message names it.

    >>> from selfdistill.methods import born_again
    >>> of_values(born_again()).terms["past"]
    Term(teacher=Generation(view=None), loss=Squared(mean=True), view='x', head='values', gate=Always(), \
weight=ByGeneration(first=0.0, later=1.0), reduction=PerElement())
    """
    if method.views.mates:
        raise SpaceError("a batch has rows of the same class for each one that is drawn, and values have no classes")
    for view in method.views.views:
        if view.rows == "pair":
            raise SpaceError(f"view {view.name!r} shows another row of the same class, and values have no classes")
    terms = {name: _term(name, term) if isinstance(term, Term) else term for name, term in method.terms.items()}
    return replace(method, terms=terms, wrap_model=method.wrap_model and method.wrap_model.of_values())


def _term(name: str, term: Term) -> Term:
    if term.head not in VALUES:
        if space_of(term.head) == "logits":
            raise SpaceError(f"term {name!r}: the head {term.head!r} is of classes and has no form for values")
        return term
    counterpart = term.loss.of_values()
    if counterpart is None:
        raise SpaceError(
            f"term {name!r}: {type(term.loss).__name__} compares distributions over classes and has no form for "
            "values; `selfdistill methods` says which recipes have"
        )
    return replace(term, loss=counterpart, head=VALUES[term.head], teacher=term.teacher.of_values())
