"""Matrix products without gradient, by what is fastest on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

MANY = 2**14  # numbers made at once, from which on oneDNN pays
HERE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # no public name has it


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + c for x (rows, inputs); in float32 on a CPU by oneDNN.

    Where the CPU is AMD's that is 3 to 10 % faster than MKL, and a third for a few rows and a whole vocabulary.

    >>> product(torch.ones(1, 2), torch.ones(3, 2)).tolist()
    [[2.0, 2.0, 2.0]]
    """
    plain = x.is_cpu and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if HERE and plain and len(x) * len(weight) >= MANY and not torch.is_grad_enabled():
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
        return found
    return nn.functional.linear(x, weight, bias)
