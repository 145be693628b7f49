"""Runs of streams and updates by their requests: their controls, their scores, their refusals."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

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
    with pytest.raises(SelfdistillError, match="no scores of its labels: it is one of streams of tasks"):
        Run.open(tmp_path / "run").task.label_errors(tmp_path / "run")


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


def sites(path: Path, names: tuple[str, ...] = ("10", "9"), cell: str = "") -> str:
    """Rows of the classes a and b at sites that are turned against each other; a cell of the third row may be given."""
    draw, lines = random.Random(3), []
    for k, site in enumerate(names):
        for i in range(60):
            sign, turn = 1 if i % 2 else -1, (1, 0.3 * k)
            lines.append(f"{2 * sign * turn[0] + draw.gauss(0, 0.3)},{sign * turn[1]},{'ab'[i % 2]},{site}")
    draw.shuffle(lines)
    if cell:
        lines[2] = lines[2].rpartition(",")[0] + ("," if cell == "empty" else f",{cell}")
    path.write_text("\n".join(["x,y,kind,site", *lines]) + "\n")
    return str(path)


def test_a_column_names_the_tasks_of_rows(tmp_path: Path) -> None:
    """By number, not by the order of the file; the same classes in both make it domain-incremental."""
    common: dict[str, Any] = {"target": "kind", "tasks": "site", "steps": 15, "device": "cpu"}
    stream = Run.create(Request(sites(tmp_path / "s.csv"), **common), tmp_path / "run").execute()["stream"]
    assert (stream["scenario"], stream["tasks"]) == ("domain-incremental", ["9", "10"])
    assert stream["classes"] == [["a", "b"]] * 2
    assert "task_incremental" not in stream["method"]
    assert {"forgetting", "backward", "forward"} <= set(stream["method"])
    assert Run.open(tmp_path / "run").request.tasks == "site"
    page = (tmp_path / "run" / "report.html").read_text()
    for words in (
        "Accuracy by task",
        "after task 1 (9)",
        "backward transfer",
        "forward transfer",
        "domain-incremental",
    ):
        assert words in page
    for words in ("nothing audits it", "generation", "decision"):
        assert words not in page
    test = sites(tmp_path / "t.csv", ("9", "10", "9"))
    ready = Run.create(Request(sites(tmp_path / "s.csv"), test=test, **common), tmp_path / "own").task.prepare(
        Request(sites(tmp_path / "s.csv"), test=test, **common)
    )
    assert ready.data.describe()["rows"] == {"labelled": 102, "unlabelled": 0, "audit": 18, "test": 180}


def test_tasks_of_a_column_may_have_classes_of_their_own(tmp_path: Path) -> None:
    lines = Path(table(tmp_path / "one.csv", "abcd", 1)).read_text().splitlines()
    lines = [f"{line},{'day' if i == 0 else 'mon' if line[-1] in 'ab' else 'tue'}" for i, line in enumerate(lines)]
    (tmp_path / "one.csv").write_text("\n".join(lines))
    request = Request(str(tmp_path / "one.csv"), target="kind", tasks="day", steps=5, control=False, device="cpu")
    stream = Run.create(request, tmp_path / "run").execute()["stream"]
    assert stream["scenario"] == "class-incremental"
    assert sorted(zip(stream["tasks"], stream["classes"], strict=True)) == [("mon", ["a", "b"]), ("tue", ["c", "d"])]
    assert stream["method"]["task_incremental"] >= stream["method"]["accuracy"]


def test_images_of_a_list_have_tasks_by_a_column(tmp_path: Path) -> None:
    draw = random.Random(0)
    lines = ["path,label,camera"]
    for i in range(48):
        image = Image.new("L", (8, 8))
        image.putdata([draw.randint(0, 255) for _ in range(64)])
        image.save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{'ab'[i % 2]},{'left' if i < 24 else 'right'}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    request = Request(
        str(tmp_path / "list.csv"), target="label", tasks="camera", image_size=8, model="mlp", steps=2, control=False,
        device="cpu", seed=1,
    )  # fmt: skip
    result = Run.create(request, tmp_path / "run").execute()
    assert result["stream"]["tasks"] == ["left", "right"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"cell": "empty"}, r"s.csv: column 'site', row 3 \(the first is 1\): empty, and --tasks needs a value"),
        ({"cell": "north"}, "no row of the task 'north' t"),
        ({"tasks": "kind"}, "'kind' is used otherwise and cannot be --tasks"),
        ({"tasks": "shop"}, r"no column is called 'shop' \(--tasks\)"),
        ({"groups": "site"}, "'site' names the tasks and splits the rows too"),
        ({"names": ("9",)}, "the only task is '9'"),
        ({"target": "x"}, "the target is no class"),
        ({"tasks": 1}, "tasks is at least 2 or a text"),
        ({"test": True}, r"t.csv: no column is called 'site' \(--tasks\)|t.csv.*--tasks"),
        ({"data": "digits"}, "its rows have no such columns"),
    ],
)
def test_columns_that_name_no_tasks_are_refused_before_training(
    more: dict[str, Any], words: str, tmp_path: Path
) -> None:
    options = {"target": "kind", "tasks": "site", "steps": 2, "device": "cpu", **more}
    own = sites(tmp_path / "s.csv", options.pop("names", ("10", "9")), options.pop("cell", ""))
    data = options.pop("data", own)
    if data == "digits":
        options.pop("target")
    if "test" in options:
        options["test"] = table(tmp_path / "t.csv", "ab", 1)
    with pytest.raises(SelfdistillError, match=words):
        Run.create(Request(data, **options), tmp_path / "run").execute()
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

    step, left = Trainer.step, [0]

    def cut(self: Any) -> float:
        left[0] -= 1
        if not left[0]:
            raise PowerError
        return step(self)

    more: dict[str, Any] = {"steps": 40, "control": False, "training": (("save_steps", 7),)}
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    update(base, tmp_path / "whole", **more)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", cut)
        for left[0] in (12, 25):  # the second one begins at step 7, where the first one has saved
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
    with pytest.raises(DataError, match="begin with its weights by `selfdistill run DATA --init"):
        update(tmp_path / "values", tmp_path)


def test_a_learner_of_tables_cannot_be_updated(tmp_path: Path) -> None:
    old = table(tmp_path / "old.csv", "ab", 0)
    Run.create(Request(data=old, target="kind", model="linear", control=False), tmp_path / "run").execute()
    with pytest.raises(DataError, match="is a learner of tables; train it again on all rows by `selfdistill run ALL"):
        update(tmp_path / "run", tmp_path)
    with pytest.raises(DataError, match="--memory is for networks"):
        Run.create(Request(data=old, target="kind", memory=5), tmp_path / "no").execute()


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


def test_auto_of_a_stream_is_chosen_by_the_validation_rows_of_all_tasks(tmp_path: Path) -> None:
    options: dict[str, Any] = {"tasks": 2, "steps": 3, "model": "mlp(width=4)", "device": "cpu"}
    request = Request(table(tmp_path / "t.csv", "abcd", 0), target="kind", method="auto(most=3)", **options)
    result = Run.create(request, tmp_path / "run").execute()
    tried = result["auto"]["tried"]
    assert [trial["method"] for trial in tried] == ["plain()", "er()", "lwf()"]
    best = max(tried, key=lambda trial: trial["score"])
    assert (best["chosen"], result["method"]) == (True, best["method"])
    assert "auto()" in (tmp_path / "run" / "README.md").read_text()
    assert (tmp_path / "run" / "metrics.jsonl").exists()
    again = Run.create(request, tmp_path / "run").execute()
    assert again["auto"] == result["auto"]
