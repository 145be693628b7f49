"""LoRA's layers against x (W + s B A)^T + c by hand, and against peft's own where they are not plain."""

from __future__ import annotations

from typing import cast

import peft
import pytest
import torch
from torch import Tensor, nn

from selfdistill.core import logits
from selfdistill.models.lora import LoraLinear, OutputLinear, use_fast_output

SCALE, RANK, INPUTS, OUTPUTS = 2.0, 3, 5, 4


class Tied(nn.Module):
    """Has an output matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(INPUTS, OUTPUTS)

    def get_output_embeddings(self) -> nn.Module:
        return self.out

    def set_output_embeddings(self, layer: nn.Module) -> None:
        self.out = layer  # type: ignore[assignment]


def layer(dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> LoraLinear:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(INPUTS, OUTPUTS)).requires_grad_(False)
    config = peft.LoraConfig(r=RANK, lora_alpha=int(SCALE * RANK), target_modules=["0"], lora_dropout=dropout)
    config._register_custom_module({nn.Linear: LoraLinear})
    whole = peft.get_peft_model(made, config).to(dtype)
    (found,) = (m for m in whole.modules() if isinstance(m, LoraLinear))
    nn.init.normal_(factors(found)[1])
    return found


def factors(of: LoraLinear) -> tuple[Tensor, Tensor]:
    return cast(Tensor, of.lora_A["default"].weight), cast(Tensor, of.lora_B["default"].weight)


def by_hand(of: LoraLinear, x: Tensor) -> Tensor:
    base, (a, b) = cast(nn.Linear, of.base_layer), factors(of)
    return x @ (base.weight + SCALE * b @ a).T + base.bias


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("many", [1, logits.MANY])  # from 1 on all in float32 go through oneDNN
@pytest.mark.parametrize("rows", [3, 100])
def test_output_and_gradients_are_those_of_the_formula(
    dtype: torch.dtype, near: float, rows: int, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logits, "MANY", many)
    of = layer(dtype)
    x, g = torch.randn(2, rows, INPUTS, dtype=dtype), torch.randn(2, rows, OUTPUTS, dtype=dtype)
    assert of._plain(x)
    found = []
    for call in (of, lambda x: by_hand(of, x)):
        own = x.clone().requires_grad_()
        y = call(own)
        found.append([y, *torch.autograd.grad(y, (own, *factors(of)), g)])
    for here, there in zip(*found, strict=True):
        assert torch.allclose(here, there, rtol=near, atol=near)
    with torch.no_grad():
        assert torch.allclose(of(x), by_hand(of, x), rtol=near, atol=near)


def test_factors_in_float32_beside_bfloat16_weights_lose_nothing_of_their_own() -> None:
    """Output and gradients are nearer to those of the formula than rounding to bfloat16 once."""
    of = layer(torch.float32)
    of.base_layer.to(torch.bfloat16)
    x, g = (torch.randn(100, n).bfloat16() for n in (INPUTS, OUTPUTS))
    assert of._plain(x)
    own = x.clone().requires_grad_()
    y = of(own)
    found = [y, *torch.autograd.grad(y, (own, *factors(of)), g)]
    theirs = peft.tuners.lora.Linear.forward(of, own)
    base, (a, b), exact = cast(nn.Linear, of.base_layer), factors(of), x.double().requires_grad_()
    a, b = a.detach().double().requires_grad_(), b.detach().double().requires_grad_()
    wanted = exact @ (base.weight.double() + SCALE * b @ a).T + base.bias.double()
    expected = [wanted, *torch.autograd.grad(wanted, (exact, a, b), g.double())]
    assert [t.dtype for t in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for here, there, near in zip(found, expected, (2**-7, 2**-7, 1e-5, 1e-5), strict=True):
        assert (here.double() - there).abs().max() <= near * there.abs().max()
    assert (y - theirs).abs().max() <= 2**-7 * y.abs().max()


@pytest.mark.parametrize("many", [1, logits.MANY])
def test_the_output_matrix_gives_what_it_gave(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "MANY", many)
    torch.manual_seed(0)
    lm, x, g = Tied(), torch.randn(1, 7, INPUTS), torch.randn(1, 7, OUTPUTS)
    weight = lm.out.weight
    use_fast_output(lm)
    assert type(lm.out) is OutputLinear
    assert lm.out.weight is weight
    own = x.clone().requires_grad_()
    (to_x,) = torch.autograd.grad(lm.out(own), own, g)
    with torch.no_grad():
        y = lm.out(x)
    assert torch.allclose(y, torch.einsum("brw,ow->bro", x, lm.out.weight) + lm.out.bias, atol=1e-5)
    assert torch.allclose(to_x, torch.einsum("bro,ow->brw", g, lm.out.weight), atol=1e-5)


def test_what_is_not_plain_is_left_to_peft() -> None:
    of, x = layer(dropout=0.5), torch.randn(2, INPUTS, dtype=torch.float64)
    assert not of.train()._plain(x)
    assert of.eval()._plain(x)
    of.base_layer.weight.requires_grad_()
    assert not of._plain(x)
    of.enable_adapters(False)
    assert torch.equal(of(x), of.base_layer(x))
