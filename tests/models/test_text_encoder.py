"""The encoder as a model: what it computes, what it is read from, and that a saved one needs nothing but its folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel

from selfdistill.errors import DataError, RecipeError
from selfdistill.models import registry, store, text_encoder
from selfdistill.models.heads import WithVariance
from selfdistill.models.text_encoder import Encoder
from tests import tiny

LENGTH = 12


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny.bert(tmp_path_factory.mktemp("bert")))


def ids(rows: int = 7, length: int = LENGTH) -> torch.Tensor:
    """Token ids of texts of different lengths, from [CLS] to [SEP], then padding."""
    made = torch.zeros(rows, length, dtype=torch.int64)
    for i in range(rows):
        words = 1 + (5 * i) % (length - 4)
        made[i, : words + 2] = torch.tensor([2, *[5 + (3 * i + j) % len(tiny.WORDS) for j in range(words)], 3])
    return made


def built(place: str, outputs: int = 3, **options: Any) -> Encoder:
    torch.manual_seed(0)
    model = registry.parse(place, (LENGTH,), outputs).having(**options)()
    assert isinstance(model, Encoder)
    return model.eval()


def outputs(model: nn.Module) -> dict[str, torch.Tensor]:
    said = model(ids())
    return said if isinstance(said, dict) else {"logits": said}


def test_it_is_a_linear_layer_on_the_mean_of_what_transformers_says_of_real_tokens(place: str) -> None:
    model, body = built(place), AutoModel.from_pretrained(place)
    said = model(ids())
    for row, tokens in enumerate(ids()):
        alone = tokens[tokens != 0][None]
        mean = body(alone).last_hidden_state[0].mean(0)
        expected = model.classifier.weight @ mean + model.classifier.bias
        assert torch.allclose(said[row], expected, atol=1e-5)


def test_padding_costs_and_changes_nothing(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = built(place), ids()
    wider = torch.cat([rows, torch.zeros(len(rows), 9, dtype=torch.int64)], 1)
    widths, read = list[int](), model.body.forward

    def forward(**given: torch.Tensor) -> Any:
        widths.append(given["input_ids"].shape[1])
        return read(**given)

    monkeypatch.setattr(model.body, "forward", forward)
    assert torch.equal(model(wider), model(rows))
    assert widths == [LENGTH - 2] * 2, "the longest row has two tokens less"
    assert torch.isfinite(model(torch.zeros(2, LENGTH, dtype=torch.int64))).all()


@pytest.mark.parametrize("exits", [False, True])
def test_many_rows_are_read_by_length_and_given_back_in_order(place: str, exits: bool) -> None:
    model, rows = built(place, exits=exits), ids(2 * text_encoder.CHUNK + 5)
    with torch.no_grad():
        whole, alone = model(rows), model(rows[3:9])
    for head in ("logits", "exits", "feature", "features") if exits else ("",):
        a, b = (whole[head], alone[head]) if head else (whole, alone)
        assert len(a) == len(rows)
        assert torch.allclose(a[3:9], b, atol=1e-5)


def test_exits_sit_on_shallow_layers(place: str) -> None:
    model, rows = built(place, exits=True), ids()[1:2]
    real = rows[rows != 0][None]
    said = model(rows)
    states = AutoModel.from_pretrained(place)(real, output_hidden_states=True).hidden_states
    assert model.depths == [1]
    feature = model.bottlenecks[0](states[1].mean(1))
    assert torch.allclose(said["features"][:, 0], feature, atol=1e-5)
    assert torch.allclose(said["exits"][:, 0], model.classifiers[0](feature), atol=1e-5)
    assert torch.allclose(said["feature"], states[-1].mean(1), atol=1e-5)
    assert torch.equal(said["logits"], model.classifier(said["feature"]))


@pytest.mark.parametrize("exits", [False, True])
def test_every_weight_is_used(place: str, exits: bool) -> None:
    """One that never gets a gradient would stop distributed training, and be decayed for nothing."""
    model = built(place, exits=exits).train()
    said = model(ids())
    sum(v.square().sum() for v in (said.values() if exits else [said])).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_each_model_starts_from_the_same_body_and_heads_of_its_own(place: str) -> None:
    build = registry.parse(place, (LENGTH,), 3)
    torch.manual_seed(0)
    one, other = build().state_dict(), build().state_dict()
    differ = {name.split(".")[0] for name in one if not torch.equal(one[name], other[name])}
    assert differ == {"classifier"}


def test_dropout_draws_in_training_alone(place: str) -> None:
    model = built(place)
    assert torch.equal(model(ids()), model(ids()))
    model.train()
    assert not torch.equal(model(ids()), model(ids()))


# ---- as a spec -------------------------------------------------------------------------------------


def test_a_spec_is_a_name_with_options(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = registry.parse(f"{place}(dropout=0.3, length=9, exits=True)", (9,), 2)
    model = build()
    assert isinstance(model, Encoder)
    assert (model.dropout.p, len(model.depths)) == (0.3, 1)
    assert build.accepts("exits")
    assert "config" not in str(build.having(config={"model_type": "bert"}))
    monkeypatch.chdir(Path(place).parent)
    assert text_encoder.named(Path(place).name) == {"name": Path(place).name}


@pytest.mark.parametrize("spec", ["cnn", "mlp(width=3)", "odd.py:good", "nomodule:f", "minlm", "a/b/c", "()", ""])
def test_other_models_are_none(spec: str) -> None:
    assert text_encoder.named(spec) is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("(dropout=1.5)", "dropout in"),
        ("(length=2)", "from 3 on as length, not 2"),
        ("(length=0.5)", "from 3 on as length"),
        ("(lenght=9)", "nearest: length"),
        ("(name='other')", "'name'"),
    ],
)
def test_an_option_that_none_has_is_refused(place: str, options: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        registry.parse(place + options, (LENGTH,), 2)


def test_rows_that_are_no_tokens_are_refused(place: str) -> None:
    with pytest.raises(RecipeError, match="reads texts, not rows of shape"):
        registry.parse(place, (1, 8, 8), 10)()


# ---- saved -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"exits": True, "dropout": 0.2}])
def test_a_saved_encoder_is_loaded_from_its_folder_alone(tmp_path: Path, options: dict[str, Any]) -> None:
    origin = tiny.bert(tmp_path / "origin", dropout=0.2)
    build = registry.parse(str(origin), (LENGTH,), 3).having(**options)
    model = build().eval()
    store.save(model, tmp_path / "saved", build)
    shutil.rmtree(origin)
    state = torch.random.get_rng_state()
    again = store.load(tmp_path / "saved")
    assert torch.equal(state, torch.random.get_rng_state())
    assert {path.suffix for path in (tmp_path / "saved").iterdir()} == {".json", ".safetensors"}
    assert outputs(again).keys() == outputs(model).keys()
    assert all(value.equal(outputs(model)[head]) for head, value in outputs(again).items())
    body: Any = again.body
    assert body.config.hidden_dropout_prob == 0.2, "the encoder's own dropout is part of its config"
    store.save(again, tmp_path / "again", registry.parse("gt-minilm", (LENGTH,), 3).having(**options))
    assert outputs(store.load(tmp_path / "again"))["logits"].equal(outputs(model)["logits"])


def test_what_is_put_around_an_encoder_is_saved_with_it(tmp_path: Path) -> None:
    origin = tiny.bert(tmp_path / "origin")
    build = registry.parse(str(origin), (LENGTH,), 1).wrapped("gaussian", 2)
    model = build().eval()
    assert isinstance(model, WithVariance)
    store.save(model, tmp_path / "saved", build)
    shutil.rmtree(origin)
    assert torch.equal(store.load(tmp_path / "saved")(ids())["gaussian"], model(ids())["gaussian"])


def test_a_language_model_is_an_encoder_too_if_rows_can_be_filled_up(tmp_path: Path) -> None:
    place = str(tiny.llama(tmp_path / "llama"))
    assert built(place)(ids()).shape == (7, 3)
    bare = tiny.tokenizer()
    bare.pad_token = None
    bare.save_pretrained(place)
    with pytest.raises(DataError, match="no padding token"):
        built(place)
