"""The kernel against the arithmetic as written, in float64; on a machine without a GPU by Triton's interpreter:

pip install triton && TRITON_INTERPRET=1 pytest tests/losses/chunked/test_triton_kernel.py
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from selfdistill.losses.chunked.blocks import whole
from selfdistill.losses.chunked.definitions import (
    Divergence,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    TotalVariation,
    Weights,
)

pytest.importorskip("triton")
kernel = pytest.importorskip("selfdistill.losses.chunked.triton_kernel")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
pytestmark = pytest.mark.skipif(not (INTERPRETED or torch.cuda.is_available()), reason="no GPU and no interpreter")
DEVICE = "cpu" if INTERPRETED else "cuda"
KINDS = [
    ForwardKL(), ReverseKL(), ForwardKL(temperature=2.0), ReverseKL(temperature=0.5), JensenShannon(0.5),
    JensenShannon(0.1), JensenShannon(0.9, temperature=3.0), JensenShannon(0.0), JensenShannon(1.0),
]  # fmt: skip


def problem(near: float) -> tuple[Tensor, Tensor, Weights]:
    """Logits of six tokens, with entries that have no probability and one that has nearly all."""
    drawn = torch.Generator().manual_seed(0)
    z, noise = (3.0 * torch.randn(6, 5000, generator=drawn) for _ in range(2))
    t = z + near * noise
    if near == 1.0:
        z[0, 10:20], t[1, 5:9], t[2, 0] = -1e37, -1e37, 90.0
    return z.to(DEVICE), t.to(DEVICE), Weights(torch.rand(6, generator=drawn).to(DEVICE))


@pytest.mark.parametrize("near", [1.0, 1e-3], ids=["far", "near"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_kernel_gives_the_values_and_writes_the_gradient(kind: Divergence, near: float) -> None:
    z, t, weights = problem(near)
    exact = z.double()
    wanted = whole(kind, exact, t.double(), Weights(weights.divergence.double()), None).values
    asked, learnt = z.clone(), z.clone()
    torch.testing.assert_close(kernel.rows(kind, asked, t.clone(), None).values.double(), wanted, rtol=1e-4, atol=0.0)
    assert torch.equal(asked, z)  # no weights, no gradient
    torch.testing.assert_close(
        kernel.rows(kind, learnt, t.clone(), weights).values.double(), wanted, rtol=1e-4, atol=0.0
    )
    assert (learnt.double() - exact).norm() <= (1e-3 if near < 1 else 1e-5) * exact.norm()


def test_what_the_kernel_does_not_cover_is_left_to_the_compiler() -> None:
    z = problem(1.0)[0]
    assert kernel.covers(ReverseKL(temperature=2.0), z, None)
    assert not kernel.covers(ForwardKL(clip=0.05), z, None)
    assert not kernel.covers(TotalVariation(), z, None)
    assert not kernel.covers(ForwardKL(), z.double(), None)
    assert not kernel.covers(ForwardKL(), z, torch.zeros(6, dtype=torch.int64, device=z.device))
