"""Adaptations of a finished run by their requests: their domains, their scores, their refusals."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from selfdistill.errors import SelfdistillError
from selfdistill.experiments.run import Run
from selfdistill.io.run_record import Request
from selfdistill.training.reservoir import FILE
from selfdistill.training.trainer import Trainer

QUICK: dict[str, Any] = {"device": "cpu", "training": (("lr", 0.02), ("vitals", False))}
STEP = 15  # degrees


def turned(angle: float, rows: int, draw: random.Random) -> list[tuple[str, str, str]]:
    """Rows of the classes a and b on both sides of the origin, turned about it."""
    turn, lines = math.radians(angle), list[tuple[str, str, str]]()
    for i in range(rows):
        x, y = (2 if i % 2 else -2) + draw.gauss(0, 0.4), draw.gauss(0, 0.4)
        x, y = math.cos(turn) * x - math.sin(turn) * y, math.sin(turn) * x + math.cos(turn) * y
        lines.append((f"{x}", f"{y}", "ab"[i % 2]))
    return lines


def write(path: Path, lines: Sequence[tuple[str, ...]], head: str = "x,y,kind") -> str:
    path.write_text("\n".join([head, *map(",".join, lines)]) + "\n")
    return str(path)


def new_rows(path: Path, labels: int = 12, steps: int = 8) -> str:
    """Thirty rows a day, each day turned further; the first rows of a day have labels, at most so many."""
    draw, lines = random.Random(1), list[tuple[str, ...]]()
    for day in range(1, steps + 1):
        rows = turned(STEP * day, 30, draw)
        lines += [(x, y, c if i < labels else "", f"2026-03-{day:02}") for i, (x, y, c) in enumerate(rows)]
    draw.shuffle(lines)
    return write(path, lines, "x,y,kind,day")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on upright rows, whose data are gone."""
    folder = tmp_path_factory.mktemp("base")
    old = write(folder / "old.csv", turned(0, 120, random.Random(0)))
    request = Request(data=old, target="kind", model="mlp(width=16)", method="plain()", steps=60, **QUICK)
    Run.create(request, folder / "run").execute()
    Path(old).unlink()
    return folder / "run"


def adapt(base: Path, folder: Path, **more: Any) -> dict[str, Any]:
    options: dict[str, Any] = {"steps": 25, "order": "day", **QUICK, **more}
    data = options.pop("data", None) or new_rows(folder / "new.csv")
    return Run.create(Request(data=data, adapt=str(base), **options), folder / "adapt").execute()


