"""The README and CONTRIBUTING are followed to the letter: their code runs, their walk-through works."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from selfdistill.methods import Recipe, plain, ps_kd
from tests.harness import record

ROOT = Path(__file__).parents[1]


def blocks(document: str) -> list[str]:
    """The Python blocks of a document, in order."""
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


def module(name: str, source: str, folder: Path) -> ModuleType:
    """A module with this name and source; the name decides what its relative imports mean."""
    file = folder / f"{name.rpartition('.')[2]}.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def block(document: str, containing: str) -> str:
    (found,) = [text for text in blocks(document) if containing in text]
    return found


def test_the_readme_loop_learns(tmp_path: Path) -> None:
    """Five lines around any objective; shown once, run here as it stands."""
    source = block("README.md", "objective = elr().bind(model)")
    body = source[source.index("for x, y, ids") :]
    assert len([line for line in body.splitlines()[1:] if line.strip()]) == 5
    loop = module("readme_loop", source, tmp_path)
    assert torch.isfinite(loop.loss)
    assert loop.objective.clock.step == 1
    table = next(value for name, value in loop.objective.state_dict().items() if name.endswith("seen"))
    assert int(table.sum()) == 32, "the history knows every sample of the batch"


def test_the_readme_call_of_fit_trains(tmp_path: Path) -> None:
    shown = module("readme_fit", block("README.md", "result = fit("), tmp_path)
    assert shown.result.history[-1]["loss"] < shown.result.history[0]["loss"]


def test_the_readme_recipe_is_the_one_that_ships(tmp_path: Path) -> None:
    shown = module("readme_recipe", block("README.md", "def ps_kd"), tmp_path)
    assert shown.ps_kd(alpha=0.7) == ps_kd(alpha=0.7)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, ModuleType]:
    """The two files of the CONTRIBUTING walk-through, made from its text."""
    folder = tmp_path_factory.mktemp("walk")
    recipe = module("selfdistill.methods.sure_past_", block("CONTRIBUTING.md", "def sure_past"), folder)
    return recipe.sure_past, module("tests.oracles.sure_past", block("CONTRIBUTING.md", "def oracle"), folder)


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


def test_every_command_of_the_readme_exists() -> None:
    from selfdistill.cli import main

    shown = set(re.findall(r"^selfdistill (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert shown <= set(main.commands)
    assert {"run", "resume", "predict", "methods", "explain", "doctor"} <= shown


def test_the_readme_search_over_an_estimator_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = module("readme_search", block("README.md", "GridSearchCV("), tmp_path)
    assert set(shown.search.best_params_) == {"xi", "generations"}
    assert "the product is generation" in capsys.readouterr().out


def test_the_readme_counts_the_recipes_that_there_are() -> None:
    from selfdistill.language.recipes import RECIPES
    from selfdistill.methods import recipes

    text = " ".join((ROOT / "README.md").read_text().split())
    assert "more than sixty recipes for networks and fifteen for language" in text
    assert (60 < len(recipes()) < 70, len(RECIPES)) == (True, 15)


@pytest.mark.parametrize("axis", ["teachers", "losses", "gates", "terms"])
def test_the_design_names_every_part_there_is(axis: str) -> None:
    (row,) = re.findall(rf"^\| `{axis}/` \|.*\|(.*)\|$", (ROOT / "docs/design.md").read_text(), re.MULTILINE)
    named = [name.strip() for name in row.partition(";")[0].split(",")]
    offered = importlib.import_module(f"selfdistill.{axis}").__all__
    assert named == sorted(name for name in offered if name[0].isupper())
