"""Permutation importance of columns: by how much a model is worse on rows in which a column is shuffled.

Source: Breiman, Random forests, Machine Learning 45, 2001; Fisher, Rudin and Dominici, All Models are Wrong, but Many
are Useful, JMLR 20, 2019. Columns that say the same share their importance, and each may then seem to matter little.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

PREDICTIONS, ROWS = 150, 300  # of all columns at most, and the rows of each


def permutation_importance(
    score: Callable[[Tensor], float], x: Tensor, columns: Sequence[str], repeats: int, seed: int = 0
) -> list[dict[str, Any]]:
    """The importance of columns, the largest first.

    Args:
        score: of a model on inputs (rows, features), more is better.
        x: the inputs, (rows, features).
        columns: the column that each feature was made of; features of one column are shuffled together.
        repeats: how often each column is shuffled.
        seed: of the permutations.

    Returns:
        For each column ``name``, the ``mean`` fall of the score, and its ``deviation``.

    >>> x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 2.0], [1.0, 2.0]])
    >>> found = permutation_importance(lambda z: float((z[:, 0] == x[:, 0]).float().mean()), x, ["a", "b"], 5)
    >>> [one["name"] for one in found], found[1]["mean"]
    (['a', 'b'], 0.0)
    """
    random, whole, found = np.random.default_rng(seed), score(x), []
    for name in dict.fromkeys(columns):
        own = torch.tensor([column == name for column in columns])
        falls = []
        for _ in range(repeats):
            shuffled = x.clone()
            shuffled[:, own] = x[torch.from_numpy(random.permutation(len(x)))][:, own]
            falls.append(whole - score(shuffled))
        found.append({"name": name, "mean": statistics.fmean(falls), "deviation": statistics.pstdev(falls)})
    return sorted(found, key=lambda one: -float(one["mean"]))
