"""Blocks of logits: compiled, the arithmetic is the same; and where nothing compiles, it goes on."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from torch import Tensor

from selfdistill.losses.chunked import blocks
from selfdistill.losses.chunked.blocks import fused, whole
from selfdistill.losses.chunked.definitions import (
    Divergence,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SkewKL,
    Swept,
    TotalVariation,
    Weights,
)

KINDS = [ForwardKL(clip=0.05), ReverseKL(temperature=2.0), JensenShannon(0.9), SkewKL(reverse=True), TotalVariation()]


def problem(tokens: int) -> tuple[Tensor, Tensor, Weights, Tensor]:
    drawn = torch.Generator().manual_seed(tokens)
    z, t = (torch.randn(tokens, 30, generator=drawn, dtype=torch.float64) for _ in range(2))
    weights = Weights(*torch.rand(2, tokens, generator=drawn, dtype=torch.float64))
    return z, t, weights, torch.randint(0, 30, (tokens,), generator=drawn)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled yet; the graph is what a GPU's compiler gets, without its kernels."""
    torch.compiler.reset()
    traced = functools.cache(lambda: torch.compile(whole, dynamic=True, backend="aot_eager"))
    monkeypatch.setattr(blocks, "_fast", lambda *which: traced())
    monkeypatch.setattr(blocks, "_triton", lambda: True)
    monkeypatch.setattr(blocks, "_broken", [])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_compiled_blocks_give_the_same_values_and_write_the_same_gradient(kind: Divergence) -> None:
    for tokens in (5, 3):  # the second of another length
        z, t, weights, label = problem(tokens)
        ours, theirs = z.clone(), z.clone()
        found, wanted = fused(kind, ours, t.clone(), weights, label), whole(kind, theirs, t.clone(), weights, label)
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
        assert not torch.equal(ours, z)


@pytest.mark.parametrize("kind", [RuntimeError, ImportError], ids=["compiler", "triton"])
def test_a_compiler_that_fails_is_told_once_and_the_block_is_computed_as_written(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*given: object) -> Swept:
        raise kind("no C compiler\nand more")

    monkeypatch.setattr(blocks, "_fast", lambda *which: broken)
    z, t, weights, label = problem(4)
    wanted = whole(ForwardKL(), z.clone(), t.clone(), weights, label)
    with pytest.warns(UserWarning, match="run uncompiled, which is slower: the compiler says no C compiler$"):
        torch.testing.assert_close(fused(ForwardKL(), z.clone(), t.clone(), weights, label), wanted)
    torch.testing.assert_close(fused(ForwardKL(), z.clone(), t.clone(), weights, label), wanted)  # and no warning


def test_what_the_compiler_advises_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def advising(*given: object) -> Swept:
        warnings.warn("TensorFloat32 is not enabled", stacklevel=1)
        return Swept(torch.zeros(4), None)

    monkeypatch.setattr(blocks, "_fast", lambda *which: advising)
    z, t, weights, label = problem(4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused(ForwardKL(), z, t, weights, label)


def test_memory_that_is_out_is_no_fault_of_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: object) -> Swept:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(blocks, "_fast", lambda *which: full)
    z, t, weights, label = problem(4)
    with pytest.raises(torch.OutOfMemoryError):
        fused(ForwardKL(), z, t, weights, label)
