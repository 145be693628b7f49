"""Further pre-training: the loss against straight lines on transformers alone, what teaches whom, and what is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertModel

from selfdistill.core.step import Batch, TrainingClock
from selfdistill.data.dataset import Data
from selfdistill.data.text import reader
from selfdistill.errors import DataError
from selfdistill.models import hub
from selfdistill.models.text_encoder import bare
from selfdistill.training import further_pretraining
from selfdistill.training.fit import Stopped, fit
from selfdistill.training.further_pretraining import Filler, fill, fill_like, pretrain, texts
from tests import tiny
from tests.data.test_text import frame
from tests.terminal import passed, refused

LR = 0.01


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny.bert(Path("tiny"), dropout=0.0)
    frame(60)[["review"]].to_csv("r.csv", index=False)
    return tmp_path


def data() -> Data:
    return texts("r.csv", reader("tiny", "review"))[0]


def build() -> Filler:
    return Filler(bare(hub.encoder("tiny")[0]), 0)


class Straight(nn.Module):
    """The same weights, read by transformers and torch alone."""

    def __init__(self, model: Filler) -> None:
        super().__init__()
        self.body: Any = BertModel(BertModel.from_pretrained("tiny").config, add_pooling_layer=False)
        self.linear, self.norm = nn.Linear(16, 16), nn.LayerNorm(16)
        self.bias = nn.Parameter(model.bias.detach().clone())
        self.body.load_state_dict(model.body.state_dict())
        self.linear.load_state_dict(model.turn[0].state_dict())
        self.norm.load_state_dict(model.turn[2].state_dict())

    def hidden(self, ids: Tensor) -> Tensor:
        return self.body(ids, attention_mask=(ids > 0).long()).last_hidden_state  # type: ignore[no-any-return]

    def words(self, masked: Tensor, whole: Tensor) -> Tensor:
        """Row by row, word by word."""
        hidden, losses = self.hidden(masked), []
        for row in range(len(whole)):
            for place in range(whole.shape[1]):
                if masked[row, place] == 4:
                    h = self.norm(F.gelu(self.linear(hidden[row, place])))
                    logits = self.body.embeddings.word_embeddings.weight @ h + self.bias
                    losses.append(logits.logsumexp(0) - logits[whole[row, place]])
        return torch.stack(losses).mean()


def followed(method: Any, teacher: nn.Module | None, weight: float) -> tuple[list[float], list[float]]:
    """The losses that `fit` reports, and those of straight lines from the same start on the same batches."""
    seen: list[tuple[Batch, float]] = []

    def watch(clock: TrainingClock, batches: list[Batch], loss: float) -> None:
        seen.append((batches[0], loss))

    fit(build, data(), method, steps=3, batch_size=16, external=teacher, optimizer="sgd", lr=LR, weight_decay=0.0,
        schedule="constant", watch=watch, seed=5)  # fmt: skip
    again = build()
    again.load_state_dict(first_weights(5))
    model = Straight(again)
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9, nesterov=True)
    losses = []
    for batch, _ in seen:
        masked, whole = batch["masked"].x, batch["whole"].x
        loss = model.words(masked, whole)
        if teacher is not None:
            with torch.no_grad():
                wanted = teacher(whole)["feature"]
            loss = loss + weight * (model.hidden(whole)[:, 0] - wanted).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return [loss for _, loss in seen], losses


def first_weights(seed: int) -> dict[str, Tensor]:
    """What a generation starts from, by the address that its initialisation has."""
    from selfdistill import rng

    torch.manual_seed(rng.seed(seed, "init", 0))
    return build().state_dict()


def moved() -> Filler:
    """A teacher that says something else than the original."""
    torch.manual_seed(3)
    teacher = build()
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return teacher.eval()


def test_filling_in_is_the_mean_surprise_at_hidden_words(here: Path) -> None:
    ours, straight = followed(fill(), None, 0.0)
    assert ours == pytest.approx(straight, rel=1e-5)
    assert len(set(ours)) == 3


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_student_is_also_held_to_what_the_teacher_says(here: Path, weight: float) -> None:
    ours, straight = followed(fill_like(weight), moved(), weight)
    assert ours == pytest.approx(straight, rel=1e-5)


def test_the_tied_matrix_is_the_encoder_s_own(here: Path) -> None:
    model = build()
    assert "turn.0.weight" in model.state_dict()
    assert sum("word_embeddings" in name for name in model.state_dict()) == 1
    hidden = torch.randn(2, 16)
    model.logits(hidden).sum().backward()
    assert model.body.get_parameter("embeddings.word_embeddings.weight").grad is not None


def test_the_student_starts_from_the_original_and_the_teacher_is_the_first_training(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, Any]] = []

    def spy(make: Any, rows: Data, method: Any, **options: Any) -> Any:
        began = make().body.state_dict()
        result = fit(make, rows, method, **options)
        given.append({"began": began, "result": result, **options})
        return result

    monkeypatch.setattr(further_pretraining, "fit", spy)
    pretrain("r.csv", "review", Path("out"), model="tiny", steps=3, lr=LR)
    teacher, student = given
    original = BertModel.from_pretrained("tiny", add_pooling_layer=False).state_dict()
    for one in given:
        assert all(one["began"][name].equal(value) for name, value in original.items())
    assert student["external"] is teacher["result"].model
    assert teacher["external"] is None
    assert teacher["seed"] != student["seed"]


def test_what_is_left_is_a_model_that_run_takes(here: Path) -> None:
    passed("pretrain", "r.csv", "--text", "review", "--model", "tiny", "--steps", 3, "--out", "out", "--quiet")
    assert sorted(path.suffix for path in Path("out").iterdir() if path.suffix != ".json") == [".safetensors"]
    before, after = (safetensors.torch.load_file(Path(name) / "model.safetensors") for name in ("tiny", "out"))
    assert set(before) - set(after) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert not before["encoder.layer.0.output.dense.weight"].equal(after["encoder.layer.0.output.dense.weight"])
    frame(60).to_csv("l.csv", index=False)
    line = "run l.csv --text review --target mood --model out --method plain() --steps 2 --out run --quiet"
    passed(*line.split())
    said = refused("pretrain", "r.csv", "--text", "review", "--model", "tiny", "--steps", 3, "--out", "out")
    assert "finished" in said
    assert "--model out" in said


def test_a_cut_run_goes_on_to_the_same_encoder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trained(out: str) -> dict[str, Tensor]:
        pretrain("r.csv", "review", Path(out), model="tiny", steps=4, batch_size=16, lr=LR, save_steps=1)
        return safetensors.torch.load_file(Path(out) / "model.safetensors")

    whole = trained("whole")
    for role, step in (("teacher", 2), ("student", 1)):
        with monkeypatch.context() as patch:

            def cut(make: Any, rows: Data, method: Any, role: str = role, step: int = step, **options: Any) -> Any:
                def stop(clock: TrainingClock, batches: list[Batch], loss: float) -> None:
                    if clock.step == step and options["out"].name == role:
                        raise Stopped

                return fit(make, rows, method, watch=stop, **options)

            patch.setattr(further_pretraining, "fit", cut)
            with pytest.raises(Stopped):
                trained("cut")
    assert all(value.equal(whole[name]) for name, value in trained("cut").items())
    assert not Path("cut/work").exists()


def test_it_reports_and_learns(here: Path) -> None:
    line = "pretrain r.csv --text review --model tiny --epochs 8 --lr 0.01 --out out --quiet --json"
    said = json.loads(passed(*line.split()).stdout)
    assert (said["rows"], said["steps"]) == (60, 32)
    assert 0 < said["losses"]["student"]["words"]["loss"] < torch.tensor(float(len(tiny.WORDS))).log()
    assert said["losses"]["student"]["like"]["loss"] < 16
    assert said == {"out": "out", **json.loads(Path("out/pretraining.json").read_text())}


REFUSED = {
    "no such column": ("r.csv --text reviews --model tiny", ["'reviews'", "nearest: review"]),
    "no table": ("digits --text review --model tiny", ["digits", "no table"]),
    "another kind of model": ("r.csv --text review --model cnn", ["cnn", "reads no text"]),
    "a folder of something else": ("r.csv --text review --model tiny --out tiny", ["tiny", "another --out"]),
    "two lengths": ("r.csv --text review --model tiny --epochs 3", ["--steps 2", "--epochs 3"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_said_in_one_line(case: str, here: Path) -> None:
    words, said = REFUSED[case]
    out = [] if "--out" in words else ["--out", "left"]
    line = refused("pretrain", *words.split(), *out, "--steps", 2)
    assert [part for part in said if part not in line] == [], line
    assert not Path("left").exists()


def test_other_settings_are_not_mixed_into_a_run_that_was_begun(here: Path) -> None:
    further_pretraining._claim(Path("out"), {"model": "tiny", "lr": 1.0})
    further_pretraining._claim(Path("out"), {"model": "tiny", "lr": 1.0})
    with pytest.raises(DataError, match="another lr"):
        further_pretraining._claim(Path("out"), {"model": "tiny", "lr": 2.0})


def test_a_tokenizer_without_a_mask_cannot_hide_words(here: Path) -> None:
    made = tiny.tokenizer()
    made.mask_token = None
    made.save_pretrained("tiny")
    with pytest.raises(DataError, match="no mask token"):
        data()
