"""The command line: what each command prints and where, how it is stopped, and that two commands tell a whole story."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas
import polars
import pytest
import torch

import selfdistill
from selfdistill.data.images import read_images
from selfdistill.errors import CheckpointError, DataError
from selfdistill.estimators.recipes import recipes as estimator_recipes
from selfdistill.methods import recipes
from tests.terminal import MODELS, child, contents, invoke, passed, refused, report, write_images, write_tables

TINY = ("--steps", 3)
ELR = ("--method", "elr()", *TINY)
PLAIN = ("--method", "plain()", *TINY)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- what is printed, and where --------------------------------------------------------------------


def test_a_run_prints_a_table_on_stdout_and_progress_on_stderr() -> None:
    result = passed("run", "digits", *ELR)
    for words in (
        "digits, test split (500 rows",
        "accuracy",
        "NLL",
        "ECE",
        "plain, after 3 steps",
        "stopped early",
        "elr()",
    ):
        assert words in result.stdout
    assert "One seed proves little" in " ".join(result.stdout.split())
    assert "runs/digits-elr-0-" in result.stdout.splitlines()[-1]
    assert result.stderr.startswith("elr(): epoch 1/1  step 1/3  loss ")
    assert "plain(), the baseline: " in result.stderr


def test_without_data_it_says_which_are_taken() -> None:
    assert passed("run", *PLAIN).stderr.splitlines()[0].startswith("no DATA was given: using digits")
    assert passed("run", *PLAIN, "--quiet", "--out", "q").stderr == ""
    assert "no DATA" not in passed("run", "digits", *PLAIN, "--out", "d").stderr
    assert "Without DATA it uses digits" in " ".join(passed("run", "--help").stdout.split())


def test_quiet_says_nothing_on_stderr() -> None:
    assert passed("run", "digits", *ELR, "--quiet").stderr == ""


def test_json_is_one_object_last_on_stdout_and_nothing_else_is_there() -> None:
    result = passed("run", "digits", *PLAIN, "--json")
    (line,) = result.stdout.splitlines()
    found = json.loads(line)
    assert found["method"] == "plain()"
    assert found["steps"] == 3
    assert set(found["test"]) == {"accuracy", "nll", "ece", "brier"}
    assert found["data"]["rows"] == {"labelled": 1097, "unlabelled": 0, "audit": 200, "test": 500}
    assert "step 3/3" in result.stderr


def test_the_same_command_again_prints_the_result_without_training(monkeypatch: pytest.MonkeyPatch) -> None:
    first = report("run", "digits", *ELR)
    before = contents(Path("runs"))
    train = "selfdistill.experiments.network_run.fit"
    monkeypatch.setattr(train, lambda *args, **options: pytest.fail("it trained again"))
    assert report("run", "digits", *ELR) == first
    again = passed("run", "digits", *ELR)
    assert "is finished: nothing is trained" in again.stderr
    assert "elr()" in again.stdout
    assert report("resume", first["run"]) == first
    assert contents(Path("runs")) == before


def test_without_out_each_request_has_a_folder_of_its_own_below_runs() -> None:
    for args in (PLAIN, (*PLAIN, "--seed", 1), (*PLAIN, "--lr", 0.01), ("--method", "ps_kd()", *TINY)):
        passed("run", "digits", *args, "--quiet")
    names = sorted(path.name for path in Path("runs").iterdir())
    assert len(names) == 4
    assert [name.rpartition("-")[0] for name in names] == [
        "digits-plain-0", "digits-plain-0", "digits-plain-1", "digits-ps_kd-0",
    ]  # fmt: skip


def test_the_run_folder_holds_what_is_promised() -> None:
    passed("run", "digits", "--method", "born_again(generations=2)", *TINY, "--out", "r", "--quiet")
    assert {path.name for path in Path("r").iterdir()} == {
        "run.json", "run.toml", "metrics.jsonl", "checkpoints", "generations", "control", "model", "README.md",
        "report.html", "label_errors.csv", "probabilities.npz", "reservoir.safetensors", "cards.json",
    }  # fmt: skip
    held = {path.name for path in Path("r/model").iterdir()}
    assert held == {"model.safetensors", "config.json", "data.json", "README.md"}
    card = Path("r/model/README.md").read_text()
    assert card.startswith("---\nlibrary_name: selfdistill\n")
    assert "generation 1" in card
    assert 'load(".")' in card
    lines = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    assert [(line["generation"], line["epoch"], line["step"]) for line in lines] == [(0, 0, 3), (1, 0, 3)]
    assert "born_again(generations=2)" in Path("r/README.md").read_text()


def test_every_generation_is_reported_and_none_began_with_the_weights_of_another() -> None:
    found = report("run", "digits", "--method", "born_again(generations=3)", *TINY)
    assert [g["generation"] for g in found["generations"]] == [0, 1, 2]
    for generation in found["generations"]:
        assert set(generation["test"]) >= {"accuracy", "nll", "ece"}
    assert found["starts_differ"] is True
    assert len({g["start"] for g in found["generations"]}) == 3
    assert found["steps"] == found["plain"]["steps"] == 9


def test_without_control_only_the_method_is_trained() -> None:
    found = report("run", "digits", "--method", "ps_kd()", *TINY, "--no-control", "--out", "r")
    assert "plain" not in found
    assert not Path("r/control").exists()
    assert "Accuracy on the test split" in passed("resume", "r").stdout


# ---- data, models and methods from outside ---------------------------------------------------------


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_tables_train_and_predict_by_column(name: str, here: Path) -> None:
    write_tables(here)
    found = report("run", name, "--target", "outcome", *PLAIN, "--out", "r")
    assert found["data"]["classes"] == ["no", "yes"]
    rows = list(csv.DictReader(io.StringIO(passed("predict", "r", "more.csv").stdout)))
    assert [row["row"] for row in rows] == [str(i + 1) for i in range(90)]
    for row in rows:
        p = {label: float(row[f"p({label})"]) for label in ("no", "yes")}
        assert sum(p.values()) == pytest.approx(1, abs=1e-5)
        assert row["prediction"] == max(p, key=lambda label: p[label])
    frame = pandas.read_csv("more.csv")
    for rows_ in (frame, frame.to_dict("list"), frame.to_dict("records"), polars.from_pandas(frame)):
        answers = selfdistill.load("r").predict(rows_)
        assert answers.text() == passed("predict", "r", "more.csv").stdout, "a frame answers as its file"
    assert [record["prediction"] for record in answers.records()] == [row["prediction"] for row in rows]
    with pytest.raises(DataError, match="rows of type int: the model was trained on table rows; give a frame of"):
        selfdistill.load("r").predict(3)


def test_rows_without_a_target_teach_unlabelled_and_choose_the_method(here: Path) -> None:
    write_tables(here)
    found = report("run", "half.csv", "--target", "outcome", "--model", "mlp", "--steps", 1)
    assert "curriculum()" in [trial["method"] for trial in found["auto"]["tried"]]
    assert found["data"]["rows"]["unlabelled"] == 30
    more = report("run", "t.csv", "--target", "outcome", "--unlabelled", "more.csv", "--method", "fixmatch()", *TINY)
    rows = more["data"]["rows"]
    assert rows["unlabelled"] == 90 - rows["audit"] - rows["test"], "a copy of a held-out row does not teach"


def test_folders_of_images_train_and_predict_by_path(here: Path) -> None:
    write_images(here / "pets")
    write_images(here / "wild", ("any",), each=5)
    found = report(
        "run", "pets", "--unlabelled", "wild", "--method", "fixmatch()", "--image-size", 8, *TINY, "--out", "r"
    )
    assert found["data"]["classes"] == ["cat", "dog"]
    assert found["data"]["rows"]["unlabelled"] == 5
    lines = passed("predict", "r", "wild").stdout.splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == [f"any/{i}.png" for i in range(5)]
    assert len(passed("predict", "r", "wild/any/0.png").stdout.splitlines()) == 2
    predictor = selfdistill.load("r/model")
    by_path = predictor.predict([Path(f"wild/any/{i}.png") for i in range(5)])
    assert by_path.text().split("\n")[1:] == [f"wild/{line}" for line in lines[1:]] + [""]
    pixels = read_images([Path(f"wild/any/{i}.png") for i in range(5)], (1, 8, 8))
    for rows in (pixels, pixels.numpy(), pixels.float() / 255):
        assert [record["probabilities"] for record in predictor.predict(rows).records()] == [
            record["probabilities"] for record in by_path.records()
        ]
    with pytest.raises(DataError, match=r"rows of shape \(3, 9, 8\): the model was trained on image rows of shape"):
        predictor.predict(torch.zeros(2, 3, 9, 8))
    with pytest.raises(CheckpointError, match="wild is no run folder"):
        selfdistill.load("wild")


@pytest.mark.parametrize("spec", ["odd:good", "odd.py:good", "mlp(width=8)", "cnn(width=4)", "resnet(width=4)"])
def test_models_by_name_by_module_and_by_file(spec: str, here: Path) -> None:
    (here / "odd.py").write_text(MODELS)
    found = report("run", "digits", "--model", spec, *PLAIN, "--out", "r")
    assert found["model"] == spec
    if spec.startswith("odd"):
        assert "--trust-code" in refused("predict", "r", "digits")
    assert len(passed("predict", "r", "digits", "--trust-code").stdout.splitlines()) == 501


@pytest.mark.parametrize(("teacher", "student"), [("mlp(width=64)", "mlp(width=8)"), ("mlp(width=8)", "cnn(width=4)")])
def test_a_finished_run_teaches_a_smaller_or_a_larger_model(teacher: str, student: str) -> None:
    report("run", "digits", "--model", teacher, *PLAIN, "--out", "teacher")
    before = contents(Path("teacher"))
    for place in ("teacher", "teacher/model"):
        found = report("run", "digits", "--model", student, "--method", f'distil("{place}")', *TINY, "--no-control")
        assert found["model"] == student
    assert contents(Path("teacher")) == before


def test_the_product_of_peers_is_one_model_of_the_usual_size() -> None:
    alone = report("run", "digits", *PLAIN)
    group = report("run", "digits", "--method", "mutual(peers=3)", *TINY, "--out", "r")
    assert group["parameters"] == alone["parameters"]
    assert len(passed("predict", "r", "digits").stdout.splitlines()) == 501
    assert "no early exits" in refused("predict", "r", "digits", "--exit", 1)


def test_every_exit_predicts() -> None:
    found = report("run", "digits", "--method", "byot()", "--model", "cnn(width=4)", *TINY, "--out", "r")
    from selfdistill.models.store import load_model

    exits = load_model("r")(torch.zeros(1, 1, 8, 8))["exits"].shape[1]
    texts = {passed("predict", "r", "digits", "--exit", n + 1).stdout for n in range(exits)}
    texts.add(passed("predict", "r", "digits").stdout)
    assert len(texts) == exits + 1
    assert f"1 to {exits}" in refused("predict", "r", "digits", "--exit", exits + 1)
    assert found["starts_differ"] is True


def test_predictions_go_to_a_file_or_a_pipe() -> None:
    passed("run", "digits", *PLAIN, "--out", "r", "--quiet")
    wanted = passed("predict", "r", "digits").stdout
    assert passed("predict", "r", "digits", "--out", "p.csv").stdout == ""
    assert Path("p.csv").read_text() == wanted
    os.mkfifo("pipe")
    with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, text=True) as reader:
        passed("predict", "r", "digits", "--out", "pipe")
        assert reader.communicate(timeout=20)[0] == wanted
    assert Path("pipe").is_fifo()


def test_a_long_run_says_so_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "this will take" not in passed("run", "digits", *PLAIN, "--out", "short").stderr
    monkeypatch.setattr("selfdistill.experiments.network_run.time_step", lambda *args: 60.0)
    method = ("--method", "plain()", "--steps", 30)
    lines = passed("run", "digits", *method, "--out", "long").stderr.splitlines()
    assert lines[0].startswith("this will take about 30 minutes; for a first answer give --budget 2min, ")
    assert lines[1].startswith("plain(): epoch 1")
    assert "this will take" not in passed("run", "digits", *method, "--budget", "1h", "--out", "bounded").stderr
    lines = passed("run", "digits", "--method", "auto()", "--steps", 30, "--out", "auto").stderr.splitlines()
    told = [i for i, line in enumerate(lines) if line.startswith("this will take about ")]
    assert told
    assert told[0] < next(i for i, line in enumerate(lines) if "step 1/" in line)


# ---- the other commands ----------------------------------------------------------------------------


def test_methods_lists_every_recipe_for_people_and_for_programs() -> None:
    cards = json.loads(passed("methods", "--json").stdout)
    assert [card["name"] for card in cards if card["for"] == "networks"] == [*recipes(), "auto"]
    assert [card["name"] for card in cards if card["for"] == "learners"] == [
        n for n in estimator_recipes() if n not in {*recipes(), "auto"}
    ]
    text = passed("methods").stdout
    for card in cards:
        assert f"{card['signature']}\n    {card['summary']}\n" in text


def test_explain_prints_the_card_for_people_and_for_programs() -> None:
    found = json.loads(passed("explain", "fixmatch(confidence=0.9)", "--json").stdout)
    assert found["expression"] == "fixmatch(confidence=0.9)"
    text = passed("explain", "fixmatch(confidence=0.9)").stdout
    for words in (
        "Confident(threshold=0.9)",
        found["equation"],
        "strong: unlabelled rows",
        "6.813 x a plain step",  # in a run of 2,000 steps
        "NeurIPS 2020",
    ):
        assert words in text
    assert "nearest: fixmatch" in refused("explain", "fixmatsh()")


def test_help_names_every_command_and_every_option_of_run() -> None:
    text = passed("--help").stdout
    for command in ("run", "resume", "predict", "methods", "explain", "doctor"):
        assert f"\n  {command} " in text
    text = passed("run", "--help").stdout
    for option in ("target", "unlabelled", "labels", "label-noise", "model", "method", "epochs", "batch-size", "seed",
                   "out", "json", "quiet"):  # fmt: skip
        assert f"--{option} " in text
    assert passed("--version").stdout.split() == ["selfdistill,", "version", selfdistill.__version__]


@pytest.mark.parametrize("command", ["run", "update", "adapt"])
def test_help_has_twelve_main_options_first_and_every_option_once(command: str) -> None:
    from selfdistill.cli import main
    from selfdistill.cli.options import THEMES

    text = passed(command, "--help").stdout
    assert len(THEMES["Main options"].split()) == 12
    heads = [line.removesuffix(":") for line in text.splitlines() if line in {f"{theme}:" for theme in THEMES}]
    assert heads == [theme for theme in THEMES if theme in heads]
    assert heads[0] == "Main options"
    for parameter in main.commands[command].params:
        if parameter.param_type_name == "option":
            shown = [line for line in text.splitlines() if line.startswith(f"  {parameter.opts[0]} ")]
            assert len(shown) == 1, parameter.name
    assert text.count("Show this message and exit.") == 1


def test_the_options_of_run_are_the_fields_of_a_request_and_of_the_settings() -> None:
    """An option that nothing reads, or a field that no option reaches, would be noticed here."""
    from dataclasses import fields

    from selfdistill.cli import main
    from selfdistill.cli.options import TRAINING
    from selfdistill.io.run_record import Request
    from selfdistill.training.settings import Settings

    options = {parameter.name for parameter in main.commands["run"].params}
    request, settings = ({f.name for f in fields(kind)} for kind in (Request, Settings))
    common = set(TRAINING) | {"out", "as_json", "quiet", "trust_code", "config"}
    own = {"adapt", "order", "domains", "leave_out", "verify", "warm"}
    tried = {"search", "trials", "storage", "explore", "refit", "effort", "folds", "annotators"}
    request -= {"decisions"}  # of --labels FILE
    assert options - {"product"} == (request - {"training", "update"} - own) | common  # --product is of auto()
    updates = {parameter.name for parameter in main.commands["update"].params}
    policies = {"net", "sees", "teacher", "episodes", "engine", "deployment"}
    assert updates == (request - {"training", "tasks", "audit_folds", "targets"} - own - policies - tried) | common
    shared = {
        "budget",
        "data",
        "target",
        "test",
        "augment",
        "epochs",
        "steps",
        "batch_size",
        "seed",
        "device",
        "method",
    }
    adaptations = {parameter.name for parameter in main.commands["adapt"].params}
    assert adaptations == own | shared | common | {"control", "memory", "raw_csv"}
    assert settings == set(TRAINING) | {"epochs", "steps", "batch_size", "seed"}


def test_signs_are_not_mirrored_and_a_person_may_name_the_parts() -> None:
    write_images(Path("signs"), ("A", "B"))
    write_images(Path("pets"))
    line = "the class 'A' is a letter or a digit, so images are not mirrored; `--augment flip,shift` mirrors them"
    assert line in passed("run", "signs", *PLAIN, "--out", "a").stderr
    assert "mirrored" not in passed("run", "pets", *PLAIN, "--out", "b").stderr
    assert "mirrored" not in passed("run", "signs", *PLAIN, "--augment", "crop, flip", "--out", "c").stderr
    views = [json.loads(Path(out, "run.json").read_text())["data"] for out in "abc"]
    parts = [(view["augment"], view["flips"]) for view in views]
    assert parts == [("weak", False), ("weak", True), ("flip,crop", True)]
    refusals = {
        "flip,spin": "'spin': use one of none, weak, strong",
        "noise": "'noise'",
        "flip,flip": "twice",
        "": "''",
    }
    for text, words in refusals.items():
        assert words in refused("run", "pets", *PLAIN, "--augment", text, "--out", "d")
    assert not Path("d").exists()


def test_training_options_reach_the_run() -> None:
    report("run", "digits", *PLAIN, "--lr", 0.01, "--optimizer", "sgd", "--clip", 1, "--accumulate", 2, "--out", "r")
    settings = json.loads(Path("r/run.json").read_text())["settings"]
    assert settings == {
        "lr": 0.01, "optimizer": "sgd", "clip": 1.0, "accumulate": 2, "seed": 0, "steps": 3, "batch_size": 64,
        "epochs": settings["epochs"],
    }  # fmt: skip


# ---- a process of its own: signals and pipes --------------------------------------------------------


HOSTILE = ("<script>alert(1)</script>", "x\x1b[31mred", "[red]", "[/]", "a|b\u202e", "*[a](http://a)*")


@pytest.mark.parametrize("method", ["plain()", "self_distilled()"])
def test_names_of_files_and_classes_steer_neither_terminal_nor_page(method: str, here: Path) -> None:
    name = "\x1b[2J[red]<b>.csv"
    rows = [f"{i % 6 + 0.1 * (i % 7):.2f},{i * 37 % 11},{HOSTILE[i % 6]}" for i in range(180)]
    Path(name).write_text("\n".join(["a,b,y", *rows]) + "\n", encoding="utf-8")
    model = ["--model", "linear" if method == "self_distilled()" else "mlp(width=8)"]
    length = [] if method == "self_distilled()" else ["--steps", 4]
    results = [passed("run", name, "--target", "y", *model, "--method", method, *length, "--out", "r")]
    results.append(passed("report", "r"))
    if method == "plain()":
        results += [passed("label-errors", "r"), passed("vitals", "r")]
    texts = [result.stdout + result.stderr for result in results]
    texts += [Path("r", page).read_text(encoding="utf-8") for page in ("README.md", "model/README.md", "report.html")]
    for text in texts:
        assert "\x1b" not in text
        assert "\u202e" not in text
    for text in texts[-3:]:
        assert "<script>" not in text
        assert "[a](" not in text or "<html" in text
    assert "[red]<b>" in texts[0].replace("\n", "")  # as it is, and no markup
    assert "\x1b" not in passed("predict", "r", name).stdout


def test_an_error_takes_one_line_whatever_it_names(here: Path) -> None:
    line = refused("run", "a\nb\x1b[31m.csv", "--target", "y")
    assert "\x1b" not in line


def test_a_reader_that_leaves_early_costs_no_traceback() -> None:
    for args in ("methods", "methods --json", "explain plain"):
        command = f"set -o pipefail; {sys.executable} -m selfdistill {args} | head -c 1"
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
        assert done.stdout
        assert done.stderr == ""
        assert done.returncode in (0, 1)


def begun(folder: Path, epochs: int) -> None:
    """Wait until the log has so many epochs."""
    log, patience = folder / "metrics.jsonl", time.monotonic() + 60
    while not log.exists() or log.read_text().count("\n") < epochs:
        assert time.monotonic() < patience, "the run did not begin"
        time.sleep(0.01)


LONG = ("run", "digits", "--method", "ps_kd()", "--batch-size", 128, "--epochs", 25)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    passed(*LONG, "--out", folder, "--quiet")
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on_and_ends_as_if_it_had_not_been(number: signal.Signals, whole: Path) -> None:
    process = child(*LONG, "--out", "cut", "--quiet")
    begun(Path("cut"), 2)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    assert err.count("\n") == 1
    assert "resume by `selfdistill resume cut`" in err
    assert "result" not in json.loads(Path("cut/run.json").read_text())

    assert _without_time(report("resume", "cut")) == {**_without_time(report("resume", whole)), "run": "cut"}
    for name in ("model/model.safetensors", "metrics.jsonl", "control/metrics.jsonl"):
        assert (Path("cut") / name).read_bytes() == (whole / name).read_bytes()


def _without_time(result: dict[str, Any]) -> dict[str, Any]:
    return {k: _without_time(v) if k == "plain" else v for k, v in result.items() if k != "seconds"}


def test_a_run_that_is_stopped_between_trainings_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from selfdistill.experiments.network_run import NetworkRun

    def stopped(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(NetworkRun, "_result", stopped)
        result = invoke("run", "digits", *ELR, "--out", "r", "--quiet")
    assert result.exit_code == 130
    assert result.stderr == "selfdistill: stopped; resume by `selfdistill resume r`\n"
    assert report("resume", "r")["test"]["accuracy"] >= 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_of_a_learner_that_is_stopped_says_how_to_go_on(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    from selfdistill.estimators import run

    write_tables(Path())
    with monkeypatch.context() as patch:
        patch.setattr(run, "fit", lambda *args: signal.raise_signal(number))
        result = invoke("run", "t.csv", "--target", "outcome", "--out", "r", "--quiet")
    assert result.exit_code == 130
    assert result.stderr == "selfdistill: stopped; resume by `selfdistill resume r`\n"
    assert not list(Path("r").glob("model/*"))
