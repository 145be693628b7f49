"""On a GPU: every recipe begins as on the CPU and goes on after a cut as if there were none; divergences are exact."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.core.logits import Projection
from selfdistill.language.recipes import RECIPES as LANGUAGE
from selfdistill.language.trainer import fit
from selfdistill.losses.chunked.definitions import Divergence, ForwardKL, JensenShannon, ReverseKL, SkewKL
from selfdistill.losses.chunked.divergences import divergence
from selfdistill.losses.chunked.sweep import TopK
from selfdistill.methods import recipes
from tests.harness import build, building_for, record
from tests.language.tiny import prompts, student
from tests.losses.chunked import naive

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("name", recipes())
def test_a_recipe_begins_as_on_the_cpu_and_survives_a_cut(name: str, tmp_path: Path) -> None:
    method = recipes()[name]()
    here, there = record(method, tmp_path / "cpu"), record(method, tmp_path / "gpu", device="cuda")
    assert len(here.losses) == len(there.losses)
    assert all(math.isfinite(loss) for loss in there.losses)
    if building_for(method) is build:  # the others drop out, which a GPU draws otherwise
        assert there.losses[0] == pytest.approx(here.losses[0], rel=1e-3, abs=1e-5)
    cut = record(method, tmp_path / "cut", cut=3, device="cuda")
    assert cut.losses == pytest.approx(there.losses, rel=2e-2, abs=1e-3)


SMALL: dict[str, dict[str, Any]] = {"sdpo": {"samples": 2, "k": 5}, "grpo": {"samples": 2}, "rest": {"samples": 2},
                                    "rft": {"samples": 2}}  # fmt: skip


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [0, 4])
@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_recipe_trains(name: str, lora: int, precision: str) -> None:
    options = SMALL.get(name, {}) | ({} if name == "sft" else {"max_tokens": 5})
    method = LANGUAGE[name](**options)
    data = prompts(30, checker="tests.language.test_recipes:lenient")
    begun = student(lora).learning()
    method = replace(method, generations=min(2, method.generations))
    result = fit(
        lambda: student(lora), data, method, device="cuda", steps=2, batch_size=6, max_tokens=5, lr=1e-3,
        precision=precision,
    )  # fmt: skip
    assert all(math.isfinite(line["loss"]) for line in result.history)
    assert any(not torch.equal(w.cpu(), begun[n]) for n, w in result.model.state_dict().items())


KINDS: dict[str, tuple[Divergence, Callable[[Tensor, Tensor], Tensor]]] = {
    "kl": (ForwardKL(), naive.forward), "reverse": (ReverseKL(), naive.reverse),
    "js": (JensenShannon(0.3), naive.js(0.3)),
    "skew": (SkewKL(0.1), naive.skew(0.1)), "clip": (ForwardKL(clip=0.05), naive.clipped(naive.forward, 0.05)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("labels", [False, True], ids=["", "labels"])
@pytest.mark.parametrize("kind", KINDS)
def test_divergences_and_their_gradients(kind: str, labels: bool, dtype: torch.dtype) -> None:
    drawn = torch.Generator().manual_seed(0)
    hidden, weight, far, other = (
        torch.randn(n, 32, generator=drawn).mul_(s).to(dtype) for n, s in ((40, 1.0), (700, 0.3), (40, 1.0), (700, 0.3))
    )
    ids = torch.randint(0, 690, (40,), generator=drawn)
    ours = [x.cuda().requires_grad_() for x in (hidden, weight)]
    found = divergence(
        Projection(ours[0], ours[1]), Projection(far.cuda(), other.cuda()), KINDS[kind][0], vocabulary=690, chunk=16,
        labels=ids.cuda() if labels else None,
    )  # fmt: skip
    found.total.backward()
    exact = [x.detach().double().requires_grad_() for x in (hidden, weight)]
    z = exact[0] @ exact[1].t()
    p = naive.probabilities(z, 690, 1.0)
    values = KINDS[kind][1](naive.probabilities(far.double() @ other.double().t(), 690, 1.0), p).sum(1)
    total = values.sum() - (p.gather(1, ids[:, None]).log().sum() if labels else 0.0)
    total.backward()
    torch.testing.assert_close(found.values.double().cpu(), values.detach(), rtol=1e-4, atol=1e-6)
    for mine, theirs in zip(ours, exact, strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        near = 2e-5 if dtype == torch.float32 else 4e-3  # the gradient comes back in bfloat16
        assert (mine.grad.double().cpu() - theirs.grad).norm() <= near * theirs.grad.norm()


def test_a_support_on_the_gpu_is_that_on_the_cpu() -> None:
    head = Projection(torch.randn(9, 8), torch.randn(50, 8))
    on = Projection(head.hidden.cuda(), head.matrix.cuda())
    teacher = torch.randn(9, 50)
    for which in ("teacher", "student", "union"):
        here = divergence(head, teacher, JensenShannon(0.5), support=TopK(5, which))
        there = divergence(on, teacher.cuda(), JensenShannon(0.5), support=TopK(5, which))
        torch.testing.assert_close(there.values.cpu(), here.values, rtol=1e-4, atol=1e-5)
