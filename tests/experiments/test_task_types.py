"""A task type is chosen in one place, and a further one is a class and its place in a tuple."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from selfdistill.errors import CheckpointError, RecipeError
from selfdistill.experiments.network_task import NetworkTaskType
from selfdistill.experiments.task_types import TASK_TYPES
from selfdistill.io.run_record import Request
from selfdistill.training.task_type import TaskTypes
from tests.terminal import refused


class PolicyTaskType(NetworkTaskType):
    """A further task type, told by its data and its recipe."""

    name, learner = "policy", "policies"

    def recipes(self) -> Mapping[str, Callable[..., Any]]:
        return {"recipe_of_policies": dict}

    def serves(self, request: Request) -> bool:
        return request.data.startswith("gym:")


POLICIES = PolicyTaskType()
FOUR = TaskTypes((*TASK_TYPES, POLICIES))


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (Request("digits"), "network"),
        (Request("iris"), "learner"),
        (Request("iris", model="mlp"), "network"),
        (Request("iris", method="born_again()"), "network"),
        (Request("nowhere.jsonl"), "language"),
        (Request("gym:CartPole"), "policy"),
    ],
)
def test_a_request_has_one_task_type(request_: Request, name: str) -> None:
    assert FOUR.of_request(request_).name == name


def test_a_record_names_its_task_type_and_a_result_without_a_name_is_a_networks() -> None:
    for task in FOUR:
        assert FOUR.of_record({"kind": task.name}) is task
    assert FOUR.of_record({}).name == "network"
    with pytest.raises(CheckpointError, match="kind 'policy' is unknown to this version"):
        TASK_TYPES.of_record({"kind": "policy"})


def test_a_recipe_is_for_the_first_task_type_that_has_it() -> None:
    recipes = {"plain()": "network", "self_distilled(xi=0.5)": "learner", "sdft()": "language", "nothing()": "network"}
    recipes |= {"auto()": "network", "auto(most=3)": "network", "auto(product='single')": "learner", "auto(": "network"}
    assert {recipe: FOUR.of_recipe(recipe).name for recipe in recipes} == recipes
    assert FOUR.of_recipe("recipe_of_policies()") is POLICIES


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (
            Request("digits", method="auto(product='single')"),
            r"product of .* learners on tables, and digits is for networks",
        ),
        (
            Request("digits", tasks=5, method="auto(synthetic=9)"),
            "synthetic of .* digits is for streams",
        ),
        (
            Request("prompts.jsonl", method="auto(product='best')"),
            "is for language models; leave it out",
        ),
        (Request("iris", model="mlp", method="auto(product='best')"), "iris is for networks; leave it out"),
        (Request("iris", method="auto(most=3)"), "most of .* is for networks, and iris is for learners on tables"),
    ],
)
def test_an_argument_of_another_task_types_recipe_is_refused_by_name(request_: Request, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        TASK_TYPES.of_request(request_)


def test_a_length_is_refused_where_nothing_is_trained_longer() -> None:
    with pytest.raises(RecipeError, match=r"longer of .* is for networks that learn all rows at once"):
        TASK_TYPES.of_request(Request("digits", tasks=5)).prepare(Request("digits", tasks=5, method="auto(longer=2)"))


@pytest.mark.parametrize("data", [("digits",), ("digits", "--tasks", 5), ("iris", "--model", "mlp"), ("p.jsonl",)])
def test_product_is_refused_where_the_run_is_of_no_table(
    data: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "1+1="}\n')
    assert "--product is for tables by learners of scikit-learn" in refused("run", *data, "--product", "single")
    assert not (tmp_path / "runs").exists()
