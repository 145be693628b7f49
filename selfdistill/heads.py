"""Heads: which of the model's outputs is compared, and the space it speaks in.

A model returns a tensor (its main output) or a mapping of named outputs. Rows come first and components last;
what is between (exits, peers, tokens) are elements of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .errors import SpaceError

#: head -> space. A name that is not here is taken for logits.
SPACE_OF_HEAD: dict[str, str] = {
    "logits": "logits",  # (rows, classes)
    "exits": "logits",  # (rows, exits, classes): shallow classifiers, shallow to deep
    "peers": "logits",  # (rows, peers, classes)
    "ensemble": "logits",  # (rows, classes): log of the peers' mean probability
    "values": "values",  # (rows, outputs)
    "peer_values": "values",  # (rows, peers, outputs)
    "exit_values": "values",  # (rows, exits, outputs)
    "gaussian": "gaussian",  # (rows, 2): mean and log variance
    "feature": "features",  # (rows, width): what the deepest classifier sits on
    "features": "features",  # (rows, exits, width)
}
MAIN = ("logits", "values", "gaussian")
#: head of classes -> the same head where the target is a value. A model may call both by the first name.
VALUES = {"logits": "values", "peers": "peer_values", "exits": "exit_values"}
_ALSO = {values: logits for logits, values in VALUES.items()}


def space_of(head: str) -> str:
    """The space of a head's output.

    >>> space_of("exits"), space_of("feature")
    ('logits', 'features')
    """
    return SPACE_OF_HEAD.get(head, "logits")


def element_shape(output: Tensor) -> torch.Size:
    """Elements of an output: everything but the components, which come last."""
    return output.shape[:-1]


def output_of(outputs: Mapping[str, Tensor], head: str) -> Tensor:
    """One head of a model's outputs; a bare tensor (named ``""``) is the main head, whatever it is called."""
    if head in outputs:
        return outputs[head]
    if _ALSO.get(head) in outputs:
        return outputs[_ALSO[head]]
    if head in MAIN and "" in outputs:
        return outputs[""]
    have = ", ".join(name or "one unnamed tensor" for name in outputs)
    raise SpaceError(f"the model has no output {head!r} (it returns: {have}); build it with that head or use another")


@dataclass(frozen=True)
class Exits:
    """Prepares a model factory for early exits: it is asked for ``exits=True`` where it knows that argument."""

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        known = build.accepts("exits") if hasattr(build, "accepts") else "exits" in inspect.signature(build).parameters

        def with_exits() -> nn.Module:
            return build(exits=True) if known else build()

        return with_exits


class Peers(nn.Module):
    """Several models side by side: heads ``peers`` (rows, K, classes), ``ensemble``, and ``logits`` of the first.

    With ``values`` the heads are ``peer_values`` (rows, K, outputs), ``ensemble`` (their mean), and ``values``.
    """

    def __init__(self, members: list[nn.Module], values: bool = False) -> None:
        super().__init__()
        self.members, self.values = nn.ModuleList(members), values

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs: list[Any] = [member(x) for member in self.members]
        main = "values" if self.values else "logits"
        each = [output_of(o if isinstance(o, Mapping) else {"": o}, main) for o in outputs]
        peers = torch.stack(each, dim=1)  # (rows, K, components)
        if self.values:
            return {"values": each[0], "peer_values": peers, "ensemble": peers.mean(1)}
        mixed = torch.logsumexp(torch.log_softmax(peers.float(), dim=-1), dim=1)  # log of a sum: logits of the mean
        return {"logits": each[0], "peers": peers, "ensemble": mixed}


@dataclass(frozen=True)
class Group:
    """Prepares a model factory for K peers, each with its own initialisation."""

    peers: int = 2

    def __post_init__(self) -> None:
        if self.peers < 2:
            raise SpaceError(f"peers teach each other: at least two are needed, not {self.peers}")

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return lambda: Peers([build() for _ in range(self.peers)])

    def of_values(self) -> ValueGroup:
        """The same for models of values."""
        return ValueGroup(self.peers)


@dataclass(frozen=True)
class ValueGroup(Group):
    """K peers whose outputs are values."""

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return lambda: Peers([build() for _ in range(self.peers)], values=True)
