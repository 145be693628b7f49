"""Options from a file: what a key may be, that the command line wins, and that a run folder's file repeats the run."""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from selfdistill.errors import CheckpointError
from selfdistill.experiments.compare.runner import Comparison, comparison_options
from selfdistill.experiments.run import Run
from selfdistill.io.run_config import FILE, request_options, toml_text
from selfdistill.io.run_record import Request
from selfdistill.training.comparison import ComparisonSettings
from tests.terminal import MODELS, invoke, passed, refused, report, write_tables


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(text: str, name: str = "c.toml") -> str:
    Path(name).write_text(text)
    return name


def test_the_file_of_a_run_repeats_it_bit_for_bit() -> None:
    given = ("--method", "elr()", "--steps", 4, "--labels", 100, "--label-noise", 0.25, "--lr", 1e-5, "--no-control")
    first = report("run", "digits", *given, "--budget", "1h", "--budget", "8GiB", "--clip", 0.5, "--out", "a")
    second = report("run", "--config", "a/run.toml", "--out", "b")
    assert second["test"] == first["test"]
    weights = "model/model.safetensors"
    assert Path("a", weights).read_bytes() == Path("b", weights).read_bytes()
    requests = [json.loads(Path(out, "run.json").read_text())["request"] for out in "ab"]
    assert requests[0] == requests[1]
    assert Path("a", FILE).read_text() == Path("b", FILE).read_text()


def test_the_command_line_comes_first() -> None:
    name = written('data = "digits"\nmethod = "plain()"\nsteps = 9\nseed = 3\ncontrol = false\nlabels = ["100"]\n')
    report("run", "--config", name, "--steps", 2, "--control", "--labels", 60, "--out", "r")
    request = json.loads(Path("r/run.json").read_text())["request"]
    assert (request["steps"], request["seed"], request["control"], request["labels"]) == (2, 3, True, 60)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("lable-noise = 0.3", ["c.toml", "'lable-noise'", "no option of run", "'label-noise'"]),
        ("batch_size = 8", ["'batch_size'", "'batch-size'"]),
        ("no-control = true", ["'no-control'", "'control'"]),
        ("steps = 1.5", ["c.toml", "steps", "'1.5'"]),
        ("steps = true", ["c.toml", "steps", "neither a text nor a number"]),
        ("steps = [1]", ["steps", "[1]"]),
        ("control = 1", ["control", "neither true nor false"]),
        ('optimizer = "adam"', ["optimizer", "adamw"]),
        ("[training]\nlr = 1", ["'training'", "no option"]),
        ("trust-code = true", ["trust-code", "command line alone"]),
        ('config = "d.toml"', ["'config'", "no option"]),
        ("steps = ", ["c.toml", "no TOML"]),
    ],
)
def test_what_a_file_may_not_say_is_one_line(text: str, parts: list[str]) -> None:
    line = refused("run", "digits", "--config", written(text))
    for part in parts:
        assert part in line
    assert not Path("runs").exists()


def test_a_file_that_cannot_be_read_is_one_line(here: Path) -> None:
    assert "No such file" in refused("run", "--config", "nowhere.toml")
    (here / "latin.toml").write_bytes(b'data = "\xe9"')
    assert "UTF-8" in refused("run", "--config", "latin.toml")


def test_code_that_a_file_names_needs_trust(here: Path) -> None:
    (here / "odd.py").write_text(f"open('ran', 'a').close()\n{MODELS}")
    name = written('data = "digits"\nmodel = "odd:good"\nmethod = "plain()"\nsteps = 2\ncontrol = false\n')
    other = written('data = "digits"\nmodel = "odd:good"\nmethods = "plain()"\nseeds = 3\n', "d.toml")
    third = written('source = "digits"\nmodel = "odd:good"\nsteps = 2\n', "e.toml")
    for command in (("run", "--config", name), ("compare", "--config", other), ("label-errors", "--config", third)):
        assert "names odd:good, code that is not part of selfdistill" in refused(*command)
    assert not Path("ran").exists()
    passed("run", "--config", name, "--trust-code", "--out", "r", "--quiet")
    request = Run.open("r").request
    with pytest.raises(CheckpointError, match="--trust-code"):
        Run.create(request, "s", source=Path("r/run.toml")).execute()


