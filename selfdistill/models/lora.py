"""LoRA on a causal model: where its layers go, and layers that are fast on a CPU.

The layers compute what PEFT computes, with each product added in place and large products made by oneDNN.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import peft
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..core.logits import product
from ..errors import DataError
from .hub import quiet

#: Where LoRA goes: all linear layers of the blocks.
EVERYWHERE = "all-linear"


#: Model types whose ``out_proj`` a kernel reads without calling the layer, so that PEFT refuses an adapter there.
_MAMBA = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})


class LoraFunction(torch.autograd.Function):
    """y = x W^T + c + s (x A^T) B^T for x (rows, inputs), A (rank, inputs), B (outputs, rank); W and c do not learn.

    Factors may be float32 beside weights and inputs of fewer bits: their part of the sum is then computed in float32.

    Source: LoRA (arXiv 2106.09685), eq. 3.

    >>> x, a, b = torch.ones(1, 2), torch.ones(1, 2), torch.ones(3, 1)
    >>> LoraFunction.apply(x, torch.zeros(3, 2), None, a, b, 0.5).tolist()
    [[1.0, 1.0, 1.0]]
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> Tensor:
        y, low_rank = _sum(x, weight, bias, a, b, scale)
        ctx.save_for_backward(x, weight, a, b, low_rank)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        x, weight, a, b, low_rank = ctx.saved_tensors
        g_b = (g.to(b.dtype) @ b).mul_(ctx.scale)
        to_x = product(g, weight.t()).to(a.dtype).addmm_(g_b, a).to(x.dtype) if ctx.needs_input_grad[0] else None
        return to_x, None, None, g_b.t() @ x.to(a.dtype), (g.to(b.dtype).t() @ low_rank).mul_(ctx.scale), None


def _sum(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    low_rank = x.to(a.dtype) @ a.t()
    return product(x, weight, bias).to(b.dtype).addmm_(low_rank, b.t(), alpha=scale).to(x.dtype), low_rank


class LoraLinear(peft.tuners.lora.Linear):  # type: ignore[misc,unused-ignore]
    """PEFT's layer, made faster for one plain active adapter; PEFT computes the rest (variants, dropout, a GPU)."""

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        if args or options or not self._plain(x):
            return super().forward(x, *args, **options)  # type: ignore[no-any-return,unused-ignore]
        (name,) = self.active_adapters
        parts = self.base_layer.weight, self.base_layer.bias, self.lora_A[name].weight, self.lora_B[name].weight
        arguments: Any = x.reshape(-1, x.shape[-1]), *parts, self.scaling[name]
        y: Tensor = LoraFunction.apply(*arguments) if torch.is_grad_enabled() else _sum(*arguments)[0]  # type: ignore[no-untyped-call]
        return y.view(*x.shape[:-1], -1)

    def _plain(self, x: Tensor) -> bool:
        names, base = self.active_adapters, self.base_layer
        if not x.is_cpu or torch.is_autocast_enabled("cpu") or self.disable_adapters or self.merged:
            return False
        if type(base) is not nn.Linear or len(names) != 1 or names[0] not in self.lora_A or self.lora_variant:
            return False
        a, b, dropout = self.lora_A[names[0]], self.lora_B[names[0]], self.lora_dropout[names[0]]
        return (
            x.dtype == base.weight.dtype
            and a.weight.dtype in (x.dtype, torch.float32)
            and not base.weight.requires_grad
            and b.bias is None
            and (isinstance(dropout, nn.Identity) or not self.training)
        )


class OutputLinear(nn.Linear):
    """The output matrix, with a fast product for few rows: completions are sampled a few rows at a time."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x.reshape(-1, x.shape[-1]), self.weight, self.bias).view(*x.shape[:-1], -1)


def use_fast_output(lm: Any) -> None:
    """Put the faster output layer in the place of a plain one, with the same weights; others stay."""
    head = lm.get_output_embeddings()
    if type(head) is not nn.Linear or head._forward_hooks or head._forward_pre_hooks:
        return
    fast = OutputLinear(head.in_features, head.out_features, head.bias is not None, device="meta")
    fast.weight, fast.bias = head.weight, head.bias
    lm.set_output_embeddings(fast.train(head.training))


@contextmanager
def without_warnings() -> Iterator[None]:
    """Without what PEFT says of layers that it has chosen itself."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # what it asks of transformers is their affair
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # it finds out itself that GPT-2's are transposed
        warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys")  # its own, for experts
        yield


def add_lora(lm: Any, name: str, rank: int, alpha: int, targets: str = EVERYWHERE) -> Any:
    """The model in a `peft.PeftModel` with a new adapter, whose factors are float32 beside weights of fewer bits.

    Args:
        lm: A transformers model.
        name: Its name, for errors.
        rank: Rank of the factors.
        alpha: The update is scaled by alpha / rank.
        targets: Names of layers, separated by commas, or ``all-linear``.

    Raises:
        DataError: PEFT cannot put LoRA on these layers.
    """
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=targets if targets == EVERYWHERE else targets.split(","),
        task_type="CAUSAL_LM",
    )
    if targets == EVERYWHERE and (unfit := _unfit(lm)):
        config.exclude_modules = unfit
    if "quantization_config" not in vars(lm.config):  # else PEFT has layers of its own
        config._register_custom_module({nn.Linear: LoraLinear})
        use_fast_output(lm)
    try:
        with without_warnings():
            return peft.get_peft_model(lm, config)
    except ValueError as error:
        raise DataError(f"LoRA does not fit {name} ({error}); name its layers, such as q_proj,v_proj") from error


