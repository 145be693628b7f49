"""The documents are tested: their Python blocks run, the walk-through works, and every command is described."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner

from selfdistill.cli import main
from selfdistill.methods import Recipe, plain, ps_kd
from tests.harness import record
from tools.generate import design_page

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "docs/python.md")  # beside docs/language.md, whose block the test of integrations runs
#: module names under which the blocks of CONTRIBUTING.md are executed, by what they contain
WALK = {"def sure_past": "selfdistill.methods.sure_past_", "def oracle": "tests.oracles.sure_past"}

Show = Callable[[str, str], ModuleType]


def blocks(document: str) -> list[str]:
    """The Python blocks of a document, in order."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(encoding="utf-8"), re.DOTALL)


def block(document: str, containing: str) -> str:
    """The one Python block of a document that contains a text."""
    (match,) = [text for text in blocks(document) if containing in text]
    return match


def module(name: str, source: str, folder: Path) -> ModuleType:
    """A module with this name and source; the name decides what its relative imports mean."""
    file = folder / f"{name.rpartition('.')[2]}.py"
    file.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def show(tmp_path_factory: pytest.TempPathFactory) -> Show:
    """Execute a block of a document in a folder with a run of a network, one of a table and new rows, once each."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "new.csv").write_text(
        "sepal length (cm),sepal width (cm),petal length (cm),petal width (cm)\n5,3,1,0.2\n"
    )
    shown: dict[str, ModuleType] = {}

    def execute(document: str, source: str) -> ModuleType:
        if source not in shown:
            with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as printed:
                for name, data in (
                    ("RUN", "digits --steps 3 --method elr()"),
                    ("TABLE_RUN", "iris --model linear --method plain()"),
                ):
                    if f'"{name}' in source:
                        command = ["run", *data.split(), "--no-control", "--quiet", "--out", name]
                        finished = CliRunner().invoke(main, command, catch_exceptions=False)
                        assert finished.exit_code == 0, finished.output
                shown[source] = module(f"block_{len(shown)}", source, folder)
            shown[source].__dict__["printed"] = printed.getvalue()
        return shown[source]

    return execute


@pytest.mark.parametrize(
    ("document", "source"),
    [pytest.param(name, text, id=f"{name}-{i}") for name in DOCUMENTS for i, text in enumerate(blocks(name))],
)
def test_every_python_block_runs_as_it_stands(document: str, source: str, show: Show) -> None:
    show(document, source)


def test_the_loop_of_python_md_learns(show: Show) -> None:
    """Five lines around any objective."""
    source = block("docs/python.md", "objective = elr().bind(model)")
    body = source[source.index("for x, y, ids") :]
    assert len([line for line in body.splitlines()[1:] if line.strip()]) == 5
    loop = show("docs/python.md", source)
    assert torch.isfinite(loop.loss)
    assert loop.objective.clock.step == 1
    table = next(value for name, value in loop.objective.state_dict().items() if name.endswith("keys"))
    assert len(table) == 32, "the history knows every sample of the batch"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_call_of_fit_trains(document: str, show: Show) -> None:
    shown = show(document, block(document, "result = fit("))
    assert shown.result.history[-1]["loss"] < shown.result.history[0]["loss"]
    assert "accuracy" in shown.printed


def test_the_recipe_of_python_md_is_the_one_that_ships(show: Show) -> None:
    shown = show("docs/python.md", block("docs/python.md", "def ps_kd"))
    assert shown.ps_kd(alpha=0.7) == ps_kd(alpha=0.7)


def test_the_models_of_finished_runs_predict(show: Show) -> None:
    network = show("docs/python.md", block("docs/python.md", "from selfdistill.models import load\n\nmodel")).model
    assert network(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    table = show("docs/python.md", block("docs/python.md", "from selfdistill.estimators import load"))
    assert list(table.learner.predict(table.rows)) == ["setosa"]
    assert set(table.learner.classes_) == {"setosa", "versicolor", "virginica"}


def test_the_search_over_an_estimator_ends(show: Show) -> None:
    shown = show("docs/python.md", block("docs/python.md", "GridSearchCV("))
    assert set(shown.search.best_params_) == {"xi", "generations"}
    assert re.search(r"generation \d", shown.printed), "the report of the estimator"


def test_the_integrations_train(show: Show) -> None:
    hugging = show("docs/python.md", block("docs/python.md", "SelfDistillMixin"))
    assert hugging.trainer.distillation.clock.step == hugging.trainer.state.global_step == 2
    lightning = show("docs/python.md", block("docs/python.md", "lightning.pytorch"))
    assert lightning.module.objective.clock.step == lightning.trainer.global_step == 4
    (source,) = blocks("docs/language.md")
    trl = show("docs/language.md", source)
    assert trl.trainer.distillation.clock.step == trl.trainer.state.global_step == 2
    assert any("vitals/entropy" in entry for entry in trl.trainer.state.log_history)
    assert (Path(trl.trainer.args.output_dir).name, trl.trainer.state.max_steps) == ("trl-run", 2)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, ModuleType]:
    """The two files of the CONTRIBUTING walk-through, made from its text."""
    folder = tmp_path_factory.mktemp("walk")
    recipe, oracle = (module(name, block("CONTRIBUTING.md", text), folder) for text, name in WALK.items())
    return recipe.sure_past, oracle


def test_a_method_added_by_the_walk_through_agrees_with_its_oracle(
    walked: tuple[Recipe, ModuleType], tmp_path: Path
) -> None:
    recipe, oracle = walked
    run = record(recipe(), tmp_path / "run", cut=8)
    losses, _ = oracle.oracle(run)
    assert losses == pytest.approx(run.losses, abs=1e-6)
    other = record(plain(), tmp_path / "plain").losses
    assert other != pytest.approx(run.losses, abs=1e-3), "the comparison could not fail"


def test_the_walk_through_takes_two_files_of_forty_lines_together() -> None:
    """Of code: blank lines and docstrings are not counted."""
    two = [block("CONTRIBUTING.md", "def sure_past"), block("CONTRIBUTING.md", "def oracle")]
    code = [re.sub(r'""".*?"""', "", text, flags=re.DOTALL) for text in two]
    assert sum(bool(line.strip()) for text in code for line in text.splitlines()) <= 40


def test_the_recipe_of_the_walk_through_is_listed_as_soon_as_its_file_is_there(tmp_path: Path) -> None:
    """Though neither the exports nor the shipped catalogue name it."""
    shutil.copytree(ROOT / "selfdistill", tmp_path / "selfdistill", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "selfdistill" / "methods" / "sure_past_.py"
    file.write_text(block("CONTRIBUTING.md", "def sure_past"))
    for command, expected in (
        (["methods"], "sure_past(weight=1.0)"),
        (["explain", "sure_past", "--code"], "LastEpoch"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "selfdistill", *command],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert expected in done.stdout


def test_every_python_block_of_the_walk_through_is_executed() -> None:
    executed = {block("CONTRIBUTING.md", text) for text in WALK}
    assert [text for text in blocks("CONTRIBUTING.md") if text not in executed and len(text.splitlines()) > 1] == []


def test_the_guide_describes_every_command_and_no_other() -> None:
    text = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `selfdistill ([\w-]+)", text, re.MULTILINE)) == set(main.commands)


@pytest.mark.parametrize("document", ["README.md", "docs/guide.md", "docs/language.md", "docs/text.md"])
def test_every_command_and_option_of_a_document_exists(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8").replace("\\\n", " ")
    shown = re.findall(r"^selfdistill ([\w-]+)([^#\n]*)", text, re.MULTILINE)
    assert shown
    for name, rest in shown:
        command = main.commands.get(name)
        assert command is not None, f"{document}: no command {name}"
        known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        used = set(re.findall(r"(?<=\s)--[a-z-]+", rest))
        assert used <= known, f"{document}: {name} has no {used - known}"


def test_the_readme_counts_the_recipes_that_there_are() -> None:
    from selfdistill.language.recipes import RECIPES
    from selfdistill.methods import recipes

    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert "more than seventy recipes for networks and twenty-six for language models" in text
    assert (70 < len(recipes()) < 80, len(RECIPES)) == (True, 26)


def test_the_tree_of_the_package_is_as_the_design_shows_it() -> None:
    remedy = "run `python tools/generate.py docs/design.md`"
    assert design_page() == (ROOT / "docs/design.md").read_text(encoding="utf-8"), remedy


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/design.md", "docs/vitals.md"])
def test_files_and_modules_that_a_page_names_exist(document: str) -> None:
    """Paths count from the root or from the package; a bare file name may be that of any file."""
    text = re.sub(r"```.*?```", "", (ROOT / document).read_text(), flags=re.DOTALL)
    made = {f"{name.replace('.', '/')}.py" for name in WALK.values()} | {"selfdistill.methods.sure_past"}
    paths = set(re.findall(r"`((?:\w+/)*\w+\.py)\b", text)) - made
    every = {path.name for path in (ROOT / "selfdistill").rglob("*.py")}
    missing = [p for p in paths if not ((ROOT / p).exists() or (ROOT / "selfdistill" / p).exists() or p in every)]
    modules = set(re.findall(r"python -m ((?:benchmarks|selfdistill)[\w.]*)", text))
    missing += [name for name in modules if importlib.util.find_spec(name) is None]
    for name in set(re.findall(r"`(selfdistill(?:\.\w+)+)", text)) - made:
        parent, _, last = name.rpartition(".")
        found = importlib.util.find_spec(parent) and hasattr(importlib.import_module(parent), last)
        missing += [] if found or importlib.util.find_spec(name) else [name]
    assert not missing


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_scripts_of_the_benchmarks_import_what_exists(path: Path) -> None:
    importlib.import_module(f"benchmarks.{path.stem}")


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 110


@pytest.mark.parametrize(
    "document",
    ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))],
)
def test_every_link_to_a_file_leads_somewhere(document: str) -> None:
    place = ROOT / document
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", place.read_text(encoding="utf-8")):
        assert (place.parent / link).exists(), f"{document}: {link}"


@pytest.mark.parametrize("axis", ["teachers", "losses", "gates", "terms"])
def test_the_design_names_every_part_there_is(axis: str) -> None:
    (row,) = re.findall(rf"^\| `{axis}/` \|.*\|(.*)\|$", (ROOT / "docs/design.md").read_text(), re.MULTILINE)
    named = [name.strip() for name in row.partition(";")[0].split(",")]
    offered = importlib.import_module(f"selfdistill.{axis}").__all__
    assert named == sorted(name for name in offered if name[0].isupper())
