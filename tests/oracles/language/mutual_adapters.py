"""Mutual learning of adapters: L = sum_k mean_t [-log p_k(c_t) + w / (K - 1) sum_{l != k} KL(p_l || p_k)].

Peer k is the plain model with W + 2 B_k A_k in the place of W, for every matrix with factors of its adapter.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import torch

from tests.language.replay import Recorded, of, step

BEFORE = "base_model.model."  # what PEFT puts before the names of a model


class Factors(torch.nn.Module):
    """The factors that learn, by PEFT's names."""

    def __init__(self, given: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in given.items():
            self.register_parameter(name.replace(".", "/"), torch.nn.Parameter(value.detach().clone()))

    def named_parameters(self, *rest: Any, **more: Any) -> Any:
        return ((name.replace("/", "."), value) for name, value in super().named_parameters(*rest, **more))


def answer(plain: Any, weights: dict[str, torch.Tensor], input_ids: torch.Tensor) -> Any:
    return types.SimpleNamespace(
        logits=torch.func.functional_call(plain, weights, (), {"input_ids": input_ids}, strict=False).logits
    )


def peer(plain: Any, factors: Factors, adapter: str) -> Any:
    """The plain model with an adapter's updates."""
    own, weights = dict(factors.named_parameters()), dict[str, torch.Tensor]()
    base = dict(plain.named_parameters())
    for name, a in own.items():
        if f".lora_A.{adapter}." in name:
            layer = name.partition(".lora_A.")[0].removeprefix(BEFORE)
            weights[f"{layer}.weight"] = base[f"{layer}.weight"].detach() + 2 * own[name.replace("_A", "_B")] @ a
    return functools.partial(answer, plain, weights)


def oracle(run: Recorded, peers: int = 2, weight: float = 1.0, epochs: int = 1) -> tuple[list[float], Any]:
    adapters, losses = ["default", *(f"peer{k}" for k in range(1, peers))], list[float]()
    given = {n: p for n, p in run.model().named_parameters() if any(f".{a}." in n for a in adapters)}
    factors, plain = Factors(given), run.plain_model()
    optimizer = run.optimizer(factors)
    for rows in run.batches():
        tokens = []
        for e in map(run.example, rows):
            prompt, said = run.render(e.messages), run.answer(e.demonstration)
            log_p = [run.log_probs(peer(plain, factors, adapter), prompt, said) for adapter in adapters]
            token = -torch.stack([of(one, said) for one in log_p]).sum(0)
            for k, mine in enumerate(log_p):
                for other in (theirs.detach() for j, theirs in enumerate(log_p) if j != k):
                    token = token + weight / (peers - 1) * (other.exp() * (other - mine)).sum(-1)
            tokens.append(token)
        step(optimizer, torch.cat(tokens).mean(), losses)
    return losses, factors
