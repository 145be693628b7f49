"""``docs/methods.md`` is what the code says of its recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from selfdistill.cli import main
from selfdistill.control import recipes as policies
from selfdistill.estimators.recipes import recipes as estimator_recipes
from selfdistill.experiments import catalogue
from selfdistill.experiments.catalogue import cards, live_cards, markdown
from selfdistill.language.recipes import RECIPES
from selfdistill.methods import recipes
from selfdistill.methods.registry import AUTO

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def entry(name: str) -> str:
    """What the page says of a recipe."""
    (found,) = [part for part in PAGE.read_text().split("\n### ")[1:] if part.splitlines()[0] == name]
    return found


def test_the_page_is_what_the_command_prints() -> None:
    printed = CliRunner().invoke(main, ["methods", "--markdown"]).output
    assert PAGE.read_text() == printed == markdown(live_cards()), (
        "a recipe changed: run `python tools/generate.py docs/methods.md`"
    )


def test_the_shipped_catalogue_is_what_the_code_says() -> None:
    assert cards() == json.loads(json.dumps(live_cards())), (
        "a recipe changed: run `python tools/generate.py selfdistill/experiments/catalogue.jsonl`"
    )


def test_a_recipe_that_the_shipped_catalogue_lacks_is_read_from_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a recipe in a new file is listed at once."""
    shipped = [line for line in catalogue.SHIPPED.read_text().splitlines() if json.loads(line)["name"] != "elr"]
    old = tmp_path / "catalogue.jsonl"
    old.write_text("\n".join(shipped) + "\n")
    monkeypatch.setattr(catalogue, "SHIPPED", old)
    assert [card["name"] for card in cards()].count("elr") == 1


def test_the_page_has_every_recipe_once() -> None:
    names = [part.splitlines()[0] for part in PAGE.read_text().split("\n### ")[1:]]
    assert sorted(names) == sorted({AUTO, *recipes(), *estimator_recipes(), *RECIPES, *policies.RECIPES})


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        (
            "elr",
            [
                "L = CE(y, p) + w mean log(1 - <p, t_i>)",
                "labelled rows",
                "1 x a plain step, 1 training",
                "NeurIPS 2020",
            ],
        ),
        (
            "fixmatch",
            ["Needs unlabelled rows.", "Costs 6.813 x a plain step (6.81284 forward, 6.81284 backward), 1 training."],
        ),
        ("born_again", ["1.333 x a plain step (2 forward, 1 backward) in all but the first, 2 trainings."]),
        ("self_trained", ["Costs 6 trainings of the learner."]),
        ("sdft", ["KL(q_t || p_t)", "1.333 x a plain step, 1 training."]),
    ],
)
def test_an_entry_has_equation_needs_cost_and_source(name: str, facts: list[str]) -> None:
    """By hand: r weak and r strong rows for a labelled one are 2 r + 1, r of a run of 2,000 steps; a frozen teacher is
    one forward more."""
    for fact in facts:
        assert fact in entry(name)
