"""The page says what was measured, what was found by hand, and what is missing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from selfdistill.cli import main
from selfdistill.errors import DataError
from selfdistill.experiments.benchmark import page
from selfdistill.experiments.benchmark.settings import PLAIN, SETTINGS
from tests.experiments.benchmark.common import NOISE, keep

METHODS = ("elr()", "ps_kd()", "ols()")
KNOWN = {NOISE.name: NOISE}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Three seeds of plain and elr, one of ps_kd, none of ols."""
    folder = tmp_path / "benchmarks" / "cells"
    for seed, luck in enumerate((0.70, 0.75, 0.71)):
        keep(folder, NOISE, PLAIN, seed, luck)
        keep(folder, NOISE, "elr()", seed, luck + 0.1 + seed / 1000)
    keep(folder, NOISE, "ps_kd()", 1, 0.7)
    return folder


def written(out: Path, methods: tuple[str, ...] = METHODS) -> tuple[str, int]:
    target = out.parent.parent / "page.md"
    missing = page.write(KNOWN, out, target, methods)
    return target.read_text(), missing


def test_rows_have_figures_verdict_and_command(out: Path) -> None:
    text, _ = written(out)
    (row,) = [line for line in text.splitlines() if line.startswith("| `elr()` |")]
    assert [cell.strip() for cell in row.split("|")[2:6]] == ["82.10", "+10.10 ± 0.25", "BEATS", "< 0.001"]
    assert "`selfdistill benchmark methods --settings digits-noise --methods 'elr()'`" in row
    assert "| 3 of 3 |" in row
    (other,) = [line for line in text.splitlines() if line.startswith("| `ps_kd()` |")]
    assert [cell.strip() for cell in other.split("|")[2:6]] == ["70.00", "-5.00", "", ""]
    assert [cell.strip() for cell in row.split("|")[6:8]] == ["+9.10 ± 0.25", "BEATS"]
    assert "The best control, by mean accuracy on the audit split, is `plain(), stopped early`." in text
    (stopped,) = [line for line in text.splitlines() if line.startswith("| `plain(), stopped early` (control) |")]
    assert "| +1.00 ± 0.00 |" in stopped


def test_missing_cells_are_stated(out: Path) -> None:
    text, missing = written(out)
    assert missing == 5
    assert "**5 cells are missing**; `selfdistill benchmark methods --settings digits-noise` makes them." in text
    assert "Without any cell: `ols()`." in text
    assert "In part: `ps_kd()` seeds 0, 2." in text
    whole, none = written(out, ("elr()",))
    assert none == 0
    assert "missing**" not in whole


def test_methods_without_a_row_have_their_reason(out: Path) -> None:
    keep(out, NOISE, "dks()", 0, 0.0, status="failed", error="VitalsError: dead")
    keep(out, NOISE, "dks()", 1, 0.0, status="failed", error="RecipeError: not tried, for seed 0 has failed")
    keep(out, NOISE, "elr()", 3, 0.0, status="failed", error="NotFiniteError: nan")
    text, _ = written(out)
    assert "`fixmatch()`" in text
    assert "needs unlabelled rows" in text
    assert "- `dks()`: VitalsError: dead" in text
    assert "- `elr()`: 1 of 4 seeds: NotFiniteError: nan" in text
    assert "| `dks()` |" not in text


def test_records_of_recipes_that_are_gone_are_still_rows(out: Path) -> None:
    keep(out, NOISE, "of_old()", 0, 0.6)
    assert "| `of_old()` | 60.00 |" in written(out)[0]


def test_the_drawing_is_a_file_of_its_own(out: Path) -> None:
    text, _ = written(out)
    assert "](page/digits-noise.svg)" in text
    drawn = ElementTree.fromstring((out.parent.parent / "page" / "digits-noise.svg").read_text())
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    words = " ".join(drawn.itertext())
    assert "elr(): BEATS" in words
    assert "ps_kd()" not in words, "one seed has no verdict"


