"""A base of 4 bits under LoRA, by bitsandbytes where it is installed; refused in one line where it is not."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from selfdistill.cli import main
from selfdistill.errors import DataError
from selfdistill.models import hub
from selfdistill.models.causal_folder import rounded
from selfdistill.models.causal_lm import Pretrained
from tests.language.tiny import shaken, student, write_prompts

installed = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="pip install 'selfdistill[4bit]'"
)
IDS = torch.arange(5, 45).view(2, 20)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The folder of a model in bfloat16 whose layers are wide enough for blocks of 64 numbers."""
    folder = tmp_path / "half"
    model = student(hidden_size=64, intermediate_size=128, initializer_range=0.1)
    rounded(model.lm, torch.bfloat16).save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def rms(x: torch.Tensor) -> float:
    return float(x.float().square().mean().sqrt())


@installed
def test_factors_learn_beside_a_base_of_four_bits(base: Path) -> None:
    model = Pretrained(str(base), lora=4, load_in_4bit=True)()
    halves, whole = Pretrained(str(base), lora=4)(), student(hidden_size=64, intermediate_size=128)
    frozen = {n: p for n, p in model.plain.model.layers.named_parameters() if p.dtype == torch.uint8}
    assert len(frozen) == 14
    assert 2 * sum(p.numel() for p in frozen.values()) == sum(
        p.numel() for p in whole.plain.model.layers.parameters() if p.dim() == 2
    )
    assert model.quantised
    assert model.parameter_count == halves.parameter_count
    assert {p.dtype for p in model.learning().values()} == {torch.float32}
    x = torch.stack([IDS, torch.cat([torch.ones_like(IDS[:, :10]), torch.full_like(IDS[:, :10], 2)], 1)], 1)
    model(x)["hidden"].float().square().sum().backward()
    assert all(p.grad is not None for p in model.learning().values())
    start, average = model.hidden_states(x), model.average()
    shaken(model, 0.05)
    with average.placed():
        assert torch.equal(model.hidden_states(x), start)
    assert not torch.equal(model.hidden_states(x), start)


@installed
def test_a_run_with_a_base_of_four_bits_saves_an_adapter_that_peft_loads(base: Path, tmp_path: Path) -> None:
    write_prompts(tmp_path)
    found = CliRunner().invoke(main, [
        "run", f"{tmp_path}/p.jsonl", "--model", str(base), "--method", "sdft(max_tokens=4)", "--max-tokens", "4",
        "--steps", "2", "--batch-size", "4", "--lora", "2", "--load-in-4bit", "--lr", "0.01", "--out",
        f"{tmp_path}/run", "--quiet", "--json", "--audit", "off", "--no-control",
    ])  # fmt: skip
    assert found.exit_code == 0, found.stderr
    assert json.loads(found.stdout)["model"].endswith("LoRA r2, 4 bits")
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=torch.bfloat16)  # fmt: skip
    quantised = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, quantization_config=four)
    with torch.no_grad():
        before = quantised(IDS).logits
        plain = PeftModel.from_pretrained(quantised, tmp_path / "run" / "model").eval()(IDS).logits
        lm, _ = hub.causal(str(tmp_path / "run" / "model"), torch.bfloat16, load_in_4bit=True)
        again = lm(IDS).logits
    assert rms(again - plain) < min(0.3 * rms(plain - before), 2**-6 * rms(plain))  # kernels differ by rounding
    told = CliRunner().invoke(main, ["predict", f"{tmp_path}/run", f"{tmp_path}/p.jsonl"])
    assert told.exit_code == 0, told.stderr
    assert told.stdout.count('"completion"') == 24


def test_what_four_bits_cannot_do_is_refused(base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="weights of 4 bits cannot learn; give --lora 16"):
        Pretrained(str(base), load_in_4bit=True)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    needs = "selfdistill: --load-in-4bit needs bitsandbytes: pip install 'selfdistill[4bit]', or leave it out"
    write_prompts(tmp_path)
    options = ["--model", str(base), "--lora", "2", "--load-in-4bit", "--out", f"{tmp_path}/no"]
    found = CliRunner().invoke(main, ["run", f"{tmp_path}/p.jsonl", *options])
    assert (found.exit_code, found.stderr.strip().splitlines()[-1]) == (2, needs)
    found = CliRunner().invoke(main, ["run", f"{tmp_path}/p.jsonl", *options, "--save", "merged"])
    assert found.exit_code == 2
    assert "needs bitsandbytes" in found.stderr or "give --save adapter" in found.stderr
