"""Groups of peers: whole networks, branches on a shared trunk, peers with a view of their own, and pairs.

The wrappers below them give a model factory normal distributions, ranks or several outputs.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.outputs import Composite, ModelWrapper, output_of
from ..core.targets import matched
from ..errors import SpaceError
from ..io.expressions import one_line
from ..io.files import free_memory
from .feature_taps import Extended
from .heads import WithRanks, WithVariance


class PeerModels(Composite):
    """Several models side by side: heads ``peers`` (rows, K, classes), ``ensemble``, and ``logits`` of the first.

    With ``values`` the heads are ``peer_values`` (rows, K, outputs), ``ensemble`` (their mean), and ``values``.
    """

    def __init__(self, members: list[nn.Module], values: bool = False) -> None:
        super().__init__()
        self.members, self.values = nn.ModuleList(members), values

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs: list[Any] = [member(x) for member in self.members]
        main = "values" if self.values else "logits"
        members = [output_of(o if isinstance(o, Mapping) else {"": o}, main) for o in outputs]
        peers = torch.stack(members, dim=1)  # (rows, K, components)
        if self.values:
            return {"values": members[0], "peer_values": peers, "ensemble": peers.mean(1)}
        mixed = torch.logsumexp(torch.log_softmax(peers.float(), dim=-1), dim=1)  # log of a sum: logits of the mean
        return {"logits": members[0], "peers": peers, "ensemble": mixed}

    @property
    def forward_passes(self) -> int:
        """The number of members that a row passes."""
        return len(self.members)

    def final_model(self) -> nn.Module:
        """The final model of a training: the first member."""
        return self.members[0]


class PeerMean(PeerModels):
    """Several models that predict together: their main head is the log of the mean probability, or the mean."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        heads = super().forward(x)
        return {**heads, "values" if self.values else "logits": heads["ensemble"]}

    def final_model(self) -> nn.Module:
        return self


MOST_PEERS = 1000


def _refuse_crowd(peers: int) -> None:
    if peers > MOST_PEERS:
        raise SpaceError(f"all peers are in memory at once: at most {MOST_PEERS}, not {one_line(peers, 40)}")


TRAINED = 4  # times its weights: a model in training has gradients and two moments too


def build_peers(build: Callable[..., nn.Module], peers: int) -> list[nn.Module]:
    """Models of one factory, if all of them fit in memory with what their training takes.

    Raises:
        SpaceError: they do not.
    """
    first = build()
    size = peers * sum(p.numel() * p.itemsize for p in [*first.parameters(), *first.buffers()])
    if (free := free_memory()) < TRAINED * size:
        raise SpaceError(
            f"{peers} peers take {TRAINED * size / 1e9:,.1f} GB with gradients and the optimizer's moments, and "
            f"{free / 1e9:,.1f} GB are free; ask for fewer peers or a smaller --model"
        )
    return [first, *(build() for _ in range(peers - 1))]


@dataclass(frozen=True)
class Group(ModelWrapper):
    """Prepares a model factory for K peers, each with its own initialisation."""

    peers: int = 2

    def __post_init__(self) -> None:
        if self.peers < 2:
            raise SpaceError(f"peers teach each other: at least two are needed, not {self.peers}")
        _refuse_crowd(self.peers)

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return lambda: PeerModels(build_peers(build, self.peers))

    def of_values(self) -> Group:
        """The same for models of values."""
        return ValueGroup(self.peers)


@dataclass(frozen=True)
class JointGenerations(ModelWrapper):
    """Leaves the factory as it is: all accepted generations are the final model together, by their `PeerMean`."""


@dataclass(frozen=True)
class WarmGenerations(ModelWrapper):
    """Leaves the factory as it is: a generation begins with the weights of the last one that was accepted."""

    @property
    def warm(self) -> bool:
        return True


@dataclass(frozen=True)
class ValueGroup(Group):
    """K peers whose outputs are values."""

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return lambda: PeerModels(build_peers(build, self.peers), values=True)


