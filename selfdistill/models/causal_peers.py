"""Peers of a language model: several adapters (LoRA) of one frozen base, which learn side by side."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import rng
from ..core.logits import Logits
from ..core.outputs import Composite, ModelWrapper
from ..errors import RecipeError
from .causal_lm import Causal, name_in_adapter

MOST_PEERS = 16


MEAN = "mean"


class CausalPeers(Causal, Composite):
    """A language model with several adapters that learn; outside of a training pass one or their mean answers.

    A training pass goes through the base once for each peer, and gives the heads ``peer0``, ``peer1`` and so on, and
    ``logits`` of the first. A peer costs what an adapter costs: the base is held once. The mean is that of the updates
    B A, exactly: an adapter of ``peers`` times the rank, whose factors are those of all peers side by side.

    Args:
        first: A model with an adapter, which becomes the first peer.
        peers: Number of adapters, each drawn by another seed.

    Attributes:
        names: PEFT's names of the peers' adapters.
        chosen: Number of the candidate that answers: a peer, or after them the mean. It is part of the state.
    """

    chosen: Tensor

    def __init__(self, first: Causal, peers: int) -> None:
        super().__init__(first.lm, first.tokenizer, first.origin, first.saved_dtype)
        self.teacher_template = first.teacher_template
        self.names = [str(first.adapter_name)]
        own = copy.deepcopy(self.lm.peft_config[self.names[0]])
        for peer in range(1, peers):
            self.names.append(f"peer{peer}")
            self._add(self.names[-1], copy.deepcopy(own), rng.seed(torch.initial_seed(), "peer", peer))
        self._add(MEAN, _wider(own, peers), 0)
        for name, weight in self.named_parameters():
            weight.requires_grad_(not {*name.split(".")}.isdisjoint(self.names))
        self.register_buffer("chosen", torch.tensor(0))

    @property
    def forward_passes(self) -> int:
        """The number of peers, each of which a row passes."""
        return len(self.names)

    @property
    def candidates(self) -> tuple[str, ...]:
        """The names of what may answer: each peer, and their mean."""
        return (*(f"peer {k}" for k in range(len(self.names))), "the mean of the peers")

    @property
    def saved_names(self) -> set[str]:
        """The names of what its state holds: all adapters that learn, and the choice."""
        return {*super().saved_names, "chosen"}

    @property
    def adapters(self) -> dict[str, str]:
        """The names of the peers by the folders that they are saved in, beside the one that answers."""
        return {f"peer{k}": name for k, name in enumerate(self.names)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        found = dict[str, Tensor]()
        for k, name in enumerate(self.names):
            with self._through(name):
                found[f"hidden{k}"] = super().forward(x)["hidden"]
        return {"hidden": found["hidden0"], **found}

    def heads(self, outputs: Mapping[str, Tensor]) -> dict[str, Logits]:
        """Those of each peer, ``peer0``, ``peer1`` and so on, and ``logits`` of the first."""
        each = {f"peer{k}": self.source(outputs[f"hidden{k}"].float()) for k in range(len(self.names))}
        return {"logits": each["peer0"], **each}

    @torch.no_grad()
    def hidden_states(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Hidden states of the candidate that answers, as of every language model: (rows, T, width)."""
        if weights:
            raise _no_teacher()
        with self.inference():
            return super().forward(x)["hidden"]

    def choose(self, candidate: int) -> None:
        """Let a candidate answer from here on: a peer by its number, or after them their mean as they are now."""
        self.chosen.fill_(candidate)
        if candidate == len(self.names):
            self._average_peers()
        self._switch(MEAN if candidate == len(self.names) else self.names[candidate])

    @torch.no_grad()
    def _average_peers(self) -> None:
        """[B_1, B_2, ...] / K and [A_1; A_2; ...], whose product is the mean of the products B_k A_k."""
        from .lora import FactorPair, factor_pairs

        weights, own = dict(self.named_parameters()), self.names[0]
        for pair in factor_pairs(self, [name for name in weights if own in name.split(".")]):
            named = [
                FactorPair(name_in_adapter(pair.a, own, n), name_in_adapter(pair.b, own, n), pair.experts)
                for n in (*self.names, MEAN)
            ]
            factors = [peer.split(weights) for peer in named[:-1]]
            a, b = torch.cat([f for f, _ in factors], -2), torch.cat([f for _, f in factors], -1) / len(factors)
            for name, value in named[-1].joined(a, b).items():
                weights[name].copy_(value)

    @contextlib.contextmanager
    def _through(self, name: str) -> Iterator[None]:
        """One adapter in the place of the one that answers, for as long as it lasts."""
        own = str(self.adapter_name)
        self._switch(name)
        try:
            yield
        finally:
            self._switch(own)

    def _switch(self, name: str) -> None:
        """Switch by PEFT, without what it would change of who learns: all peers do, whichever answers."""
        if name != self.adapter_name:
            with self._as_it_learns():
                self.lm.set_adapter(name)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of every language model; the weights of one adapter become the first peer, which then answers."""
        given, others = dict(state_dict), {*self.names[1:]}
        if all(others.isdisjoint(name.split(".")) for name in given):
            given = {**{n: p.detach() for n, p in self.learning().items()}, **given}
        result = super().load_state_dict({"chosen": torch.tensor(0), **given}, strict, assign)
        self.choose(int(self.chosen))
        return result

    def average(self) -> Any:
        raise _no_teacher()

    def holding(self, other: Any) -> Any:
        raise _no_teacher()


def _no_teacher() -> RecipeError:
    return RecipeError(
        "peers teach each other, and no teacher with other weights; leave wrap_model out, or the teacher"
    )


def _recomputes(model: Causal) -> bool:
    """Whether activations are computed again in the backward pass."""
    return any(vars(module).get("gradient_checkpointing", False) for module in model.plain.modules())


def _wider(config: Any, times: int) -> Any:
    """The settings of an adapter of so many times the rank, at the same scale."""
    config = copy.deepcopy(config)
    config.r, config.lora_alpha = config.r * times, config.lora_alpha * times
    config.rank_pattern = {name: rank * times for name, rank in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {name: alpha * times for name, alpha in (config.alpha_pattern or {}).items()}
    return config


@dataclass(frozen=True)
class AdapterPeers(ModelWrapper):
    """Prepares a factory of language models with an adapter for several peers on one base: see `CausalPeers`.

    >>> AdapterPeers(3).peers
    3

    Raises:
        RecipeError: There are fewer than two peers, or more than 16.
    """

    peers: int = 2

    def __post_init__(self) -> None:
        if not 2 <= self.peers <= MOST_PEERS:
            raise RecipeError(f"peers teach each other: 2 to {MOST_PEERS} of them, not {self.peers}")

    def __call__(self, build: Callable[..., Any]) -> Callable[..., Any]:
        def build_peers() -> CausalPeers:
            first: Causal = build()
            self.check(first.has_adapter, _recomputes(first))
            return CausalPeers(first, self.peers)

        return build_peers

    @staticmethod
    def check(lora: int, checkpointing: bool) -> None:
        """Refuse models that cannot be peers.

        Args:
            lora: Rank of their adapter; 0 without one.
            checkpointing: Whether activations are computed again in the backward pass.

        Raises:
            RecipeError: There is no adapter, or the backward pass would read another peer's.
        """
        if not lora:
            raise RecipeError(
                "peers of a language model are adapters of one base, and all weights learn; give --lora 16"
            )
        if checkpointing:
            raise RecipeError(
                "--checkpointing computes activations again when another peer's adapter is switched on; leave it out"
            )
