"""Prediction: eval mode, no augmentation, no gradient; the modes are put back afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..core.outputs import output_of
from ..data.image_store import ImageStore
from ..io.files import csv_text
from . import metrics
from .audit import row_losses

if TYPE_CHECKING:
    from ..data.dataset import Data

CHUNK = 1024  # fixed, so that the same rows give the same bits whoever asks


LARGEST = 1 << 24  # numbers in such a chunk


COVERAGE = 0.9  # of the intervals that are told and scored


@torch.no_grad()
def predict(
    model: nn.Module, x: Tensor | ImageStore, head: str = "logits", device: torch.device | str = "cpu"
) -> Tensor:
    """A head's output for input rows, (rows, ..., components), on the CPU in float32."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        return _gathered((_head_output(model(rows.to(device)), head) for rows in _chunks(x)), len(x))
    finally:
        for module, mode in modes.items():
            module.training = mode


def _head_output(output: Any, head: str) -> Tensor:
    return output_of(output if isinstance(output, dict) else {"": output}, head).float().cpu()


def _gathered(parts: Iterable[Tensor], rows: int) -> Tensor:
    """Parts of rows as one tensor, which is made at once: pieces kept between the inputs of many chunks would split the
    heap, which then grows by what lies between them."""
    whole, done = torch.zeros(0), 0
    for part in parts:
        if not done:
            whole = part.new_empty(rows, *part.shape[1:])
        whole[done : done + len(part)] = part
        done += len(part)
    return whole


def _chunks(x: Tensor | ImageStore) -> Iterator[Tensor]:
    rows = chunk_rows(x.shape[1:])
    if isinstance(x, Tensor):
        return iter(x.split(rows))
    return (pixels.float() / 255 for pixels in x.chunks(torch.arange(len(x)), rows))


class InputSource(Protocol):
    """Data that give the inputs of many rows in chunks; `data.dataset.Data` is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def chunks(self, ids: Tensor, rows: int) -> Iterator[Tensor]: ...


def predict_rows(
    model: nn.Module, data: InputSource, ids: Tensor, head: str = "logits", device: torch.device | str = "cpu"
) -> Tensor:
    """`predict` for rows of the data, without holding the inputs of all of them at once."""
    return _gathered((predict(model, x, head, device) for x in data.chunks(ids, chunk_rows(data.shape))), len(ids))


def chunk_rows(shape: Sequence[int]) -> int:
    """Rows that a model reads at once: 1024, or fewer of large images. It depends on their shape alone.

    >>> chunk_rows((3, 32, 32)), chunk_rows((3, 224, 224))
    (1024, 111)
    """
    return max(1, min(CHUNK, LARGEST // max(1, math.prod(shape))))


def task_outputs(model: nn.Module, data: Data, ids: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """The outputs of a model for rows: logits (rows, classes), or values (rows,) in their unit."""
    outputs = predict_rows(model, data, ids, data.head, device)
    return outputs if data.task == "classify" else data.in_units(outputs)


def scored(outputs: Tensor, y: Tensor, task: str) -> dict[str, float]:
    """Metrics of `task_outputs` against labels (rows,): accuracy, NLL, ECE and Brier score, or RMSE, MAE and R2."""
    return metrics.classification(outputs, y) if task == "classify" else metrics.regression(outputs, y)


def score(model: nn.Module, data: Data, ids: Tensor, device: torch.device | str = "cpu") -> dict[str, float]:
    """The task's metrics on rows of the data."""
    return scored(task_outputs(model, data, ids, device), data.y[ids], data.task)


def losses(model: nn.Module, data: Data, ids: Tensor, measure: str, device: torch.device | str = "cpu") -> list[float]:
    """The loss of each row by a measure of the audit."""
    return row_losses(task_outputs(model, data, ids, device), data.y[ids], measure)


def is_better(metrics: dict[str, float], than: dict[str, float] | None) -> bool:
    """Is a model with these metrics better: by accuracy, or by its error (RMSE) or loss (NLL)?

    >>> is_better({"accuracy": 0.9}, {"accuracy": 0.8}), is_better({"rmse": 2.0}, {"rmse": 1.0})
    (True, False)
    """
    if than is None:
        return True
    if "accuracy" in metrics:
        return metrics["accuracy"] > than["accuracy"]
    name = "rmse" if "rmse" in metrics else "nll"
    return metrics[name] < than[name]


