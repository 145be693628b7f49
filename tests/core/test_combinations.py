"""The product of the parts: every teacher, loss, gate and head that fit make a step; all others are refused by name.

What fits is written down by hand in `tests.parts`; nothing there asks the parts. A part of the package that is missing
there fails the last test.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from selfdistill import gates, losses, teachers
from selfdistill.core.objective import Method, Objective
from selfdistill.core.parts import Gate, Teacher, Term, TermResult
from selfdistill.core.step import Batch, Rows, TrainingClock
from selfdistill.errors import SpaceError
from selfdistill.losses import AmongOthers, CrossEntropy, Entropy, LogOneMinusInner, LogVariances, MeanNLL
from selfdistill.methods.validate import check_method
from selfdistill.teachers import Ema, Labels
from selfdistill.testing.specimens import CLASSES, inputs, pool, tiny
from tests.parts import ASKS_PEERS, COMPARES, DISTRIBUTIONS, JUDGES, MIXED, OF_A_SAMPLE, SAYS, SPACE, TOO_MANY

each_teacher = pytest.mark.parametrize("teacher", list(SAYS), ids=str)


def a_batch(head: str) -> Batch:
    """Twelve rows of which three have no label, as classes or as values."""
    ids = torch.arange(21, 33)
    y = torch.where(ids < 30, ids % CLASSES, -1)
    if SPACE[head] not in ("logits", "features"):
        y = torch.where(ids < 30, inputs(ids)[:, 0], torch.nan)
    return Batch({"x": Rows(inputs(ids), y, ids)})


def fits(teacher: Any, loss: Any, gate: Any, head: str) -> bool:
    target = SAYS[teacher](head)
    compared = target is not None and (SPACE[head], target) in COMPARES[loss]
    if head == "joint" and gate in ASKS_PEERS:
        return False
    return compared and (JUDGES[gate] is None or target in JUDGES[gate])


def a_term(teacher: Any, loss: Any, gate: Any, head: str) -> Term:
    return Term(teacher, loss, "mixed" if teacher in MIXED else "x", head, gate)


def bound(teacher: Any, head: str) -> Objective | None:
    """Every legal combination of one teacher and one head, each a term of one method."""
    terms = {
        f"{type(loss).__name__}_{i}_{type(gate).__name__}_{k}": a_term(teacher, loss, gate, head)
        for i, loss in enumerate(COMPARES)
        for k, gate in enumerate(JUDGES)
        if fits(teacher, loss, gate, head) and not (teacher in MIXED and gate in OF_A_SAMPLE)
    }
    if not terms:
        return None
    if teacher in MIXED:  # gates that measure labelled rows need a term that looks at them
        terms["own"] = Term(Labels(), CrossEntropy())
    method = Method(terms, mixing=MIXED.get(teacher))
    check_method(method)
    clock = TrainingClock(
        1, 2, epochs=3, per_epoch=1
    )  # an epoch is a step, so that memories of epochs speak in the second
    objective = method.bind(tiny(0, outputs=1), previous=tiny(1, outputs=1), external=tiny(2, 0.0, 1), clock=clock)
    objective.prepare(pool(clock))
    return objective


@each_teacher
def test_what_fits_makes_a_step_and_what_does_not_is_refused_by_its_space(teacher: Any) -> None:
    """The message names the space or head that is there, and a space that would do."""
    legal = 0
    for head, loss, gate in ((h, k, g) for h in SPACE for k in COMPARES for g in JUDGES):
        if fits(teacher, loss, gate, head):
            legal += 1
            continue
        with pytest.raises(SpaceError, match=r"^term 'it': \w+") as refused:
            check_method(Method({"it": a_term(teacher, loss, gate, head)}, mixing=MIXED.get(teacher)))
        why, target = str(refused.value), SAYS[teacher](head)
        if target is None:  # the teacher has nothing to say to this head
            assert repr(head) in why or SPACE[head] in why, why
        elif head == "joint" and gate in ASKS_PEERS:
            assert f"{type(gate).__name__} asks the head 'peers'" in why and "'joint'" in why, why  # noqa: PT018
        elif JUDGES[gate] is not None and target not in JUDGES[gate]:
            assert f"not of {target}" in why and type(gate).__name__ in why, why  # noqa: PT018
            assert any(space in why for space in JUDGES[gate]), why
        else:
            assert SPACE[head] in why or target in why, why
            assert type(loss).__name__ in why and any(s in why for pair in COMPARES[loss] for s in pair), why  # noqa: PT018
    assert legal > 0


@each_teacher
def test_every_legal_combination_is_finite_and_teaches_where_student_and_target_differ(teacher: Any) -> None:
    """One step for the memories, then one whose gradients are looked at, term by term."""
    taught = 0
    for head in SPACE:
        objective = bound(teacher, head)
        if objective is None:
            continue
        if (teacher, head) in TOO_MANY:
            with pytest.raises(SpaceError, match=r"elements \(12, 3\) does not fit the student's \(12(, 2)?,?\)"):
                objective(a_batch(head))
            continue
        torch.manual_seed(0)
        loss = objective(a_batch(head))
        assert bool(loss.isfinite())
        loss.backward()
        objective.update()
        step = objective.forward_views(a_batch(head))
        for name, term in objective.method.terms.items():
            measured = term.tally(partial(objective.state_of, name), step)
            assert bool(measured.tally.total.isfinite()), name
            if isinstance(term, Term) and differs(term, measured):
                (gradient,) = torch.autograd.grad(measured.tally.total, measured.seen.student, retain_graph=True)  # type: ignore[union-attr]
                assert bool(gradient.isfinite().all()), name
                assert float(gradient.abs().max()) > 1e-6, name
                taught += name != "own"
    assert taught > 0, "nothing was compared that differs"


@pytest.mark.parametrize("teacher", list(MIXED), ids=str)
def test_a_mixture_has_no_id_and_no_label_to_ask_for(teacher: Any) -> None:
    """One line says so; the same teacher on rows that are not mixed is refused before."""
    with pytest.raises(SpaceError, match="the rows of view 'x' are not mixed"):
        check_method(Method({"it": Term(teacher, CrossEntropy())}))
    for gate, why in OF_A_SAMPLE.items():
        objective = Method({"it": a_term(teacher, CrossEntropy(), gate, "peers")}, mixing=MIXED[teacher]).bind(tiny(0))
        with pytest.raises(SpaceError, match=why) as refused:
            objective(a_batch("logits"))
        assert "\n" not in str(refused.value)


def test_every_gate_of_the_table_keeps_something() -> None:
    """Otherwise a gate's part of the product would say nothing."""
    kept = dict.fromkeys(JUDGES, 0.0)
    for head in ("logits", "peers", "gaussian"):
        objective = bound(Ema(), head)
        assert objective is not None
        for _ in range(2):
            objective(a_batch(head)).backward()
            for name, figure in objective.figures.items():
                kept[objective.method.terms[name].gate] += float(figure.kept)
            objective.update()
    assert not [gate for gate, trust in kept.items() if not trust > 0]


