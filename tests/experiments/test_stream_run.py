"""Runs of streams and updates by their requests: their controls, their scores, their refusals."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from selfdistill.cli import main
from selfdistill.errors import DataError, SelfdistillError
from selfdistill.experiments.run import Run
from selfdistill.io.run_record import Request
from selfdistill.training.reservoir import FILE, read_sample
from selfdistill.training.trainer import Trainer

SMALL: dict[str, Any] = {"data": "digits", "tasks": 5, "epochs": 1, "batch_size": 16, "device": "cpu"}


def test_a_stream_has_naive_and_joint_training_beside_it(tmp_path: Path) -> None:
    result = Run.create(Request(**SMALL), tmp_path / "run").execute()
    stream = result["stream"]
    assert result["method"] == "der_pp()"
    assert [len(task) for task in stream["classes"]] == [2] * 5
    assert stream["naive"]["accuracy"] < stream["method"]["accuracy"]
    assert "forgetting" not in stream["joint"]
    again = Run.open(tmp_path / "run").result()
    assert again is not None
    assert again["stream"]["method"] == stream["method"]
    assert "plain(), task after task" in (tmp_path / "run" / "README.md").read_text()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"tasks": 11}, "2 to 10 tasks"),
        ({"method": "mutual()"}, "no method for streams"),
        ({"audit_folds": 3}, "--audit-folds"),
    ],
)
def test_what_a_stream_cannot_be_is_refused_before_training(more: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SelfdistillError, match=words):
        Run.create(Request(**{**SMALL, **more}), tmp_path / "run").execute()
    assert not (tmp_path / "run").exists()


# updates ----------------------------------------------------------------------------------------------------------

QUICK: dict[str, Any] = {"device": "cpu", "training": (("lr", 0.01),)}
CORNERS = {"a": (-2, -2), "b": (2, 2), "c": (-2, 2), "d": (2, -2)}


def table(path: Path, classes: str, seed: int) -> str:
    """A table of 40 rows of each class around a corner of a square."""
    draw = random.Random(seed)
    lines = [f"{x + draw.gauss(0, 0.3)},{y + draw.gauss(0, 0.3)},{c}" for c in classes for x, y in [CORNERS[c]] * 40]
    draw.shuffle(lines)
    path.write_text("\n".join(["x,y,kind", *lines]) + "\n")
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the classes a and b, whose data are gone."""
    folder = tmp_path_factory.mktemp("base")
    old = table(folder / "old.csv", "ab", 0)
    request = Request(data=old, target="kind", model="mlp(width=16)", method="plain()", steps=60, **QUICK)
    Run.create(request, folder / "run").execute()
    Path(old).unlink()
    return folder / "run"


def update(base: Path, folder: Path, classes: str = "cd", test: str = "abcd", **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"steps": 100, **QUICK, **more}
    if test:
        options["test"] = table(folder / "test.csv", test, 2)
    request = Request(data=table(folder / "new.csv", classes, 1), update=str(base), **options)
    return Run.create(request, folder / "update").execute()


def test_an_update_teaches_new_classes_and_keeps_the_old_ones(base: Path, tmp_path: Path) -> None:
    result = update(base, tmp_path)
    scores = result["update"]
    assert result["method"] == "der_pp(memory=54, alpha=0.2)"  # all rows that taught, without validation and test rows
    assert scores["classes"] == {"old": ["a", "b"], "new": ["c", "d"]}
    assert (scores["old_rows"], scores["old_from"]) == (80, "the test split")
    assert scores["method"]["old"] > 0.95
    assert scores["method"]["new"] > 0.95
    assert scores["naive"]["old"] < 0.6
    assert scores["naive"]["forgetting"] == scores["before"]["old"] - scores["naive"]["old"]
    sample = read_sample(tmp_path / "update", (2,), 4)
    assert sample is not None
    assert set(sample["y"].tolist()) == {0, 1, 2, 3}
    answers = Run.open(tmp_path / "update").predict(str(tmp_path / "test.csv"))
    assert answers.columns == ["a", "b", "c", "d"]


