"""The noise of several annotators: how often each one is right, and how probably the consensus of a row is wrong.

The annotator model of `label_noise` has the probabilities of a model, which did not learn a row's label, as the prior
of its class, and a noise matrix for each annotator. The score of a row is the probability that its consensus, which was
learnt, is another class than the true one. Intervals are percentiles of bootstrap samples of the rows, each with
matrices of its own.

Source: Dawid and Skene, 1979, as in `label_noise`; with a model in place of the shares of classes: Goh, Tkachenko and
Mueller, CROWDLAB, 2022, whose weights are others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .label_noise import KEPT_CLASSES, LEVEL, LabelNoise, Rate, calibrate, find_label_errors

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST = 2_000_000  # numbers (rows x classes) of a bootstrap sample
MOST_PAIRS = 5  # of classes that an annotator confuses most


class Annotator(NamedTuple):
    """An annotator: the rows it labelled, the share of its labels that are right, its rank by this share, and its
    noise matrix (classes, classes) with bounds, a row for each true class."""

    name: str
    rows: int
    agreement: Rate
    rank: int
    matrix: Floats
    low: Floats
    high: Floats

    def to_json(self, classes: Sequence[str]) -> dict[str, Any]:
        """The entry of run.json: the matrix whole for few classes, and the pairs of most noise."""
        off = np.where(np.eye(len(classes), dtype=bool), 0.0, self.matrix)
        pairs = []
        for place in np.argsort(-off, axis=None, kind="stable")[:MOST_PAIRS].tolist():
            true, given = divmod(place, len(classes))
            if off[true, given] >= 0.01:
                values = {"rate": self.matrix, "low": self.low, "high": self.high}
                rate = {name: round(float(part[true, given]), 6) for name, part in values.items()}
                pairs.append({"true": classes[true], "given": classes[given], **rate})
        facts: dict[str, Any] = {"name": self.name, "rows": self.rows, "rank": self.rank}
        facts |= {"agreement": self.agreement._asdict(), "pairs": pairs}
        if len(classes) <= KEPT_CLASSES:
            parts = {"rates": self.matrix, "low": self.low, "high": self.high}
            facts["matrix"] = {name: np.round(part, 6).tolist() for name, part in parts.items()}
        return facts


def find_consensus_errors(
    labels: Ints, votes: Ints, pred_probs: Floats, names: Sequence[str], seed: int = 0
) -> tuple[LabelNoise, list[Annotator]]:
    """Find rows whose consensus is likely wrong, and how often each annotator is right.

    Args:
        labels: The consensus that was learnt, classes from 0 on, (rows,).
        votes: The labels of the annotators, (rows, annotators), -1 for none; each row has one at least.
        pred_probs: Probabilities of the classes, (rows, classes), by a model that did not learn the row.
        names: Of the annotators.
        seed: Of the bootstrap samples.

    Returns:
        The noise of the consensus, and the annotators in their order.

    Raises:
        DataError: as of `find_label_errors`.

    >>> votes = np.array([[0, 0, 0]] * 20 + [[1, 1, 0]] * 20 + [[0, 1, 0]])
    >>> q = np.array([[0.9, 0.1]] * 20 + [[0.1, 0.9]] * 21)
    >>> noise, panel = find_consensus_errors(np.array([0] * 20 + [1] * 20 + [0]), votes, q, ["ann", "ben", "cy"])
    >>> noise.order[0].item(), noise.suggested[-1].item(), [one.rank for one in panel]
    (40, 1, [2, 1, 3])
    """
    found = find_label_errors(votes, pred_probs, seed)
    assert found.posterior is not None
    assert found.matrices is not None
    assert found.matrix_draws is not None
    rows, classes = pred_probs.shape
    places = np.arange(rows)
    scores = 1.0 - found.posterior[places, labels]
    p, random = calibrate(pred_probs, found.power), np.random.default_rng((seed, rows))
    most = max(200, MOST // classes)
    rates, draws = [], []
    for matrices in found.matrix_draws:
        drawn = random.choice(rows, min(rows, most))
        posterior = _posterior(p[drawn], votes[drawn], matrices)
        rates.append(1.0 - posterior[np.arange(len(drawn)), labels[drawn]].mean())
        draws.append(_consensus_matrix(posterior, labels[drawn]))
    matrix = _consensus_matrix(found.posterior, labels)
    noise = LabelNoise(
        scores, found.posterior.argmax(axis=1), _rate(float(scores.mean()), np.array(rates)), matrix, np.stack(draws),
        found.power, found.agreement,
    )  # fmt: skip
    return noise, _annotators(found, (votes >= 0).sum(axis=0), names)


def _annotators(found: LabelNoise, rows: Ints, names: Sequence[str]) -> list[Annotator]:
    assert found.matrices is not None
    assert found.matrix_draws is not None
    shares = np.array([one.rate for one in found.agreement])
    rank = np.empty(len(shares), dtype=np.int64)
    rank[np.argsort(-shares, kind="stable")] = np.arange(1, len(shares) + 1)
    low, high = np.quantile(found.matrix_draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    low, high = np.minimum(low, found.matrices), np.maximum(high, found.matrices)
    return [
        Annotator(name, int(rows[a]), found.agreement[a], int(rank[a]), found.matrices[a], low[a], high[a])
        for a, name in enumerate(names)
    ]


def _posterior(p: Floats, votes: Ints, matrices: Floats) -> Floats:
    """The probabilities of the true classes (rows, classes), given the votes (rows, annotators)."""
    logs = np.log(p + 1e-300)
    for a, matrix in enumerate(matrices):
        given = np.flatnonzero(votes[:, a] >= 0)
        logs[given] += np.log(matrix + 1e-12).T[votes[given, a]]
    posterior: Floats = np.exp(logs - logs.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    return posterior


def _consensus_matrix(posterior: Floats, labels: Ints) -> Floats:
    """The share of the rows of each true class whose consensus is each class, (classes, classes)."""
    counts = np.zeros((posterior.shape[1], posterior.shape[1]))
    np.add.at(counts, labels, posterior)
    counts = counts.T + np.eye(len(counts))
    matrix: Floats = counts / counts.sum(axis=1, keepdims=True)
    return matrix


def _rate(value: float, samples: Floats) -> Rate:
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Rate(value, float(min(max(low, 0.0), value)), float(max(min(high, 1.0), value)))


def annotator_lines(annotators: Sequence[dict[str, Any]]) -> list[str]:
    """The annotators of a record in sentences, the best one first; empty without any."""
    if not annotators:
        return []
    lines = ["Annotators by the estimated share of their labels that are right:"]
    for one in sorted(annotators, key=lambda one: int(one["rank"])):
        rate, low, high = (100 * one["agreement"][name] for name in ("rate", "low", "high"))
        pair = next(iter(one["pairs"]), None)
        most = f"; most often {pair['given']} for {pair['true']}, {100 * pair['rate']:.0f} %" if pair else ""
        lines.append(f"{one['rank']}. {one['name']}: {rate:.1f} % [{low:.1f}, {high:.1f}] of {one['rows']:,}{most}")
    return lines
