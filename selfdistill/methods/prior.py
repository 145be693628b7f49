"""The recipe ``auto()``: which recipes it tries, in which order, by a prior fitted on other data sets.

The prior is a table of coefficients in ``prior.json``; ``python -m benchmarks.prior`` fits it again.
"""

from __future__ import annotations

import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import RecipeError
from ..io.expressions import Count, checked, expression_name, parse_expression
from .cards import argument_lines, describe
from .registry import AUTO

PRIOR = Path(__file__).with_name("prior.json")

#: What the prior knows of a setting: at first the rows and the length, and later what the first trainings tell.
FEATURES = ("rows", "classes", "labelled", "image", "epochs", "error", "memorised", "agreement")

#: What is tried, the simplest first: of equals on the validation rows the earlier one is chosen.
CLASSES = ("plain()", "label_smoothing()", "elr()", "bake()", "cs_kd()", "curriculum()")
VALUES = ("plain()", "born_again(xi=0.5)", "mean_teacher(weight=1.0)")


@dataclass(frozen=True)
class Auto:
    """The choice among several recipes; see `auto`."""

    most: int = 6
    longer: int = 3


def auto(most: Count = 6, longer: Count = 3) -> Auto:
    """A choice among a few recipes: each is trained at full length, and validation rows choose.

    The chosen recipe of a network is trained once more, for longer; of the two the better one on the validation rows is
    the final model.

    Equation::

        a* = argmin_a sum_v L(f_a(v), y_v),  v: validation rows; L: 0 where right, else 1 (values: squared error)

    Args:
        most: Number of recipes that are trained, plain() among them; a prior from other data sets puts them in order.
        longer: Length of the further training of the chosen network, in trainings of usual length; 1 for none.

    Returns:
        The choice, which `run` and `compare` carry out.

    Needs: labelled rows, and validation rows.

    Source: validation at full length among few recipes; numbers and limits in docs/auto.md.
    """
    return Auto(most, longer)


def auto_card() -> dict[str, Any]:
    """The card of the recipe: its docstring by section, its kinds of targets, and its cost."""
    names = dict.fromkeys(expression_name(one) for one in (*CLASSES, *VALUES))
    return {
        **describe(AUTO, auto),
        "targets": "classes, values",
        "for": "networks",
        "cost": {"trainings": len(CLASSES) + Auto.longer},
        "generations": 1,
        "candidates": list(names),
    }


def auto_text(card: Mapping[str, Any]) -> str:
    """The card of the recipe for people."""
    return "\n".join(
        [
            card["expression"],
            card["summary"],
            "",
            *(f"    {line}" for line in card["equation"].splitlines()),
            "",
            f"tries:       {', '.join(f'{name}()' for name in card['candidates'])}; at most {card['most']} of them",
            "cost:        one training of full length for each, then a longer one of the chosen network",
            "tables:      of learners see docs/auto.md",
            f"needs:       {card['needs']}",
            f"source:      {card['source']}",
            *argument_lines(card["arguments"]),
        ]
    )


def read_auto(expression: str) -> Auto:
    """Read an expression such as ``auto(most=3)``, without evaluating code.

    Raises:
        RecipeError: it is malformed, or has an argument that `auto` does not know.

    >>> read_auto("auto(most=3)")
    Auto(most=3, longer=3)
    """
    choice = parse_expression(expression, {AUTO: checked(auto)})
    if not isinstance(choice, Auto):
        raise RecipeError(f"{expression} is no call of {AUTO}()")
    return choice


def read_most(expression: str | None) -> int:
    """The number of recipes that ``auto()`` tries where no network is trained longer: prompts, policies and streams.

    Raises:
        RecipeError: the expression is malformed, or gives a length.

    >>> read_most("auto(most=3)"), read_most(None)
    (3, 6)
    """
    choice = read_auto(expression or f"{AUTO}()")
    if choice.longer != Auto.longer:
        raise RecipeError(f"longer of {expression} is for networks that learn all rows at once; leave it out")
    return choice.most


@cache
def read_prior() -> dict[str, Any]:
    """The prior of the package: features' means and scales, and coefficients of the gain over plain() by recipe."""
    return dict(json.loads(PRIOR.read_text(encoding="utf-8")))


def expected(features: Mapping[str, float], prior: Mapping[str, Any] | None = None) -> dict[str, float]:
    """The expected gain of each recipe over plain(), in points of accuracy; a feature that is not known is the mean.

    >>> gains = expected({"error": 0.5, "memorised": 0.2})
    >>> max(gains.values()) > gains["plain()"]
    True
    """
    prior = read_prior() if prior is None else prior
    known = [
        (features[name] - prior["mean"][name]) / prior["scale"][name] if name in features else 0.0 for name in FEATURES
    ]
    weights = prior["gains"].items()
    gains = {name: level + sum(map(operator.mul, slopes, known)) for name, (level, *slopes) in weights}
    return {CLASSES[0]: 0.0, **gains}


def simplicity(expression: str, pool: Sequence[str] = (*CLASSES, *VALUES)) -> int:
    """The place of a recipe in the order of simplicity; what is in no list comes last.

    >>> simplicity("plain()") < simplicity("elr()") < simplicity("curriculum()")
    True
    """
    return pool.index(expression) if expression in pool else len(pool)
