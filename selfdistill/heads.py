"""Heads: which of the model's outputs is compared, and the space it speaks in.

A model returns a tensor (its main output) or a mapping of named outputs. Rows come first and components last;
what is between (exits, peers, tokens) are elements of their own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .errors import SpaceError
from .targets import matched

#: head -> space. A name that is not here is taken for logits.
SPACE_OF_HEAD: dict[str, str] = {
    "logits": "logits",  # (rows, classes)
    "exits": "logits",  # (rows, exits, classes): shallow classifiers, shallow to deep
    "peers": "logits",  # (rows, peers, classes)
    "ensemble": "logits",  # (rows, classes): log of the peers' mean probability
    "teacher": "logits",  # (rows, classes): of the network that is trained beside the student, and labels for it
    "values": "values",  # (rows, outputs)
    "peer_values": "values",  # (rows, peers, outputs)
    "exit_values": "values",  # (rows, exits, outputs)
    "gaussian": "gaussian",  # (rows, 2): mean and log variance
    "peer_gaussians": "gaussian",  # (rows, peers, 2)
    "ensemble_gaussian": "gaussian",  # (rows, 2): of the peers' mixture, by moment matching
    "ranks": "ranks",  # (rows, 2): of two rows, the softmax of the difference says which has the larger value
    "feature": "features",  # (rows, width): what the deepest classifier sits on
    "features": "features",  # (rows, exits, width)
    "levels": "features",  # (rows, classifiers, width)
    "projection": "features",  # (rows, width): of the features, by layers that are not kept
    "prediction": "features",  # (rows, width): of the projection
    "prototypes": "features",  # (rows, prototypes): scores, of as many as one likes
    "patch_prototypes": "features",  # (rows, patches, prototypes): the same of each patch of an image
    "dense": "logits",  # read from a layer, ``dense:layer``, as is the next; all others say features (`features`)
    "classify": "logits",
}
MAIN = ("logits", "values", "gaussian")
_OWN = ("joint",)  # logits of each copy of a row, of a class and of which copy it is: M classes for each of the data's
_SEVERAL = ("exits", "peers", *_OWN)  # logits of several distributions for a row
#: head of classes -> the same head where the target is a value. A model may call both by the first name.
VALUES = {"logits": "values", "peers": "peer_values", "exits": "exit_values"}
_ALSO = {values: logits for logits, values in VALUES.items()}


def space_of(head: str) -> str:
    """The space of a head's output.

    >>> space_of("exits"), space_of("feature"), space_of("vector:layer4")
    ('logits', 'features', 'features')
    """
    how, read, _ = head.partition(":")
    return SPACE_OF_HEAD.get(how, "features" if read else "logits")


def element_shape(output: Tensor) -> torch.Size:
    """Elements of an output: everything but the components, which come last."""
    return output.shape[:-1]


def one_distribution(head: str) -> bool:
    """Does the head say one distribution over the classes for each row?

    >>> one_distribution("logits"), one_distribution("exits"), one_distribution("values")
    (True, False, False)
    """
    return head not in _SEVERAL and space_of(head) == "logits"


def tells_copies(head: str) -> bool:
    """Are its classes others than the data's: a class together with which copy of the row it is?

    >>> tells_copies("joint"), tells_copies("logits")
    (True, False)
    """
    return head in _OWN


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

    def single(self, build: Any) -> Any:
        """What builds the product, from the `models.Build` that was prepared."""
        return build.having(exits=True) if build.accepts("exits") else build


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

    @property
    def each(self) -> int:
        """How many of them a row goes through."""
        return len(self.members)

    def product(self) -> nn.Module:
        """What a training leaves: the first of them."""
        return self.members[0]


class Mean(Peers):
    """Several models that predict together: their main head is the log of the mean probability, or the mean."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        said = super().forward(x)
        return {**said, "values" if self.values else "logits": said["ensemble"]}

    def product(self) -> nn.Module:
        return self