def test_an_update_can_be_updated_and_one_class_is_enough(base: Path, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    update(base, tmp_path, "c", "abc", control=False)
    result = update(tmp_path / "update", tmp_path / "second", "d", "abcd", control=False)
    assert result["update"]["classes"]["old"] == ["a", "b", "c"]
    assert result["update"]["method"]["accuracy"] > 0.9


def test_new_rows_of_old_classes_are_measured_on_the_reservoir(base: Path, tmp_path: Path) -> None:
    scores = update(base, tmp_path, "ab", "", control=False)["update"]
    assert (scores["old_from"], scores["classes"]["new"]) == ("the reservoir", [])
    assert abs(scores["method"]["forgetting"]) < 0.1


def test_without_stored_rows_the_earlier_model_teaches(base: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    request = Request(
        data=table(tmp_path / "new.csv", "cd", 1), update=str(base), memory=0, steps=20, device="cpu", control=False
    )
    result = Run.create(request, tmp_path / "update").execute(tell=lines.append)
    assert result["method"] == "lwf()"
    assert any("--memory 0" in line for line in lines)
    assert not (tmp_path / "update" / FILE).exists()
    (tmp_path / "second").mkdir()
    with pytest.raises(DataError, match="kept no rows"):
        update(tmp_path / "update", tmp_path / "second", memory=50)


def test_an_update_that_is_cut_ends_with_the_same_bits(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PowerError(Exception):
        pass

    step, steps = Trainer.step, list[int]()

    def cut(self: Any) -> float:
        if len(steps) == 30:
            raise PowerError
        steps.append(1)
        return step(self)

    more: dict[str, Any] = {"steps": 40, "control": False, "training": (("save_steps", 7),)}
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    update(base, tmp_path / "whole", **more)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", cut)
        with pytest.raises(PowerError):
            update(base, tmp_path / "cut", **more)
    Run.open(tmp_path / "cut" / "update").execute()
    for file in ("model/model.safetensors", FILE):
        assert (tmp_path / "whole" / "update" / file).read_bytes() == (tmp_path / "cut" / "update" / file).read_bytes()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"update": "nowhere"}, "no run folder"),
        ({"model": "cnn"}, "leave --model out"),
        ({"lora": 0}, "leave --lora out"),
        ({"tasks": 2}, "leave --tasks out"),
        ({"method": "mutual()"}, "no method for streams"),
        ({"data": "digits", "target": None}, "give data of that shape"),
        ({"target": "sort"}, "no column"),
    ],
)
def test_what_cannot_update_is_refused_before_training(
    more: dict[str, Any], words: str, base: Path, tmp_path: Path
) -> None:
    options = {"data": table(tmp_path / "new.csv", "cd", 1), "update": str(base), "device": "cpu", **more}
    with pytest.raises(SelfdistillError, match=words):
        Run.create(Request(**options), tmp_path / "update").execute()
    assert not (tmp_path / "update").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace(text.splitlines()[3].split(",")[0], "oops", 1), "row 3: 'oops' is no number"),
        (lambda text: text.replace("x,y,", "z,y,", 1), "column 'x' is missing, and the model was trained on it"),
    ],
)
def test_new_columns_are_read_as_the_old_ones_were(change: Any, words: str, base: Path, tmp_path: Path) -> None:
    new = Path(table(tmp_path / "new.csv", "cd", 1))
    new.write_text(change(new.read_text()))
    with pytest.raises(DataError, match=words):
        Run.create(Request(data=str(new), update=str(base), steps=3, **QUICK), tmp_path / "update").execute()


def test_a_run_of_values_cannot_be_updated(tmp_path: Path) -> None:
    request = Request(data="diabetes", model="mlp(width=8)", method="plain()", steps=5, device="cpu", control=False)
    Run.create(request, tmp_path / "values").execute()
    assert not (tmp_path / "values" / FILE).exists()
    with pytest.raises(DataError, match="goes on with nothing else"):
        update(tmp_path / "values", tmp_path)


def test_a_table_for_a_run_of_images_is_refused(tmp_path: Path) -> None:
    request = Request(model="mlp(width=8)", method="plain()", steps=2, device="cpu", control=False)
    Run.create(request, tmp_path / "images").execute()
    with pytest.raises(DataError, match="reads images; give images"):
        update(tmp_path / "images", tmp_path, test="")


def test_the_command(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "new.csv", "cd", 1)
    done = CliRunner().invoke(
        main, ["update", str(base), "new.csv", "--steps", "20", "--device", "cpu", "--no-control"]
    )
    assert done.exit_code == 0, done.output
    assert "Old classes: 100.0 % before" in done.output
    assert "give --test" in done.output
    refused = CliRunner().invoke(main, ["update", str(base), "new.csv", "--text", "x"])
    assert refused.exit_code == 2
    assert "leave --text out" in refused.output
