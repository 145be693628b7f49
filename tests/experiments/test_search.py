"""The search of a recipe's arguments: its ranges, its trials on paired folds, its resumption, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfdistill.errors import CheckpointError, DataError, NotFiniteError, RecipeError
from selfdistill.experiments import search
from selfdistill.experiments.run import Run
from selfdistill.experiments.search import parse_space
from selfdistill.io.run_record import Request
from tests.terminal import refused

pytest.importorskip("optuna")

SEARCH = Request(search="elr(weight={1,3})", labels=60, steps=4)


def done(request: Request, out: Path, lines: list[str] | None = None) -> dict[str, Any]:
    return Run.create(request, out).execute(warn=(lines if lines is not None else []).append)


def test_ranges_are_whole_or_real_by_their_literals() -> None:
    whole, real, log, listed = parse_space("f(a=1..10, b=0.5..2, c=1e-3..10 log, d={True, 'x'})").dimensions
    assert (whole.whole, real.whole, log.whole) == (True, False, False)
    assert (log.low, log.high, log.log, real.log) == (0.001, 10.0, True, False)
    assert listed.choices == ("True", "'x'")
    assert parse_space("f(a=1..10, d={1,2})").grid() == 20
    assert parse_space("f(a=1.0..10)").grid() is None
    assert [d.name for d in parse_space("f(g(a=1..2), h(a=1..2), 3..4)").dimensions] == ["a", "a 2", "3"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("elr(weight=10..1)", "10 is not below 1"), ("elr(weight=1..1)", "1 is not below 1"),
        ("elr(weight=0..1 log)", "logarithm of 0"), ("elr(weight=1..)", "a range is no|no range"),
        ("elr(weight=1)", "no range"), ("elr(weight={1})", "no list of two"), ("elr(weight={1,1})", "no list of two"),
        ("elr(weight={})", "no list of two"), ("elr(weight={1,,2})", "no list of two"),
        ("elr(weight=1..2, lam=..)", "not understood"), ("elr(weight={1,2)", "no range"),
        ("elr(weight=1..1e999)", "no values"), ("", "no range"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_from_is_refused_in_one_line(text: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=part):
        done(Request(search=text, steps=2), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("request_", "part"),
    [
        (Request(search="elr(weight=-1..3)", steps=2), "weight"),
        (Request(search="elr(nothing=1..3)", steps=2), "nothing"),
        (Request(search="elrr(weight=1..3)", steps=2), "elrr"),
        (Request(search="elr(weight=1..3)", method="elr()", steps=2), "give one of them"),
        (Request(trials=3, steps=2), "--trials counts"),
        (Request(storage="s.log", steps=2), "--storage keeps"),
        (Request(search="der_pp(alpha=0.1..0.5)", tasks=2, steps=2), "not for streams"),
        (Request(method="elr()", explore=0.5, steps=2), "--explore bounds"),
    ],
)  # fmt: skip
def test_a_search_that_does_not_fit_is_refused_before_training(request_: Request, part: str, tmp_path: Path) -> None:
    with pytest.raises((DataError, RecipeError), match=part):
        done(request_, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    line = refused("run", "digits", "--search", "elr(weight=1..3)", "--out", tmp_path / "run")
    assert "pip install 'selfdistill[search]'" in line


def test_every_combination_of_lists_is_tried_on_the_same_folds_and_the_winner_is_trained(tmp_path: Path) -> None:
    result = done(SEARCH, tmp_path / "run")
    found = result["search"]
    assert found["sampler"] == "GridSampler"
    assert sorted(t["expression"] for t in found["trials"]) == ["elr(weight=1)", "elr(weight=3)"]
    best = min(found["trials"], key=lambda t: t["loss"])
    assert result["method"] == best["expression"]
    assert json.loads((tmp_path / "run/run.json").read_text())["method"] == best["expression"]
    assert result["exploration"]["trying"] >= found["passes"] > 0  # more where plain is the final model
    assert "tried something out" in (tmp_path / "run/README.md").read_text()
    assert not [path for path in (tmp_path / "run").rglob("*") if path.suffix in (".pkl", ".pickle", ".db")]


def test_a_killed_search_goes_on_and_ends_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = Request(search="elr(weight=0.5..5 log)", trials=3, labels=60, steps=3)
    whole = done(request, tmp_path / "whole")
    held_out, calls = search._try, 0

    def killed(trial: Any, expression: str, by: Any, folds: int) -> float:
        def cut(fold: int) -> Any:
            nonlocal calls
            calls += 1
            if calls == 8:  # in the second trial
                raise KeyboardInterrupt
            return by(fold)

        return held_out(trial, expression, cut, folds)

    with monkeypatch.context() as patch:
        patch.setattr(search, "_try", killed)
        with pytest.raises(KeyboardInterrupt):
            done(request, tmp_path / "cut")
    again = done(request, tmp_path / "cut")
    assert again["search"] == whole["search"]
    assert again["test"] == whole["test"]


@pytest.mark.parametrize("storage", ["sqlite:///{}/trials.db", "{}/trials.log"])
def test_a_storage_outside_is_read_by_optuna_and_survives_kills(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in a trial and as that trial was put back, then stopped: no combination is lost or there twice."""
    import optuna

    place = storage.format(tmp_path)
    request = replace(SEARCH, search="elr(weight={1,3}, decay={0.5,0.7})", audit_folds=2, steps=2)
    request = replace(request, storage=place)

    for target, name in ((search, "_try"), (optuna.Study, "tell")):
        if (child := os.fork()) == 0:  # a process that ends where it stands, as by SIGKILL
            setattr(target, name, lambda *args, **options: os._exit(9))
            done(request, tmp_path / "run")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    held_out, calls = search._try, 0

    def stopped(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise KeyboardInterrupt
        return held_out(*args)

    with monkeypatch.context() as patch:
        patch.setattr(search, "_try", stopped)
        with pytest.raises(KeyboardInterrupt):
            done(request, tmp_path / "run")
    found = done(request, tmp_path / "run")["search"]
    assert len({t["expression"] for t in found["trials"]}) == len(found["trials"]) == 4
    name = search.study_name(request)
    script = (
        "import json, optuna, sys; from optuna.storages.journal import JournalFileBackend as File; "
        "place, name = sys.argv[1:]; "
        "storage = place if '://' in place else optuna.storages.JournalStorage(File(place)); "
        "study = optuna.load_study(study_name=name, storage=storage); "
        "print(json.dumps([[t.user_attrs['expression'], t.value] for t in study.get_trials() if t.state.name == "
        "'COMPLETE']))"
    )
    read = subprocess.run([sys.executable, "-c", script, place, name], capture_output=True, text=True, check=True)
    assert json.loads(read.stdout) == [[t["expression"], t["loss"]] for t in found["trials"]]
    assert not (tmp_path / "run/search/journal.log").exists()
    seeds = [search.study_name(replace(request, seed=seed)) for seed in (0, 1)]
    assert seeds[0] == name != seeds[1]


@pytest.mark.parametrize(
    ("storage", "part"),
    [("postgresql://host/trials", "neither a file nor sqlite"), ("no/where.db", "cannot be written")],
)
def test_a_storage_that_cannot_be_one_is_refused(storage: str, part: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=part):
        done(replace(SEARCH, storage=storage), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", ["{\n", "[1]\n", '{"op_code": 99}\n'])
def test_a_damaged_storage_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "search").mkdir()
    (tmp_path / "search/journal.log").write_text(text)
    with pytest.raises(CheckpointError, match="damaged or foreign"):
        search._study(tmp_path / "search", SEARCH, 0.1)


def test_learners_on_a_table_are_searched_too(tmp_path: Path) -> None:
    request = Request("diabetes", search="self_distilled(peers=None, xi={0.3,0.6})", model="linear", labels=40)
    result = done(request, tmp_path / "run")
    assert result["search"]["folds"] == 5
    assert len(result["search"]["trials"]) == 2
    assert result["method"].startswith("self_distilled(peers=None, xi=0.")


def test_a_share_of_trying_bounds_the_trials(tmp_path: Path) -> None:
    lines: list[str] = []
    request = Request(search="elr(weight=1..10)", trials=9, labels=60, steps=2, explore=0.9)
    result = done(request, tmp_path / "run", lines)
    assert len(result["search"]["trials"]) == 1  # five folds and the winner: 5 of 6 trainings try
    assert "--explore 0.9: 1 trials in place of 9" in lines


def test_a_budget_bounds_the_search_and_its_winner(tmp_path: Path) -> None:
    request = Request(search="elr(weight=1..10)", trials=2, labels=60, steps=200, budget="20000passes")
    result = done(request, tmp_path / "run")
    assert result["budget"]["passes"] <= 20000
    assert result["budget"]["cut"]
    assert result["steps"] == result["plain"]["steps"]


def test_a_trial_that_diverges_is_the_worst_of_all_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = search._try

    def diverging(trial: Any, expression: str, by: Any, folds: int) -> float:
        if "weight=1" in expression:
            raise NotFiniteError("the loss is nan at generation 0, step 1")
        return train(trial, expression, by, folds)

    monkeypatch.setattr(search, "_try", diverging)
    lines: list[str] = []
    result = done(replace(SEARCH, audit_folds=2), tmp_path / "run", lines)
    assert result["method"] == "elr(weight=3)"
    assert sum(bool(t["trouble"]) for t in result["search"]["trials"]) == 1
    assert "elr(weight=1): the loss is nan at generation 0, step 1" in lines


def test_a_share_of_trying_that_bounds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--explore is for networks"):
        done(Request("diabetes", model="linear", labels=40, explore=0.5), tmp_path / "run")
