"""Conformance checks for parts of your own: each raises ``AssertionError`` with one line that names the fault.

>>> from selfdistill.losses import KL
>>> check_loss(KL(temperature=2.0), minimum=0.0)
>>> from selfdistill.methods import ps_kd
>>> check_method(ps_kd(alpha=0.5))

They run on small models and batches of their own. They check the protocol of a part, not its formula: compare that with
a straight-line version.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import gates, losses, methods, schedules, teachers, terms, views
from ..core import mixing, parts
from ..core.objective import LeastSteps, Method, Objective
from ..core.outputs import element_shape
from ..core.parts import BindArgs, FunctionLoss, Gate, Loss, LossFunction, Teacher, Term, as_loss
from ..core.step import Batch, Forward, Rows, TrainingClock
from ..core.targets import DISTRIBUTIONS, SPACES, Target
from ..errors import SelfdistillError, SpaceError, VitalsError
from ..io.expressions import parse_expression
from ..losses import check_spaces
from ..methods import validate
from ..models import feature_heads, feature_pyramid, feature_taps, heads, peers
from ..teachers import self_training
from .specimens import ROWS, batch_for, batch_of, bound, factory, same_bits, sample, storages, tiny, views_of

_HEAD_FOR = {"values": "values", "gaussian": "gaussian", "ranks": "ranks", "features": "feature"}  # others: logits


def names() -> dict[str, Callable[..., Any]]:
    """All parts and recipes by name, to read the ``repr`` of a recipe.

    >>> parse_expression("KL(temperature=4.0)", names())
    KL(temperature=4.0)
    """
    classes: dict[str, Callable[..., Any]] = {"Method": Method, "LeastSteps": LeastSteps}
    around = (heads, peers, feature_heads, feature_pyramid, feature_taps)  # what a method puts around a model
    for module in (parts, mixing, losses, teachers, self_training, gates, terms, schedules, views, *around):
        for name, value in vars(module).items():
            own = inspect.isclass(value) and value.__module__.startswith(module.__name__) and not name.startswith("_")
            if own and dataclasses.is_dataclass(value):
                classes[name] = cast(Callable[..., Any], value)
    return {**classes, **methods.recipes()}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def check_value(part: Any) -> None:
    """Check that a recipe or part is a value: frozen, hashable, equal to its copy, with a ``repr`` that reads back.

    Raises:
        AssertionError: it is not.
    """
    name = type(part).__name__
    _require(dataclasses.is_dataclass(part), f"{name} is no dataclass; write @dataclass(frozen=True)")
    field = next((f.name for f in dataclasses.fields(part)), "probe")
    try:
        setattr(part, field, getattr(part, field, 0))
    except AttributeError:
        pass
    else:
        raise AssertionError(f"{name}.{field} can be assigned; write @dataclass(frozen=True)")
    try:
        hash(part)
    except TypeError as error:
        raise AssertionError(f"{name} is not hashable ({error}); use tuples for lists") from None
    copied = copy.deepcopy(part)
    _require(copied == part and hash(copied) == hash(part), f"a copy of {name} is not equal to it, or hashes otherwise")
    try:
        parsed = parse_expression(repr(part), {**names(), **_classes(part)})
    except SelfdistillError as error:
        raise AssertionError(f"the repr of {name} does not read back: {error}") from None
    _require(parsed == part, f"the repr of {name} reads back as another value: {parsed!r}")


def _classes(value: Any) -> dict[str, type]:
    """The classes of a value and of its fields."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple):
        return {name: kind for item in value for name, kind in _classes(item).items()}
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {}
    inner = tuple(getattr(value, field.name) for field in dataclasses.fields(value))
    return {**_classes(inner), type(value).__name__: type(value)}


# losses --------------------------------------------------------------------------------------------------------------