@dataclass(frozen=True)
class Group:
    """Prepares a model factory for K peers, each with its own initialisation."""

    peers: int = 2

    def __post_init__(self) -> None:
        if self.peers < 2:
            raise SpaceError(f"peers teach each other: at least two are needed, not {self.peers}")

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return lambda: Peers([build() for _ in range(self.peers)])

    def single(self, build: Any) -> Any:
        """What builds the product: the factory of one peer."""
        return build

    def of_values(self) -> Group:
        """The same for models of values."""
        return ValueGroup(self.peers)


@dataclass(frozen=True)
class Together:
    """Prepares nothing: it says that all accepted generations are the product together, by their `Mean`."""

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return build

    def single(self, build: Any) -> Any:
        """What builds one of them."""
        return build


@dataclass(frozen=True)
class ValueGroup(Group):
    """K peers whose outputs are values."""

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return lambda: Peers([build() for _ in range(self.peers)], values=True)


BOUND = 10.0  # of a log variance: the deviation stays between 1/150 and 150 of the label's


class WithVariance(nn.Module):
    """A model of two outputs as a normal distribution: ``gaussian`` (rows, 2), mean and log variance, and ``values``.

    The log variance is B tanh(raw / B) with B = 10: the likelihood of labels that are fitted exactly has no maximum
    in the variance, and exp(-z) would overflow. A model that returns a head ``gaussian`` of its own keeps it.

    Raises:
        SpaceError: the model does not return two outputs a row.

    >>> said = WithVariance(nn.Identity())(torch.tensor([[3.0, 1.0]]))
    >>> said["values"].tolist(), round(said["gaussian"][0, 1].item(), 3)
    ([[3.0]], 0.997)
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        said = self.model(x)
        if isinstance(said, Mapping):
            gaussian = output_of(said, "gaussian")
        else:
            mean, raw = _parts(said, 2, "mean and log variance").unbind(-1)
            gaussian = torch.stack([mean, BOUND * torch.tanh(raw / BOUND)], dim=-1)
        return {"gaussian": gaussian, "values": gaussian[..., :1]}


class WithRanks(nn.Module):
    """A model of three outputs: the first as ``values`` (rows, 1), two more as ``ranks`` (rows, 2).

    A model that returns both heads keeps them.

    Raises:
        SpaceError: the model does not return three outputs a row.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        said = self.model(x)
        if isinstance(said, Mapping):
            return {head: output_of(said, head) for head in ("values", "ranks")}
        value, ranks = _parts(said, 3, "a value and two ranking logits").split([1, 2], dim=-1)
        return {"values": value, "ranks": ranks}


def _parts(said: Tensor, width: int, what: str) -> Tensor:
    if said.shape[-1] != width:
        raise SpaceError(f"the model has width {said.shape[-1]}; build it with {width} outputs ({what})")
    return said


class GaussianPeers(Peers):
    """Several models `WithVariance`: heads ``peer_gaussians`` (rows, K, 2), and ``ensemble_gaussian`` by `matched`.

    ``gaussian`` and ``values`` are those of the first or, where they predict ``jointly``, of the ensemble.
    """

    def __init__(self, members: list[nn.Module], jointly: bool = False) -> None:
        super().__init__(members, values=True)
        self.jointly = jointly

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        peers = torch.stack([member(x)["gaussian"] for member in self.members], dim=1)  # (rows, K, 2)
        whole = matched(*peers.float().unbind(-1))
        ensemble = torch.stack([whole.mean, whole.log_variance], dim=-1)
        gaussian = ensemble if self.jointly else peers[:, 0]
        said = {"gaussian": gaussian, "values": gaussian[..., :1], "peer_gaussians": peers}
        return {**said, "ensemble_gaussian": ensemble}

    def product(self) -> nn.Module:
        return self if self.jointly else self.members[0]


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


class _Around:
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
    peers: ClassVar[int] = 2


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
