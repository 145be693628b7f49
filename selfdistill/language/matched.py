"""Is what was given to compare of one shape and range? Then it is a `Comparison` of the tokens that the mask kept."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import DataError, RecipeError
from .kinds import Kind
from .sources import Cached, Source, checked, outputs, picked, tensors
from .sweep import Comparison, Top


class Matched(NamedTuple):
    """A comparison, and the way from its tokens back to the shape of all."""

    comparison: Comparison
    shape: torch.Size
    keep: Tensor | None

    def weight(self, weight: Tensor | float, name: str) -> Tensor:
        """A weight for every kept token."""
        like = tensors(self.comparison.student)[0]
        given = torch.as_tensor(weight, dtype=self.comparison.dtype, device=like.device)
        if given.requires_grad:
            raise RecipeError(f"{name} is a constant of `divergence`: detach it, or weigh what `per_token` returns")
        try:
            given = given.expand(self.shape).reshape(-1)
        except RuntimeError:
            raise DataError(f"{name} {tuple(given.shape)} does not fit tokens {tuple(self.shape)}") from None
        return given if self.keep is None else given[self.keep]

    def back(self, values: Tensor) -> Tensor:
        """Values of the kept tokens at their places, 0 elsewhere."""
        if self.keep is not None:
            values = values.new_zeros(self.shape.numel()).index_put((self.keep,), values)
        return values.view(self.shape)


def matched(
    student: Source,
    teacher: Source | Cached,
    kind: Kind,
    support: Top | Tensor | None,
    mask: Tensor | None,
    labels: Tensor | None,
    vocabulary: int | None,
    chunk: int | None,
) -> Matched:
    """Check all against each other, and leave out the tokens that the mask drops."""
    shape = tensors(student)[0].shape[:-1]
    student, size = checked(student, "student"), _vocabulary(student, teacher, vocabulary)
    if chunk is not None and chunk < 1:
        raise RecipeError(f"chunk counts tokens: a whole number from 1 on, not {chunk}")
    support = _support(kind, teacher, support, size)
    if not isinstance(teacher, Cached):
        teacher = checked(teacher, "teacher")
        there = tensors(teacher)[0]
        if len(there) != shape.numel():
            raise DataError(f"the student has {shape.numel()} tokens, the teacher {len(there)}; they are paired")
    elif teacher.ids.shape != teacher.log_probs.shape:
        raise DataError(
            f"cached ids {tuple(teacher.ids.shape)} have log-probabilities {tuple(teacher.log_probs.shape)}"
        )
    else:
        ids = _ids(teacher.ids, shape, size, kind)
        teacher = Cached(ids, teacher.log_probs.reshape(ids.shape))
    if isinstance(support, Tensor):
        support = _ids(support, shape, size, kind)
    if mask is not None and (mask.shape != shape or mask.dtype != torch.bool):
        raise DataError(f"a mask is True or False for each token {tuple(shape)}, not {mask.dtype} {tuple(mask.shape)}")
    if labels is not None and labels.shape != shape:
        raise DataError(f"labels {tuple(labels.shape)} do not fit the student's tokens {tuple(shape)}")
    keep = None if mask is None or bool(mask.all()) else mask.flatten().nonzero().squeeze(1)
    labels = None if labels is None else labels.flatten()
    if keep is not None:
        student = picked(student, keep)
        teacher = Cached(*(x[keep] for x in teacher)) if isinstance(teacher, Cached) else picked(teacher, keep)
        support, labels = (x[keep] if isinstance(x, Tensor) else x for x in (support, labels))
    if labels is not None:
        _within(labels, size, "labels (mask the tokens without one)")
    both = [x for side in (student, teacher) for x in (tensors(side) if not isinstance(side, Cached) else side[1:])]
    dtype = torch.float64 if any(x is not None and x.dtype == torch.float64 for x in both) else torch.float32
    return Matched(Comparison(kind, student, teacher, support, labels, size, dtype, chunk), shape, keep)


def _vocabulary(student: Source, teacher: Source | Cached, vocabulary: int | None) -> int:
    sizes = [outputs(student)] + ([] if isinstance(teacher, Cached) else [outputs(teacher)])
    if vocabulary is None and len(set(sizes)) > 1:
        raise DataError(f"the student has {sizes[0]} outputs, the teacher {sizes[1]}: say vocabulary=, the real ones")
    if vocabulary is not None and not 1 <= vocabulary <= min(sizes):
        raise DataError(f"vocabulary={vocabulary} is not within the {min(sizes)} outputs that there are")
    return vocabulary or sizes[0]


def _support(kind: Kind, teacher: Source | Cached, support: Top | Tensor | None, size: int) -> Top | Tensor | None:
    name = type(kind).__name__
    if isinstance(teacher, Cached):
        if support is not None:
            raise RecipeError("a Cached teacher brings its own ids; leave out support=")
    elif kind.sampled and not isinstance(support, Tensor):
        raise RecipeError(f"{name} reads sampled tokens: support= takes their ids")
    if isinstance(support, Top):
        if support.of not in ("teacher", "student", "union"):
            raise RecipeError(f"Top is of 'teacher', 'student' or 'union', not {support.of!r}")
        if not 1 <= support.k <= size:
            raise RecipeError(f"Top({support.k}) does not fit a vocabulary of {size}")
    return support


def _ids(ids: Tensor, shape: torch.Size, size: int, kind: Kind) -> Tensor:
    """Ids (tokens, k) that are there and do not repeat; one each for a sampled kind."""
    if kind.sampled and ids.shape == shape:
        ids = ids.unsqueeze(-1)
    elif kind.sampled or ids.dim() != len(shape) + 1 or ids.shape[:-1] != shape:
        raise DataError(
            f"ids {tuple(ids.shape)} do not fit tokens {tuple(shape)}{'' if kind.sampled else ', k for each'}"
        )
    ids = ids.flatten(0, -2)
    _within(ids, size, "ids")
    ordered = ids.sort(-1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        raise DataError("the ids of a token repeat; their probability would count twice")
    return ids


def _within(ids: Tensor, size: int, name: str) -> None:
    if ids.dtype not in (torch.int64, torch.int32):
        raise DataError(f"{name} are whole numbers, not {ids.dtype}")
    low, high = (int(end) for end in ids.aminmax()) if ids.numel() else (0, 0)
    if low < 0 or high >= size:
        raise DataError(f"{name} count from 0 to {size - 1}; here they are from {low} to {high}")
