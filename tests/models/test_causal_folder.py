"""Dtypes of language models and the folders they are saved in: sizes, and logits in plain transformers and PEFT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

from selfdistill.errors import DataError
from selfdistill.language.recipes import sft
from selfdistill.language.sampling import export
from selfdistill.language.trainer import fit
from selfdistill.models import hub
from selfdistill.models.causal_folder import check_save, rounded
from selfdistill.models.causal_lm import Causal, Pretrained
from tests.language.tiny import doubled, prompts, student

IDS = torch.arange(5, 45).view(2, 20)
BIG: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "initializer_range": 0.1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model in bfloat16, as others save theirs."""
    folder = tmp_path_factory.mktemp("base") / "half"
    model = student(**BIG)
    rounded(model.lm, torch.bfloat16).save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


def trained(build: Pretrained, **more: Any) -> Causal:
    options: dict[str, Any] = {"steps": 4, "batch_size": 8, "lr": 1e-2, "audit": "off", "vitals": False} | more
    found = fit(build, prompts(), sft(), device="cpu", max_tokens=4, warn=lambda line: None, **options)
    assert isinstance(found.model, Causal)
    return found.model.eval()


def logits(lm: Any) -> Tensor:
    with torch.no_grad():
        return lm(input_ids=IDS, use_cache=False).logits.double()  # type: ignore[no-any-return]


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def size(folder: Path, name: str = "model.safetensors") -> int:
    return (folder / name).stat().st_size


def header(folder: Path) -> Mapping[str, str]:
    lines = (folder / "README.md").read_text().split("---")[1].strip().splitlines()
    return dict(line.split(": ", 1) for line in lines)


@pytest.mark.parametrize("dtype", ["auto", "float16", "float32"])
def test_a_base_in_its_dtype_with_factors_in_float32_is_saved_as_what_was_trained(
    base: Path, dtype: str, tmp_path: Path
) -> None:
    """Logits of both folders are as near to the exact ones of the trained weights as its own are."""
    model = trained(Pretrained(str(base), lora=4, dtype=dtype))
    kind = {"auto": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}[dtype]
    own = {n: p.dtype for n, p in model.named_parameters()}
    assert {d for n, d in own.items() if "lora_" in n} == {torch.float32}
    assert {d for n, d in own.items() if "lora_" not in n} == {kind}
    export(model, tmp_path, "both", str(base))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    again = AutoModelForCausalLM.from_pretrained(base, dtype=kind)
    adapter = PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    assert plain.dtype == kind
    exact, here = logits(doubled(model)), logits(model.lm)
    moved = rms(exact - logits(doubled(model).unload()))
    own_error = rms(here - exact) + torch.finfo(kind).eps * rms(exact)
    for lm in (plain, adapter):
        assert rms(logits(lm) - exact) <= 2 * own_error
        assert rms(logits(lm) - exact) < 0.05 * moved
    share = kind.itemsize / 2
    assert size(tmp_path) == pytest.approx(share * size(base), rel=0.02)
    numbers = sum(p.numel() for p in model.learning().values())
    assert size(tmp_path / "adapter", "adapter_model.safetensors") == pytest.approx(kind.itemsize * numbers, rel=0.15)
    assert header(tmp_path) == {
        "library_name": "transformers", "base_model": str(base), "tags": "[self-distillation]"
    }  # fmt: skip
    assert header(tmp_path / "adapter")["library_name"] == "peft"


def test_all_weights_learn_in_float32_and_are_saved_in_the_dtype_of_the_file(base: Path, tmp_path: Path) -> None:
    """Steps that bfloat16 would lose add up: each is a 2,000th of a weight, and forward passes are in bfloat16."""
    build, seen = Pretrained(str(base)), set[torch.dtype]()
    assert (build.precision, build.saved_dtype) == ("bfloat16", torch.bfloat16)
    before = build()
    layer = before.plain.model.layers[0].mlp.up_proj
    hook = layer.register_forward_hook(lambda module, given, made: seen.add(made.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        before.hidden_states(torch.tensor([[[5, 6], [1, 2]]]))
    hook.remove()
    assert seen == {torch.bfloat16}
    model = trained(build, lr=1e-5, steps=10)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    moved = [(a - b).abs().max() for a, b in zip(model.parameters(), before.parameters(), strict=True)]
    assert all(0 < float(one) < 2e-4 for one in moved)
    export(model, tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert saved.dtype == torch.bfloat16
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(saved.parameters(), model.lm.parameters(), strict=True))
    assert size(tmp_path) == pytest.approx(size(base), rel=0.02)
    assert model.lm.dtype == torch.float32  # saved from a copy


def test_an_adapter_is_loaded_by_its_folder(base: Path, tmp_path: Path) -> None:
    model = trained(Pretrained(str(base), lora=4))
    export(model, tmp_path, "adapter", str(base))
    assert not (tmp_path / "model.safetensors").exists()
    auto = AutoPeftModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    lm, words = hub.causal(str(tmp_path), torch.bfloat16)
    assert not hasattr(lm, "peft_config")
    exact = logits(doubled(model))
    near = 2 * rms(logits(model.lm) - exact) + 2**-8 * rms(exact)
    assert rms(logits(auto) - exact) <= near
    assert rms(logits(lm) - exact) <= near
    assert words.get_vocab() == model.tokenizer.get_vocab()
    assert hub.stored_dtype(str(tmp_path)) == torch.bfloat16
    assert Pretrained(str(tmp_path), lora=2)().lm.get_base_model().dtype == torch.bfloat16
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "/gone/away"}))
    with pytest.raises(DataError, match="is an adapter of /gone/away, which is not there; give a merged model"):
        hub.causal(str(tmp_path))


def test_what_cannot_be_saved_is_refused() -> None:
    for save, lora, reason in (("whole", 4, "save is merged, adapter or both"), ("adapter", 0, "needs an adapter")):
        with pytest.raises(DataError, match=reason):
            check_save(save, lora)
    with pytest.raises(DataError, match="give --save adapter"):
        check_save("merged", 4, load_in_4bit=True)
    with pytest.raises(DataError, match="dtype is auto, bfloat16, float16, float32, not 'int8'"):
        Pretrained("smollm2", dtype="int8")


def test_a_file_tells_its_dtype_where_the_config_does_not(base: Path, tmp_path: Path) -> None:
    for path in base.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("dtype") == "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert hub.stored_dtype(str(tmp_path)) == torch.bfloat16
