"""Reports: valid drawings, every number in its place, nothing loaded, nothing run, nothing believed of names."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from selfdistill.errors import CheckpointError
from selfdistill.experiments.compare import judge
from selfdistill.experiments.run import Run
from selfdistill.experiments.task_types import TASK_TYPES
from selfdistill.io.run_record import Request, write_record
from selfdistill.report import render, write
from selfdistill.report.data_sections import retraining
from selfdistill.report.figures import (
    Mark,
    Series,
    bars,
    curves,
    forest,
    lineage,
    reliability,
    residuals,
    scatter,
    thinned,
    ticks,
)
from selfdistill.report.run_page import typed
from selfdistill.report.summary import sentence
from tests.browser import axe_source, browser
from tests.experiments.compare.test_verdicts import cells
from tests.terminal import passed, refused


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    request = Request("digits", label_noise=0.3, steps=60, method="born_again(generations=2)")
    Run.create(request, folder).execute()
    return folder


def comparison(hostile: str = "") -> dict[str, Any]:
    judged = judge(cells(), ["good()", "same()"])
    rows = {row["name"]: {"seconds": 1.0, "peak_memory_mb": 100.0} for row in judged["rows"]}
    return {
        "format": 1, "kind": "comparison", "command": ["selfdistill", "compare", hostile], "versions": {"torch": "2"},
        "data": {"name": f"digits{hostile}", "rows": {"train": 10}, "noise": 0.4}, "task": "classify", "model": "mlp",
        "parameters": 10, "threads": 1, "seeds": list(range(8)),
        "budget": {"kind": "passes", "amount": 3.0, "unit": "passes"},
        "level": 0.05, "reachable": ["8 seeds can"], **judged, "times": {"rows": rows, "wall_seconds": 1.0},
    }  # fmt: skip


def drawings(text: str) -> list[ET.Element]:
    return [ET.fromstring(found) for found in re.findall(r"<svg .*?</svg>", text, re.DOTALL)]


def loads_nothing(text: str) -> bool:
    """No script, no handler, and no address but the empty icon and pictures within the page."""
    addresses = re.findall(r"""(?:href|src|url)\s*[=(]\s*["']?([^"')>]+)""", text)
    addresses = [one for one in addresses if not re.fullmatch("data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+", one)]
    return "<script" not in text and not re.search(r"<[^>]*\son\w+=", text) and set(addresses) <= {"data:,", "#tip"}


def test_the_run_writes_its_report_and_it_holds_the_runs_figures(run: Path) -> None:
    text = (run / "report.html").read_text()
    result = json.loads((run / "run.json").read_text())["result"]
    for generation in result["generations"]:
        assert f"{100 * generation['test']['accuracy']:.1f} %" in text
        assert generation["decision"]["why"] in text
    assert "Furlanello" in text
    assert text.index(sentence(result, TASK_TYPES.of_record({}))) < text.index("<svg")  # the verdict comes first
    assert len(drawings(text)) >= 6
    assert loads_nothing(text)
    assert len(text) < 1_000_000


def test_an_unfinished_run_says_so(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(run, folder)
    record = json.loads((folder / "run.json").read_text())
    del record["result"]
    (folder / "run.json").write_text(json.dumps(record))
    assert "Not finished: resume by `selfdistill resume cut`" in render(folder, TASK_TYPES)


def test_a_comparison_has_its_verdicts_and_intervals(tmp_path: Path) -> None:
    found = comparison()
    (tmp_path / "comparison.json").write_text(json.dumps(found))
    text = write(tmp_path, TASK_TYPES).read_text()
    assert text.index("good(): in accuracy, BEATS plain") < text.index("<svg")
    assert "early stopping, chosen by audit accuracy" in text
    assert "keeps 47 %" in text
    assert text.count("BEATS") >= 3
    assert "no difference is shown, which does not show that there is none" in text
    for row in found["rows"]:  # outside of drawings, where text wraps and is never cut
        assert f"<li>{row['name']}: 3 passes, 1.0 s, 100 MB" in text
    assert drawings(text)
    assert loads_nothing(text)


def test_names_are_shown_and_never_run(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(comparison("<script>alert(1)</script>")))
    text = render(tmp_path / "c.json", TASK_TYPES)
    assert loads_nothing(text)
    assert "&lt;script&gt;alert(1)" in text


def test_the_command_is_told_by_its_name() -> None:
    assert typed(["/somewhere/bin/selfdistill", "run", "--method", "elr()"]) == "selfdistill run --method 'elr()'"
    assert typed(["/somewhere/selfdistill/__main__.py", "run"]) == "python -m selfdistill run"


@pytest.mark.parametrize("content", ["", "{}", '{"kind": "other"}', '{"kind": "comparison"}'])
def test_damaged_or_foreign_files_take_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(CheckpointError) as caught:
        render(tmp_path, TASK_TYPES)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="no run, no finished comparison and no folder of runs"):
        render(tmp_path / "nowhere", TASK_TYPES)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]), (3, 17, [0, 5, 10, 15, 20]), (0.82, 0.9, [0.82, 0.84, 0.86, 0.88, 0.9])],
)
def test_ticks_are_round_and_cover(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)
    assert ticks(2.0, 2.0)[0] < 2.0 < ticks(2.0, 2.0)[-1]


