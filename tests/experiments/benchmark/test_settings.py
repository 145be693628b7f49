"""Which recipes run where: asked of the recipes, so that a new one is taken up by itself."""

from __future__ import annotations

from typing import Any

import pytest

from selfdistill.core.objective import Method
from selfdistill.core.parts import Term
from selfdistill.errors import DataError
from selfdistill.experiments.benchmark import settings
from selfdistill.experiments.benchmark.settings import (
    HALF,
    PLAIN,
    SELF_TRAINING,
    SETTINGS,
    chosen,
    fits,
    misfit,
    sorted_out,
)
from selfdistill.losses import CrossEntropy
from selfdistill.methods import cards, recipes, registry
from selfdistill.teachers import Labels, LastEpoch


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_every_recipe_runs_or_has_a_reason(setting: Any) -> None:
    running, reasons = sorted_out(setting)
    assert {name for name in running if name not in settings.ABOUT} | set(reasons) | {PLAIN} == {
        f"{name}()" for name in recipes()
    }
    assert not set(running) & set(reasons)
    assert all(why and "\n" not in why for why in reasons.values())
    if not setting.probing:
        assert running[:2] == [PLAIN, HALF]
    assert (SELF_TRAINING in running) == setting.unlabelled


@pytest.mark.parametrize(
    ("method", "where", "why"),
    [
        ("mixed()", "digits-all", "predicts values"),
        ("fixmatch()", "digits-all", "needs unlabelled rows"),
        ("sad()", "digits-all", "no layer 'stages.2'"),
        ("elr()", "digits-none", "learns from labels"),
        ("function_matching()", "digits-none", "learns from labels"),
        ("born_again()", "fashion-memorise", "nothing of its own past"),
        ("fixmatch()", "digits-100", None),
        ("sad()", "digits-all-cnn", None),
        ("born_again_ensemble()", "fashion-memorise", "nothing of its own past"),
        ("tf_kd()", "fashion-memorise", "nothing of its own past"),
        ("pi_model()", "fashion-memorise", "nothing of its own past"),
        ("elr()", "fashion-memorise", None),
        ("selfie()", "fashion-memorise", None),
        ("joint_optimisation()", "fashion-memorise", None),
        ("ols()", "fashion-memorise", None),
        ("ups()", "fashion-100", None),
    ],
)
def test_the_reason_is_the_recipes_own(method: str, where: str, why: str | None) -> None:
    found = misfit(method, SETTINGS[where])
    assert (found is None) if why is None else why in (found or "")
    assert fits(method, SETTINGS[where]) == (why is None)


def test_a_new_recipe_is_taken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def sure_past(weight: float = 1.0) -> Method:
        """Agree with your last epoch.

        Source: a test, 2026.
        """
        past = Term(LastEpoch(), CrossEntropy(), weight=weight)
        return Method({"label": Term(Labels(), CrossEntropy()), "past": past})

    more = {**recipes(), "sure_past": sure_past}
    for module in (cards, registry, settings):
        monkeypatch.setattr(module, "recipes", lambda: more)
    sorted_out.cache_clear()
    assert "sure_past()" in sorted_out(SETTINGS["digits-all"])[0]
    assert "sure_past()" in sorted_out(SETTINGS["fashion-memorise"])[0]
    sorted_out.cache_clear()


def test_controls_are_those_without_a_teacher_of_their_own() -> None:
    controls = {name for name in recipes() if settings.is_control(f"{name}()")}
    assert controls == {"plain", "label_smoothing", "distil", "function_matching"}


def test_settings_are_chosen_by_name_and_by_pattern() -> None:
    assert [s.name for s in chosen(["digits-50,digits-none"], SETTINGS)] == ["digits-50", "digits-none"]
    assert len(chosen([], SETTINGS)) == len(SETTINGS)
    assert {s.data for s in chosen(["fashion-*"], SETTINGS)} == {"fashion-mnist"}
    with pytest.raises(DataError, match="no setting of the benchmark is called 'digit'"):
        chosen(["digit"], SETTINGS)
