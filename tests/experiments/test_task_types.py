"""A task type is chosen in one place, and a further one is a class and its place in a tuple."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from selfdistill.errors import CheckpointError
from selfdistill.experiments.network_task import NetworkTaskType
from selfdistill.experiments.task_types import TASK_TYPES
from selfdistill.io.run_record import Request
from selfdistill.training.task_type import TaskTypes


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
    assert {recipe: FOUR.of_recipe(recipe).name for recipe in recipes} == recipes
    assert FOUR.of_recipe("recipe_of_policies()") is POLICIES