def test_domain_after_domain_follows_a_turn_that_the_run_before_misses(base: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    lines = list[str]()
    request = Request(new_rows(tmp_path / "new.csv"), adapt=str(base), steps=25, order="day", **QUICK)
    result = Run.create(request, tmp_path / "adapt").execute(warn=lines.append)
    scores = result["adapt"]
    assert [line.partition(":")[0] for line in lines] == ["all unlabelled rows at once"]
    assert "pseudo-labels are 'a', and nothing else" in lines[0]
    assert [len(scores["domains"]), scores["rows"]] == [8, 10]  # a third of 30, though 12 have labels
    assert scores["on"] == "domain 8 of 8, day 2026-03-08"
    assert {(domain["rows"], domain["labelled"]) for domain in scores["domains"]} == {(20, 10)}
    assert scores["before"]["accuracy"] < 0.4
    assert scores["method"]["accuracy"] == 1
    assert scores["gain"]["low"] > 0
    assert scores["at_once"]["accuracy"] < 0.6
    assert result["steps"] == 8 * 25
    assert before == {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    assert "so it is better than the run before" in (tmp_path / "adapt" / "README.md").read_text()
    page = (tmp_path / "adapt" / "report.html").read_text()
    for words in ("By domain", "day 2026-03-08", "Gradual self-training", "the adapted model"):
        assert words in page
    assert "generation" not in page
    test = write(tmp_path / "test.csv", turned(8 * STEP, 40, random.Random(3)))
    answers = Run.open(tmp_path / "adapt").predict(test)
    assert answers.columns == ["a", "b"]


def test_labels_of_rows_that_teach_are_not_read(base: Path, tmp_path: Path) -> None:
    """The same weights whatever the labels of the rows that do not verify are."""
    weights = []
    for name in ("few", "many"):
        (tmp_path / name).mkdir()
        test = write(tmp_path / name / "test.csv", turned(8 * STEP, 20, random.Random(3)))
        data = new_rows(tmp_path / name / "new.csv", 0 if name == "few" else 30)
        adapt(base, tmp_path / name, data=data, test=test, verify=0.01, control=False, steps=10)
        weights.append((tmp_path / name / "adapt" / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_worse_model_is_not_the_final_one(base: Path, tmp_path: Path) -> None:
    """The test rows are upright, and the domains lead away from them."""
    test = write(tmp_path / "test.csv", turned(0, 40, random.Random(3)))
    result = adapt(base, tmp_path, test=test, control=False, data=new_rows(tmp_path / "new.csv", 0))
    assert result["chosen"] == "before"
    assert result["adapt"]["gain"]["high"] < 0
    assert result["test"]["accuracy"] == 1
    labels = Run.open(tmp_path / "adapt").predict(test).numbers.argmax(-1)
    assert labels.tolist() == [i % 2 for i in range(40)]


def test_an_adapted_run_adapts_and_is_updated_and_keeps_the_rows_of_the_first(base: Path, tmp_path: Path) -> None:
    adapt(base, tmp_path, control=False, steps=5, warm=True)
    assert (tmp_path / "adapt" / FILE).exists()
    (tmp_path / "next").mkdir()
    result = adapt(tmp_path / "adapt", tmp_path / "next", control=False, steps=5, order=None, domains=4)
    assert result["adapt"]["domains"][0]["name"] == "rows 1 to 60"
    more = write(tmp_path / "more.csv", turned(120, 40, random.Random(5)))
    request = Request(data=more, update=str(tmp_path / "next" / "adapt"), steps=5, control=False, **QUICK)
    assert Run.create(request, tmp_path / "update").execute()["update"]["old_rows"] > 0


def test_an_adaptation_that_is_cut_ends_with_the_same_bits(
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

    more: dict[str, Any] = {"steps": 6, "training": (("save_steps", 4), ("lr", 0.01)), "control": False}
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
        if name == "cut":
            monkeypatch.setattr(Trainer, "step", cut)
            for left[0] in (3, 18, 20):
                with pytest.raises(PowerError):
                    adapt(base, tmp_path / name, **more)
        adapt(base, tmp_path / name, **more)
    files = [tmp_path / name / "adapt" / "model" / "model.safetensors" for name in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"labels": 0}, "no row has a label.*column 'kind'.*--test"),
        ({"order": "kind"}, "'kind' is categorical, and --order takes numbers or dates"),
        ({"order": "hour"}, r"no column is called 'hour' \(--order\)"),
        ({"order": None, "domains": 100}, "a domain needs 3 or more"),
        ({"order": None, "domains": 2, "replace": ("2026-03-01", "")}, None),
        ({"replace": ("2026-03-01", "")}, "row [0-9]+ .*empty, and --order needs a value"),
        ({"replace": (",b,", ",c,")}, r"row [0-9]+ .*'c' is no class of the model \(a, b\)"),
        ({"steps_of": 1}, "'day' is constant, and --order takes"),
        ({"method": "born_again()"}, "generations of its own"),
        ({"method": "mutual()"}, "no method for adaptation"),
        ({"model": "mlp"}, "leave --model out"),
        ({"data": "digits"}, "come in no order"),
        ({"test": True}, "no column is called 'kind', which is the target"),
        ({"test": False}, "the model was trained on a table; give one"),
        ({"method": "byol()"}, "no method for adaptation"),
    ],
)
def test_what_cannot_adapt_is_refused_before_training(
    more: dict[str, Any], words: str | None, base: Path, tmp_path: Path
) -> None:
    options = dict(more)
    path = tmp_path / "new.csv"
    new_rows(path, options.pop("labels", 12), options.pop("steps_of", 8))
    path.write_text(path.read_text().replace(*options.pop("replace", ("", ""))))
    data = options.pop("data", str(path))
    if "test" in options:
        (tmp_path / "folder").mkdir()
        bare = write(tmp_path / "bare.csv", [row[:2] for row in turned(0, 9, random.Random(0))], "x,y")
        options["test"] = bare if options["test"] else str(tmp_path / "folder")
    if words is None:
        adapt(base, tmp_path, data=data, control=False, **{**options, "steps": 2})
        return
    with pytest.raises(SelfdistillError, match=words):
        adapt(base, tmp_path, data=data, **options)
    assert not (tmp_path / "adapt").exists()


# images -----------------------------------------------------------------------------------------------------------


def bars(place: Path, angle: int, rows: int, seed: int, classes: str = "hv") -> None:
    """Images of a bright bar that lies or stands, turned."""
    draw = random.Random(seed)
    for name in classes:
        (place / name if name != "_" else place).mkdir(parents=True, exist_ok=True)
        for i in range(rows):
            image = Image.new("L", (8, 8))
            for k in range(8):
                at = (k, 3 + draw.randint(0, 1)) if (name == "h" or (name == "_" and i % 2)) else (3 + i % 2, k)
                image.putpixel(at, draw.randint(150, 255))
            image.rotate(angle).save((place / name if name != "_" else place) / f"{i}.png")


def test_sub_folders_are_the_domains_of_images(tmp_path: Path) -> None:
    bars(tmp_path / "old", 0, 20, 0)
    common: dict[str, Any] = {"augment": "none", "steps": 20, "control": False, **QUICK}
    request = Request(str(tmp_path / "old"), image_size=8, model="mlp(width=16)", method="plain()", **common)
    Run.create(request, tmp_path / "run").execute()
    for domain in ("2", "10"):  # by number
        bars(tmp_path / "new" / domain, 10 * int(domain) // 2, 6, int(domain), "_")
    bars(tmp_path / "new" / "10", 50, 3, 9)
    request = Request(str(tmp_path / "new"), adapt=str(tmp_path / "run"), **common)
    result = Run.create(request, tmp_path / "adapt").execute()
    domains = result["adapt"]["domains"]
    assert [(domain["name"], domain["rows"], domain["labelled"]) for domain in domains] == [("2", 6, 0), ("10", 8, 4)]
    assert len(Run.open(tmp_path / "adapt").predict(str(tmp_path / "new" / "2")).names) == 6
    request = Request(str(tmp_path / "old"), adapt=str(tmp_path / "run"), **common)
    with pytest.raises(SelfdistillError, match="sub-folders are classes, and adaptation needs an order"):
        Run.create(request, tmp_path / "by_class").execute()
    table = tmp_path / "list.csv"
    files = sorted((tmp_path / "new" / "10").rglob("*.png"))
    lines = [(str(file), file.parent.name if file.parent.name in "hv" else "", str(i)) for i, file in enumerate(files)]
    request = Request(write(table, lines, "path,label,time"), adapt=str(tmp_path / "run"), order="time", domains=2)
    run = Run.create(request, tmp_path / "listed")
    ready = run.task.prepare(request)
    assert "time 0 to 5" in ready.note
    assert len(ready.data.describe()["rows"]) == 4


def test_options_of_an_adaptation_are_for_adaptations() -> None:
    with pytest.raises(SelfdistillError, match="leave out has a meaning for an adaptation alone"):
        Request(leave_out=0.2)


def test_few_rows_cannot_show_a_gain() -> None:
    from selfdistill.experiments.adapt_run import _difference

    gain = _difference(torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool))
    assert gain["mean"] == 1
    assert gain["low"] < 0