def test_points_lie_where_the_axes_say() -> None:
    drawn = ET.fromstring(curves([Series("a", [(0, 0.0), (10, 1.0)])], "t", "x", "y").split("</svg>")[0] + "</svg>")
    line = next(e for e in drawn.iter("polyline"))
    assert line.get("points") == "56.0,256.0 624.0,16.0"  # the corners of the plane
    assert curves([], "t", "x", "y") == ""
    assert curves([Series("a", [(0, float("nan"))])], "t", "x", "y") == ""


def drawn_of(text: str) -> ET.Element:
    return ET.fromstring(text.split("</svg>", 1)[0] + "</svg>")


def test_no_two_of_six_generations_and_a_control_look_alike() -> None:
    series = [Series(f"generation {g}", [(0, 0.0), (9, g / 9)]) for g in range(8)]
    series.insert(6, Series("the control", [(0, 0.0), (9, 1.0)], apart=True))
    drawn = curves(series, "t", "x", "y")
    lines = list(drawn_of(drawn).iter("polyline"))
    styles = [(e.get("class"), e.get("stroke-dasharray")) for e in lines]
    assert len(set(styles)) == 9
    assert styles[6] == ("c apart", None)
    keys = re.findall(
        r'<polyline class="([^"]*)"(?: stroke-dasharray="([^"]*)")? points="0,4 28,4"/></svg> ([^<]*)', drawn
    )
    assert [(a, b or None) for a, b, _ in keys] == styles
    assert keys[6][2] == "the control"


def test_words_of_marks_lie_above_every_curve_and_beside_one_another() -> None:
    marks = [Mark(x, "rolled back", False) for x in (10.0, 11.0, 12.0, 60.0)]
    drawn = drawn_of(curves([Series("a", [(0, 0.0), (60, 1.0)])], "t", "x", "y", marks=marks))
    words = [(float(e.get("x", 0)), float(e.get("y", 0))) for e in drawn.iter("text") if e.text == "rolled back"]
    points = next(e for e in drawn.iter("polyline")).get("points", "").split()
    assert max(y for _, y in words) < min(float(p.split(",")[1]) for p in points)
    for i, (x, y) in enumerate(words):
        assert all(abs(y - b) >= 13 or abs(x - a) >= 70 for a, b in words[:i])


def test_the_axis_ends_with_the_data_and_figures_clear_the_label_beside_it() -> None:
    drawn = drawn_of(curves([Series("a", [(20, 0.805), (120, 0.815)])], "t", "x", "label"))
    points = next(e for e in drawn.iter("polyline")).get("points", "").split()
    assert float(points[-1].split(",")[0]) == 640 - 16
    figures = [e for e in drawn.iter("text") if e.get("text-anchor") == "end"]
    assert max(len(e.text or "") for e in figures) == 5
    assert all(float(e.get("x", 0)) - 7.6 * len(e.text or "") >= 18 for e in figures), "the label's foot is at 18 px"
    assert [e.text for e in drawn.iter("text") if e.get("y") == "272.0"] == ["20", "40", "60", "80", "100", "120"]


ODD = (0.0, 5e-324, 1e-308, 1e-17, 0.7, 0.7 + 1e-16, 1e20, 1e308, -1e308, math.nan, math.inf, -math.inf)


@pytest.mark.parametrize("points", [(), *((value,) for value in ODD), *itertools.product(ODD, repeat=2)])
def test_no_number_stops_a_drawing(points: tuple[float, ...]) -> None:
    pairs = [(float(i), value) for i, value in enumerate(points)]
    texts = [curves([Series("loss", pairs)], "t", "step", "loss", proportion=share) for share in (False, True)]
    texts += [
        scatter([("a", [(value, value) for value in points])], "t"),
        reliability([("a", [dict.fromkeys(("confidence", "accuracy", "share"), value) for value in points])], 9),
        residuals([(value, value) for value in points], "t"),
        forest([("a", min(points), value, max(points), "TIES") for value in points], "t", "x"),
        bars([("a", value, "b") for value in points], "t"),
    ]
    for text in texts:
        assert not re.search(r"[\"' ,:](nan|-?inf)[\"' ,%]", text)
        assert drawings(text) is not None


