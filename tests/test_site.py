"""The site: its navigation, its links, and the commands of the tutorials, the examples and the notebooks."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import posixpath
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from selfdistill.cli import main
from tools import generate, site_links, site_pages

ROOT = Path(__file__).parents[1]
TUTORIALS = [path for path in sorted((ROOT / "docs/tutorials").glob("*.md")) if path.stem != "index"]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
NAVIGATION = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
PAGES = re.findall(r"^ +- (?:.*: )?(\S+\.md)$", NAVIGATION, re.MULTILINE)

#: the size at which an example is tried, and whether it takes seconds all the same
SIZES = {
    "adapter": "--steps 2",
    "few_labels": "--steps 5 --seeds 1",
    "language_model": "--steps 2 --updates 0",
    "own_loop": "--epochs 2",
    "own_method": "--steps 5",
    "policies": "--steps 64 --episodes 1",
    "streams": "--steps 5",
    "table": "--labels 40 --unlabelled 20",
    "texts": "--steps 2 --rows 60",
    "wrong_labels": "--steps 20",
}
SECONDS = {"adapter", "language_model", "texts"}
#: examples with tests of their own
ELSEWHERE = {"serve"}


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as the site and GitHub make them."""
    headings = re.findall(r"^#+ (.*)$", site_pages.outside_code(text), re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "") for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


def test_the_navigation_has_every_page_and_no_other() -> None:
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in PAGES if not page.startswith(site_pages.FOLDER)} == there
    assert [page for page in PAGES if not (ROOT / site_pages.file_of(page)).is_file()] == []
    assert len(PAGES) == len(set(PAGES))


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file_and_a_heading(page: str) -> None:
    path = site_pages.file_of(page)
    text = site_pages.outside_code((ROOT / path).read_text(encoding="utf-8"))
    for link, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]*))?\)", text):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link)) if link else path
        assert (ROOT / target).exists(), f"{path}: {link}"
        if anchor:
            assert anchor in anchors((ROOT / target).read_text(encoding="utf-8")), f"{path}: {link}#{anchor}"


def test_a_tutorial_is_one_click_from_the_first_page() -> None:
    first = site_pages.targets("docs/index.md")
    assert [path.name for path in TUTORIALS if f"docs/tutorials/{path.name}" not in first] == []
    assert len(TUTORIALS) == 9


def test_links_to_files_of_the_repository_lead_to_pages_of_the_site() -> None:
    text = "[a](../CONTRIBUTING.md#rules) [b](python.md) `[c](../x)`\n```\n[d](../CONTRIBUTING.md)\n```\n"
    led = site_pages.relinked(text, "docs/guide.md")
    assert led == text.replace("[a](../CONTRIBUTING.md#rules)", "[a](repository/CONTRIBUTING.md#rules)")
    back = site_pages.relinked("[a](docs/design.md) [b](examples/table.py)", "CONTRIBUTING.md")
    assert back == "[a](../design.md) [b](examples/table.py.md)"


def test_broken_links_of_a_site_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<h1 id="top"></h1><a href="b.html#there">1</a><a href="b.html#gone">2</a><a href="c.html">3</a>'
        '<a href="#top">4</a><a href="https://example.org/x">5</a><a href="javascript:x">6</a>'
        '<script src="https://example.org/x.js"></script>'
    )
    (tmp_path / "b.html").write_text('<p id="there"></p><a href="/a.html">1</a>')
    assert site_links.faults(tmp_path) == [
        "a.html: b.html#gone: no such anchor",
        "a.html: c.html: no such file",
        "a.html: https://example.org/x.js: fetched from elsewhere",
        "a.html: javascript:x: the scheme 'javascript'",
    ]


def test_the_chooser_has_the_numbers_of_the_benchmark() -> None:
    remedy = "run `python tools/generate.py docs/choose.md`"
    assert generate.choose_page() == (ROOT / "docs/choose.md").read_text(encoding="utf-8"), remedy


def test_the_api_pages_show_every_public_module() -> None:
    shown = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs/api").glob("*.md"))
    assert {f"selfdistill{face}" for face in generate.FACES} <= set(re.findall(r"^::: (\S+)$", shown, re.MULTILINE))


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_every_command_and_option_of_a_tutorial_exists(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    assert len(text.splitlines()) <= 110
    for name, rest in re.findall(r"^selfdistill ([\w-]+)([^#\n]*)", text, re.MULTILINE):
        known = {option for one in main.commands[name].params for option in (*one.opts, *one.secondary_opts)}
        assert set(re.findall(r"(?<=\s)--[a-z-]+", rest)) <= known, f"{path.name}: {name}{rest}"


def script(text: str) -> str:
    """The commands and programs of a tutorial in their order, as one script; what installs something is left out."""
    parts = list[str]()
    for language, body in re.findall(r"^```(sh|python)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        lines = [line for line in body.splitlines() if not line.startswith(("pip ", "make "))]
        parts.append("\n".join(lines) if language == "sh" else f"python - <<'PROGRAM'\n{body}PROGRAM")
    return "\n".join(["set -e", *parts])


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_runs_from_start_to_end(path: Path, tmp_path: Path) -> None:
    """In an empty folder beside the examples; a command that fails ends it."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    tool = tmp_path / "bin" / "selfdistill"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m selfdistill "$@"\n')
    tool.chmod(0o755)
    (tool.parent / "python").symlink_to(sys.executable)
    search = f"{tool.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": search, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    text = script(path.read_text(encoding="utf-8"))
    assert text.count("\n") > 1
    done = subprocess.run(
        ["bash", "-c", text], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SECONDS else []) for name in sorted(SIZES)]
)
def test_an_example_runs_at_a_small_size(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *SIZES[name].split()])
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    assert printed.getvalue().count("\n") >= 1


def test_every_example_is_tried_and_short() -> None:
    scripts = sorted((ROOT / "examples").glob("*.py"))
    assert {path.stem for path in scripts} - ELSEWHERE == set(SIZES)
    assert [path.name for path in scripts if len(path.read_text(encoding="utf-8").splitlines()) >= 60] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_has_the_outputs_of_one_execution_in_order(path: Path) -> None:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    counts = [cell["execution_count"] for cell in cells if cell["cell_type"] == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert any(cell.get("outputs") for cell in cells)
    assert "error" not in {output["output_type"] for cell in cells for output in cell.get("outputs", [])}
    assert path.stat().st_size < 200_000


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, kernel = pytest.importorskip("nbclient"), importlib.util.find_spec("ipykernel")
    if kernel is None:
        pytest.skip("no ipykernel here: make docs")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    book = nbformat.read(path, as_version=4)
    client.NotebookClient(book, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.slow
def test_the_site_builds_and_no_link_of_it_is_broken(tmp_path: Path) -> None:
    if importlib.util.find_spec("material") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("no mkdocs here: make docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert site_links.faults(tmp_path / "site") == []