class GaussianPeers(PeerModels):
    """Several models `WithVariance`: heads ``peer_gaussians`` (rows, K, 2), and ``ensemble_gaussian`` by `matched`.

    ``gaussian`` and ``values`` are those of the first or, where they predict ``jointly``, of the ensemble.
    """

    def __init__(self, members: list[nn.Module], jointly: bool = False) -> None:
        super().__init__(members, values=True)
        self.jointly = jointly

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        peers = torch.stack([member(x)["gaussian"] for member in self.members], dim=1)  # (rows, K, 2)
        mixture = matched(*peers.float().unbind(-1))
        ensemble = torch.stack([mixture.mean, mixture.log_variance], dim=-1)
        gaussian = ensemble if self.jointly else peers[:, 0]
        heads = {"gaussian": gaussian, "values": gaussian[..., :1], "peer_gaussians": peers}
        return {**heads, "ensemble_gaussian": ensemble}

    def final_model(self) -> nn.Module:
        return self if self.jointly else self.members[0]


Factory = Callable[..., nn.Module]


class Branches(PeerModels):
    """Several models that share all stages but the last: a trunk, and for each its last stage and its classifier.

    A model for this has its ``stages`` in an ``nn.ModuleList`` that its ``forward`` runs through in order, two or more,
    and ends in an ``nn.Linear`` whose output it returns; the default models do. Heads: ``peers`` (rows, K, classes),
    ``ensemble``, and ``logits`` of the one that is deployed. The final model is that one with the trunk: a model as
    `build` makes it.
    """

    deployed = 0

    def __init__(self, models: list[nn.Module]) -> None:
        trunk = list(_stages(models[0]))[:-1]
        name = _last_linear(models[0])
        classifiers = [model.get_submodule(name) for model in models]
        for model in models:
            for i in range(len(trunk)):
                _stages(model)[i] = nn.Identity()
            _set_module(model, name, nn.Identity())
        super().__init__(models)
        self.last = name  # the name of the classifier in a whole model
        self.trunk, self.classifiers = nn.Sequential(*trunk), nn.ModuleList(classifiers)

    def branch_outputs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Outputs of the trunk (rows, ...), the branches' features (rows, K, width) and logits (rows, K, classes)."""
        trunk = self.trunk(x)
        features = [branch(trunk) for branch in self.members]
        logits = [classify(feature) for classify, feature in zip(self.classifiers, features, strict=True)]
        return trunk, torch.stack(features, dim=1), torch.stack(logits, dim=1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        logits = self.branch_outputs(x)[2]
        return {"logits": logits[:, self.deployed], "peers": logits, "ensemble": _mean_logits(logits)}

    def final_model(self) -> nn.Module:
        """The branch that is deployed, on the trunk: copies of the weights as they are now."""
        model = copy.deepcopy(self.members[self.deployed])
        for i, stage in enumerate(self.trunk):
            _stages(model)[i] = copy.deepcopy(stage)
        _set_module(model, self.last, copy.deepcopy(self.classifiers[self.deployed]))
        return model


class GatedBranches(Branches):
    """`Branches` with a head ``gated``: sum_k g_k z_k of their logits, g = softmax(relu(BN(linear(trunk, pooled))))."""

    def __init__(self, models: list[nn.Module]) -> None:
        width = _inputs(_stages(models[0])[-1])
        super().__init__(models)
        self.gate = nn.Sequential(nn.Linear(width, len(models)), nn.BatchNorm1d(len(models)), nn.ReLU())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        trunk, _, logits = self.branch_outputs(x)
        weights = F.softmax(self.gate(trunk.flatten(2).mean(2) if trunk.dim() > 2 else trunk), dim=-1)
        gated = (weights.unsqueeze(-1) * logits).sum(1)
        heads = {"logits": logits[:, self.deployed], "peers": logits, "ensemble": _mean_logits(logits)}
        return {**heads, "gated": gated}


class AttendingBranches(Branches):
    """`Branches` of which the last leads: it gives ``logits`` and is deployed; ``peers`` are the others.

    ``attended`` (rows, K, classes) is sum_j a_kj z_j for each peer k, a_k = softmax over j of <W_q f_k, W_k f_j>, f the
    features and W to an eighth of their width; ``mean`` (rows, classes) is the mean of the peers' logits.
    """

    deployed = -1

    def __init__(self, models: list[nn.Module]) -> None:
        super().__init__(models)
        width = int(self.classifiers[0].get_parameter("weight").shape[1])
        self.query, self.key = (nn.Linear(width, max(1, width // 8), bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        _, features, logits = self.branch_outputs(x)
        followers, peers = features[:, :-1], logits[:, :-1]
        attention = F.softmax(self.query(followers) @ self.key(followers).transpose(1, 2), dim=-1)  # (rows, K, K)
        heads = {"logits": logits[:, -1], "peers": peers, "ensemble": _mean_logits(peers)}
        return {**heads, "attended": attention @ peers, "mean": peers.mean(1)}


class ApartPeers(PeerModels):
    """Peers that each learn from a view of their own: in training, a batch is K blocks of rows, one for each in order.

    There ``logits`` (rows, classes) are what each row's own peer says. In eval mode every peer sees every row.

    Raises:
        SpaceError: a training batch that does not fall into K equal blocks.
    """

    @property
    def forward_passes(self) -> int:
        return 1 if self.training else len(self.members)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if not self.training:
            return super().forward(x)
        if len(x) % len(self.members):
            raise SpaceError(
                f"{len(self.members)} peers learn from as many views of the same rows, and a batch has {len(x)} rows; "
                "give the method one view for each peer, all of the same rows"
            )
        blocks = x.split(len(x) // len(self.members))
        outputs = [member(block) for member, block in zip(self.members, blocks, strict=True)]
        return {"logits": torch.cat([output if isinstance(output, Tensor) else output["logits"] for output in outputs])}


class Pair(PeerModels):
    """A student and a teacher that learn side by side: ``logits`` are the student's, ``teacher`` (rows, classes) the
    other's. The student is the final model."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        heads = super().forward(x)
        return {**heads, "teacher": heads["peers"][:, 1]}

    @property
    def student(self) -> nn.Module:
        return self.members[0]


def _stages(model: nn.Module) -> nn.ModuleList:
    """The stages of a model.

    Raises:
        SpaceError: it has none.
    """
    stages = getattr(model, "stages", None)
    if isinstance(stages, nn.ModuleList) and len(stages) > 1:
        return stages
    raise SpaceError(_without_stages(model))


def _without_stages(model: nn.Module) -> str:
    return (
        f"branches share the first stages of a model, and {type(model).__name__} has no nn.ModuleList `stages` of two "
        "or more; cnn, resnet and mlp (of a depth of 2 or more) have, and mutual() needs none"
    )


def _last_linear(model: nn.Module) -> str:
    names: list[str] = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not names:
        raise SpaceError(f"branches have classifiers of their own, and {type(model).__name__} ends in no nn.Linear")
    return names[-1]


def _set_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    model.get_submodule(parent)._modules[leaf] = module


def _inputs(stage: nn.Module) -> int:
    """The width of a stage's input: that of its first layer with weights."""
    for module in stage.modules():
        width = getattr(module, "in_features", getattr(module, "in_channels", None))
        if isinstance(width, int):
            return width
    raise SpaceError("a gate reads what the trunk says, and the last stage does not say how wide that is")


def _mean_logits(logits: Tensor) -> Tensor:
    """The log of the mean probability: (rows, K, classes) -> (rows, classes)."""
    return torch.logsumexp(torch.log_softmax(logits.float(), dim=-1), dim=1)


@dataclass(frozen=True)
class _Branched(Group):
    """Prepares a factory: ``peers`` of its models become branches; one that has the heads already is left alone."""

    def _combine(self, models: list[nn.Module]) -> nn.Module:
        raise NotImplementedError

    def __call__(self, build: Factory) -> Factory:
        def branched() -> nn.Module:
            models = build_peers(build, self.peers)
            return self._combine(models) if hasattr(models[0], "stages") else models[0]

        return branched

    def lacking(self, model: nn.Module) -> str | None:
        """Why a model has not the heads: it was left alone, for it has no stages."""
        return None if isinstance(model, Branches) else _without_stages(model)

    def of_values(self) -> Any:
        raise SpaceError(f"{type(self).__name__} makes branches that classify, and values have no classes")


@dataclass(frozen=True)
class Gated(_Branched):
    """Prepares a factory for ``peers`` branches under a gate: see `GatedBranches`."""

    def _combine(self, models: list[nn.Module]) -> nn.Module:
        return GatedBranches(models)


@dataclass(frozen=True)
class Attending(_Branched):
    """Prepares a factory for ``peers`` branches, the last of which leads: see `AttendingBranches`."""

    def __post_init__(self) -> None:
        if self.peers < 3:
            raise SpaceError(
                f"a leader follows two peers or more: at least three branches are needed, not {self.peers}"
            )
        _refuse_crowd(self.peers)

    def _combine(self, models: list[nn.Module]) -> nn.Module:
        return AttendingBranches(models)


@dataclass(frozen=True)
class Apart(ModelWrapper):
    """Prepares a factory for ``members`` peers, each with its own initialisation and its own view: see `ApartPeers`."""

    members: int = 2

    def __post_init__(self) -> None:
        if self.members < 2:
            raise SpaceError(f"peers teach each other: at least two are needed, not {self.members}")
        _refuse_crowd(self.members)

    def __call__(self, build: Factory) -> Factory:
        return lambda: ApartPeers(build_peers(build, self.members))

    def of_values(self) -> Any:
        raise SpaceError("Apart makes peers that classify, and values have no classes")


@dataclass(frozen=True)
class Paired(ModelWrapper):
    """Prepares a factory for a student and a teacher, each with its own initialisation: see `Pair`."""

    @property
    def peers(self) -> int:
        return 2

    def __call__(self, build: Factory) -> Factory:
        return lambda: Pair([build(), build()])

    def of_values(self) -> Any:
        raise SpaceError("Paired makes a teacher that classifies, and values have no classes")


def final_model(model: nn.Module) -> nn.Module:
    """The final model of a training: of a group of peers the first, or all that predict jointly; without the heads
    learnt beside it; else itself.
    """
    return model.final_model() if isinstance(model, (PeerModels, Extended)) else model


MOST_MEMBERS = 32  # of a `PeerMean` in a model folder


def _mean_of(members: int, values: bool, build: Callable[[], nn.Module]) -> nn.Module:
    return PeerMean([build() for _ in range(members)], values)


#: What a `models.Build` can put around its models, by the name it keeps in a model folder.
WRAPS: dict[str, Callable[[Callable[[], nn.Module]], nn.Module]] = {
    "gaussian": lambda build: WithVariance(build()),
    "gaussians": lambda build: GaussianPeers([WithVariance(build()), WithVariance(build())], jointly=True),
    "ranks": lambda build: WithRanks(build()),
    **{f"mean{k}": partial(_mean_of, k, False) for k in range(2, MOST_MEMBERS + 1)},
    **{f"mean{k}_values": partial(_mean_of, k, True) for k in range(2, MOST_MEMBERS + 1)},
}


def _wrapped_factory(build: Callable[..., nn.Module], wrap: str, outputs: int) -> Callable[..., nn.Module]:
    """A factory of wrapped models, with so many outputs where the factory has that option."""
    if hasattr(build, "wrapped"):
        return build.wrapped(wrap, outputs)  # type: ignore[no-any-return]
    options = {"outputs": outputs} if "outputs" in inspect.signature(build).parameters else {}
    return lambda: WRAPS[wrap](lambda: build(**options))


class _Wrapper(ModelWrapper):
    """Prepares a model factory: puts ``wrap`` around its models of ``outputs``."""

    wrap: ClassVar[str]
    outputs: ClassVar[int] = 2

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        return _wrapped_factory(build, self.wrap, self.outputs)

    def single(self, build: Any) -> Any:
        """The factory of the final model."""
        return self(build)


@dataclass(frozen=True)
class Gaussian(_Wrapper):
    """Prepares a model factory for a mean and a log variance: see `WithVariance`."""

    wrap: ClassVar[str] = "gaussian"


@dataclass(frozen=True)
class GaussianPair(_Wrapper):
    """Prepares a model factory for two models with a mean and a log variance each; both are the final model."""

    wrap: ClassVar[str] = "gaussians"

    @property
    def peers(self) -> int:
        return 2


@dataclass(frozen=True)
class Ranked(_Wrapper):
    """Prepares a model factory for a value and two ranking logits: see `WithRanks`."""

    wrap: ClassVar[str] = "ranks"
    outputs: ClassVar[int] = 3


@dataclass(frozen=True)
class GaussianGroup(Group):
    """Prepares a model factory for K peers with a mean and a log variance each; the first is the final model."""

    def __call__(self, build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        build_peer = self.single(build)
        return lambda: GaussianPeers([build_peer() for _ in range(self.peers)])

    def single(self, build: Any) -> Any:
        """The factory of the final model: that of one peer."""
        return Gaussian()(build)

    def of_values(self) -> GaussianGroup:
        """Itself: it is of values already."""
        return self
