"""Exponential moving averages of the student's parameters with a rising decay, with and without centred outputs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core import distributed
from ..core.memory import Buffers, FrozenCopy, averages, copy_model
from ..core.outputs import VALUES, space_of
from ..core.parts import BaseTerm, BindArgs, Schedule, Teacher, value_at
from ..core.step import Forward, TrainingClock
from ..core.targets import Target
from ..errors import SpaceError
from ..models.patch_masking import hidden_patches
from .weights import Ema, H


@dataclass(frozen=True)
class Momentum(Ema[H]):
    """Moving average of the student's parameters with a decay that rises to 1: w' <- d w' + (1 - d) w, step k of K.

    Equation::

        d = 1 - (1 - decay) (cos(pi k / K) + 1) / 2

    It starts from the student's weights, runs in train mode, and keeps batch statistics of its own. ``head`` names its
    output, if that is not the student's head.

    Source: Grill et al., Bootstrap Your Own Latent, NeurIPS 2020, section 3.2.

    >>> round(Momentum(0.9).decay_at(0, 10), 4), round(Momentum(0.9).decay_at(5, 10), 4)
    (0.9, 0.95)
    """

    decay: float | Schedule = 0.996
    train: bool = True
    warm_up: bool = False
    head: str | None = None

    def __post_init__(self) -> None:
        averages(self.decay)

    def decay_at(self, step: int, length: int) -> float:
        """The decay of the average at a step of a generation of ``length`` steps."""
        start = value_at(self.decay, TrainingClock(steps=length))
        return 1.0 - (1.0 - start) * (math.cos(math.pi * min(1.0, step / length)) + 1.0) / 2.0

    def key(self, term: BaseTerm) -> Hashable:
        return type(self), self.decay, self.train

    def space(self, head: str) -> str:
        return space_of(self.head or head)

    def of_values(self) -> Teacher:
        return replace(self, head=VALUES.get(self.head, self.head) if self.head else None)

    def target(self, state: H, forward: Forward, term: BaseTerm) -> Target:
        head = self.head or term.head
        return Target(forward.teacher_output(state.module, self.view or term.view, head), space_of(head))

    @torch.no_grad()
    def update(self, state: H, forwards: Sequence[Forward], term: BaseTerm) -> None:
        clock, teacher, student = forwards[0].clock, state.module, forwards[0].owner
        parameters = list[Tensor](teacher.parameters())
        weights = [w.to(m.dtype) for m, w in zip(parameters, student.parameters(), strict=True)]
        torch._foreach_lerp_(parameters, weights, 1.0 - self.decay_at(clock.step, clock.length))


class Centres(Buffers):
    """The running mean of the outputs at each head, (components,); 0 before the first update."""

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in (key[len(prefix) :] for key in state_dict if key.startswith(prefix)):
            self.of(name)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def of(self, head: str) -> Tensor:
        """The mean at a head."""
        if head not in self._buffers:
            self.register_buffer(head, torch.zeros((), device=next((b.device for b in self.buffers()), None)))
        return self.get_buffer(head)

    def follow(self, head: str, outputs: Tensor, decay: float) -> None:
        """mean <- decay x mean + (1 - decay) x the mean of the outputs over all elements and processes."""
        mean = distributed.gather(outputs.flatten(0, -2)).mean(0)
        self._buffers[head] = decay * self.of(head).to(mean.device) + (1.0 - decay) * mean


class CentredCopy(FrozenCopy):
    """A copy of the weights and the running means of its outputs."""

    def __init__(self, module: nn.Module, train: bool) -> None:
        super().__init__(module, train)
        self.centres = Centres()


@dataclass(frozen=True)
class CentredMomentum(Momentum[CentredCopy]):
    """`Momentum` minus a running mean of its outputs, so that no component is large for every row.

    Equation::

        target = t - c,  c <- m c + (1 - m) mean t    after the loss, over the outputs of all its views; c starts at 0

    Each head has a mean of its own. With ``hidden`` only the patches that the student's view masks have a target.

    Source: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021, equation 4; of patches
    Zhou et al., iBOT, ICLR 2022, equation 2.
    """

    centring: float = 0.9
    hidden: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        averages(self.centring)

    def start(self, model: nn.Module, args: BindArgs) -> CentredCopy:
        return CentredCopy(copy_model(model), self.train)

    def key(self, term: BaseTerm) -> Hashable:
        return super().key(term), self.centring

    def target(self, state: CentredCopy, forward: Forward, term: BaseTerm) -> Target:
        result, head = super().target(state, forward, term), self.head or term.head
        forward.notes.setdefault(self.key(term), set()).add((head, self.view or term.view))
        value = result.value - state.centres.of(head).to(result.value.device)
        return result._replace(value=value, valid=_hidden(forward, term, value) if self.hidden else None)

    @torch.no_grad()
    def update(self, state: CentredCopy, forwards: Sequence[Forward], term: BaseTerm) -> None:
        outputs = dict[str, list[Tensor]]()
        for forward in forwards:
            for head, view in sorted(forward.notes.get(self.key(term), ())):
                outputs.setdefault(head, []).append(forward.teacher_output(state.module, view, head))
        for head, values in outputs.items():
            state.centres.follow(head, torch.cat(values), self.centring)
        super().update(state, forwards, term)


def _hidden(forward: Forward, term: BaseTerm, output: Tensor) -> Tensor:
    """The mask (rows, patches) of the patches that the student's view hides.

    Raises:
        SpaceError: the head's outputs are not those of patches of images.
    """
    x = forward.batch[term.view].x
    if x.dim() != 4 or output.dim() != 3:
        raise SpaceError(
            f"head {term.head!r} gives {tuple(output.shape)}; hidden=True needs outputs (rows, patches, components)"
        )
    height = max(1, round(math.sqrt(output.shape[1] * x.shape[2] / x.shape[3])))
    return hidden_patches(x, (height, output.shape[1] // height)).flatten(1)
