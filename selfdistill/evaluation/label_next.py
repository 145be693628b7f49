"""Which rows to label next: those whose label would teach most, and those that the model may label itself.

A committee (the final model first, then earlier generations, peers and the baseline) predicts the unlabelled rows. For
a person, ``best`` takes the ``POOL`` times n rows of smallest margin between the two most probable classes of the mean
(of values the largest spread), clusters their features by k-means weighted by this uncertainty, and asks for the row
next to each centre: uncertain rows that differ from each other, where many rows lie. The audit compares models by the
rows on which they differ, so these rows are also those whose labels can change its decision; ``split`` counts them.

The model labels rows above a confidence, the smallest one at which the error rate is at most ``max_error``, by the
upper bound of Clopper and Pearson on labelled rows that taught nothing. Confidences are tested one after another, from
the highest on, and the first failure ends it; so the level holds for all of them together.

Sources: Zhdanov, Diverse Mini-Batch Active Learning, 2019 (arXiv 1901.05954); Angelopoulos et al., Learn then Test,
2021 (fixed sequence testing).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import rng
from ..data.decisions import ACCEPT, MODEL, PERSON, LabelDecision, RowNames, label_text
from ..errors import DataError
from ..io.display import plural, printable

STRATEGIES = ("best", "margin", "random")
POOL = 10  # times n: the uncertain rows that `best` clusters
MOST_POOL = 20_000
MAX_ERROR, LEVEL = 0.05, 0.05
SHOWN = 20  # rows of a table


Features = Callable[[Tensor], Tensor]  # of rows by their places: (rows, width)


class Committee(NamedTuple):
    """What models predict for rows: probabilities (members, rows, classes), or values (members, rows); the final model
    comes first."""

    ids: Tensor  # (rows,) sample ids, unlabelled
    names: RowNames
    classes: tuple[str, ...]  # empty for values
    outputs: Tensor
    features: Features
    held: Tensor | None  # probabilities (held rows, classes) for rows that taught nothing, by what labels rows itself
    truth: Tensor  # (held rows,) their classes
    labels: Tensor | None = None  # probabilities (rows, classes) of what labels rows itself, where not the final model

    @property
    def mean(self) -> Tensor:
        """The mean over the members, (rows, classes) or (rows,)."""
        return self.outputs.mean(0)


def uncertainty(outputs: Tensor) -> Tensor:
    """1 minus the margin of the mean probabilities, or the standard deviation of values over the members; (rows,).

    >>> uncertainty(torch.tensor([[[0.5, 0.5], [1.0, 0.0]]])).tolist()
    [1.0, 0.0]
    """
    if outputs.dim() == 2:
        return outputs.std(0, correction=0)
    top = outputs.mean(0).topk(min(2, outputs.shape[-1]), dim=-1).values
    return 1.0 - (top[:, 0] - top[:, -1])


def split(outputs: Tensor) -> Tensor:
    """A mask of the rows (rows,) that some members give another class than the first one."""
    if outputs.dim() == 2:
        return torch.zeros(outputs.shape[1], dtype=torch.bool)
    classes = outputs.argmax(-1)
    return (classes != classes[0]).any(0)


def check(n: int, strategy: str, max_error: float = MAX_ERROR) -> None:
    """Refuse a request that nothing meets.

    Raises:
        DataError: there is no such strategy, n is less than 1, or the error rate is no share.
    """
    if strategy not in STRATEGIES:
        raise DataError(f"there is no strategy {strategy!r}; give {', '.join(STRATEGIES[:-1])} or {STRATEGIES[-1]}")
    if n < 1:
        raise DataError(f"n counts rows, from 1 on, not {n}")
    if not 0 <= max_error < 1:
        raise DataError(f"the error rate is a share from 0 to below 1, not {max_error}; 0.05 is usual")


def choose(outputs: Tensor, features: Features, n: int, strategy: str = "best", seed: int = 0) -> Tensor:
    """The places of n rows to ask a person for, the most uncertain first; see the module.

    Args:
        outputs: Predictions of the members, as of `Committee`.
        features: The features of rows by their places.
        n: How many; all rows if there are fewer.
        strategy: ``best``, ``margin`` (the most uncertain rows) or ``random``.
        seed: Of the draws.

    Raises:
        DataError: there is no such strategy, or n is less than 1.

    >>> p = torch.tensor([[[0.5, 0.5], [0.9, 0.1], [0.6, 0.4]]])
    >>> choose(p, torch.eye(3).__getitem__, 2, "margin").tolist()
    [0, 2]
    """
    check(n, strategy)
    unsure = uncertainty(outputs)
    rows, n = len(unsure), min(n, len(unsure))
    order = unsure.argsort(descending=True, stable=True)
    if strategy == "random":
        return rng.permutation((seed, "label next"), rows)[:n]
    if strategy == "margin" or n == rows:
        return order[:n]
    pool = order[: max(n, min(POOL * n, MOST_POOL))]
    picks = pool[_diverse(features(pool), unsure[pool], n, seed)]
    return picks[unsure[picks].argsort(descending=True, stable=True)]


def _diverse(features: Tensor, weights: Tensor, n: int, seed: int) -> Tensor:
    """The places of the rows next to the centres of n weighted clusters, each row once."""
    from sklearn.cluster import KMeans

    x: NDArray[np.float64] = features.double().numpy()
    x = (x - x.mean(0)) / np.where(x.std(0) > 0, x.std(0), 1.0)
    distinct = len(np.unique(x, axis=0))
    clusters = KMeans(min(n, distinct), n_init=3, random_state=seed % (1 << 32))
    clusters.fit(x, sample_weight=np.maximum(weights.double().numpy(), 1e-6))
    taken = np.zeros(len(x), dtype=bool)
    for distances in clusters.transform(x).T:
        taken[np.where(taken, np.inf, distances).argmin()] = True
    rest = np.flatnonzero(~taken)[: n - int(taken.sum())]  # where rows are copies of each other
    return torch.from_numpy(np.concatenate([np.flatnonzero(taken), rest]))


class SafeLabels(NamedTuple):
    """The confidence from which a model may label rows itself; None where no confidence is enough."""

    threshold: float | None
    judged: int  # labelled rows that taught nothing, from that confidence on
    errors: int  # of them
    bound: float  # of the error rate


def error_bounds(errors: NDArray[np.int64], rows: NDArray[np.int64], level: float = LEVEL) -> NDArray[np.float64]:
    """The upper bounds of Clopper and Pearson for error rates.

    >>> error_bounds(np.array([0, 3]), np.array([59, 3])).round(3).tolist()
    [0.05, 1.0]
    """
    from scipy.stats import beta

    bounds: NDArray[np.float64] = beta.ppf(1 - level, errors + 1, np.maximum(rows - errors, 1e-9))
    return np.where(errors >= rows, 1.0, bounds)


def safe_labels(held: Tensor, truth: Tensor, max_error: float = MAX_ERROR, level: float = LEVEL) -> SafeLabels:
    """The smallest confidence from which the error rate is bounded; see the module.

    Args:
        held: Probabilities (rows, classes) for rows that taught nothing.
        truth: Their classes (rows,).
        max_error: The largest error rate.
        level: The probability that the bound is wrong.

    >>> p = torch.tensor([[0.9, 0.1]] * 60 + [[0.6, 0.4]] * 60)
    >>> safe_labels(p, torch.tensor([0] * 60 + [1] * 60))[:3]
    (0.8999999761581421, 60, 0)
    """
    confidence, order = held.max(-1).values.sort(descending=True, stable=True)
    counts = np.arange(1, len(order) + 1)
    errors = (held.argmax(-1) != truth)[order].cumsum(0).numpy()
    bounds = error_bounds(errors, counts, level)
    best = SafeLabels(None, 0, 0, 1.0)
    for i in range(fewest_rows(max_error, level) - 1, len(order)):
        if i + 1 < len(order) and confidence[i + 1] == confidence[i]:
            continue  # equally certain rows follow
        if bounds[i] > max_error:
            break
        best = SafeLabels(float(confidence[i]), i + 1, int(errors[i]), float(bounds[i]))
    return best


def fewest_rows(max_error: float = MAX_ERROR, level: float = LEVEL) -> int:
    """The labelled rows without an error that a bound needs.

    >>> fewest_rows(), fewest_rows(0.1)
    (59, 29)
    """
    return int(np.ceil(np.log(level) / np.log1p(-max_error)))


def require_unlabelled(name: str, rows: int) -> None:
    """Refuse data without a row to ask for.

    Raises:
        DataError: there is none.
    """
    if not rows:
        raise DataError(
            f"{name}: no row is unlabelled, so there is none to ask for; add some, or `run --unlabelled PATH`"
        )


def propose(
    committee: Committee, n: int, strategy: str = "best", seed: int = 0, max_error: float = MAX_ERROR
) -> tuple[list[LabelDecision], dict[str, Any]]:
    """The decisions to be made by a person, those that the model makes itself, and a summary as JSON has it.

    Args:
        committee: The predictions.
        n: Rows for a person.
        strategy: As of `choose`.
        seed: Of the draws.
        max_error: The error rate of the labels that the model gives; 0 for none of them.

    Raises:
        DataError: as of `choose`.
    """
    picks = choose(committee.outputs, committee.features, n, strategy, seed)
    first, unsure, splits = committee.outputs[0], uncertainty(committee.outputs), split(committee.outputs)
    decisions, person = list[LabelDecision](), list[dict[str, Any]]()
    for i in picks.tolist():
        label = _suggested(committee, first[i])
        decisions.append(LabelDecision(committee.names.name(int(committee.ids[i])), "", label, "", PERSON))
        entry = {"row": decisions[-1].row, "suggested": label, "uncertainty": round(float(unsure[i]), 6)}
        person.append({**entry, "split": bool(splits[i])})
    safe, model = _self_labelled(committee, picks, max_error)
    decisions += model
    return decisions, {
        "strategy": strategy,
        "unlabelled": len(committee.ids),
        "members": len(committee.outputs),
        "person": person,
        "split": int(splits[picks].sum()),
        "model": {"rows": len(model), "max_error": max_error, "level": LEVEL, "held": len(committee.truth)}
        | {"needed": fewest_rows(max_error) if 0 < max_error < 1 else None, **safe._asdict()},
    }


def _suggested(committee: Committee, output: Tensor) -> str:
    return label_text(output.argmax() if committee.classes else output, committee.classes)


def _self_labelled(committee: Committee, asked: Tensor, max_error: float) -> tuple[SafeLabels, list[LabelDecision]]:
    """The rows that the model labels itself, the most certain first, without those that a person is asked for."""
    nothing = SafeLabels(None, 0, 0, 1.0)
    if not committee.classes or committee.held is None or not 0 < max_error < 1:
        return nothing, []
    safe = safe_labels(committee.held, committee.truth, max_error)
    if safe.threshold is None:
        return safe, []
    labels = committee.outputs[0] if committee.labels is None else committee.labels
    certain = labels.max(-1).values
    agreed = (certain >= safe.threshold) & (labels.argmax(-1) == committee.outputs[0].argmax(-1))
    agreed[asked] = False
    rows = agreed.nonzero()[:, 0]
    rows = rows[certain[rows].argsort(descending=True, stable=True)]
    return safe, [
        LabelDecision(committee.names.name(int(committee.ids[i])), "", _suggested(committee, labels[i]), ACCEPT, MODEL)
        for i in rows.tolist()
    ]


def proposal_text(summary: dict[str, Any]) -> str:
    """The summary of `propose` for people."""
    table = [["row", "suggested", "uncertainty", "models differ"]]
    for entry in summary["person"][:SHOWN]:
        cells = [entry["row"], entry["suggested"], f"{entry['uncertainty']:.3g}", "yes" if entry["split"] else ""]
        table.append([printable(cell, kept="") for cell in cells])
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    more = len(summary["person"]) - SHOWN
    lines += [f"... and {more} more"] if more > 0 else []
    asked = plural(len(summary["person"]), "row")
    lines += ["", f"For a person: {asked} of {summary['unlabelled']} unlabelled ones, by {summary['strategy']}."]
    if summary["members"] > 1 and summary["split"]:
        lines[-1] += f" Models differ on {summary['split']} of them: these labels can change what the audit decides."
    return "\n".join([*lines, _self_labelled_text(summary["model"])])


def _self_labelled_text(safe: dict[str, Any]) -> str:
    percent = f"{100 * safe['max_error']:g} %"
    if safe["needed"] is None:
        return "By the model: no row; no error rate is allowed."
    if safe["threshold"] is None:
        have = plural(safe["held"], "labelled row")
        return (
            f"By the model: no row. An error rate of {percent} needs {safe['needed']} confident rows without an error "
            f"among labelled rows that taught nothing, and there are {have} of them; label more, or allow more by "
            "--max-error."
        )
    return (
        f"By the model: {plural(safe['rows'], 'row')} from a "
        f"confidence of {safe['threshold']:.3f} on, where its error rate is at most {percent} "
        f"({safe['errors']} errors, bound {100 * safe['bound']:.1f} %, level {safe['level']:g})."
    )


def merge(old: Sequence[LabelDecision], new: Sequence[LabelDecision]) -> list[LabelDecision]:
    """The decisions that were made, and then the proposals for other rows; what was open before is proposed anew.

    >>> old = [LabelDecision("1", decision="cat"), LabelDecision("2")]
    >>> [decision.row for decision in merge(old, [LabelDecision("1"), LabelDecision("3")])]
    ['1', '3']
    """
    made = [decision for decision in old if decision.decision]
    rows = {decision.row for decision in made}
    return [*made, *(decision for decision in new if decision.row not in rows)]