def test_findings_by_hand_survive(out: Path) -> None:
    said = {"": "Read this first.", "digits-noise": "All memorise.", "digits-noise elr()": "remembers the start"}
    (out.parent / page.FINDINGS).write_text(json.dumps(said))
    for _ in range(2):
        text, _ = written(out)
        assert text.index("Read this first.") < text.index("## digits-noise") < text.index("All memorise.")
        (row,) = [line for line in text.splitlines() if line.startswith("| `elr()` |")]
        assert row.endswith("| remembers the start |")
    (out.parent / page.FINDINGS).write_text("[1]")
    with pytest.raises(DataError, match=r"findings.json cannot be read .*; make it a JSON object of texts"):
        written(out)


def test_written_twice_it_is_the_same(out: Path) -> None:
    assert written(out) == written(out)


def test_the_page_of_the_project_is_what_its_cells_say(tmp_path: Path) -> None:
    """Every section that has numbers, and its drawing, made anew from the records and findings that are committed."""
    root = Path(__file__).parents[3]
    cells, docs = root / "benchmarks" / "cells", root / "docs"
    page.write({p.stem: SETTINGS[p.stem] for p in cells.iterdir()}, cells, tmp_path / "benchmark.md")
    remedy = "write the page anew: selfdistill benchmark methods --only-page"
    shown = (docs / "benchmark.md").read_text().split("\n## ")
    for section in (tmp_path / "benchmark.md").read_text().rstrip().split("\n## ")[1:]:
        assert section.rstrip() in map(str.rstrip, shown), remedy
    for drawn in {path.name for folder in (docs, tmp_path) for path in (folder / "benchmark").iterdir()}:
        assert (tmp_path / "benchmark" / drawn).read_text() == (docs / "benchmark" / drawn).read_text(), remedy


# the command -----------------------------------------------------------------------------------------------------


def command(*args: str) -> Any:
    return CliRunner().invoke(main, ["benchmark", "methods", *args])


def test_quick_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ("--quick", "--settings", "digits-noise", "--methods", "elr()", "born_again()")
    done = command(*flags)
    assert done.exit_code == 0, done.output
    (cells,) = Path("runs").rglob("*.jsonl")
    assert str(cells) == "runs/benchmark-quick/cells/digits-noise.jsonl"
    done_cells = sorted(
        (record["method"], record["seed"]) for record in map(json.loads, cells.read_text().splitlines())
    )
    assert done_cells == [(f"{method}()", seed) for method in ("born_again", "elr", "plain") for seed in (0, 1)]
    text = Path("runs/benchmark-quick/benchmark.md").read_text()
    assert "| `born_again()` |" in text
    assert "digits-100" in text
    before = cells.read_bytes()
    again = command(*flags)
    assert again.exit_code == 0
    assert "seed" not in again.output
    assert cells.read_bytes() == before
    assert not Path("docs").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--settings", "nowhere"), "no setting of the benchmark is called 'nowhere'"),
        (("--methods", "nonsense()"), "nonsense"),
        (("--methods", "elr(weight='x')"), "weight"),
        (("--seeds", "0"), "--seeds"),
        (("--workers", "0"), "--workers"),
        (("--minutes", "nan"), "--minutes"),
        (("--page", "no/such/folder/page.md"), "another --page"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused_takes_one_line(
    flags: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command("--quick", *flags)
    assert done.exit_code == 2
    assert len(done.output.strip().splitlines()) == 1
    assert said in done.output
    assert not list(tmp_path.rglob("*.json*"))


def test_warnings_of_trainings_are_listed_by_kind_with_how_many_seeds_had_them(out: Path) -> None:
    rows = [f"{n} of 90 audit rows are called '{c}': collapsed" for n, c in ((90, "a"), (89, "b"))]
    keep(out, NOISE, "ps_kd()", 0, 0.1, warnings=[rows[0], "the gate kept nothing"])
    keep(out, NOISE, "ps_kd()", 2, 0.1, warnings=[rows[1]])
    keep(out, NOISE, "elr()", 0, 0.8, warnings=[])
    text, _ = written(out)
    first = "90 of 90 audit rows are called 'a': collapsed (2 of 3 seeds)"
    assert f"- `ps_kd()`: {first}; the gate kept nothing (1 of 3 seeds)" in text.splitlines()
    assert text.count("Warned of while") == 1


def test_without_a_warning_there_is_no_list_of_them(out: Path) -> None:
    assert "Warned of" not in written(out)[0]
