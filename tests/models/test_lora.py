"""LoRA's layers against x (W + s B A)^T + c by hand, and against peft's own where they are not plain."""

from __future__ import annotations

from typing import cast

import peft
import pytest
import torch
from torch import Tensor, nn

from selfdistill.core import logits
from selfdistill.models.lora import LoraLinear, OutputLinear, use_fast_layers

SCALE, RANK, INPUTS, OUTPUTS = 2.0, 3, 5, 4


class Tied(nn.Module):
    """Has an output matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(INPUTS, OUTPUTS)

    def get_output_embeddings(self) -> nn.Module:
        return self.out


def layer(dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> LoraLinear:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Linear(INPUTS, OUTPUTS)).requires_grad_(False)
    config = peft.LoraConfig(r=RANK, lora_alpha=int(SCALE * RANK), target_modules=["0"], lora_dropout=dropout)
    whole = peft.get_peft_model(made, config).to(dtype)
    use_fast_layers(whole)
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


@pytest.mark.parametrize("many", [1, logits.MANY])
def test_the_output_matrix_gives_what_it_gave(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logits, "MANY", many)
    torch.manual_seed(0)
    lm, x, g = Tied(), torch.randn(1, 7, INPUTS), torch.randn(1, 7, OUTPUTS)
    use_fast_layers(lm)
    assert type(lm.out) is OutputLinear
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