@pytest.mark.parametrize("value", [0.0, 0.1, 0.93, 1.0])
def test_one_share_is_drawn_between_none_and_all(value: float) -> None:
    drawn = drawn_of(curves([Series("a", [(18, value)])], "t", "x", "accuracy", proportion=True))
    figures = [float(e.text or "") for e in drawn.iter("text") if e.get("text-anchor") == "end"]
    assert min(figures) >= 0
    assert max(figures) <= 1
    assert min(figures) <= value <= max(figures)


def test_a_language_runs_control_is_called_by_its_recipe(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "r")
    record = json.loads((run / "run.json").read_text())
    assert "plain, the baseline" in render(tmp_path / "r", TASK_TYPES)
    del record["result"]
    write_record(tmp_path / "r" / "run.json", record | {"kind": "language"})
    page = render(tmp_path / "r", TASK_TYPES)
    assert "sft(), the baseline" in page
    assert "plain, the baseline" not in page


def test_the_page_of_a_language_model_begins_with_its_verdicts(run: Path, tmp_path: Path) -> None:
    """Against the model before and against sft(), on the task and on prior ones; few prompts have none."""
    shutil.copytree(run, tmp_path / "r")
    record = json.loads((run / "run.json").read_text())
    one = {"accuracy": 0.5, "kept": 0.75, "length": 12.0}
    better = {"gain": 0.25, "half": 0.125, "rows": 40, "verdict": "BEATS"}
    few = {"gain": -1.0, "half": None, "rows": 1, "verdict": None}
    data = {**record["data"], "task": "generate", "classes": [], "rows": {"train": 80, "audit": 10, "test": 40}}
    generations = [{"generation": 0, "test": {**one, "accuracy": 0.75}}]
    kept = {name: value for name, value in record["result"].items()
            if name not in ("plain", "label_errors", "breakdown", "reliability")}  # fmt: skip
    result = kept | {
        "kind": "language", "method": "sdft()", "data": data, "test": {**one, "accuracy": 0.75}, "before": one,
        "generations": generations, "final_generation": 0,
        "against": {"before": {"test": better, "kept": few}, "sft": {"test": {**better, "verdict": "TIES"}}},
    }  # fmt: skip
    write_record(tmp_path / "r" / "run.json", record | {"kind": "language", "data": data, "result": result})
    page = render(tmp_path / "r", TASK_TYPES)
    said = page[page.index("What was measured") : page.index("What to do next")]
    assert "BEATS the model before (25 ± 12 points better)" in said
    assert "no verdict against the model before on prior tasks: 100 points worse over 1 prompt" in said
    assert "TIES sft() at equal steps" in said
    assert "selfdistill predict" in page


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    long = [(float(i), float(i * i)) for i in range(5000)]
    shown = thinned(long)
    assert (len(shown), shown[0], shown[-1]) == (200, long[0], long[-1])


def test_every_interval_and_every_teacher_is_drawn() -> None:
    drawn = ET.fromstring(forest([("a", -1, 0, 1, "TIES"), ("b", 1, 2, 3, "BEATS")], "t", "x"))
    spans = [e for e in drawn.iter("line") if "span" in e.get("class", "")]
    zero = next(e for e in drawn.iter("line") if e.get("class") == "ideal").get("x1")
    assert [float(e.get("x1", 0)) < float(zero or 0) for e in spans] == [True, False]
    drawn = ET.fromstring(lineage([(0, None, True, "x"), (1, 0, False, "y"), (2, 0, True, "z")], "t"))
    assert sum(e.get("class") == "arrow" for e in drawn.iter()) == 2


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium here")
def test_a_browser_opens_it_without_a_complaint(run: Path, tmp_path: Path) -> None:
    page = write(run, TASK_TYPES, tmp_path / "page.html")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update", "--enable-logging=stderr"]
    netlog = tmp_path / "net.json"
    more = [f"--user-data-dir={tmp_path / 'user'}", f"--log-net-log={netlog}", f"--screenshot={tmp_path / 'shot.png'}"]
    done = subprocess.run(["chromium", *flags, *more, page.as_uri()], check=False, capture_output=True, text=True)
    assert "CONSOLE" not in done.stderr
    assert (tmp_path / "shot.png").stat().st_size > 1000
    hosts = set(re.findall(r'"url":"https?://([^/":]+)', netlog.read_text()))
    own = ("google.com", "googleapis.com", "gvt1.com")  # the browser's own errands, on an empty page too
    assert {host for host in hosts if not host.endswith(own)} == set()


