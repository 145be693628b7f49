"""Do the parts of a comparison fit each other? Then it is a `Comparison` of the tokens that the mask kept."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import DataError, RecipeError
from .kinds import Kind
from .sources import Cached, Source, checked, outputs, picked, tensors
from .sweep import Comparison, Top

#: A log-probability may be above 0 by what bfloat16 rounds of logits of a few tens.
PROBABLE = 0.1


class Matched(NamedTuple):
    """A comparison, and the way from its tokens back to the shape of all."""

    comparison: Comparison
    shape: torch.Size
    keep: Tensor | None

    def weight(self, weight: Tensor | float, name: str, differentiable: bool) -> Tensor:
        """A weight for every kept token."""
        like = tensors(self.comparison.student)[0]
        given = torch.as_tensor(weight, dtype=self.comparison.dtype, device=like.device)
        if given.requires_grad and not differentiable:
            raise RecipeError(f"{name} is a constant of a divergence: detach it, or set recompute=True")
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
    student: Source, teacher: Source | Cached, kind: Kind, support: Top | Tensor | None, mask: Tensor | None,
    labels: Tensor | None, vocabulary: int | None, chunk: int | None,
) -> Matched:  # fmt: skip
    """Check all against each other, and leave out the tokens that the mask drops."""
    shape, student = tensors(student)[0].shape[:-1], checked(student, "student")
    size = _vocabulary(student, teacher, vocabulary)
    _check(kind, teacher, support, size, chunk)
    if isinstance(teacher, Cached):
        ids = _ids(teacher.ids, shape, size, kind)
        _fits("cached log-probabilities", teacher.log_probs, teacher.ids.shape)
        if bool((teacher.log_probs > PROBABLE).any()):
            raise DataError("cached log-probabilities lie above 0; are they probabilities or logits?")
        teacher = Cached(ids, teacher.log_probs.reshape(ids.shape))
    elif len(tensors(teacher := checked(teacher, "teacher"))[0]) != shape.numel():
        there = len(tensors(teacher)[0])
        raise DataError(f"the student has {shape.numel()} tokens, the teacher {there}; they are compared in pairs")
    support = _ids(support, shape, size, kind) if isinstance(support, Tensor) else support
    keep = None
    if mask is not None:
        _fits("mask", mask, shape)
        keep = None if bool(mask.all()) else mask.flatten().nonzero().squeeze(1)
    if labels is not None:
        _fits("labels", labels, shape)
        labels = labels.flatten()
    if keep is not None:
        student = picked(student, keep)
        teacher = Cached(*(x[keep] for x in teacher)) if isinstance(teacher, Cached) else picked(teacher, keep)
        support = support[keep] if isinstance(support, Tensor) else support
        labels = None if labels is None else labels[keep]
    if labels is not None:
        _within("labels (mask tokens without one)", labels, size)
    floats = [*tensors(student), *((teacher.log_probs,) if isinstance(teacher, Cached) else tensors(teacher))]
    dtype = torch.float64 if any(x is not None and x.dtype == torch.float64 for x in floats) else torch.float32
    return Matched(Comparison(kind, student, teacher, support, labels, size, dtype, chunk), shape, keep)


def _vocabulary(student: Source, teacher: Source | Cached, vocabulary: int | None) -> int:
    sizes = [outputs(student)] + ([] if isinstance(teacher, Cached) else [outputs(teacher)])
    if vocabulary is None and len(set(sizes)) > 1:
        raise DataError(f"the student has {sizes[0]} outputs, the teacher {sizes[1]}: say vocabulary=, the real ones")
    if vocabulary is not None and not 1 <= vocabulary <= min(sizes):
        raise DataError(f"vocabulary={vocabulary} is not within the {min(sizes)} outputs that there are")
    return vocabulary or sizes[0]


def _check(kind: Kind, teacher: object, support: Top | Tensor | None, size: int, chunk: int | None) -> None:
    if isinstance(teacher, Cached) and support is not None:
        raise RecipeError("a Cached teacher brings its own ids; leave out support=")
    if kind.sampled and not isinstance(teacher, Cached) and not isinstance(support, Tensor):
        raise RecipeError(f"{type(kind).__name__} reads sampled tokens: support= takes their ids")
    if isinstance(support, Top) and support.of not in ("teacher", "student", "union"):
        raise RecipeError(f"Top is of 'teacher', 'student' or 'union', not {support.of!r}")
    if isinstance(support, Top) and not 1 <= support.k <= size:
        raise RecipeError(f"{support} does not fit a vocabulary of {size}")
    if chunk is not None and chunk < 1:
        raise RecipeError(f"chunk counts tokens, from 1 on, not {chunk}")


def _fits(name: str, given: Tensor, shape: torch.Size) -> None:
    if given.shape != shape:
        raise DataError(f"{name} {tuple(given.shape)} do not fit {tuple(shape)}")
    if name == "mask" and given.dtype != torch.bool:
        raise DataError(f"a mask is True or False for each token, not {given.dtype}")


def _ids(ids: Tensor, shape: torch.Size, size: int, kind: Kind) -> Tensor:
    """Ids (tokens, k) that are there and do not repeat; one each for a sampled kind."""
    columns = ids.unsqueeze(-1) if kind.sampled else ids
    if columns.dim() != len(shape) + 1 or columns.shape[:-1] != shape:
        raise DataError(f"ids {tuple(ids.shape)} do not fit tokens {tuple(shape)}{'' if kind.sampled else ', k each'}")
    columns = columns.flatten(0, -2)
    _within("ids", columns, size)
    ordered = columns.sort(-1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        raise DataError("the ids of a token repeat; their probability would count twice")
    return columns


def _within(name: str, ids: Tensor, size: int) -> None:
    low, high = (int(end) for end in ids.aminmax()) if ids.numel() else (0, 0)
    if low < 0 or high >= size or ids.is_floating_point():
        raise DataError(f"{name} are whole numbers from 0 to {size - 1}; here {ids.dtype} from {low} to {high}")