def test_label_errors_and_comparisons_read_a_file_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tables(here)
    made = list[Any]()

    def stop(run: Any, *rest: Any) -> dict[str, Any]:
        made.append(run)
        raise KeyboardInterrupt

    monkeypatch.setattr("selfdistill.cli.progress.execute", stop)
    monkeypatch.setattr(Comparison, "execute", stop)
    table = 'target = "outcome"\nmodel = "linear"\n'
    name = written(f'data = "t.csv"\n{table}method = "plain()"\nfolds = 3\ntop = 3\n')
    assert invoke("label-errors", "--config", name).exit_code == 130
    assert made.pop().request == Request("t.csv", **TABLE, method="plain()", folds=3, control=False)
    settings = ComparisonSettings(("self_distilled()", "plain()"), (4, 5, 6), "trainings", 0.1)
    options = comparison_options(Request("t.csv", **TABLE, seed=4), settings)
    assert invoke("compare", "--config", written(toml_text(options))).exit_code == 130
    assert (made[0].settings, made[0].request) == (settings, Request("t.csv", **TABLE, seed=4))


TABLE: dict[str, Any] = {"target": "outcome", "model": "linear"}

SAMPLES: dict[str, Any] = {
    "labels": 60, "decisions": "decided.csv", "columns": (("a b", "numeric"), ("c", "date")),
    "fields": (("prompt", "question"),), "budget": "10min|4GiB", "deployment": "sampled", "lora": 0, "tasks": "site",
    "storage": "sqlite:///s.db", "tune": "head",
    "training": (("cache", False), ("clip", 0.1), ("compile", True), ("save_steps", 3)),
}  # fmt: skip


@pytest.mark.parametrize("command", ["run", "update", "adapt"])
def test_every_field_of_a_request_returns_through_a_file(
    command: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command's own reader of options: a field that its file left out would be another request."""
    from selfdistill.cli import commands, main

    (here / "decided.csv").write_text("row\n")
    usual, options = Request(), {parameter.name for parameter in main.commands[command].params}
    texts = {"model": "linear", "save": "both", "alarms": "stop", "dtype": "float16", "engine": "a2c", "refit": "all"}
    sample = dict[str, Any]({command: "old"} if command != "run" else {})
    for field in fields(Request):
        value = vars(usual)[field.name]
        kind = str(field.type)
        guess = not value if isinstance(value, bool) else 0.25 if "float" in kind else 9 if "str" not in kind else "a"
        sample.setdefault(field.name, SAMPLES.get(field.name, texts.get(field.name, guess)))
    sample |= {"epochs": None, "effort": "quick", "tune": "full", "seed": 7, "data": "d\x7f\\\n.csv"}
    missing = {name for name in sample if name not in options} - {"training", "decisions"}
    if command == "adapt":
        missing |= {"labels", "decisions"}
    request = replace(usual, **{name: value for name, value in sample.items() if name not in missing})
    found = list[Request]()
    monkeypatch.setattr(commands, "_execute", lambda run, *rest: found.append(run.request))
    monkeypatch.setattr(Run, "create", lambda request, out, source: Run(Path("r"), request))
    passed(command, "--config", written(toml_text(request_options(request))))
    assert found == [request]


PLAIN = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.dictionaries(
        st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True),
        st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | PLAIN | st.lists(PLAIN),
    )
)
def test_what_is_written_is_toml(options: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(options)) == options


def test_a_name_that_is_no_unicode_becomes_a_comment() -> None:
    assert tomllib.loads(toml_text({"data": "a\udcff.csv", "steps": 3})) == {"steps": 3}