class FactorPair(NamedTuple):
    """The names of the factors A (rank, inputs) and B (outputs, rank) of a layer, or of the experts of one.

    PEFT stores the factors of experts in one matrix each: (experts rank, inputs) and (outputs, rank experts).
    """

    a: str
    b: str
    experts: int = 1

    def split(self, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """A (experts, rank, inputs) and B (experts, outputs, rank) among weights by their names."""
        a, b = weights[self.a], weights[self.b]
        return a.view(self.experts, -1, a.shape[-1]), b.view(len(b), -1, self.experts).permute(2, 0, 1)

    def joined(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:
        """The same as PEFT stores them, by their names."""
        return {self.a: a.flatten(0, 1), self.b: b.permute(1, 2, 0).flatten(1)}


def factor_pairs(model: nn.Module, names: Iterable[str]) -> list[FactorPair]:
    """The pairs of factors among the names of a model's weights."""
    found = []
    for name in names:
        for one, other in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            layer, factor, _ = name.partition(f".{one}.")
            if factor:
                module = model.get_submodule(layer)
                experts = module.num_experts if isinstance(module, peft.tuners.lora.layer.ParamWrapper) else 1
                found.append(FactorPair(name, name.replace(f".{one}.", f".{other}."), experts))
    return found


def average_products(
    pairs: Sequence[FactorPair], held: Mapping[str, Tensor], now: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """The factors, of the rank they have, that are nearest to a step of the moving average of the products B A.

    Equation::

        (1 - share) B A + share B' A' = [(1 - share) B, share B'] [A; A']

    is of twice the rank. By QR of both sides and an SVD of the small matrix between them its largest singular values
    are kept, which no other factors of that rank are nearer to (Eckart and Young, 1936). What a step cuts off is
    forgotten with the average, so that it is never further from the dense average than the sum of the cuts.

    Args:
        pairs: Which of the weights are factors.
        held: The factors A and B of the average by their names, in float32.
        now: Those that it follows, A' and B'.
        share: Weight of what it follows.

    Returns:
        The factors of the average by their names.
    """
    alike, found = dict[tuple[torch.Size, torch.Size], list[FactorPair]](), dict[str, Tensor]()
    for pair in pairs:
        alike.setdefault((held[pair.a].shape, held[pair.b].shape), []).append(pair)
    for group in alike.values():  # at once: a GPU is slow with one small matrix after another
        before, after = (
            [torch.cat(factors) for factors in zip(*(pair.split(weights) for pair in group), strict=True)]
            for weights in (held, now)
        )
        left = torch.cat([(1 - share) * before[1], share * after[1].to(before[1].dtype)], -1)
        a, b = _truncated(left, torch.cat([before[0], after[0].to(before[0].dtype)], -2), before[0].shape[-2])
        for pair, mine in zip(group, zip(a.chunk(len(group)), b.chunk(len(group)), strict=True), strict=True):
            found |= pair.joined(*mine)
    return found


def _truncated(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The factors A (..., rank, n), B (..., m, rank) nearest to a product (..., m, k) (..., k, n)."""
    (q, r), (p, t) = torch.linalg.qr(left), torch.linalg.qr(right.mT)
    u, s, v = torch.linalg.svd(r @ t.mT, full_matrices=False)
    root = s[..., :rank].sqrt()
    a, b = root[..., None] * (v[..., :rank, :] @ p.mT), (q @ u[..., :rank]) * root[..., None, :]
    missing = rank - root.shape[-1]  # a layer may be smaller than the rank
    return nn.functional.pad(a, (0, 0, 0, missing)), nn.functional.pad(b, (0, missing))


def _unfit(lm: Any) -> list[str]:
    """Linear layers that no adapter can be put on: a router that returns more than its product, and Mamba's outputs."""
    mamba = lm.config.model_type in _MAMBA
    layers = [(name, layer) for name, layer in lm.named_modules() if isinstance(layer, nn.Linear)]
    return [name for name, layer in layers if (mamba and name.endswith("out_proj")) or _returns_more(layer)]


def _returns_more(layer: nn.Linear) -> bool:
    """Whether a layer's own forward pass returns more than one tensor."""
    if type(layer).forward is nn.Linear.forward:
        return False
    with torch.no_grad():
        return not isinstance(layer(layer.weight.new_zeros(1, layer.in_features)), Tensor)
