"""Every recipe for tables against a plain loop of scikit-learn."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsRegressor
from sklearn.tree import DecisionTreeClassifier

from selfdistill.estimators.recipes import recipes
from tests.estimators.replay import Recorded

VALUES = [Ridge(1.0), KNeighborsRegressor(3), Ridge(30.0)]
CLASSES = [DecisionTreeClassifier(max_depth=2, random_state=0), GaussianNB()]

CASES: list[tuple[str, bool, dict[str, Any], dict[str, Any]]] = [
    ("auto", False, {"product": "single", "synthetic": 0}, {}),
    ("self_distilled", False, {"generations": 3, "xi": 0.4, "peers": None}, {"audit": "off"}),
    ("self_distilled", False, {"generations": 3, "xi": -0.3}, {"audit": "off"}),
    ("self_distilled", False, {"generations": 2}, {"audit": "off"}),
    ("peer_taught", False, {"generations": 3}, {"audit": "off", "synthetic": 0}),
    ("self_trained", True, {"generations": 4}, {"audit": "off"}),
    ("self_trained", True, {"generations": 3, "hard": False, "balanced": False, "peers": "usual"}, {"audit": "off"}),
    ("self_trained", True, {"generations": 3, "calibrate": False}, {"audit": "off"}),
]


@pytest.mark.parametrize(("name", "classify", "options", "more"), CASES)
def test_a_recipe_is_its_plain_loop(name: str, classify: bool, options: dict[str, Any], more: dict[str, Any]) -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(120, 3))
    signal = rows @ [1.0, -2.0, 0.5] + random.normal(size=120)
    X, U, y = rows[:40], rows[40:], (signal[:40] > 0).astype(int) + (signal[:40] > 1) if classify else signal[:40]
    learner, *peers = [LogisticRegression(), *CLASSES] if classify else VALUES
    if name == "auto":  # of which the first is not the best
        peers, learner = [learner, peers[0]], peers[1]
        more = {"learners": dict(zip("ab", peers, strict=True))}
    model = recipes()[name](**options).make(learner, peers, classify, random_state=0, **more).fit(X, y, X_unlabeled=U)
    alone = (name == "self_trained" and options.get("peers") is None) or options.get("peers", "") is None
    temperatures = [line["temperature"] or 1.0 for line in model.history_[1:]]
    run = Recorded(X, y, U, [learner] if alone else [learner, *peers], model.xi_, temperatures)
    oracle = importlib.import_module(f"tests.oracles.estimators.{name}").oracle(run, **options)
    ask = "predict_proba" if classify else "predict"
    np.testing.assert_allclose(getattr(model, ask)(U), getattr(oracle, ask)(U), rtol=1e-4, atol=1e-5)
    assert not np.allclose(getattr(model, ask)(U), getattr(learner.fit(X, y), ask)(U), atol=1e-3)


def test_every_recipe_has_an_oracle_with_its_arguments() -> None:
    folder = Path(__file__).parents[1] / "oracles" / "estimators"
    assert {path.stem for path in folder.glob("[!_]*.py")} == {name for name in recipes() if name != "plain"}
    for name in {case[0] for case in CASES}:
        oracle = importlib.import_module(f"tests.oracles.estimators.{name}").oracle
        given = {p.name: p.default for p in inspect.signature(oracle).parameters.values() if p.name != "run"}
        assert given == {p.name: p.default for p in inspect.signature(recipes()[name]).parameters.values()}
