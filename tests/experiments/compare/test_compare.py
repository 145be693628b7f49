"""Comparisons that really train: matched compute, equal pairs, killed and continued, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from selfdistill.data.dataset import load
from selfdistill.errors import CheckpointError, DataError, RecipeError, SelfdistillError, SpaceError, VitalsError
from selfdistill.experiments.compare import compare, runner
from selfdistill.experiments.network_task import larger, planned
from selfdistill.experiments.run import Run
from selfdistill.io.run_record import Request
from selfdistill.io.trust import trust_code
from selfdistill.models.registry import parse
from selfdistill.training.budget import Meter
from selfdistill.training.comparison import ComparisonSettings, Job, check
from tests.terminal import MODELS, child, passed, refused

METHODS = ["born_again()", "mutual()"]
FLAGS = ["digits", "--labels", "100", "--steps", "12", "--model", "mlp(width=16)", "--seeds", "3"]
REQUEST = Request("digits", labels=100, steps=12, model="mlp(width=16)")


def ended_from_outside(*anything: Any) -> None:
    os._exit(9)


def refused_by_a_vital(job: Job, *anything: Any) -> None:
    with runner.named(job):
        raise VitalsError("uniform-target", "uniform-target: term 'past': it is uniform; softmax once")


def without_times(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "comparison.json").read_text())
    found.pop("times")
    found.pop("command")
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compare") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "cores", lambda: 1)  # one after the other; the one that is killed has processes
        done = passed("compare", *FLAGS, "--methods", *METHODS, "--out", folder, "--json", folder.parent / "out.json")
    assert "3 seeds cannot pass an exact test" in done.stderr
    said = " ".join(done.stdout.split())
    assert "born_again(): in accuracy, TIES with plain" in said
    assert "With so few seeds every verdict is a tie" in said
    assert "…" not in done.stdout  # 80 columns wide, and no figure is cut
    assert json.loads((folder.parent / "out.json").read_text()) == json.loads((folder / "comparison.json").read_text())
    return folder


def test_every_row_is_there_and_matched(whole: Path) -> None:
    found = without_times(whole)
    names = [row["name"] for row in found["rows"]]
    assert names == [
        *METHODS, "plain", "plain, longer", "label smoothing", "EMA weights", "early stopping", "weight decay",
        "independent, averaged", "distil from larger",
    ]  # fmt: skip
    amount = found["budget"]["amount"]
    for row in found["rows"]:
        assert set(row["metrics"]) == {"accuracy", "nll", "ece", "brier", "aurc", "gap"}
        total = row["passes"]["total"]
        if row["name"] == "weight decay":
            total /= 4  # four of them, each with the whole budget
        if row["name"] != "plain":
            assert total == pytest.approx(amount, rel=0.06), row["name"]
    assert found["rows"][-1]["passes"]["with_teacher_training"] > amount
    assert found["best_control"]["name"] in names[2:]


def test_pairs_start_alike(whole: Path) -> None:
    """The first member of the ensemble is the plain model of its seed; the longer plain run has the same data."""
    cells = [json.loads(p.read_text()) for p in (whole / "cells").glob("*/1/cell.json")]
    assert len({cell["data"]["fingerprint"] for cell in cells}) == 1
    other = json.loads(next((whole / "cells").glob("plain-*/2/cell.json")).read_text())
    assert other["data"]["fingerprint"] != cells[0]["data"]["fingerprint"]
    assert not list(whole.glob("cells/*/*/training"))


def test_killed_and_continued_it_says_the_same(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun in processes and gone on with in this one, it is what one process made alone."""
    folder = tmp_path / "cut"
    flags = ("compare", *FLAGS, "--methods", *METHODS, "--out", folder, "--quiet")
    running = child(*flags, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and len(list(folder.glob("cells/*/*/cell.json"))) < 6:
        time.sleep(0.05)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    assert not (folder / "comparison.json").exists()
    done = {p: p.stat().st_mtime_ns for p in folder.glob("cells/*/*/cell.json")}
    monkeypatch.setattr(runner, "cores", lambda: 1)
    compare(REQUEST, METHODS, seeds=3, out=folder)
    assert without_times(folder) == without_times(whole)
    assert all(p.stat().st_mtime_ns == before for p, before in done.items())  # not computed again


def test_another_question_in_the_same_folder_is_refused(whole: Path) -> None:
    with pytest.raises(DataError, match=r"other settings .*steps 12, now 13"):
        compare(replace(REQUEST, steps=13), METHODS, seeds=3, out=whole)
    with pytest.raises(DataError, match=r"other settings .*seeds"):
        compare(REQUEST, METHODS, seeds=4, out=whole)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--seeds", "2"], "2 different seeds allow no verdict"),
        (["--methods", "nonsense()"], "nonsense"),
        (["--methods", "plain()", "plain()"], "twice"),
    ],
    ids=["seeds", "method", "twice"],
)
def test_what_cannot_be_compared_takes_one_line(more: list[str], said: str, tmp_path: Path) -> None:
    flags = [*FLAGS, *([] if "--methods" in more else ["--methods", "elr()"])]
    assert said in refused("compare", *flags, *more, "--out", tmp_path / "out", "--quiet")
    assert not (tmp_path / "out").exists()