def check_loss(loss: Loss | LossFunction, *, minimum: float | None = None, mixes: bool = False) -> None:
    """Check that a loss gives one finite number per element, is not reduced, and has a gradient to the student.

    Args:
        loss: the loss, run on every pair of spaces it declares (``student_spaces``, ``target_spaces``).
        minimum: its smallest value, reached where the student equals the target; None without one.
        mixes: whether it may use other rows of the batch (relational losses); otherwise rows are independent.

    Raises:
        AssertionError: the loss fails a check.
    """
    loss = as_loss(loss)
    if not isinstance(loss, FunctionLoss):
        check_value(loss)
    pairs = [
        (student, target)
        for student in sorted(loss.student_spaces or {"logits"})
        for target in sorted(loss.target_spaces or {"logits"})
        if check_spaces(loss, student, target) is None
    ]
    _require(bool(pairs), f"{loss} declares no pair of spaces that it can compare")
    for student_space, target_space in pairs:
        for shape in ((ROWS,), (ROWS, 3)):
            student = sample(student_space, shape, 1)
            width = 1 if target_space == "values" and student_space != "values" else None
            target = Target(sample(target_space, shape, 2, width), target_space)
            _check_elements(loss, student, target, mixes)
            if minimum is not None:
                _check_minimum(loss, student, target, minimum)


def _check_elements(loss: Loss, student: Tensor, target: Target, mixes: bool) -> None:
    subject = f"{loss} on a target of {target.space}"
    student, before = student.clone().requires_grad_(), target.value.clone()
    value = loss(student, target)
    shape = tuple(element_shape(student))
    _require(
        tuple(value.shape) == shape,
        f"{subject} returned {tuple(value.shape)}, not one number for each element {shape}: losses never reduce",
    )
    _require(bool(value.isfinite().all()), f"{subject} is not finite")
    _require(target.value.equal(before), f"{subject} changed its target")
    _require(value.requires_grad, f"{subject} gives the student no gradient")
    (gradient,) = torch.autograd.grad(value.sum(), student)
    _require(bool(gradient.isfinite().all()), f"{subject} has a gradient that is not finite")
    _require(bool(gradient.abs().sum() > 0), f"{subject} has a gradient of zero where student and target differ")
    if not mixes:
        part = loss(student[:2].detach(), Target(target.value[:2], target.space))
        _require(
            torch.allclose(part, value[:2].detach(), atol=1e-6),
            f"{subject} depends on the other rows of the batch; give mixes=True if that is meant",
        )


def _check_minimum(loss: Loss, student: Tensor, target: Target, minimum: float) -> None:
    subject = f"{loss} on a target of {target.space}"
    lowest = float(loss(student, target).min())
    _require(lowest >= minimum - 1e-5, f"{subject} goes down to {lowest:.3g}, below its minimum {minimum}")
    if target.space == "classes":
        return  # no logits equal a label
    equal = F.softmax(student, dim=-1) if target.space == "probabilities" else student
    if equal.shape == target.value.shape:
        distance = float((loss(student, Target(equal, target.space)) - minimum).abs().max())
        _require(distance < 1e-5, f"{subject} is {distance:.3g} off its minimum where the student equals the target")


# gates and teachers --------------------------------------------------------------------------------------------------


def check_gate(gate: Gate) -> None:
    """Check that a gate gives trust in [0, 1] for each element, without gradient, for each of its target spaces.

    Raises:
        AssertionError: the gate fails a check.
    """
    check_value(gate)
    for space in sorted(gate.spaces or SPACES):
        for head in [_HEAD_FOR.get(space, "logits"), *(["exits"] if space in DISTRIBUTIONS else [])]:
            model = tiny(0)
            term = Term(teachers.Labels(), losses.CrossEntropy(), head=head, gate=gate)
            state = gate.start(model, BindArgs())
            forward = Forward(model, batch_of({"x": "all"}, 0), TrainingClock()).run()
            student = forward.student("x", head).detach()
            shape = tuple(element_shape(student))
            target = Target(sample(space, shape, 3, student.shape[-1]), space)
            weights = gate.weigh(state, student, target, forward, term)
            trust = weights.detach()
            subject = f"{gate} on a target of {space}"
            _require(tuple(trust.shape) == shape, f"{subject} returned {tuple(trust.shape)}, not elements {shape}")
            in_range = bool(((trust >= 0) & (trust <= 1)).all())
            _require(in_range, f"{subject} leaves [0, 1]: {float(trust.min()):.3g} to {float(trust.max()):.3g}")
            _require(not weights.requires_grad, f"{subject} carries gradient: the student would learn to be distrusted")


@dataclass(frozen=True)
class _Anything(Loss):
    """A loss that takes every target, to run a teacher by itself."""

    def __call__(self, student: Tensor, target: Target) -> Tensor:
        return student.square().sum(-1)


