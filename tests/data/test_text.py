"""Text: columns become token ids, views hide words, every recipe learns, and a run is predicted and resumed."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

import selfdistill
from selfdistill.core.step import Batch, TrainingClock
from selfdistill.data import augment, text
from selfdistill.data.dataset import Data, load, sealed
from selfdistill.errors import DataError, RecipeError, SelfdistillError
from selfdistill.experiments.network_run import prepare
from selfdistill.experiments.run import Run
from selfdistill.io.run_record import Request
from selfdistill.methods import recipes
from selfdistill.models import registry, store
from selfdistill.training.fit import Stopped, fit
from selfdistill.training.settings import Settings
from tests import tiny
from tests.harness import of_values
from tests.terminal import passed, refused

GOOD, BAD = ("good", "great", "fine", "lovely", "liked"), ("bad", "awful", "poor", "dull", "hated")


def frame(rows: int = 90, seed: int = 0) -> pd.DataFrame:
    """Reviews of three to nine words, one of which says what they mean; and how much."""
    draw, texts, moods, scores = random.Random(seed), [], [], []
    for i in range(rows):
        mood = i % 2
        words = [draw.choice(tiny.WORDS[:8]) for _ in range(draw.randint(2, 8))]
        words.insert(draw.randint(0, len(words)), draw.choice(GOOD if mood else BAD))
        texts.append(" ".join(words))
        moods.append("happy" if mood else "sad")
        scores.append((1 if mood else -1) + draw.gauss(0, 0.3))
    return pd.DataFrame({"review": texts, "mood": moods, "score": scores, "stars": range(rows)})


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    tiny.bert(folder / "tiny")
    frame().to_csv(folder / "r.csv", index=False)
    frame(40, seed=1)[["review"]].to_csv(folder / "more.csv", index=False)
    return folder


@pytest.fixture
def here(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(shelf, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def reviews(target: str = "mood", model: str = "tiny", **options: Any) -> Data:
    return load("r.csv", target=target, reader=text.reader(model, "review"), **options)


# ---- reading ---------------------------------------------------------------------------------------


def test_a_row_is_the_ids_of_its_tokens(here: Path) -> None:
    data = reviews()
    assert (data.kind, data.shape, data.classes, data.augment) == ("text", (32,), ("happy", "sad"), "none")
    for row, said in enumerate(frame()["review"]):
        ids = [2, *[5 + tiny.WORDS.index(word) for word in said.split()], 3]
        assert data.tensor[row].tolist() == ids + [0] * (32 - len(ids))
    rows = data.rows(torch.tensor([3, 1]))
    assert rows.dtype == torch.int64
    assert rows.equal(data.tensor[[3, 1]].long())
    assert data.note == data.test_note
    assert reviews("score").task == "regress"


def test_long_rows_are_cut_behind_a_last_separator_and_told(here: Path) -> None:
    data = reviews(model="tiny(length=7)")
    lengths = frame()["review"].str.split().str.len() + 2
    assert data.cut == int((lengths > 7).sum()) > 0
    assert (
        data.note.removeprefix(data.test_note + "\n")
        == f"r.csv: {data.cut} of 90 texts are longer than 7 tokens and were cut there"
    )
    longest = int(lengths.idxmax())
    assert data.tensor[longest].tolist() == [*reviews().tensor[longest][:6].tolist(), 3]
    assert text.reader("tiny(length=500)", "review").length == 32, "no more than the model reads"


def test_every_format_gives_the_same_rows(here: Path) -> None:
    frame().to_parquet("r.parquet")
    frame().to_csv("r.tsv.gz", index=False, sep="\t")
    for name in ("r.parquet", "r.tsv.gz"):
        same = load(name, target="mood", reader=text.reader("tiny", "review"))
        assert same.tensor.equal(reviews().tensor)
        assert same.y.equal(reviews().y)


def test_words_for_nothing_are_words(here: Path) -> None:
    changed = frame()
    changed.loc[4, "review"] = "NA"
    changed.to_csv("r.csv", index=False)
    assert reviews().tensor[4].tolist()[:4] == [2, 1, 3, 0], "one unknown word"


def test_unlabelled_texts_come_from_a_file_or_from_empty_targets(here: Path) -> None:
    data = load("r.csv", target="mood", unlabelled="more.csv", reader=text.reader("tiny", "review"))
    assert data.unlabelled.tolist() == list(range(90, 130))
    changed = frame()
    changed.loc[60:, "mood"] = None
    changed.to_csv("r.csv", index=False)
    assert reviews().unlabelled.tolist() == list(range(60, 90))


def test_the_test_split_stays_out_of_reach(here: Path) -> None:
    data = reviews()
    guarded = sealed(data)
    assert guarded.tokens == data.tokens
    with pytest.raises(DataError, match="test split"):
        guarded.rows(data.test[:1])


# ---- views -----------------------------------------------------------------------------------------

TOKENS = augment.Tokens(mask=4, kept=(0, 2, 3))


def rows(n: int = 400, length: int = 20) -> torch.Tensor:
    x = torch.randint(5, 40, (n, length), generator=torch.Generator().manual_seed(0))
    x[:, 0], x[:, 15], x[:, 16:] = 2, 3, 0
    return x


@pytest.mark.parametrize(("name", "share"), [("weak", 0.15), ("strong", 0.3)])
def test_a_view_hides_a_share_of_the_words_and_nothing_else(name: str, share: float) -> None:
    x, ids = rows(), torch.arange(400)
    seen = augment.apply(name, x, ids, (0, "a"), kind="text", flips=False, tokens=TOKENS)
    changed = seen != x
    assert bool((seen[changed] == 4).all())
    assert not changed[:, 0].any()
    assert not changed[:, 15:].any()
    words = 400 * 14
    assert abs(float(changed.sum()) / words - share) < 4 * (share * (1 - share) / words) ** 0.5
    order = torch.arange(399, -1, -1)
    for part in order.split(37):
        again = augment.apply(name, x[part], ids[part], (0, "a"), kind="text", flips=False, tokens=TOKENS)
        assert again.equal(seen[part]), "a function of address and id, whatever the batch"
    assert not seen.equal(augment.apply(name, x, ids, (0, "b"), kind="text", flips=False, tokens=TOKENS))


def test_weak_and_strong_hide_words_of_their_own() -> None:
    """One address serves both: were the draws the same, every word hidden weakly would be hidden strongly."""
    x, ids = rows(), torch.arange(400)
    weak, strong = (augment.VIEWS[n](x, ids, (0, "a"), kind="text", tokens=TOKENS) != x for n in ("weak", "strong"))
    both = float((weak & strong).sum() / weak.sum())
    assert 0.2 < both < 0.4


def test_a_tokenizer_without_a_mask_gives_no_views(here: Path) -> None:
    with pytest.raises(RecipeError, match="no mask token"):
        augment.weak(rows(), torch.arange(400), (0,), kind="text", tokens=augment.Tokens(None, (0,)))
    bare = tiny.tokenizer()
    bare.mask_token = None
    bare.save_pretrained("tiny")
    assert reviews().tokens == augment.Tokens(None, (0, 2, 3))


def test_fixmatch_sees_words_hidden_in_two_ways(here: Path) -> None:
    data, seen = reviews(labels=20), list[Batch]()

    def watch(clock: TrainingClock, batches: list[Batch], loss: float) -> None:
        seen.extend(batches)

    method = recipes()["fixmatch"](ratio=2.0, confidence=0.4, weak="weak")
    fit(registry.parse("tiny", data.shape, 2), data, method, steps=2, batch_size=8, watch=watch, vitals=False)
    for batch in seen:
        assert batch["weak"].id is not None
        assert batch["strong"].id is not None
        plain = data.rows(batch["weak"].id)
        hidden = [(batch[view].x != plain).float().sum() / (plain > 4).sum() for view in ("weak", "strong")]
        assert 0.05 < hidden[0] < 0.25 < hidden[1] < 0.45
        assert batch["weak"].id.equal(batch["strong"].id)


# ---- learning --------------------------------------------------------------------------------------


#: What reads maps of an image, turns it, or moves or mixes numbers.
OF_IMAGES = ("frskd", "function_matching", "ibot", "mixskd", "sad", "sla_sd", "uskd", "vat", "zipf_smoothing")
OF_STAGES = ("okddip", "one")  # branches share the first stages of a model, and an encoder has none


@pytest.mark.parametrize("name", OF_IMAGES + OF_STAGES)
def test_recipes_of_images_refuse_texts_in_one_line(here: Path, name: str) -> None:
    data = reviews("mood", labels=30)
    with pytest.raises(SelfdistillError) as found:
        fit(
            registry.parse("tiny", data.shape, 2),
            data,
            recipes()[name](),
            steps=3,
            batch_size=12,
            warn=lambda line: None,
        )
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", sorted(set(recipes()) - {*OF_IMAGES, *OF_STAGES}))
def test_every_recipe_learns_from_texts(here: Path, name: str) -> None:
    values = of_values(recipes()[name]("nowhere") if name == "distil" else recipes()[name]())
    data = reviews("score" if values else "mood", labels=30)
    build = registry.parse("tiny", data.shape, data.outputs)
    external = build() if name == "distil" else None
    method = recipes()[name](**({"generations": 2} if name == "self_training" else {}))
    found = fit(build, data, method, steps=3, batch_size=12, external=external, warn=lambda line: None)
    assert found.steps >= 3
    assert all(torch.isfinite(p).all() for p in found.model.parameters())


def test_it_learns_what_the_words_say(here: Path) -> None:
    data = reviews()
    found = fit(registry.parse("tiny", data.shape, 2), data, recipes()["plain"](), steps=40, batch_size=32, lr=1e-2)
    assert found.history[-1]["audit"]["accuracy"] == 1.0


def test_what_a_request_leaves_open_suits_texts(here: Path) -> None:
    ready = prepare(Request(data="r.csv", target="mood", text="review", model="tiny"))
    expected = {"lr": 5e-5, "weight_decay": 0.01, "clip": 1.0, "batch_size": 32, "epochs": 20}
    assert ready.settings == {**expected, "seed": 0, "steps": None}
    Settings(**ready.settings)
    asked = Request(data="r.csv", target="mood", text="review", model="tiny", training=(("lr", 0.1),), batch_size=5)
    assert (prepare(asked).settings["lr"], prepare(asked).settings["batch_size"]) == (0.1, 5)


def test_a_request_from_before_texts_is_the_same(tmp_path: Path) -> None:
    before = Request(data="t.csv", target="y")
    assert "text" not in before.to_json()
    assert Request.from_json(before.to_json()) == before
    now = Request(data="t.csv", target="y", text="review")
    assert Request.from_json(json.loads(json.dumps(now.to_json()))) == now
    assert now.name() != before.name()


# ---- runs ------------------------------------------------------------------------------------------


def ran(*more: object, target: str = "mood", out: str = "out") -> Run:
    line = ("run", "r.csv", "--text", "review", "--target", target, "--model", "tiny", "--steps", 4, "--quiet")
    passed(*line, "--out", out, *more)
    return Run.open(out)


def test_a_run_is_read_back_without_the_encoder_it_began_from(here: Path) -> None:
    run = ran("--method", "ps_kd()")
    expected = store.load("out/model")(reviews().tensor.long()).softmax(-1)
    shutil.rmtree("tiny")
    said = run.predict("r.csv")
    assert torch.allclose(said.numbers, expected, atol=1e-6)
    assert said.names[:2] == ["1", "2"]
    assert run.predict("more.csv").numbers.shape == (40, 2), "new rows need no target"
    frame = pd.read_csv("r.csv")
    for rows in (frame, frame["review"].tolist()):
        assert selfdistill.load("out").predict(rows).records() == said.records()
    assert not [path for path in here.rglob("*") if path.suffix in (".pt", ".bin", ".pkl")]
    described = json.loads(Path("out/run.json").read_text())["data"]
    assert (described["kind"], described["text"], described["cut"]) == ("text", "review", 0)


def test_values_are_said_in_their_unit(here: Path) -> None:
    said = ran("--method", "born_again(xi=0.5)", target="score").predict("r.csv")
    assert said.columns[0] == "prediction"
    assert abs(float(said.numbers[:, 0].mean())) < 2


def test_a_cut_run_goes_on_to_the_same_bits(here: Path) -> None:
    """Dropout, hidden words and the averaged teacher are all where they would have been."""
    data = reviews(labels=30)
    build = registry.parse("tiny", data.shape, 2)

    def trained(out: str, **options: Any) -> Any:
        method = recipes()["mean_teacher"](weight=1.0)
        return fit(build, data, method, steps=6, batch_size=12, out=out, save_steps=1, resume=True, **options)

    whole = trained("whole").model.state_dict()

    def stop(clock: TrainingClock, batches: list[Batch], loss: float) -> None:
        if clock.step == 3:
            raise Stopped

    with pytest.raises(Stopped):
        trained("cut", watch=stop)
    again = trained("cut").model.state_dict()
    assert all(again[name].equal(value) for name, value in whole.items())


def test_a_teacher_with_another_tokenizer_is_refused(here: Path) -> None:
    ran("--method", "plain()", out="teacher")
    frame(300).to_csv("many.csv", index=False)  # its test split is large enough for no notice
    line = ("run", "many.csv", "--text", "review", "--target", "mood", "--steps", 2, "--method", "distil('teacher')")
    passed(*line, "--model", "tiny", "--quiet", "--out", "same")
    tiny.bert(Path("other"))
    turned = json.loads(Path("other/tokenizer.json").read_text())
    vocabulary = turned["model"]["vocab"]
    vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]
    Path("other/tokenizer.json").write_text(json.dumps(turned))
    said = refused(*line, "--model", "other", "--out", "runs/left")
    assert "the tokenizer" in said
    assert "teacher" in said


def test_the_cut_rows_are_told(here: Path) -> None:
    line = "run r.csv --text review --target mood --model tiny(length=5) --steps 2 --method plain() --out out"
    assert "texts are longer than 5 tokens and were cut there" in passed(*line.split()).stderr


REFUSED = {
    "no such column": ("r.csv --text reviews --target mood --model tiny", ["'reviews'", "nearest: review"]),
    "no such column, nothing near": ("r.csv --text zzz --target mood --model tiny", ["'zzz'", "review, mood, score"]),
    "no such target": ("r.csv --text review --target mode --model tiny", ["'mode'", "review, mood, score, stars"]),
    "no target": ("r.csv --text review --model tiny", ["--target", "review, mood"]),
    "numbers": ("r.csv --text stars --target mood --model tiny", ["'stars'", "numbers", "words"]),
    "one column for both": ("r.csv --text review --target review --model tiny", ["'review'", "--text", "--target"]),
    "empty cells": ("gaps.csv --text review --target mood --model tiny", ["gaps.csv", "row 3", "and 1 more", "fill"]),
    "another kind of model": ("r.csv --text review --target mood --model mlp", ["mlp", "reads no text", "gt-minilm"]),
    "a learner": ("r.csv --text review --target mood --model boosting", ["boosting", "reads no text", "gt-minilm"]),
    "no such model": ("r.csv --text review --target mood --model nowhere/at/all", ["nowhere/at/all", "reads no text"]),
    "no column said": ("r.csv --target mood --model tiny", ["tiny", "--text COL"]),
    "images": ("digits --text review --model tiny", ["digits", "--text", "no table"]),
    "a known table": ("iris --text review --model tiny", ["iris", "--text"]),
    "no such file": ("s.csv --text review --target mood --model tiny", ["s.csv"]),
    "other unlabelled": ("r.csv --text review --target mood --model tiny --unlabelled nosuch.csv", ["nosuch.csv"]),
    "too few tokens": ("r.csv --text review --target mood --model tiny(length=1)", ["length", "from 3 on"]),
    "pickled weights": ("r.csv --text review --target mood --model pickled", ["pickled", "save_pretrained"]),
    "a recipe of classes": (
        "many.csv --text review --target score --model tiny --method elr()",
        ["no form for values"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_is_said_in_one_line(case: str, here: Path) -> None:
    words, said = REFUSED[case]
    gaps = frame()
    gaps.loc[[2, 7], "review"] = ""
    gaps.to_csv("gaps.csv", index=False)
    frame(300).to_csv("many.csv", index=False)
    shutil.copytree("tiny", "pickled")
    Path("pickled/model.safetensors").rename("pickled/pytorch_model.bin")
    method = [] if "--method" in words else ["--method", "plain()"]
    line = refused("run", *words.split(), *method, "--steps", 2, "--out", "left")
    assert [part for part in said if part not in line] == [], line
    assert not Path("left").exists()


def test_new_rows_need_the_column(here: Path) -> None:
    ran("--method", "plain()")
    frame().rename(columns={"review": "words"}).to_csv("other.csv", index=False)
    assert "'review'" in refused("predict", "out", "other.csv")
    assert "trained on text" in refused("predict", "out", "digits")


@pytest.mark.slow
def test_a_comparison_on_texts(here: Path) -> None:
    line = (
        "compare r.csv --text review --target mood --model tiny --steps 2 --seeds 3 --methods ps_kd() --out c --json -"
    )
    said = json.loads(passed(*line.split(), "--quiet").stdout)
    names = {row["name"] for row in said["rows"]}
    assert "ps_kd()" in names