def test_a_method_that_does_not_fit_the_model_is_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd.py").write_text(MODELS)
    monkeypatch.setattr(runner, "run_jobs", lambda *args, **more: pytest.fail("something was trained"))
    with trust_code(), pytest.raises(SpaceError, match=r"^mixskd\(\): the model has no early exits"):
        compare(Request("digits", model="odd:good", steps=4), ["plain()", "mixskd()"], seeds=3, out="out")
    assert not Path("out").exists()


def test_an_audit_split_without_a_class_is_named_with_its_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from selfdistill.experiments import network_task
    from selfdistill.experiments.network_run import prepare as whole

    def poorer(request: Request) -> Any:
        ready = whole(request)
        data = ready.data
        few = replace(data, audit=data.audit[data.y[data.audit] != 4])
        return replace(ready, data=few) if request.seed == 2 else ready

    monkeypatch.setattr(network_task, "prepare", poorer)
    with pytest.raises(DataError, match=r"digits, seed 2: the audit split of .* has none of class 4"):
        compare(REQUEST, METHODS, seeds=3, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_place_for_the_json_that_is_none_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere" / "out.json"
    line = refused("compare", *FLAGS, "--methods", *METHODS, "--out", tmp_path / "out", "--json", nowhere)
    assert line == f"{nowhere} cannot be written (its folder does not exist); give another --json"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("ends", "error", "said"),
    [
        (ended_from_outside, CheckpointError, "was killed.*same command again"),
        (refused_by_a_vital, VitalsError, r"^[^:]+, seed 0: uniform-target: .*softmax once"),  # whichever ends first
    ],
    ids=["killed", "refused"],
)
def test_a_training_that_ends_badly_in_its_process_takes_one_line(
    ends: Any, error: type[Exception], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_work", ends)
    found = runner.Comparison.create(REQUEST, ComparisonSettings(tuple(METHODS), (0, 1, 2)), tmp_path / "out")
    monkeypatch.setattr(runner, "cores", lambda: 2)
    with pytest.raises(error, match=said) as caught:
        found.execute()
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out").exists() == (error is CheckpointError)  # it may go on; a corrected one may begin there


def test_a_damaged_record_is_named(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    broken = next(folder.glob("cells/plain-*/1/times.json"))
    broken.write_text("{")
    with pytest.raises(CheckpointError, match=r"times.json is damaged .*; delete .* and go on"):
        compare(REQUEST, METHODS, seeds=3, out=folder)


WRONG: tuple[Any, ...] = (None, -1, "x", [3], {}, 10**30)


@pytest.mark.parametrize("file", ["plan.json", "cell.json", "times.json"])
def test_a_record_with_a_wrong_field_takes_one_line(file: str, whole: Path, tmp_path: Path) -> None:
    """Every field in turn becomes something else, or is missing: it is fit for use, or refused."""
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder)
    path = folder / file if file == "plan.json" else next(folder.glob(f"cells/plain-*/1/{file}"))
    text, ended = path.read_text(), 0
    for spot in spots(json.loads(text), 3 if file == "plan.json" else 2):
        for wrong in (*(WRONG if file == "plan.json" else WRONG[:2]), "missing"):
            record = json.loads(text)
            place = record
            for key in spot[:-1]:
                place = place[key]
            if wrong == "missing":
                del place[spot[-1]]
            elif type(wrong) is type(place[spot[-1]]) and spot[0] == "jobs":
                continue  # another job, which would be trained
            else:
                place[spot[-1]] = wrong
            path.write_text(json.dumps(record))
            for made in ("comparison.json", "README.md", "index.html"):
                (folder / made).unlink(missing_ok=True)
            try:
                compare(REQUEST, METHODS, seeds=3, out=folder)
            except SelfdistillError as error:
                assert "\n" not in str(error)
                ended += 1
    assert ended > (2 if file == "times.json" else 10)


def spots(record: Any, deep: int) -> Iterator[list[Any]]:
    """The ways to the fields of a record; of lists to the first entry alone."""
    fields = record.items() if isinstance(record, dict) else enumerate(record[:1]) if isinstance(record, list) else ()
    for key, value in fields if deep else ():
        yield [key]
        yield from ([key, *rest] for rest in spots(value, deep - 1))


def test_the_plan_gives_the_cheaper_method_more_steps() -> None:
    ask = ComparisonSettings(("a()", "b()"), (0, 1, 2))
    amount, jobs = planned(ask, 100, {"a()": 900.0, "b()": 300.0, "plain": 300.0, "distil from larger": 450.0})
    steps = {job.name: job.steps for job in jobs}
    assert amount == 900.0
    assert steps["a()"] == 100
    assert steps["b()"] == steps["plain, longer"] == 300
    assert steps["distil from larger"] == 200
    assert steps["plain"] == 100
    assert jobs[-1].count == 3


def test_an_ablation_trains_methods_with_peers_without_them_beside_the_controls(
    whole: Path, tmp_path: Path, one_core: None
) -> None:
    """At equal passes; the verdicts, the budget and the controls are those of the comparison without it."""
    folder = shutil.copytree(whole, tmp_path / "whole")
    with pytest.raises(DataError, match="other settings"):
        compare(REQUEST, METHODS, seeds=3, ablation=True, out=folder)
    plan = json.loads((folder / "plan.json").read_text())
    plan["asked"]["ablation"], plan["jobs"] = True, None
    (folder / "plan.json").write_text(json.dumps(plan))  # so the finished trainings are not trained again
    found, usual = compare(REQUEST, METHODS, seeds=3, ablation=True, out=folder), without_times(whole)
    rows = {row["name"]: row for row in found["rows"]}
    arms = [name for name, row in rows.items() if row["kind"] == "ablation"]
    assert arms == ["mutual(), own predictions", "mutual(), peers and own predictions"]
    for name in arms:
        assert rows[name]["passes"]["total"] == pytest.approx(found["budget"]["amount"], rel=0.06)
        assert rows[name]["steps"] < rows["mutual()"]["steps"]  # the average of the weights costs a pass
    assert [row["name"] for row in usual["rows"]] == [name for name in rows if name not in arms]
    for key in ("verdict", "best_control", "budget", "references"):
        assert found[key] == usual[key]
    (one,) = found["ablation"]
    assert (one["method"], [row["name"] for row in one["rows"]]) == ("mutual()", arms)
    difference = one["rows"][0]["against"]["accuracy"]["difference"]
    means = [rows[name]["metrics"]["accuracy"]["mean"] for name in (arms[0], "mutual()")]
    assert difference == pytest.approx(means[0] - means[1])
    assert "Ablation of the peers" in (folder / "report.html").read_text()
    assert "Ablation of the peers" not in (whole / "report.html").read_text()
    assert "ablation" not in usual


@pytest.mark.parametrize(
    ("data", "methods", "said"),
    [
        ("digits", ["elr()", "plain()"], "no peer teaches in elr() or plain()"),
        ("digits", ["auto()"], "no peer teaches in auto()"),
        ("diabetes", ["self_distilled(peers=None)"], "no peer teaches in self_distilled(peers=None)"),
        ("gym:CartPole-v1", ["policy_peers()"], "--ablation is for networks and learners"),
        ("prompts.jsonl", ["sdft()"], "--ablation is for networks and learners"),
    ],
)
def test_an_ablation_without_peers_is_refused_before_any_training(
    data: str, methods: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "1+1=", "completion": "2"}\n' * 30)
    flags = ("--model", "tests.terminal:model") if data.endswith("jsonl") else ()
    assert said in refused(
        "compare", data, "--methods", *methods, *flags, "--seeds", "3", "--ablation", "--out", "out", "--quiet"
    )
    assert not (tmp_path / "out").exists()


def test_jobs_of_other_lengths_have_other_folders() -> None:
    assert Job("plain", "plain", 10, 0).key != Job("plain", "plain", 11, 0).key
    assert Job("ps_kd()", "method", 10, 0).key.split("/")[0] == Job("ps_kd()", "method", 10, 1).key.split("/")[0]


def test_a_budget_of_no_kind_and_a_model_without_width_are_refused() -> None:
    with pytest.raises(DataError, match="passes, steps, seconds, completions, tokens or trainings"):
        check(ComparisonSettings(("elr()",), (0, 1, 2), match="money"))
    data = load("digits")
    assert str(larger(parse("mlp(width=8)", data.shape, 10))) == "mlp(width=16)"
    with pytest.raises(RecipeError, match="no width"):
        larger(parse("tests.harness:build", data.shape, 10))


def test_a_comparison_is_not_gone_on_with_as_a_run(whole: Path) -> None:
    with pytest.raises(CheckpointError, match="is a comparison; give the same compare command again"):
        Run.open(whole)


@pytest.fixture
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "cores", lambda: 1)


