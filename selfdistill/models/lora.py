"""LoRA layers on a CPU: what peft computes, with each product added in place and large products made by oneDNN."""

from __future__ import annotations

from typing import Any

import peft
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ..core.logits import product


class LoraFunction(torch.autograd.Function):
    """y = x W^T + c + s (x A^T) B^T for x (rows, inputs), A (rank, inputs), B (outputs, rank); W and c do not learn.

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
        g_b = (g @ b).mul_(ctx.scale)
        to_x = product(g, weight.t()).addmm_(g_b, a) if ctx.needs_input_grad[0] else None
        return to_x, None, None, g_b.t() @ x, (g.t() @ low_rank).mul_(ctx.scale), None


def _sum(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    low_rank = x @ a.t()
    return product(x, weight, bias).addmm_(low_rank, b.t(), alpha=scale), low_rank


class LoraLinear(peft.tuners.lora.Linear):  # type: ignore[misc,unused-ignore]
    """peft's layer, made faster for one plain adapter; peft computes the rest (several adapters, variants, dropout)."""

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
            x.dtype == base.weight.dtype == a.weight.dtype
            and not base.weight.requires_grad
            and b.bias is None
            and (isinstance(dropout, nn.Identity) or not self.training)
        )


class OutputLinear(nn.Linear):
    """The output matrix, with a fast product for few rows: completions are sampled a few rows at a time."""

    def forward(self, x: Tensor) -> Tensor:
        return product(x.reshape(-1, x.shape[-1]), self.weight, self.bias).view(*x.shape[:-1], -1)


def use_fast_layers(lm: Any) -> None:
    """Replace the output matrix and peft's linear layers with LoRA by the faster ones above; other layers stay."""
    head = lm.get_output_embeddings() if hasattr(lm, "get_output_embeddings") else None
    if type(head) is nn.Linear:
        head.__class__ = OutputLinear
    for layer in lm.modules():
        if type(layer) is peft.tuners.lora.Linear:
            layer.__class__ = LoraLinear
