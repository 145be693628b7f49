"""Bad input costs one line and exit code 2; the line names the thing, the place and the remedy; nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.shelf import PICKLES
from tests.terminal import contents, passed, refused

# ---- refused before anything is written ------------------------------------------------------------

REFUSED: dict[str, tuple[str, list[str]]] = {
    "unknown data name": ("dgits", ["'dgits'", "did you mean 'digits'", "fashion-mnist"]),
    "missing path": ("no/such/place", ["'no/such/place'", "digits, fashion-mnist", "path"]),
    "not a kind of data": ("file", ["file", "folder of images", "CSV", "JSON lines with --target"]),
    "target not given": ("t.csv", ["t.csv", "--target", "size, weight, kind, outcome"]),
    "missing target column": ("t.csv --target outcom", ["'outcom'", "size, weight, kind, outcome"]),
    "infinite value": ("infinite.csv --target outcome", ["infinite.csv", "column 'weight'", "row 8", "inf", "remove"]),
    "one class only": ("one.csv --target outcome", ["one.csv", "'yes'", "two classes"]),
    "one class of images": ("lonely", ["lonely", "'cat'", "two classes"]),
    "too few of a class": ("rare.csv --target outcome", ["'seldom'", "(1, needed 3)", "add rows"]),
    "class never taught": ("untaught", ["'owl'", "test split", "no labelled training row"]),
    "classes alone for a value": (
        "numbers.csv --target outcome --method elr()",
        ["'history'", "distributions over classes", "no form for values"],
    ),
    "values alone for classes": ("digits --audit-measure mse", ["classes", "accuracy", "--audit-measure"]),
    "a target for images": ("digits --target x", ["'x'", "leave target out"]),
    "empty folder": ("empty", ["empty", "class into a folder"]),
    "no unlabelled rows": ("digits --method fixmatch()", ["unlabelled", "--labels N or --unlabelled PATH"]),
    "empty unlabelled set": ("pets --unlabelled empty --method fixmatch()", ["empty", "no image"]),
    "missing unlabelled set": ("pets --unlabelled nowhere", ["nowhere", "existing"]),
    "two lengths": ("digits --epochs 9", ["--steps 2", "--epochs 9", "give only one"]),
    "more labels than rows": ("digits --labels 5000", ["5000", "1097"]),
    "fewer labels than classes": ("digits --labels 5", ["5 labels for 10 classes"]),
    "noise above 1": ("digits --label-noise 1.4", ["label noise", "1.4"]),
    "noise that is no number": ("digits --label-noise nan", ["label noise", "nan"]),
    "batch larger than the data": ("digits --batch-size 5000", ["5000", "1097", "--batch-size 1097"]),
    "unknown recipe": ("digits --method pskd()", ["'pskd'", "ps_kd", "selfdistill methods"]),
    "unknown argument": ("digits --method ps_kd(alfa=1)", ["'alfa'", "nearest: alpha", "ps_kd(alpha=0.8)"]),
    "unclosed": ("digits --method ps_kd(alpha=1", ["column 6", "never closed"]),
    "code": ("digits --method __import__('os').system('touch${IFS}pwned')", ["dotted name", "column 1"]),
    "impossible argument": ("digits --method born_again(xi=2)", ["born_again(xi=2)", "[0, 1]", "2"]),
    "an argument of another kind": ("digits --method elr(weight='x')", ["weight is a number", "'x'"]),
    "half a generation": ("digits --method born_again(generations=1.5)", ["generations is a whole number", "1.5"]),
    "an infinite argument": ("digits --method elr(weight=1e400)", ["weight", "inf"]),
    "a decay above 1": ("digits --method elr(decay=2)", ["decay", "at most 1", "2"]),
    "a temperature of 0": ("digits --method distil('done',temperature=0)", ["temperature is above 0"]),
    "a batch beyond all memory": ("digits --labels 50 --method fixmatch(ratio=1e9)", ["ratio", "at most 100"]),
    "no stage": ("digits --labels 50 --method curriculum(stages=0)", ["stages is at least 1"]),
    "a rate that is no number": ("digits --lr nan", ["--lr", "finite"]),
    "a rate beyond float32": ("digits --lr 1e300", ["lr", "1e+300", "float32"]),
    "a decay beyond float32": ("digits --weight-decay 1e308 --optimizer sgd", ["weight_decay", "1e+308"]),
    "micro-batches of nothing": ("digits --accumulate 100", ["100 micro-batches", "lower --accumulate"]),
    "one peer": ("digits --method mutual(peers=1)", ["at least two"]),
    "no teacher": ("digits --method distil()", ["distil('RUN')"]),
    "teacher that is nowhere": ("digits --method distil('nowhere')", ["'teacher'", "nowhere", "finished run"]),
    "teacher that is no run": ("digits --method distil('pets')", ["'teacher'", "pets", "finished run"]),
    "teacher that is not finished": ("digits --method distil('cut')", ["cut", "selfdistill resume cut"]),
    "teacher of other rows": ("digits --method distil('table')", ["table", "(4)", "(1, 8, 8)"]),
    "teacher of other classes": ("pets --image-size 8 --method distil('done')", ["done", "cat, dog"]),
    "teacher of other columns": (
        "renamed.csv --target outcome --method distil('table')",
        ["table", "height", "weight"],
    ),
    "unknown model": ("digits --model cn", ["'cn'", "nearest: cnn"]),
    "unknown model argument": ("digits --model cnn(wdth=3)", ["'wdth'", "nearest: width"]),
    "unknown module": ("digits --model nomodule:f", ["'nomodule'"]),
    "unknown file": ("digits --model ood.py:good", ["ood.py", "nearest: odd.py"]),
    "unknown function": ("digits --model odd.py:god", ["'god'", "good"]),
    "output too wide": ("digits --model odd.py:wide", ["'label'", "width 13", "10 classes", "build the model with 10"]),
    "output too narrow": ("digits --model odd.py:narrow", ["width 7", "10 classes"]),
    "other input": ("digits --model odd.py:other_input", ["(1, 8, 8)", "build it for that shape"]),
    "output of another shape": ("digits --model odd.py:wrong(how='rows')", ["(10,)", "60 rows", "for each"]),
    "output of another kind": ("digits --model odd.py:wrong(how='tuple')", ["tuple", "tensor"]),
    "output of another name": ("digits --model odd.py:wrong(how='name')", ["'logits'", "scores"]),
    "a forward that raises": ("digits --model odd.py:wrong(how='raises')", ["ValueError: two lines"]),
    "a model without exits": ("digits --method byot() --model odd.py:good", ["'exits'"]),
    "a model without weights": ("digits --model odd.py:weightless", ["no weights"]),
    "no model at all": ("digits --model odd.py:nothing", ["NoneType", "torch.nn.Module"]),
    "a model that fails": ("digits --model odd.py:failing", ["odd.py:failing", "no luck"]),
    "unknown option": ("digits --epoch 3", ["--epoch", "selfdistill run --help"]),
    "option out of range": ("digits --epochs 0", ["--epochs", "x>=1", "selfdistill run --help"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_refused_run_says_why_in_one_line_and_leaves_no_folder(case: str, here: Path) -> None:
    words, said = REFUSED[case]
    before = contents(here)
    args = words.split()
    if "--method" not in args:
        args += ["--method", "plain()"]
    line = refused("run", *args, "--quiet", "--out", "runs/left", *([] if "--batch-size" in args else ["--steps", 2]))
    for phrase in said:
        assert phrase in line, line
    assert contents(here) == before
    assert not Path("runs").exists()  # the corrected command may use the same --out


def test_an_unreadable_image_is_left_out_and_a_class_of_them_is_refused(here: Path) -> None:
    args = ("run", "broken", "--method", "plain()", "--steps", 1, "--out")
    assert "1 file was left out: 1 no image by its content (dog/3.png)" in passed(*args, "left").stderr
    for path in Path("broken/dog").iterdir():
        path.write_bytes(b"no picture")
    before = contents(here)
    line = refused(*args, "refused")
    assert "broken: no image of class 'dog' can be read" in line
    assert "repair or remove" in line
    assert contents(here) == before


@pytest.mark.parametrize(
    ("package", "args"),
    [
        ("skops.io", "run t.csv --target outcome --method plain() --model mlp --steps 2"),
        ("skops.io", "run t.csv --target outcome --model linear"),
        ("pandas", "run t.csv --target outcome"),
        ("PIL", "run pets"),
        ("transformers", "run p.jsonl --model tiny"),
        ("transformers", "run t.csv --target outcome --text kind"),
    ],
)
def test_a_package_that_is_missing_is_told_before_training(
    package: str, args: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not hours later, when the model is saved with it."""
    lines = [f'{{"prompt": "{number}?", "demonstration": "b"}}\n' for number in range(9)]
    Path("p.jsonl").write_text("".join(lines))
    Path("tiny").mkdir()
    for name in ("config.json", "model.safetensors"):
        Path("tiny", name).write_text("{}")
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("selfdistill.training.trainer.Trainer.step", lambda self: pytest.fail("it trains"))
    monkeypatch.setattr("selfdistill.estimators.run.fit", lambda run, learner: pytest.fail("it trains"))
    line = refused(*args.split(), "--out", "left", "--quiet")
    assert "pip install" in line
    assert not Path("left").exists()