def test_a_budget_takes_seeds_then_steps_and_holds(tmp_path: Path, one_core: None) -> None:
    request = replace(REQUEST, steps=100, budget="50000passes")
    result = compare(request, ["elr()"], seeds=9, out=tmp_path / "c")
    steps = next(row["steps"] for row in result["rows"] if row["name"] == "plain")
    assert len(result["seeds"]) == 6  # the fewest with which a verdict is possible
    assert steps < 100
    assert result["bound"]["cut"] == [
        "6 seeds in place of 9: no more fit", f"{steps} steps in place of 100: no more fit",
    ]  # fmt: skip
    assert result["bound"]["passes"] <= 50000
    assert f"{steps} steps in place of 100" in (tmp_path / "c/report.html").read_text()
    again = compare(request, ["elr()"], seeds=9, out=tmp_path / "c")
    assert [row["metrics"] for row in again["rows"]] == [row["metrics"] for row in result["rows"]]


def test_a_comparison_whose_time_is_over_keeps_complete_seeds_and_goes_on_with_a_larger_budget(
    tmp_path: Path, one_core: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(REQUEST, steps=4, budget="10h")
    affords, cells = Meter.affords, 0

    def ending(self: Any, cost: Any) -> bool:
        nonlocal cells
        cells += 1
        return cells < 12

    with monkeypatch.context() as patch:
        patch.setattr(Meter, "affords", ending)
        with pytest.raises(DataError, match="used up before three seeds are complete"):
            compare(request, ["elr()"], seeds=4, out=tmp_path / "c")
    assert Meter.affords is affords
    result = compare(replace(request, budget="11h"), ["elr()"], seeds=4, out=tmp_path / "c")
    assert len(result["seeds"]) == 4


def test_words_that_name_what_is_matched_and_bounds_go_together(tmp_path: Path) -> None:
    flags = ["--methods", "elr()", "--out", tmp_path / "c"]
    assert "bounds nothing" in refused("compare", *FLAGS, *flags, "--budget", "steps", "--budget", "0s")
    assert "--match is one of" in refused("compare", *FLAGS, *flags, "--match", "passes", "--budget", "seconds")
    assert "no known unit" in refused("compare", *FLAGS, *flags, "--budget", "money")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--label-curve 50", ["two numbers of labels"]),
        ("--label-curve 50,50", ["each once"]),
        ("--label-curve 50,many", ["'50,many'", "25,50,100,200"]),
        ("--label-curve 5,50", ["5 labels for 10 classes"]),
        ("--label-curve 50,5000", ["5000", "1097"]),
        ("--label-curve 50,100 --labels 9", ["--labels", "leave it out"]),
        ("--label-curve 50,100 --budget 1h", ["--budget", "leave it out"]),
    ],
)
def test_a_label_curve_that_cannot_be_is_refused_before_any_training(
    options: str, words: list[str], tmp_path: Path
) -> None:
    line = refused(
        "compare",
        "digits",
        "--methods",
        "elr()",
        "--seeds",
        "3",
        "--steps",
        "2",
        "--out",
        tmp_path / "c",
        *options.split(),
    )
    for word in words:
        assert word in line
    assert not (tmp_path / "c").exists()


def test_a_label_curve_is_not_mixed_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    line = refused(
        "compare", "digits", "--methods", "elr()", "--seeds", "3", "--label-curve", "50,100", "--out", tmp_path
    )
    assert "no label curve" in line
