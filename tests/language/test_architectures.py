"""Models of twenty architectures train with an adapter and its average, and are themselves in plain transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from selfdistill.language.recipes import sdft
from selfdistill.language.sampling import export
from selfdistill.language.trainer import fit
from selfdistill.models.causal_lm import Causal, Swapped
from tests.language.architectures import ARCHITECTURES, WORDS, build
from tests.language.tiny import prompts

QUICK = ("llama", "qwen3moe")  # one of each kind in the normal suite
CASES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES]
IDS = torch.arange(5, 45).view(2, 20) % WORDS


def logits(lm: Any) -> Tensor:
    with torch.no_grad():
        return lm.eval()(input_ids=IDS, use_cache=False).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CASES)
def test_an_architecture_trains_saves_and_is_itself_in_plain_transformers(name: str, tmp_path: Path) -> None:
    before = logits(build(name).lm)
    kept = list[Causal]()

    def made() -> Causal:
        kept.append(build(name))
        return kept[-1]

    result = fit(made, prompts(), sdft(max_tokens=4, skip=0), device="cpu", steps=2, batch_size=4, lr=0.02,
                 max_tokens=4, audit="off", warn=lambda line: None)  # fmt: skip
    model, objective = result.model, result.objective
    assert isinstance(model, Causal)
    assert objective is not None
    trained = logits(model.lm)
    assert (trained - before).abs().max() > 1e-3
    (average,) = (m for m in objective.states.modules() if isinstance(m, Swapped))
    with average.placed():
        taught = logits(model.lm)
    assert 1e-7 < (taught - before).abs().max() < (trained - before).abs().max()  # it follows slowly
    export(model, tmp_path, "both")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(plain), trained, atol=2e-4, rtol=1e-3)
    assert (logits(plain) - before).abs().max() > 1e-3
    base = build(name, lora=0).lm
    torch.testing.assert_close(
        logits(PeftModel.from_pretrained(base, tmp_path / "adapter")), trained, atol=2e-4, rtol=1e-3
    )