def check_teacher(teacher: Teacher, *, head: str | None = None) -> None:
    """Check that a teacher's target fits the student, has no gradient, and depends on its saved state alone.

    Args:
        teacher: the teacher, run with a previous generation and an external model.
        head: the student's head; by default the first one that the teacher accepts.

    Raises:
        AssertionError: the teacher fails a check.
    """
    check_value(teacher)
    head = head or _head_of(teacher)
    term = Term(teacher, _Anything(), mixing.MIXED if teacher.mixed else "x", head)
    method = Method({"term": term}, mixing=mixing.Mixing() if teacher.mixed else None)
    for fixed in (False, True):
        model = tiny(0, dropout=0.2)
        objective = bound(method, model, TrainingClock(1, 2, per_epoch=3, epochs=2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        _check_apart(str(teacher), objective, model)
        for k in range(4):
            batch = batch_of(views_of(method), k, values=2 * (head in ("values", "gaussian")), fixed=fixed)
            target = _asked(teacher, objective, batch)
            _check_target(teacher, target, objective, batch)
            loss = objective(batch)
            loss.backward()
            before = copy.deepcopy(objective.state_dict())
            optimizer.step()
            _require(same_bits(before, objective.state_dict()), f"{teacher} changes when the student learns")
            _check_apart(str(teacher), objective, model)
            objective.update()
        _check_kept(teacher, objective, method, batch)


def _head_of(teacher: Teacher) -> str:
    for head in ("logits", "peers", "exits", "joint", "values", "gaussian", "feature"):
        try:
            space = teacher.space(head)
        except SpaceError:
            continue
        _require(space in SPACES, f"{teacher} declares the space {space!r}; known are {', '.join(SPACES)}")
        return head
    raise AssertionError(f"{teacher} accepts no head")


def _asked(teacher: Teacher, objective: Objective, batch: Batch) -> Target:
    """The target of a teacher for a batch, with a fixed seed for dropout."""
    term = objective.method.terms["term"]
    torch.manual_seed(0)
    state = next(iter(objective.states.values()))
    return teacher.target(state, objective.forward_views(batch), term)


def _check_target(teacher: Teacher, target: Target, objective: Objective, batch: Batch) -> None:
    _require(isinstance(target, Target), f"{teacher} returned a {type(target).__name__}, not a Target")
    term = objective.method.terms["term"]
    declared = teacher.space(term.head)
    _require(target.space == declared, f"{teacher} declares {declared} and gave a target of {target.space}")
    _require(not target.value.requires_grad, f"{teacher} lets gradient through its target; detach it")
    dtype = torch.bool if target.valid is None else target.valid.dtype
    _require(dtype == torch.bool, f"{teacher} gives a mask valid of {dtype}, not of booleans")
    student = objective.forward_views(batch).student(term.view, term.head)
    try:
        spread = target.spread(student)
    except SpaceError as error:
        raise AssertionError(f"{teacher}: {error}") from None
    values = spread.value if spread.valid is None else spread.value[spread.valid]
    _require(bool(values.isfinite().all()), f"{teacher} gave a target that is not finite; mark such rows as not valid")
    first = _asked(teacher, objective.train(), batch)
    _require(same_bits(first.value, target.value), f"{teacher} gives two different targets for one batch")
    second = _asked(teacher, objective.eval(), batch)
    _require(same_bits(first.value, second.value), f"{teacher} follows train() and eval() of the objective")


def _check_apart(subject: str, objective: Objective, model: nn.Module) -> None:
    """Check that no weight is shared with the student, and none is trained."""
    shared = any(storages(state) & storages(model) for state in objective.states.values())
    _require(not shared, f"{subject} holds the student's own tensors; copy them")
    trained = [name for name, p in objective.named_parameters() if p.requires_grad or p.grad is not None]
    _require(not trained, f"{subject} holds weights that require gradient ({', '.join(trained[:3])})")


def _check_kept(teacher: Teacher, objective: Objective, method: Method, batch: Batch) -> None:
    """Check that the saved state determines the target."""
    student = copy.deepcopy(objective._student[0])
    restored = bound(method, student, objective.clock)
    restored.load_state_dict(copy.deepcopy(objective.state_dict()))
    expected, actual = _asked(teacher, objective, batch), _asked(teacher, restored, batch)
    equal = same_bits(expected.value, actual.value) and same_bits(expected.valid, actual.valid)
    _require(equal, f"{teacher} gives another target after its state was saved and loaded")


# methods -------------------------------------------------------------------------------------------------------------


def check_method(
    method: Method, build: Callable[..., nn.Module] | None = None, *, external: nn.Module | None = None
) -> None:
    """Check that a method learns, does not depend on the batch's size, and resumes exactly from its ``state_dict``.

    Args:
        method: the recipe; its first two generations are run.
        build: a factory of models for six inputs and four classes, without dropout; one with every head if not given.
        external: the teacher of methods that need one.

    Raises:
        AssertionError: the method fails a check, or its parts do not fit each other.
    """
    check_value(method)
    try:
        validate.check_method(method)
    except SelfdistillError as error:
        raise AssertionError(str(error)) from None
    build = build or factory(method, 3)
    build = method.wrap_model(build) if method.wrap_model else build
    for generation in range(min(2, method.generations)):
        clock = TrainingClock(generation, method.generations, epochs=2, per_epoch=2)
        try:
            _check_generation(method, build, clock, external)
        except VitalsError as error:
            raise AssertionError(str(error)) from None


def _check_generation(
    method: Method, build: Callable[..., nn.Module], clock: TrainingClock, external: nn.Module | None
) -> None:
    torch.manual_seed(0)
    model = build()
    objective = bound(method, model, clock, external)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    list(_steps(objective, model, optimizer, range(2)))
    saved = copy.deepcopy((model.state_dict(), objective.state_dict(), optimizer.state_dict()))
    expected = [*_steps(objective, model, optimizer, range(2, 4)), copy.deepcopy(model.state_dict())]

    second = build()
    resumed = bound(method, second, clock, external)
    optimizer = torch.optim.SGD(second.parameters(), lr=0.1, momentum=0.9)
    parts: tuple[Any, ...] = (second, resumed, optimizer)
    for part, state in zip(parts, saved, strict=True):
        part.load_state_dict(state)
    actual = [*_steps(resumed, second, optimizer, range(2, 4)), second.state_dict()]
    subject = f"generation {clock.generation}"
    _require(
        all(same_bits(a, b) for a, b in zip(expected, actual, strict=True)),
        f"{subject}: loaded from its state_dict, the method goes on differently",
    )


def _steps(objective: Objective, model: nn.Module, optimizer: Any, steps: range) -> Iterator[Tensor]:
    """Train for some steps and check each one; yields the losses."""
    subject = f"generation {objective.clock.generation}"
    for k in steps:
        batch = batch_for(objective.method, k)
        _check_doubled(objective, batch, subject)
        torch.manual_seed(k)
        loss = objective(batch)
        _require(loss.dim() == 0, f"{subject}: the loss has shape {tuple(loss.shape)}, not that of a number")
        _require(bool(loss.isfinite()), f"{subject}: the loss is {loss.item()} at step {k}")
        _require(loss.requires_grad, f"{subject}: the loss does not reach the student: it carries no gradient")
        optimizer.zero_grad()
        loss.backward()
        learns = any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
        _require(learns, f"{subject}: no gradient reaches the student")
        before = copy.deepcopy(objective.state_dict())
        optimizer.step()
        _require(same_bits(before, objective.state_dict()), f"{subject}: a teacher changes when the student learns")
        _check_apart(subject, objective, model)
        objective.update()
        _require(objective.clock.step == k + 1, f"{subject}: the clock stands at {objective.clock.step} after step {k}")
        yield loss.detach()


def _check_doubled(objective: Objective, batch: Batch, subject: str) -> None:
    """Check that a batch with each row twice has the same loss; memories are not updated."""
    repeated = Batch()
    for view, rows in batch.items():
        y, ids = (None if t is None else torch.cat([t, t]) for t in rows[1:3])
        repeated[view] = Rows(torch.cat([rows.x, rows.x]), y, ids)
    if any(part.mixes for term in objective.method.terms.values() for part in term.parts()):
        return  # targets depend on the other rows of the batch
    with torch.no_grad():
        torch.manual_seed(0)
        single = float(objective(batch))
        torch.manual_seed(0)
        doubled = float(objective(repeated))
    _require(
        abs(single - doubled) <= 1e-4 * max(1.0, abs(single)),
        f"{subject}: the loss is {single:.6g} on a batch and {doubled:.6g} on the same batch twice",
    )