def test_the_first_screen_says_what_was_asked_and_measured_and_what_to_do_next(run: Path) -> None:
    text = (run / "report.html").read_text()
    places = [text.index(f"<h2>{head}</h2>") for head in ("What was asked", "What was measured", "What to do next")]
    assert places == sorted(places)
    assert places[-1] < text.index("<h2>On the test split</h2>")
    assert f"selfdistill review {run}" in text
    assert f"selfdistill predict {run} NEW_DATA" in text
    result = json.loads((run / "run.json").read_text())["result"]
    right = round(500 * result["test"]["accuracy"])
    assert f"The final model is right on {right} of 500 test rows" in text
    assert sum(map(sum, result["breakdown"]["confusion"])) == 500
    assert sum(row["rows"] for row in result["breakdown"]["by_class"]) == 500


def test_doubtful_rows_are_shown_as_pictures_and_foreign_cards_are_not(run: Path, tmp_path: Path) -> None:
    text = (run / "report.html").read_text()
    assert 12 < text.count('src="data:image/png;base64,') <= 60
    assert text.count("<img") == text.count('alt="row ')
    folder = tmp_path / "r"
    shutil.copytree(run, folder)
    cards = json.loads((folder / "cards.json").read_text())
    for picture in ("http://evil.example/x.png", "data:image/svg+xml;base64,AAAA", 'data:image/png;base64,"><script>'):
        next(iter(cards["rows"].values()))["picture"] = picture
        (folder / "cards.json").write_text(json.dumps(cards))
        page = render(folder, TASK_TYPES)
        assert loads_nothing(page)
        assert "<img" not in page


def test_health_is_folded_unless_it_warns(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    shutil.copytree(run, folder)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for warnings, fold in (([], "<details>"), (["term label gave nothing"], "<details open>")):
        lines[0]["warnings"] = warnings
        for line in lines[1:]:
            line.pop("warnings", None)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        page = render(folder, TASK_TYPES)
        assert f"{fold}<summary><h2>Health of the method" in page
        assert all(warning in page for warning in warnings)


def test_the_next_training_keeps_the_command_and_takes_the_decisions() -> None:
    command = ["selfdistill", "run", "my pets", "--labels", "50", "--labels=old.csv", "--out", "r", "--seed", "3"]
    record = {"command": command, "request": {"data": "my pets", "target": "kind"}}
    assert retraining(record, Path("r/decisions.csv")) == (
        "selfdistill run 'my pets' --labels 50 --seed 3 --labels r/decisions.csv"
    )
    record["command"] = ["train.py", "fast"]
    assert retraining(record, Path("d.csv")) == "selfdistill run 'my pets' --target kind --labels d.csv"


def test_the_page_has_no_violation_of_axe(run: Path, tmp_path: Path) -> None:
    axe = axe_source()
    with browser(tmp_path) as page:
        page.open((run / "report.html").as_uri())
        for dark, width in ((False, 1100), (True, 1100), (False, 390)):
            page.emulate(dark=dark, width=width)
            assert page.violations(axe) == []
        assert page.complaints() == []


def test_a_folder_of_runs_is_a_leaderboard(run: Path, tmp_path: Path) -> None:
    board = tmp_path / "runs"
    record = json.loads((run / "run.json").read_text())
    for name, accuracy, seconds in (("low", 0.5, 1.0), ("deep/high", 0.75, 9.0), ("deep/other", 0.25, 3.0)):
        (board / name).mkdir(parents=True)
        changed = json.loads(json.dumps(record))
        changed["result"]["test"]["accuracy"] = accuracy
        changed["result"]["seconds"] = seconds
        changed["result"]["data"]["name"] = "<b>pets" if name == "deep/other" else "digits"
        write_record(board / name / "run.json", changed)
    unfinished = {key: value for key, value in record.items() if key != "result"}
    (board / "cut").mkdir()
    write_record(board / "cut" / "run.json", unfinished)
    (board / "broken").mkdir()
    (board / "broken" / "run.json").write_text("{")
    lines = passed("report", board).stdout.splitlines()
    heads = [line for line in lines if "is better (" in line]
    assert len(heads) == 2
    table = lines[lines.index("digits: accuracy, more is better (500 test rows, 2 runs)") + 1 :]
    assert [line.split()[0] for line in table[:3]] == ["run", "deep/high", "low"]
    assert "75.0 %" in table[1]
    assert "71.0 to 78.6" in table[1]
    assert any(line.startswith("cut: not finished; `selfdistill resume") for line in lines)
    assert any(line.startswith("broken: left out (") for line in lines)
    assert lines[-1] == str(board / "report.html")
    text = (board / "report.html").read_text()
    assert loads_nothing(text)
    assert "<b>pets" not in text
    assert text.index("deep/high") < text.index(">low<")
    fast = passed("report", board, "--sort", "seconds").stdout
    assert fast.index("\nlow ") < fast.index("\ndeep/high ")
    assert "--sort is for a folder of runs" in refused("report", run, "--sort", "date")
    (tmp_path / "empty").mkdir()
    assert "no run, no finished comparison and no folder of runs" in refused("report", tmp_path / "empty")
