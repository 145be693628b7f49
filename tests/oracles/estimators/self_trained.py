"""Curriculum labelling: stage s of S learns the labels and the surest s / S of the unlabelled rows of each class."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import clone

from tests.estimators.replay import Recorded, others


def oracle(
    run: Recorded,
    generations: int = 6,
    hard: bool = True,
    balanced: bool = True,
    calibrate: bool = True,
    peers: str | int | None = None,
) -> Any:
    models, classes = [clone(learner).fit(run.X, run.y) for learner in run.learners], np.unique(run.y)
    for stage in range(1, generations):
        share = stage / (generations - 1)
        unlabelled = [model.predict_proba(run.U) for model in models]
        models = []
        for member, learner in enumerate(run.learners):
            p = others(unlabelled, member)
            if calibrate:
                p = p ** (1 / run.temperatures[stage - 1])
                p /= p.sum(1, keepdims=True)
            groups = p.argmax(1) if balanced else np.zeros(len(p))
            number, chosen = len(classes) if balanced else 1, list[int]()
            for group in range(number):
                rows = np.flatnonzero(groups == group)
                surest = rows[np.argsort(-p[rows].max(1), kind="stable")]
                chosen += surest[: int(np.ceil(share * len(p) / number))].tolist()
            weights = np.eye(len(classes))[p.argmax(1)] if hard else p
            rows, columns = np.nonzero(weights * np.isin(np.arange(len(p)), chosen)[:, None])
            models.append(
                clone(learner).fit(
                    np.vstack([run.X, run.U[rows]]),
                    np.concatenate([run.y, classes[columns]]),
                    sample_weight=np.concatenate([np.ones(len(run.y)), weights[rows, columns]]),
                )
            )
    return models[0]