def differs(term: Term, measured: TermResult) -> bool:
    """Is there an element that is trusted and whose target is clearly not what the student says?"""
    seen = measured.seen
    assert seen is not None
    student, target = seen.student.detach(), seen.target
    trusted = torch.ones(student.shape[:-1]) if seen.trust is None else seen.trust
    if target.valid is not None:
        trusted = trusted * target.valid
    if isinstance(term.loss, AmongOthers):  # of a target that is one class alone, no other class is told apart
        told = target.probabilities(student.shape[-1])
        trusted = trusted * (told.amax(-1) < 0.99 * told.sum(-1))
    if isinstance(term.loss, LogOneMinusInner):  # the product with a uniform target is the same for every student
        told = target.probabilities(student.shape[-1])
        trusted = trusted * (told.amax(-1) - told.amin(-1) > 1e-3)
    if isinstance(term.loss, Entropy):
        apart: Tensor = (student - student.mean(-1, keepdim=True)).abs().amax(-1)
    elif target.space in DISTRIBUTIONS:
        p = target.probabilities(student.shape[-1])
        p = p / p.sum(-1, keepdim=True).clamp(min=1e-6)  # a history that began at zero is in proportion to the rest
        apart = (p - F.softmax(student, dim=-1)).abs().amax(-1)
    elif target.value.shape != student.shape:
        return bool((trusted > 0).any())  # a value beside a mean and a variance
    else:
        of = {MeanNLL: slice(0, 1), LogVariances: slice(1, 2)}.get(type(term.loss), slice(None))
        apart = (target.value - student)[..., of].abs().amax(-1)
    return bool(((apart > 1e-2) & (trusted > 1e-3)).any())


def test_the_table_has_every_part_of_the_package() -> None:
    """A new loss, gate or teacher enters the table, and with it the product."""
    for module, table, kind in ((losses, COMPARES, object), (gates, JUDGES, Gate), (teachers, SAYS, Teacher)):
        there = {type(part).__name__ for part in table}
        public = {n for n in module.__all__ if inspect.isclass(t := getattr(module, n)) and issubclass(t, kind)}
        # the oracle of reweight() has rows with clean labels; an error bound keeps nothing before `fit` sets it
        assert public - {"CleanGradient", "ErrorBound"} == there - {"InheritedPseudoLabels"}
