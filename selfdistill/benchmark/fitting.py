"""Which recipes run in a setting is asked of the recipes: what their cards say and what their parts do."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import torch

from ..core import Clock, Method, Objective, Teacher
from ..errors import SelfdistillError, SpaceError
from ..explain import card
from ..methods import recipes
from ..models import Build, parse
from ..prepared import read_method
from ..specimens import batch_for, bound, built
from ..step import Batch
from ..teachers import External
from ..teachers.cached import asked
from .settings import Setting

CLASSES = 10
PLAIN, HALF, STOPPED = "plain()", "plain(), half the budget", "plain(), stopped early"
SELF_TRAINING = "SelfTrainingClassifier(LogisticRegression())"
UNTRAINED = "untrained"
ABOUT = {
    PLAIN: "cross-entropy on the labels for the whole budget: what differences are to",
    HALF: "the same for half of it, the training of usual length",
    STOPPED: "`plain()` at the epoch that is best on the audit split",
    SELF_TRAINING: "scikit-learn's, on pixels; it spends no passes of a network",
    UNTRAINED: "the network as it is drawn, under a linear probe",
}
_DROPOUT = re.compile(r"dropout=([\d.]+)")


@cache
def card_of(name: str) -> dict[str, Any]:
    return card(name)


def name_of(expression: str) -> str:
    """The recipe's name in an expression.

    >>> name_of("elr(weight=2.0)")
    'elr'
    """
    return expression.partition("(")[0].strip()


def is_control(expression: str) -> bool:
    """Is it there to be beaten: no distillation at all, or by a teacher from outside?"""
    if expression in ABOUT:
        return True
    recipe = recipes().get(name_of(expression))  # None where a record is older than the recipes
    return recipe is not None and (recipe.__module__.endswith(".controls") or wants_teacher(read_method(expression)))


def wants_teacher(method: Method) -> bool:
    """Does it need a trained teacher that nobody has named?"""
    seen = [asked(part) for term in method.terms.values() for part in term.parts()]
    return any(isinstance(who, External) and who.source is None for who in seen)


def _specimen(method: Method, labelled: bool, generation: int) -> Objective:
    """An objective of a generation that has seen one batch, of rows without a label if so asked."""
    batch = batch_for(method, 0)
    if not labelled:
        batch = Batch({view: rows._replace(y=None) for view, rows in batch.items()})
    clock = Clock(generation, method.generations, 0, 2, 0, 2)
    with torch.random.fork_rng(devices=[]):
        objective = bound(method, built(method, 1), clock)
        objective.watched = False
        objective(batch)
    return objective


@cache
def learns_without_labels(method: Method) -> bool:
    """Can it take a step on rows of which nobody knows the label?

    >>> learns_without_labels(recipes()["plain"]())
    False
    """
    if wants_teacher(method):  # which was trained on labels
        return False
    try:
        _specimen(method, labelled=False, generation=method.generations - 1)
    except SpaceError:
        return False
    return True


@cache
def remembers(method: Method) -> bool:
    """Does it keep, within one training, something of its own past: predictions, class means, weights?

    Of several generations the first one is asked: what it keeps is its own.

    >>> remembers(recipes()["elr"]()), remembers(recipes()["born_again"]()), remembers(recipes()["selfie"]())
    (True, False, True)
    """
    if wants_teacher(method) or method.views.need_unlabelled():
        return False
    objective = _specimen(method, labelled=True, generation=0)
    parts = ((name, part) for name, term in method.terms.items() for part in term.parts() if isinstance(part, Teacher))
    return any(objective.state_of(name, part).state_dict() for name, part in parts)


def build_for(setting: Setting, expression: str) -> Build:
    """The setting's model; where a recipe's card asks for dropout, with that much."""
    build = parse(setting.model, setting.shape, CLASSES)
    needs = _DROPOUT.search(card_of(name_of(expression))["needs"]) if name_of(expression) in recipes() else None
    return build.having(dropout=float(needs[1])) if needs and build.accepts("dropout") else build


def misfit(expression: str, setting: Setting) -> str | None:
    """Why a recipe does not run in a setting; None if it does."""
    method = read_method(expression)
    if "classes" not in card_of(name_of(expression))["targets"]:
        return "predicts values, and the labels here are classes"
    if setting.probing != learns_without_labels(method):
        return "learns from labels, and there are none" if setting.probing else "learns without labels"
    if method.views.need_unlabelled() and not setting.unlabelled:
        return "needs unlabelled rows, and all rows here are labelled"
    if setting.remembering and not remembers(method) and not is_control(expression):
        return "keeps nothing of its own past within a training"
    try:
        build = build_for(setting, expression)
        (method.prepare(build) if method.prepare else build)()
    except SelfdistillError as error:
        return str(error)
    return None


def controls_of(setting: Setting) -> list[str]:
    """The rows that are no recipe's, the reference first."""
    if setting.probing:
        return [PLAIN, UNTRAINED]
    return [PLAIN, HALF, *([SELF_TRAINING] if setting.unlabelled else [])]


def fits(method: str, setting: Setting) -> bool:
    """Does a recipe's expression, or a control, run in a setting?"""
    return method in controls_of(setting) if method in ABOUT else misfit(method, setting) is None


@cache
def sorted_out(setting: Setting) -> tuple[list[str], dict[str, str]]:
    """Controls and recipes that run in a setting, and the others, each with its reason."""
    names = [f"{name}()" for name in recipes() if f"{name}()" != PLAIN]
    reasons = {name: why for name in names if (why := misfit(name, setting)) is not None}
    return [*controls_of(setting), *(name for name in names if name not in reasons)], reasons
