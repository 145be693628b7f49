"""auto() of values: a stack of learners, weighted out of fold, and the student that it teaches."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize
from sklearn.base import clone

from selfdistill.estimators.tables import assign_folds  # which rows are held out together is no part of the recipe
from tests.estimators.replay import Recorded


def weigh(answers: Any, y: Any) -> Any:
    """Non-negative weights that sum to 1, drawn to equal ones as by 30 rows."""
    count, spread = len(answers), answers.std()

    def loss(w: Any) -> Any:
        return ((w @ answers - y) ** 2).sum() + 30 * spread**2 * ((w - 1 / count) ** 2).sum()

    total = {"type": "eq", "fun": lambda w: w.sum() - 1}
    start, bounds = np.full(count, 1 / count), [(0, 1)] * count
    return minimize(loss, start, bounds=bounds, constraints=total, tol=1e-12, options={"maxiter": 1000}).x


def oracle(run: Recorded, product: str = "best", synthetic: int = 2000) -> Any:
    assert (product, synthetic) == ("single", 0)  # rows made of others are drawn, and the others are parts of it
    random = np.random.RandomState(0)
    random.randint(2**31 - 1)  # the learner's own seed
    fold, _ = assign_folds(run.X, run.y, 5, int(random.randint(2**31 - 1)), classes=False)
    margin = 0.05 * (run.y.max() - run.y.min())
    low, high = run.y.min() - margin, run.y.max() + margin
    held_out = np.empty((len(run.learners), len(run.y)))
    for i, learner in enumerate(run.learners):
        for k in range(5):
            model = clone(learner).fit(run.X[fold != k], run.y[fold != k])
            held_out[i, fold == k] = model.predict(run.X[fold == k]).clip(low, high)
    stacked = np.empty(len(run.y))
    for k in range(5):
        stacked[fold == k] = weigh(held_out[:, fold != k], run.y[fold != k]) @ held_out[:, fold == k]
    models = [clone(learner).fit(run.X, run.y) for learner in run.learners]
    taught = weigh(held_out, run.y) @ np.stack([model.predict(run.U).clip(low, high) for model in models])
    rows, targets = np.vstack([run.X, run.U]), np.concatenate([(stacked + run.y) / 2, taught])
    return clone(run.learners[0]).fit(rows, targets)
