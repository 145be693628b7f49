"""Classes that have names, around a learner that counts them."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from selfdistill.estimators.naming import Named


def test_names_follow_the_numbers_also_where_a_class_is_missing() -> None:
    """Numbers 2 and 0 were learnt, "b" has no row; the order is the learner's."""
    x = np.array([[0.0], [1.0], [2.0], [3.0]])
    fitted = DecisionTreeClassifier(random_state=0).fit(x, [2, 2, 0, 0])
    model = Named.of(fitted, ("z", "b", "a"))
    assert model.classes_.tolist() == ["z", "a"]
    assert model.predict(x).tolist() == ["a", "a", "z", "z"]
    assert model.predict_proba(x).argmax(1).tolist() == [1, 1, 0, 0]
    assert model.score(x, ["a", "a", "z", "a"]) == 0.75


def test_it_is_fitted_as_the_learner_itself_on_names() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 2))
    y = np.where(x[:, 0] > 0, "up", "down")
    wanted, found = LogisticRegression().fit(x, y), Named(LogisticRegression()).fit(x, y)
    assert found.predict(x).tolist() == wanted.predict(x).tolist()
    assert np.allclose(found.predict_proba(x), wanted.predict_proba(x))
