"""Which kind of comparison a request is, told by its data, its model and its methods, before anything is loaded."""

from __future__ import annotations

import pytest

from selfdistill.errors import DataError, RecipeError
from selfdistill.estimators.comparison import TableDesign
from selfdistill.experiments.compare.runner import design_for
from selfdistill.experiments.network_task import NetworkDesign
from selfdistill.io.run_record import Request
from selfdistill.language.task import LanguageDesign
from selfdistill.training.comparison import BEFORE, PLAIN

NOWHERE = Request("nowhere.jsonl")


@pytest.mark.parametrize(
    ("request_", "methods", "kind"),
    [
        (Request("digits"), ("elr()", "plain()"), NetworkDesign),
        (Request("diabetes"), ("born_again(xi=0.5)",), NetworkDesign),
        (Request("diabetes", model="mlp"), ("plain()",), NetworkDesign),
        (Request("diabetes", model="linear"), ("self_distilled()", "plain()"), TableDesign),
        (Request("diabetes", model="linear"), ("plain()",), TableDesign),
        (NOWHERE, ("sft()", "sdft()"), LanguageDesign),
        (Request("reasoning-gym:chain_sum"), ("grpo()",), LanguageDesign),
    ],
)
def test_data_model_and_methods_say_what_learns(request_: Request, methods: tuple[str, ...], kind: type) -> None:
    assert design_for(request_, methods) is kind


@pytest.mark.parametrize(
    ("request_", "methods", "error", "said"),
    [
        (NOWHERE, ("sft()", "elr()"), RecipeError, r"elr\(\) learns classes or values and nowhere.jsonl holds prompts"),
        (Request("diabetes"), ("sdft()",), RecipeError, r"sdft\(\) learns prompts and diabetes holds none"),
        (Request("digits"), ("elr()", "self_distilled()"), DataError, r"digits: self_distilled\(\) learns tables"),
        (
            Request("diabetes"),
            ("self_distilled()", "elr()"),
            RecipeError,
            r"self_distilled\(\) is for learners and elr",
        ),
    ],
)
def test_methods_of_another_kind_are_refused_by_name(
    request_: Request, methods: tuple[str, ...], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        design_for(request_, methods)


@pytest.mark.parametrize(
    ("kind", "plain"),
    [(NetworkDesign, (PLAIN, PLAIN)), (TableDesign, (PLAIN, PLAIN)), (LanguageDesign, ("sft()", BEFORE))],
)
def test_the_row_that_all_are_compared_with(
    kind: type[NetworkDesign | TableDesign | LanguageDesign], plain: tuple[str, str]
) -> None:
    """With and without the control that not all data or models have."""
    assert (kind.plain(True), kind.plain(False)) == plain
