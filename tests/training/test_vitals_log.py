"""Vitals over time: the lines of the log, their reading, and the command."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.speed import vitals
from selfdistill import fit
from selfdistill.core.objective import Method
from selfdistill.core.parts import Term
from selfdistill.core.vitals import TermHealth, interval
from selfdistill.errors import CheckpointError, VitalsError
from selfdistill.gates import Confident
from selfdistill.losses import CrossEntropy
from selfdistill.methods import born_again
from selfdistill.teachers import CurrentStudent, Labels
from selfdistill.training import callbacks
from tests.harness import build, tiny_data
from tests.terminal import passed, refused


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_an_interval_holds_what_was_added_since_the_last_one() -> None:
    pulses = {"a": TermHealth(), "b": TermHealth()}
    pulses["a"].add("disagreement", 0.5)
    pulses["a"].add("pull", 3.0)
    pulses["b"].add("pull", 1.0)
    assert interval(pulses)["a"] == {"disagreement": 0.5, "gradient_share": 0.75}
    assert interval(pulses) == {}
    pulses["a"].add("disagreement", 0.1)
    pulses["a"].add("disagreement", 0.3)
    assert interval(pulses)["a"]["disagreement"] == pytest.approx(0.2)
    assert pulses["a"].mean("disagreement") == pytest.approx(0.3)  # the whole reading goes on


def test_epochs_with_looks_have_vitals_in_the_log(tmp_path: Path) -> None:
    data = tiny_data()
    fit(build, data, Method({"label": Term(Labels(), CrossEntropy())}), out=tmp_path, epochs=8, batch_size=8)
    lines = lines_of(tmp_path)
    per_epoch = lines[0]["step"]
    looks = [1, 2, 4, 8, 16, 32, *range(50, 8 * per_epoch + 1, 50)]
    for line in lines:
        due = any(line["step"] - per_epoch < step <= line["step"] for step in looks)
        assert ("vitals" in line) == due
    assert lines[0]["vitals"]["label"]["gradient_share"] == 1.0


def test_no_vitals_looks_at_nothing(tmp_path: Path) -> None:
    fit(
        build,
        tiny_data(),
        Method({"label": Term(Labels(), CrossEntropy())}),
        out=tmp_path,
        epochs=2,
        batch_size=8,
        vitals=False,
    )
    assert all("vitals" not in line for line in lines_of(tmp_path))


def test_a_warning_is_told_once_a_generation(tmp_path: Path) -> None:
    never = Term(CurrentStudent(view="x"), CrossEntropy(hard=True), gate=Confident(1.0))
    method = Method({"label": Term(Labels(), CrossEntropy()), "never": never})
    told: list[str] = []
    fit(build, tiny_data(), method, out=tmp_path, epochs=30, batch_size=8, warn=told.append)
    said = [line for line in told if "kept nothing" in line]
    assert len(said) == 1
    assert sum("kept nothing" in w for line in lines_of(tmp_path) for w in line.get("warnings", [])) == 1
    # the count of looks differs from line to line, and is not what makes a warning new
    again = callbacks.vitals_entry({"t": _silent()}, [{"generation": 0, "warnings": [_warning(7)]}], 0)
    assert "warnings" not in again
    assert callbacks.vitals_entry({"t": _silent()}, [{"generation": 0, "warnings": [_warning(7)]}], 1)["warnings"] == [
        _warning(5)
    ]


def _silent() -> TermHealth:
    pulse = TermHealth(looks=5, valid=5.0, weighs=True)
    pulse.add("kept", 0.0)
    return pulse


def _warning(looks: int) -> str:
    return f"the gate of term 't' kept nothing in {looks} looks"


def test_the_command_reads_a_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["--labels", "80", "--epochs", "2", "--method", "born_again()", "--no-control", "--quiet"]
    passed("run", "digits", *options, "--out", run)
    shown = passed("vitals", run)
    assert "generation 1, " in shown.stdout
    assert "no warnings" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    found = json.loads(passed("vitals", run, "--json").stdout)
    past = found["generations"][1]["terms"]["past"]
    first, last = past["gradient_share"]
    assert first == last == 1.0  # xi = 1: labels have no weight
    assert all(math.isfinite(v) for pair in past.values() for v in pair)


def test_what_has_no_vitals_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no run\.json"):
        callbacks.read_vitals(tmp_path)
    run = tmp_path / "run"
    options = ["--labels", "80", "--epochs", "1", "--method", "plain()", "--no-control", "--quiet", "--no-vitals"]
    passed("run", "digits", *options, "--out", run)
    assert "--no-vitals" in refused("vitals", run)


def test_the_bench_says_what_a_look_costs() -> None:
    result = vitals.run(quick=True)
    assert json.loads(json.dumps(result)) == result
    for model in result["models"].values():
        for mode in model["modes"].values():
            looks = 6 + vitals.RUN // 50
            share = (looks * mode["look"] + (vitals.RUN - looks) * mode["between"]) / vitals.RUN - 1
            assert mode["share"] == pytest.approx(share, abs=2e-4)
    assert "Quick" in vitals.render(result)


def test_a_generation_that_starts_from_trained_weights_is_refused() -> None:
    kept = build()
    with pytest.raises(VitalsError, match="trained-start: generation 1") as found:
        fit(lambda: kept, tiny_data(), born_again(), epochs=1, batch_size=8)
    assert found.value.vital == "trained-start"


def test_a_generation_that_replays_an_initialisation_is_told() -> None:
    kept, told = build(), list[str]()
    fit(lambda: copy.deepcopy(kept), tiny_data(), born_again(), epochs=1, batch_size=8, warn=told.append)
    assert any("the very weights that generation 0 started from" in line for line in told)
    told.clear()
    fit(build, tiny_data(), born_again(), epochs=1, batch_size=8, warn=told.append)
    assert not any("starts from" in line for line in told)
