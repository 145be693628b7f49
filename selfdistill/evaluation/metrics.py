"""Metrics of predictions where labels are known, in float64; rows without a label are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import DataError

#: What is told, by task; the first decides.
METRICS: dict[str, dict[str, dict[str, Any]]] = {
    "classify": {
        "accuracy": {"higher_is_better": True, "unit": "share"},
        "nll": {"higher_is_better": False, "unit": "nats"},
        "ece": {"higher_is_better": False, "unit": "share"},
        "brier": {"higher_is_better": False, "unit": "squared error"},
        "aurc": {"higher_is_better": False, "unit": "share"},
        "gap": {"higher_is_better": False, "unit": "share"},  # training minus test accuracy: over-fitting
    },
    "regress": {
        "rmse": {"higher_is_better": False, "unit": "of the target"},
        "mae": {"higher_is_better": False, "unit": "of the target"},
        "r2": {"higher_is_better": True, "unit": "share"},
        "width": {"higher_is_better": False, "unit": "of the target"},
        "rmse_gap": {"higher_is_better": False, "unit": "of the target"},  # test minus training RMSE: over-fitting
        "coverage": {"higher_is_better": None, "unit": "share"},  # 0.9 is wanted: neither more nor less is better
    },
    "generate": {
        "accuracy": {"higher_is_better": True, "unit": "share"},
        "nll": {"higher_is_better": False, "unit": "nats a token"},
        "kept": {"higher_is_better": True, "unit": "share"},  # of prior tasks right
        "tasks": {"higher_is_better": True, "unit": "share"},  # score on documents of tasks of lm-eval
        "length": {"higher_is_better": None, "unit": "tokens"},
    },
    "control": {
        "return": {"higher_is_better": True, "unit": "of an episode"},
        "updates": {"higher_is_better": None, "unit": "gradient steps"},
        "teacher_steps": {"higher_is_better": None, "unit": "environment steps of the teacher"},
    },
}


AUDITED = {"accuracy": True, "rmse": False, "nll": False, "return": True}  # what ranks controls, and is more better?


POINTS = frozenset({"accuracy", "kept", "tasks", "gap"})  # told in per cent, and differences in points


def ordered(figures: Mapping[str, Any], task: str) -> list[str]:
    """The metrics that were computed, in the order of `METRICS`: JSON sorts them by the alphabet.

    >>> ordered({"mae": {}, "rmse": {}}, "regress")
    ['rmse', 'mae']
    """
    return [metric for metric in METRICS[task] if metric in figures]


def gap(train: Mapping[str, float], test: Mapping[str, float]) -> dict[str, float]:
    """How far the scores on training rows are above those on test rows: over-fitting, in accuracy or in RMSE.

    >>> gap({"accuracy": 1.0}, {"accuracy": 0.75}), gap({"rmse": 1.0}, {"rmse": 1.5})
    ({'gap': 0.25}, {'rmse_gap': 0.5})
    """
    if "accuracy" in train:
        return {"gap": train["accuracy"] - test["accuracy"]}
    return {"rmse_gap": test["rmse"] - train["rmse"]}


def classification(logits: Tensor, y: Tensor) -> dict[str, float]:
    """Accuracy, nll (nats), ece and brier of logits (rows, classes) against labels (rows,); -1 is no label.

    ``brier`` sums the squared errors over the classes and averages over the rows, so it lies in [0, 2].
    A class with logit -inf has probability 0; where that is the label, nll is inf. A logit that is not a
    number counts as a wrong answer and makes nll, ece and brier nan.

    >>> classification(torch.tensor([[2.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0]))["accuracy"]
    0.5

    Raises:
        ValueError: the shapes do not fit, or a label is not a class.
        DataError: no row has a label.
    """
    if logits.dim() != 2 or y.shape != logits.shape[:1]:
        raise ValueError(f"logits (rows, classes) and labels (rows,) wanted, not {_shapes(logits, y)}")
    logits, y = _labelled(logits, y, y >= 0)
    y = y.long()
    if int(y.max()) >= logits.shape[1]:
        raise ValueError(f"label {int(y.max())} is outside the {logits.shape[1]} classes of the logits")
    log_p = _log_softmax(logits.double())  # (rows, classes)
    p = log_p.exp()
    broken = log_p.isnan().any(dim=1)
    return {
        "accuracy": ((log_p.argmax(dim=1) == y) & ~broken).double().mean().item(),
        "nll": -log_p.gather(1, y[:, None]).mean().item(),
        "ece": ece(p, y),
        "brier": (p - F.one_hot(y, p.shape[1])).square().sum(dim=1).mean().item(),
    }


def ece(probabilities: Tensor, y: Tensor, bins: int = 15) -> float:
    """Expected calibration error in [0, 1]: |accuracy - confidence| per bin, by the bin's share of rows.

    Takes probabilities (rows, classes) and labels (rows,). The bins of confidence have equal width and own
    their upper edge (Guo et al., On calibration of modern neural networks, ICML 2017).

    >>> round(ece(torch.tensor([[0.8, 0.2]] * 4), torch.tensor([0, 0, 1, 1])), 6)
    0.3
    """
    confidence, hit = _confidence(probabilities, y)
    if bool(confidence.isnan().any()):
        return float("nan")
    edges = torch.arange(1, bins, dtype=torch.float64, device=y.device) / bins
    surplus = hit.double() - confidence
    per_bin = surplus.new_zeros(bins).index_add(0, torch.bucketize(confidence, edges), surplus)
    return (per_bin.abs().sum() / len(hit)).item()


def aurc(probabilities: Tensor, y: Tensor) -> float:
    """Area under the risk-coverage curve in [0, 1]: the error among the k most confident rows, mean over k.

    Takes probabilities (rows, classes) and labels (rows,). Rows of equal confidence count by their expected risk,
    so that the order of rows does not matter (Geifman & El-Yaniv, Selective classification for deep neural
    networks, NeurIPS 2017).

    >>> aurc(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([0, 1]))
    0.25
    """
    confidence, hit = _confidence(probabilities, y)
    if bool(confidence.isnan().any()):
        return float("nan")
    _, group, sizes = (-confidence).unique(return_inverse=True, return_counts=True)  # most confident first
    errors = confidence.new_zeros(len(sizes)).index_add(0, group, (~hit).double())
    expected = (errors / sizes).repeat_interleave(sizes)  # (rows,): every row errs as often as its equals do
    rank = torch.arange(1, len(hit) + 1, dtype=torch.float64, device=y.device)
    return float((expected.cumsum(0) / rank).mean())


def reliability(logits: Tensor, y: Tensor, bins: int = 10) -> list[dict[str, float]]:
    """For each bin of confidence that has rows: their mean confidence, accuracy and share of all rows.

    Takes logits (rows, classes) and labels (rows,); the bins have equal width and own their upper edge
    (DeGroot & Fienberg, The comparison and evaluation of forecasters, 1983).

    >>> reliability(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))[0]["accuracy"]
    0.5
    """
    logits, y = _labelled(logits, y, y >= 0)
    confidence, hit = _confidence(_log_softmax(logits.double()).exp(), y)
    edges = torch.arange(1, bins, dtype=torch.float64, device=y.device) / bins
    index = torch.bucketize(confidence, edges)
    bins_with_rows = []
    for b in index.unique().tolist():
        members = index == b
        sure, accuracy = float(confidence[members].mean()), float(hit[members].double().mean())
        bins_with_rows.append({"confidence": sure, "accuracy": accuracy, "share": float(members.double().mean())})
    return bins_with_rows


MATRIX = 30  # classes of a confusion matrix that is kept whole
WORST = 12  # rows with the worst errors
TOLD = 1000  # classes with figures of their own


def breakdown(outputs: Tensor, y: Tensor, classes: Sequence[str], names: Sequence[str], ids: Tensor) -> dict[str, Any]:
    """A model's answers class by class and row by row, as a report shows them.

    Args:
        outputs: logits (rows, classes), or values (rows,).
        y: labels (rows,).
        classes: the names of the classes; empty for values.
        names: the name of each row (rows,).
        ids: the sample ids (rows,).

    Returns:
        ``worst``: the rows that are most certainly wrong, or farthest off; of classes also ``by_class`` with rows,
        precision and recall of each, ``confused``, the most frequent confusions, and, of at most 30 classes,
        ``confusion``: the number of rows by label and prediction.

    >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    >>> found = breakdown(logits, torch.tensor([0, 1, 1]), ["a", "b"], ["1", "2", "3"], torch.arange(3))
    >>> found["confusion"], found["by_class"][0]["precision"], [row["name"] for row in found["worst"]]
    ([[1, 0], [1, 1]], 0.5, ['2'])
    """
    told: list[tuple[str, str, float | None]]
    if not classes:
        far = (outputs - y).abs()
        order = far.argsort(descending=True, stable=True)[:WORST].tolist()
        told = [(f"{float(y[i]):.6g}", f"{float(outputs[i]):.6g}", None) for i in order if float(far[i]) > 0]
    else:
        sure, predicted = _log_softmax(outputs.double()).exp().max(1)
        doubt = torch.where(predicted == y, -1.0, sure)
        order = doubt.argsort(descending=True, stable=True)[: min(WORST, int((predicted != y).sum()))].tolist()
        told = [(classes[int(y[i])], classes[int(predicted[i])], round(float(sure[i]), 6)) for i in order]
    worst = [
        {"row": int(ids[i]) + 1, "name": names[i], "label": label, "predicted": answer, "confidence": confidence}
        for i, (label, answer, confidence) in zip(order, told, strict=False)
    ]
    return {"worst": worst, **(_by_class(predicted, y, classes) if classes else {})}


def _by_class(predicted: Tensor, y: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Rows, precision and recall of each class, and which classes are taken for which."""
    width, hit = len(classes), predicted == y
    right, rows, answers = (torch.bincount(of, minlength=width).tolist() for of in (y[hit], y, predicted))
    by_class = [
        {
            "name": classes[c],
            "rows": rows[c],
            "precision": right[c] / answers[c] if answers[c] else None,
            "recall": right[c] / rows[c] if rows[c] else None,
        }
        for c in range(width)
        if rows[c] or answers[c]
    ][:TOLD]
    codes, counts = (y * width + predicted)[~hit].unique(return_counts=True)
    most = counts.argsort(descending=True, stable=True)[:10].tolist()
    confused = [
        {"label": classes[int(codes[i]) // width], "predicted": classes[int(codes[i]) % width], "rows": int(counts[i])}
        for i in most
    ]
    whole = {}
    if width <= MATRIX:
        whole["confusion"] = torch.bincount(y * width + predicted, minlength=width**2).view(width, width).tolist()
    return {"by_class": by_class, "confused": confused, **whole}


def coverage(low: Tensor, high: Tensor, y: Tensor) -> float:
    """Share of the labels (rows,) or (rows, 1) inside [low, high], edges included; nan: no label.

    A bound that is not a number holds no label.

    >>> coverage(torch.zeros(2), torch.ones(2), torch.tensor([0.5, 2.0]))
    0.5

    Raises:
        ValueError: the shapes do not fit.
        DataError: no row has a label.
    """
    low, high, y = (t.squeeze(1) if t.dim() == 2 and t.shape[1] == 1 else t for t in (low, high, y))
    if y.dim() != 1 or not low.shape == high.shape == y.shape:
        raise ValueError(f"two bounds and one label per row wanted, not {_shapes(low, high, y)}")
    covered, _ = _labelled(((low <= y) & (y <= high)).double(), y, ~y.isnan())
    return float(covered.mean())


def regression(pred: Tensor, y: Tensor) -> dict[str, float]:
    """Root mean squared error, mean absolute error and r2 of predictions (rows,) or (rows, 1); nan: no label.

    Where all labels are equal, r2 is 1 for exact predictions and 0 otherwise.

    >>> regression(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 2.0]))["mae"]
    0.5

    Raises:
        ValueError: the shapes do not fit.
        DataError: no row has a label.
    """
    flat = [t.squeeze(1) if t.dim() == 2 and t.shape[1] == 1 else t for t in (pred, y)]
    if flat[0].dim() != 1 or flat[0].shape != flat[1].shape:
        raise ValueError(f"one prediction and one label per row wanted, not {_shapes(pred, y)}")
    pred, y = _labelled(flat[0].double(), flat[1].double(), ~flat[1].isnan())
    residual = (pred - y).square().sum()
    variation = (y - y.mean()).square().sum()
    constant = bool(y.max() == y.min())  # asked of the labels: their spread may be rounding alone
    r2 = float(residual == 0) if constant else 1.0 - (residual / variation).item()
    mean_square = residual.item() / len(y)
    return {"rmse": float(mean_square**0.5), "mae": (pred - y).abs().mean().item(), "r2": r2}


def _log_softmax(z: Tensor) -> Tensor:
    """Log-probabilities of logits that may be infinite: all at -inf is uniform, +inf takes all."""
    certain = (z == torch.inf).any(dim=1, keepdim=True)
    z = torch.where(certain & ~z.isnan(), torch.where(z == torch.inf, 0.0, -torch.inf), z)
    impossible = (z == -torch.inf).all(dim=1, keepdim=True)
    return torch.where(impossible, 0.0, z).log_softmax(dim=1)


def _confidence(probabilities: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The largest probability of each labelled row (rows,), and whether its class is the label (rows,)."""
    if probabilities.dim() != 2 or y.shape != probabilities.shape[:1]:
        raise ValueError(f"probabilities (rows, classes) and labels (rows,) wanted, not {_shapes(probabilities, y)}")
    probabilities, y = _labelled(probabilities, y, y >= 0)
    confidence, predicted = probabilities.double().max(dim=1)
    return confidence, predicted == y


def _labelled(values: Tensor, y: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
    if not bool(labelled.any()):
        raise DataError("no row has a label, so there is nothing to measure; give the split labelled rows")
    return (values.detach()[labelled], y[labelled]) if not bool(labelled.all()) else (values.detach(), y)


def _shapes(*tensors: Tensor) -> str:
    return " and ".join(str(tuple(t.shape)) for t in tensors)
