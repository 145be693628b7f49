"""Wrappers that a factory puts around its models: normal distributions, ranks and several outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import nn

from ..core.outputs import ModelWrapper
from .heads import WithRanks, WithVariance
from .peers import GaussianPeers, Group, Mean

MOST_MEMBERS = 32  # of a `Mean` in a model folder


def _mean_of(members: int, values: bool, build: Callable[[], nn.Module]) -> nn.Module:
    return Mean([build() for _ in range(members)], values)


#: What a `models.Build` can put around its models, by the name it keeps in a model folder.
WRAPS: dict[str, Callable[[Callable[[], nn.Module]], nn.Module]] = {
    "gaussian": lambda build: WithVariance(build()),
    "gaussians": lambda build: GaussianPeers([WithVariance(build()), WithVariance(build())], jointly=True),
    "ranks": lambda build: WithRanks(build()),
    **{f"mean{k}": partial(_mean_of, k, False) for k in range(2, MOST_MEMBERS + 1)},
    **{f"mean{k}_values": partial(_mean_of, k, True) for k in range(2, MOST_MEMBERS + 1)},
}


def _wrapping(build: Callable[..., nn.Module], wrap: str, outputs: int) -> Callable[..., nn.Module]:
    """A factory of wrapped models: a `models.Build` is asked for so many outputs, and a function that knows them."""
    if hasattr(build, "wrapped"):
        return build.wrapped(wrap, outputs)  # type: ignore[no-any-return]
    told = {"outputs": outputs} if "outputs" in inspect.signature(build).parameters else {}
    return lambda: WRAPS[wrap](lambda: build(**told))


class _Around(ModelWrapper):
    """Prepares a model factory: asks it for ``outputs`` and puts ``wrap`` around its models."""

    wrap: ClassVar[str]
    outputs: ClassVar[int] = 2

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return _wrapping(build, self.wrap, self.outputs)

    def single(self, build: Any) -> Any:
        """What builds the product."""
        return self(build)


@dataclass(frozen=True)
class Gaussian(_Around):
    """Prepares a model factory for a mean and a log variance: see `WithVariance`."""

    wrap: ClassVar[str] = "gaussian"


@dataclass(frozen=True)
class GaussianPair(_Around):
    """Prepares a model factory for two models with a mean and a log variance each; both together are the product."""

    wrap: ClassVar[str] = "gaussians"

    @property
    def peers(self) -> int:
        return 2


@dataclass(frozen=True)
class Ranked(_Around):
    """Prepares a model factory for a value and two ranking logits: see `WithRanks`."""

    wrap: ClassVar[str] = "ranks"
    outputs: ClassVar[int] = 3


@dataclass(frozen=True)
class GaussianGroup(Group):
    """Prepares a model factory for K peers with a mean and a log variance each; the first is the product."""

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        one = self.single(build)
        return lambda: GaussianPeers([one() for _ in range(self.peers)])

    def single(self, build: Any) -> Any:
        """What builds the product: the factory of one peer."""
        return Gaussian()(build)

    def of_values(self) -> GaussianGroup:
        """Itself: it is of values already."""
        return self
