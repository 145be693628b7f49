"""Checks of a method against model and data before step 0."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ..core import distributed
from ..core.memory import SampleMemory
from ..core.objective import Objective
from ..core.outputs import space_of
from ..core.parts import BaseTerm, Term, TermResult
from ..core.step import Batch, Forward
from ..core.vitals.summary import fail
from ..errors import DataError, RecipeError, SelfdistillError, SpaceError
from ..io.expressions import one_line
from ..io.files import free_memory
from ..models.peers import ApartPeers, PeerModels
from .task import kept_buffers


@contextmanager
def _foreign_code(failure: str, remedy: str) -> Iterator[None]:
    """Turns any error of a user's model into a one-line error about that model."""
    try:
        yield
    except SelfdistillError:
        raise
    except Exception as error:
        raise RecipeError(f"{failure} ({type(error).__name__}: {one_line(error)}); {remedy}") from error


def dry_run(objective: Objective, batch: Batch, shape: tuple[int, ...], classes: int) -> None:
    """One step without learning: shapes are checked where the trouble would otherwise come up later, or never.

    Args:
        objective: nothing of it changes.
        batch: a micro-batch.
        shape: of an input row, for messages.
        classes: how many the data have.

    Raises:
        SpaceError: an output's width is not the number of classes, or an output has no such head.
        RecipeError: the model or a teacher fails on these rows.
    """
    with torch.no_grad(), kept_buffers(objective):
        reads = f"the model cannot read a batch of rows of shape {shape}"
        with _foreign_code(reads, "build it for that shape"):
            forward = objective.forward_views(batch)
        _check_outputs(objective, forward, classes)
        _check_peers(objective.student, forward)
        weighs = f"a term of the method fails on rows of shape {shape}"
        with _foreign_code(weighs, "give a teacher and parts that fit the model's outputs"):
            objective.measure(batch)
        if objective.watched:
            _check_sums(objective, forward)


def _check_sums(objective: Objective, forward: Forward) -> None:
    """A tally of one's own adds up over the parts of a batch; a mean that is called a sum does not.

    The parts hold what the models said of the whole batch, so that batch norm and dropout change nothing. Only what is
    exactly a mean of the parts is refused: a term that compares the rows of a batch with each other need not add up.
    """
    for name, term in objective.method.terms.items():
        if type(term).tally is Term.tally or forward.rows(term.view) < 3:
            continue

        def tally(part: Forward, seed: int = 0, name: str = name, term: BaseTerm = term) -> TermResult:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                return term.tally(partial(objective.state_of, name), part)

        batch_result, repeated = tally(forward), tally(forward, 1)  # asked first, teachers have spoken of all rows
        if not torch.equal(batch_result.tally.total, repeated.tally.total):
            continue  # it draws: nothing is known
        try:
            steps = forward.split(1 / 3)
            parts = [tally(part) for part in steps]
        except Exception:  # it needs a whole batch, or a number of rows: its own affair
            continue
        total, start, second = (float(m.tally.total) for m in (batch_result, *parts))
        if _is_close(total, start + second, total):
            continue
        weights = [[float(part.rows(term.view)) for part in steps], *([float(f(m)) for m in parts] for f in _COUNTS)]
        if any(sum(w) and _is_close(total, (w[0] * start + w[1] * second) / sum(w), total) for w in weights):
            fail(
                "mean-of-means",
                name,
                f"its tally is {total:.4g} on a batch, {start:.4g} and {second:.4g} on the "
                "parts of it: a mean, where micro-batches and processes add sums",
                "return the sum over the elements and their count, undivided",
            )


_COUNTS: tuple[Callable[[TermResult], Tensor], ...] = (lambda m: m.tally.count, lambda m: m.valid, lambda m: m.kept)


def _is_close(a: float, b: float, size: float) -> bool:
    return abs(a - b) <= 1e-4 * abs(size) + 1e-9


def _check_peers(student: nn.Module, forward: Forward) -> None:
    """Refuse peers with the same weights and the same rows: they stay equal and teach each other nothing."""
    separate = isinstance(student, ApartPeers) and not forward.batch.fixed
    if not isinstance(student, PeerModels) or separate or distributed.is_sharded(student):
        return
    states = [list(member.state_dict().values()) for member in student.members]
    for i, j in itertools.combinations(range(len(states)), 2):
        pairs = list(zip(states[i], states[j], strict=False))
        if pairs and all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs):
            raise RecipeError(
                f"peers {i + 1} and {j + 1} start from the same weights and see the same rows, so they stay equal and "
                "teach nothing; let the model draw its weights anew each time it is built"
            )


def _output(objective: Objective, forward: Forward, term: BaseTerm) -> Tensor:
    """The model's output for a term; the error names the wrapper's reason where it has none."""
    try:
        return forward.student(term.view, term.head)
    except SpaceError as error:
        wrapper = objective.method.wrap_model
        reason = wrapper.lacking(objective.student) if wrapper else None
        if reason is None:
            raise
        raise SpaceError(reason) from error


def _check_outputs(objective: Objective, forward: Forward, classes: int) -> None:
    for name, term in objective.method.terms.items():
        if not forward.rows(term.view):
            continue
        output = _output(objective, forward, term)
        if output.dim() < 2 or len(output) != forward.rows(term.view):
            raise SpaceError(
                f"term {name!r}: the model's output {term.head!r} has shape {tuple(output.shape)} for "
                f"{forward.rows(term.view)} rows; return one row of outputs for each"
            )
        if space_of(term.head) == "values" and output.shape[-1] != 1:
            raise SpaceError(
                f"term {name!r}: the model's output {term.head!r} has width {output.shape[-1]} and the target is one "
                "value; build the model with 1 output"
            )
        copies = term.teacher.transforms if term.teacher else 1  # which are told apart too
        if space_of(term.head) == "logits" and output.shape[-1] != classes * copies:
            raise SpaceError(
                f"term {name!r}: the model's output {term.head!r} has width {output.shape[-1]} and the data "
                f"have {classes} classes; build the model with {classes} outputs"
            )


def check_memory(objective: Objective, rows: int, classes: int, device: torch.device) -> None:
    """Refuse predictions to be remembered that will not fit in memory; called after a `dry_run`.

    Raises:
        DataError: they take more than is free.
    """
    need = 0
    for state in objective.states.modules():
        if isinstance(state, SampleMemory) and state.predictions and state.width:
            need += rows * state.row_bytes(state.width)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_memory()
    if need > free:
        raise DataError(
            f"the method remembers predictions of {rows:,} rows for {classes:,} classes: {need / 1e9:.1f} GB, and "
            f"{free / 1e9:.1f} GB are free; give --memory-dtype float16 or --memory-top 10, or fewer rows"
        )