def halfwidth(errors: Tensor, coverage: float = COVERAGE) -> float:
    """Half the width of an interval that holds a new value with probability ``coverage``, from errors (rows,) on rows
    not learnt from: their ceil((n + 1) coverage)-th smallest size; infinite where the rows are too few for it.

    Source: Lei, G'Sell, Rinaldo, Tibshirani and Wasserman, Distribution-Free Predictive Inference for Regression,
    JASA 113, 2018, algorithm 2 (split conformal).

    >>> halfwidth(torch.tensor([1.0, -2.0, 3.0, 0.5]), 0.6), halfwidth(torch.tensor([1.0]))
    (2.0, inf)
    """
    sizes = errors.abs().double().sort().values
    rank = -int(-(len(sizes) + 1) * coverage // 1)
    return float(sizes[rank - 1]) if rank <= len(sizes) else torch.inf


MOST_TRAINING = 5000  # labelled rows of which a training score is taken


def some_of(ids: Tensor, most: int = MOST_TRAINING) -> Tensor:
    """At most so many rows, evenly drawn.

    >>> len(some_of(torch.arange(20_000))), len(some_of(torch.arange(60)))
    (5000, 60)
    """
    return ids[:: max(1, -(-len(ids) // most))]


def final_score(model: nn.Module, data: Data) -> dict[str, float]:
    """Metrics on the test split; of values also ``coverage`` and ``width`` of intervals of 90 %, from the errors on the
    audit split, which never taught: where it has too few rows for that, they are missing. Nothing without a row."""
    if not len(data.test):
        return {}
    outputs, y = task_outputs(model, data, data.test), data.y[data.test]
    figures = scored(outputs, y, data.task)
    if data.task == "regress" and len(data.audit):
        figures |= covered(outputs, y, task_outputs(model, data, data.audit) - data.y[data.audit])
    return figures


def covered(predictions: Tensor, y: Tensor, errors: Tensor) -> dict[str, float]:
    """Share of labels (rows,) in intervals around predictions, and their width, from errors of rows left out."""
    half = halfwidth(errors)
    return (
        {"coverage": metrics.coverage(predictions - half, predictions + half, y), "width": 2 * half}
        if half < torch.inf
        else {}
    )


def points(predictions: Tensor, y: Tensor) -> list[tuple[float, float]]:
    """Predictions and labels of at most 300 rows, for drawing."""
    every = max(1, -(-len(y) // 300))
    return [(round(float(a), 6), round(float(b), 6)) for a, b in zip(predictions[::every], y[::every], strict=True)]


class Predictions(NamedTuple):
    """The predictions of a finished run: names of rows, numbers (rows, columns) and columns, which are the classes
    whose probabilities the numbers are.
    """

    names: list[str]
    numbers: Tensor
    columns: list[str]
    note: str = ""  # files that are no rows, and why

    def text(self, raw: bool = False) -> str:
        """The predictions as CSV: the class and the probability of each class, or the values.

        Args:
            raw: leave cells as they are that a spreadsheet takes for formulas.
        """
        rows = (
            [name, *self._best(numbers), *(f"{number:.6g}" for number in numbers)]
            for name, numbers in zip(self.names, self.numbers.tolist(), strict=True)
        )
        return csv_text([["row", *self._header()], *rows], raw)

    @property
    def labels(self) -> list[str]:
        """The most probable class of each row; of values there are none."""
        return [label for numbers in self.numbers.tolist() for label in self._best(numbers)]

    def records(self) -> list[dict[str, Any]]:
        """One mapping a row: its name, the predicted class and the probabilities by class, or value and interval.

        >>> Predictions(["1"], torch.tensor([[0.25, 0.75]]), ["no", "yes"]).records()
        [{'row': '1', 'prediction': 'yes', 'probabilities': {'no': 0.25, 'yes': 0.75}}]
        """
        return [
            {"row": name, **self._record(numbers)}
            for name, numbers in zip(self.names, self.numbers.tolist(), strict=True)
        ]

    def _record(self, numbers: list[float]) -> dict[str, Any]:
        (best,) = self._best(numbers)
        return {"prediction": best, "probabilities": dict(zip(self.columns, numbers, strict=True))}

    def _header(self) -> list[str]:
        return ["prediction", *(f"p({name})" for name in self.columns)]

    def _best(self, numbers: list[float]) -> list[str]:
        return [self.columns[max(range(len(numbers)), key=numbers.__getitem__)]]


class ValuePredictions(Predictions):
    """Predicted values: the column ``prediction`` and, where the run knows an interval, ``low`` and ``high``."""

    def _header(self) -> list[str]:
        return self.columns

    def _best(self, numbers: list[float]) -> list[str]:
        return []

    def _record(self, numbers: list[float]) -> dict[str, Any]:
        return dict(zip(self.columns, numbers, strict=True))


def with_interval(predictions: Tensor, half: float | None) -> tuple[Tensor, list[str]]:
    """Values (rows, 1) and, if half of an interval's width is known, its bounds; and the names of these columns."""
    if half is None:
        return predictions, ["prediction"]
    return torch.cat([predictions, predictions - half, predictions + half], dim=1), ["prediction", "low", "high"]
