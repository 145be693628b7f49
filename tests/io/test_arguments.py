"""Arguments that a recipe could only fail on later are refused where they are written."""

from __future__ import annotations

import inspect
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest

from selfdistill.errors import RecipeError
from selfdistill.io.expressions import Count, NonNegative, Range, Share, checked
from selfdistill.methods import recipes


def example(
    weight: NonNegative = 1.0,
    stages: Count = 2,
    hard: bool = False,
    loss: str = "kl",
    decay: Share = 0.9,
    teacher: str | None = None,
    most: Share | None = None,
) -> tuple[object, ...]:
    return weight, stages, hard, loss, decay, teacher, most


@pytest.mark.parametrize(
    "options",
    [
        {"weight": 0},
        {"weight": 2.5},
        {"decay": 0},
        {"decay": 1.0},
        {"hard": True},
        {"teacher": None},
        {"teacher": "r"},
        {"most": None},
        {"most": 0.5},
    ],
)
def test_what_fits_is_passed_on(options: dict[str, object]) -> None:
    assert checked(example)(**options) == example(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weight": "x"}, "weight is a number, not 'x'"),
        ({"weight": True}, "weight is a number, not True"),
        ({"weight": None}, "weight is a number, not None"),
        ({"weight": -3}, "weight is at least 0, not -3"),
        ({"weight": float("nan")}, "weight is a number, not nan"),
        ({"weight": float("inf")}, "weight is a number, not inf"),
        ({"stages": 1.0}, "stages is a whole number, not 1.0"),
        ({"stages": 0}, "stages is at least 1, not 0"),
        ({"hard": 1}, "hard is True or False, not 1"),
        ({"loss": 3}, "loss is a text in quotes, not 3"),
        ({"teacher": 5}, "teacher is a text in quotes, not 5"),
        ({"decay": -0.1}, "decay is at least 0 and at most 1, not -0.1"),
        ({"most": "x"}, "most is a number, not 'x'"),
        ({"most": 2}, "most is at least 0 and at most 1, not 2"),
        ({"decay": 1.1}, "decay is at least 0 and at most 1, not 1.1"),
    ],
)
def test_what_does_not_fit_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        checked(example)(**options)
    assert str(caught.value) == said


def test_positions_are_checked_like_names_and_the_signature_stays() -> None:
    with pytest.raises(RecipeError, match="stages"):
        checked(example)(1.0, "two")  # type: ignore[arg-type]
    assert inspect.signature(checked(example)) == inspect.signature(example)


def test_an_open_end_is_not_in_the_range() -> None:
    assert 0 not in Range(0, above=True)
    assert 0 in Range(0)
    assert 1e-9 in Range(0, above=True)


def test_every_default_of_every_recipe_is_in_its_range_and_a_name_has_one_range() -> None:
    ranges: dict[str, set[object]] = {}
    for name, recipe in recipes().items():
        assert checked(recipe)() == recipe(), name
        for parameter, kind in get_type_hints(recipe, include_extras=True).items():
            left_open = [member for member in get_args(kind) if member is not type(None)]  # `Ratio | None`
            own = left_open[0] if get_origin(kind) in (Union, UnionType) else kind
            ranges.setdefault(parameter, set()).update(getattr(own, "__metadata__", [None]))
    for shared in ("weight", "temperature", "decay", "confidence", "ratio", "generations"):
        (limits,) = ranges[shared]
        assert isinstance(limits, Range), shared