def test_what_one_of_several_methods_lacks_is_told_before_any_is_trained(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("selfdistill.training.trainer.Trainer.step", lambda self: pytest.fail("it trains"))
    args = ("compare", "t.csv", "--target", "outcome", "--model", "mlp", "--seeds", 3, "--steps", 2, "--out", "left")
    assert "unlabelled" in refused(*args, "--quiet", "--methods", "elr()", "fixmatch()")
    assert not Path("left").exists()


def test_a_disk_that_cannot_hold_a_checkpoint_is_told_before_training(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr("selfdistill.training.trainer.Trainer.step", lambda self: pytest.fail("it trains"))
    line = refused("run", "digits", "--steps", 2, "--method", "plain()", "--out", "left", "--quiet")
    assert "a checkpoint takes about" in line
    assert "give another --out" in line


def test_an_unknown_command_is_refused_in_one_line() -> None:
    assert "'rum'" in refused("rum")
    assert "see `selfdistill benchmark --help`" in refused("benchmark", "nothing")
    assert "EXPR" in refused("explain")


def test_labels_outside_the_range_are_refused_with_row_and_remedy() -> None:
    from selfdistill.data.dataset import from_tensors
    from selfdistill.errors import DataError

    y = torch.arange(40) % 2
    y[7] = 5
    with pytest.raises(DataError, match=r"label 5 in row 7 .*0\.\.1, or -1") as caught:
        from_tensors(torch.rand(40, 3), y, classes=("no", "yes"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused_with_column_and_row(value: float) -> None:
    from selfdistill.data.dataset import from_tensors
    from selfdistill.errors import DataError

    x = torch.rand(40, 3)
    x[7, 2] = value
    with pytest.raises(DataError, match=r"row 7, column 2 .*remove or fill"):
        from_tensors(x, torch.arange(40) % 2)


# ---- other people's folders ------------------------------------------------------------------------


def test_a_folder_with_another_runs_settings_is_refused_and_stays_as_it_is(here: Path) -> None:
    before = contents(here / "done")
    line = refused("run", "digits", "--steps", 3, "--method", "plain()", "--lr", 0.1, "--out", "done")
    assert "done" in line
    assert "steps 2, now 3" in line
    assert "lr None, now 0.1" in line
    assert "another --out" in line
    assert contents(here / "done") == before


@pytest.mark.parametrize("out", ["pets", "file"])
def test_a_place_that_is_no_run_is_refused_and_stays_as_it_is(out: str, here: Path) -> None:
    before = contents(here)
    assert f"{out} exists and is no run" in refused("run", "digits", "--steps", 2, "--out", out)
    assert contents(here) == before


@pytest.mark.parametrize("out", ["file/run", "/proc/run", "x" * 300, "nul\x00"])
def test_a_place_that_cannot_be_written_is_refused(out: str, here: Path) -> None:
    line = refused("run", "digits", "--steps", 2, "--method", "plain()", "--out", out)
    assert out[:70].replace("\x00", "\\x00") in line
    assert "check the place" in line or "another --out" in line


@pytest.mark.parametrize("command", ["resume", "predict"])
@pytest.mark.parametrize("folder", ["nowhere", "pets", "file"])
def test_a_folder_that_is_no_run_cannot_be_gone_on_with(command: str, folder: str, here: Path) -> None:
    line = refused(command, folder, *(["digits"] if command == "predict" else []))
    assert folder in line
    assert "is no run folder" in line if command == "resume" or folder == "pets" else "give the folder of a" in line


DAMAGED = {
    "cut short": b'{"format": 1, "requ',
    "no JSON": bytes(range(128, 228)),
    "a list": b"[]",
    "a number": b"7",
    "of no format": b"{}",
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("how", DAMAGED)
def test_a_damaged_run_json_is_named(how: str, here: Path) -> None:
    Path("done/run.json").write_bytes(DAMAGED[how])
    for command in (["resume", "done"], ["predict", "done", "digits"], ["run", "digits", "--out", "done"]):
        line = refused(*command)
        assert "done/run.json is damaged or foreign" in line
        assert "new --out" in line
    assert Path("done/run.json").read_bytes() == DAMAGED[how]


def test_a_run_json_of_a_later_format_is_refused_by_its_number(here: Path) -> None:
    Path("done/run.json").write_text('{"format": 99}')
    for command in (["resume", "done"], ["predict", "done", "digits"], ["run", "digits", "--out", "done"]):
        assert "done/run.json is of format 99; this version of selfdistill reads format 2" in refused(*command)


@pytest.mark.parametrize(
    ("place", "value"),
    [(("request", "labels"), "x"), (("request", "seed"), None), (("request", "spoon"), 1), (("result", "test"), ...)],
)
def test_a_run_json_with_other_facts_is_named(place: tuple[str, str], value: object, here: Path) -> None:
    record = json.loads(Path("done/run.json").read_text())
    if value is ...:
        del record[place[0]][place[1]]
    else:
        record[place[0]][place[1]] = value
    Path("done/run.json").write_text(json.dumps(record))
    line = refused("resume", "done")
    assert "done/run.json is damaged or foreign" in line
    assert place[1] in line


# ---- predictions -----------------------------------------------------------------------------------

PREDICTIONS: dict[str, tuple[str, list[str]]] = {
    "a missing column": ("table fewer.csv", ["fewer.csv", "'weight'"]),
    "an infinite value": ("table infinite.csv", ["'weight'", "row 8"]),
    "images for a table": ("table digits", ["(1, 8, 8)", "(4,)"]),
    "a folder for a table": ("table pets", ["pets", "table"]),
    "a table for images": ("done t.csv", ["t.csv", "images"]),
    "a missing file": ("done nothing.png", ["nothing.png"]),
    "an exit it has not": ("done digits --exit 1", ["done", "no early exits", "byot()"]),
    "an exit number of none": ("done digits --exit 0", ["--exit", "see `selfdistill predict --help`"]),
    "an unfinished run": ("cut digits", ["cut", "no model yet", "selfdistill resume cut"]),
    "a place of no folder": ("done digits --out nowhere/p.csv", ["nowhere/p.csv", "another --out"]),
    "a full device": ("done digits --out /dev/full", ["/dev/full", "No space left", "another --out"]),
}


@pytest.mark.parametrize("case", PREDICTIONS)
def test_a_refused_prediction_says_why_in_one_line(case: str, here: Path) -> None:
    words, said = PREDICTIONS[case]
    line = refused("predict", *words.split())
    for phrase in said:
        assert phrase in line, line


def test_predictions_that_cannot_be_written_leave_the_earlier_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("p.csv").write_text("earlier\n")

    def full(self: Path, *args: Any, **options: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left" in refused("predict", "done", "digits", "--out", "p.csv")
    assert Path("p.csv").read_text() == "earlier\n"
    assert sorted(path.name for path in here.glob(".p.csv*")) == []


@pytest.mark.parametrize("pickle", PICKLES)
def test_a_pickle_in_place_of_the_model_is_not_read(pickle: str, here: Path) -> None:
    Path("done/model/model.safetensors").write_bytes(PICKLES[pickle])
    assert "done/model/model.safetensors" in refused("predict", "done", "digits")
    assert "done/model/model.safetensors" in refused(
        "run", "digits", "--steps", 2, "--method", "distil('done')", "--out", "left"
    )


def test_a_missing_model_is_named(here: Path) -> None:
    Path("done/model/model.safetensors").unlink()
    assert "done/model has no model.safetensors" in refused("predict", "done", "digits")
