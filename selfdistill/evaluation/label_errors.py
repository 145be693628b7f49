"""Label errors: for every labelled training row a score of how strongly the model contradicts its label.

Equation::

    score_i = 1 - q_i(y_i)                             for classes
    score_i = erf(abs(y_i - m_i) / (s sqrt 2)),  s = 1.4826 median_i abs(y_i - m_i)    for values

q_i (or m_i) is the model's prediction for row i. It comes from the method's own memory, where the method stores its
predictions during training (`elr`, `self_adaptive`, `selc`, `ps_kd`, `temporal_ensembling`, `joint_optimisation`).
Otherwise it is the mean over the generations, each at its best epoch by the audit split, before it memorises wrong
labels. Peers are averaged. A label is a likely error where another class is predicted, or, for values, where the score
is above 0.95. Labels that `--label-noise` made wrong have no part in a score; a run that has such labels reports how
well the scores detect them. Rows are counted as `selfdistill predict` counts them: the first row of data is 1, and the
header of a table is not counted.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.memory import SampleMemory
from ..core.objective import Objective
from ..data.copies import conflict_text
from ..data.dataset import Data
from ..errors import CheckpointError, DataError
from ..io.display import printable
from ..io.files import csv_text, unescape_formula
from ..io.files import write as write_text
from ..io.run_record import read_record
from ..models.peers import PeerModels
from ..teachers import Ensembled, History, LastEpoch, Relabelled
from ..teachers.relabelling import Window
from .predict import predict_rows

FILE = "label_errors.csv"
ROW = "row_from_1"
COLUMNS = (ROW, "name", "label", "score", "suggested", "confidence")
VALUE_THRESHOLD = 0.95  # a value with a higher score is a likely error


@dataclass(frozen=True)
class LabelError:
    """A labelled training row with its score.

    It has its number (sample id + 1, so the first row of data is 1), the name of its file where it has one, its label,
    the score in [0, 1], the class or value that the model predicts and, for classes, the probability of that class.
    """

    row: int
    name: str
    label: str
    score: float
    suggested: str
    confidence: float | None


def class_scores(q: Tensor, y: Tensor) -> Tensor:
    """1 - q_i(y_i), from predictions (rows, classes) and labels (rows,).

    >>> class_scores(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0])).tolist()
    [0.10000002384185791, 0.800000011920929]
    """
    return 1.0 - q.gather(1, y[:, None]).squeeze(1)


def value_scores(m: Tensor, y: Tensor) -> Tensor:
    """The probability that an error is an outlier, from predictions and labels (rows,): see the module.

    >>> value_scores(torch.zeros(5), torch.tensor([0.0, 1.0, 1.0, -1.0, 9.0]))[[0, 4]].tolist()
    [0.0, 1.0]
    """
    errors = (y - m).abs().double()
    scale = 1.4826 * float(errors.median())
    return torch.erf(errors / (scale * math.sqrt(2.0))).float() if scale > 0 else (errors > 0).float()


def auroc(score: Tensor, wrong: Tensor) -> float | None:
    """The probability that a wrong label (mask, rows) scores above a right one, ties by half; None where one kind is
    missing.

    >>> auroc(torch.tensor([0.9, 0.4, 0.4]), torch.tensor([True, True, False]))
    0.75
    """
    positive, negative = score[wrong].double(), score[~wrong].double()
    if not len(positive) or not len(negative):
        return None
    ordered = negative.sort().values
    lower = torch.searchsorted(ordered, positive)
    upper = torch.searchsorted(ordered, positive, right=True)
    return float((lower + upper).double().mean() / (2 * len(negative)))


# the predictions of a run ---------------------------------------------------------------------------------------------


class TrainedGeneration(Protocol):
    """A generation's weights at its best epoch."""

    best: dict[str, Tensor]


class TrainedModel(Protocol):
    """The parts of a training that label errors are computed from."""

    model: nn.Module
    objective: Objective | None

    @property
    def generations(self) -> Sequence[TrainedGeneration]:
        """Every generation, in order."""


def _stored_targets(part: Any, state: nn.Module, ids: Tensor, width: int) -> tuple[Tensor, Tensor] | None:
    """The targets of rows (rows, width) in a teacher's memory and a mask of the rows that it holds; None without a
    memory.
    """
    if isinstance(part, Relabelled) and isinstance(state, Window):
        soft, valid = state.mean(ids, width)
        pseudo_labels, assigned = state.read(ids, width)
        return torch.where(valid[:, None], soft, pseudo_labels), valid | assigned
    if isinstance(part, Ensembled) and isinstance(state, SampleMemory):
        sums, valid = state.read(ids, width + 1)
        return sums[:, :-1] / sums[:, -1:].clamp(min=1e-12), valid
    if isinstance(part, History | LastEpoch) and isinstance(state, SampleMemory):
        return state.read(ids, width)
    return None


def _from_memory(trained: TrainedModel, data: Data) -> Tensor | None:
    """Predictions from the memory of the last generation, if it holds every row that taught."""
    objective = trained.objective
    for key, part, _ in objective._owners if objective is not None else []:
        assert objective is not None
        memory = _stored_targets(part, objective.states[key].cpu(), data.labelled, data.outputs)
        if memory is not None and bool(memory[1].all()):
            predictions = memory[0]
            return (
                predictions / predictions.sum(1, keepdim=True).clamp(min=1e-12)
                if data.task == "classify"
                else predictions
            )
    return None


def _from_generations(trained: TrainedModel, data: Data) -> Tensor:
    """The mean over the generations of their predictions at their best epochs."""
    model, predictions = trained.model, list[Tensor]()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    head = "ensemble" if isinstance(model, PeerModels) and _has_ensemble(model, data) else data.head
    for generation in trained.generations:
        model.load_state_dict(generation.best)
        outputs = predict_rows(model, data, data.labelled, head)
        predictions.append(F.softmax(outputs, dim=-1) if data.task == "classify" else outputs[..., :1])
    model.load_state_dict(weights)
    return torch.stack(predictions).mean(0)


def _has_ensemble(model: nn.Module, data: Data) -> bool:
    with torch.no_grad():
        return "ensemble" in model.eval()(data.rows(data.labelled[:2]))


def score_labels(trained: TrainedModel, data: Data) -> tuple[list[LabelError], dict[str, Any]]:
    """Every row that taught, the highest score first, and a summary.

    Args:
        trained: The training, with its memories or its generations.
        data: Its data.

    Returns:
        The rows with their scores, and ``source`` (of the predictions: memory or generations), ``rows``, ``errors``
        (the number of likely errors) and, where labels were made wrong on purpose, ``auroc``.
    """
    q, source = _from_memory(trained, data), "memory"
    if q is None:
        q, source = _from_generations(trained, data), "generations"
    classes, y = data.task == "classify", data.targets[data.labelled]
    score = class_scores(q, y) if classes else value_scores(q[:, 0], y)
    wrong = q.argmax(1) != y if classes else score > VALUE_THRESHOLD
    errors = []
    for i in score.argsort(descending=True, stable=True).tolist():
        row = int(data.labelled[i])
        name = data.names[row] if data.names else ""
        if classes:
            top = int(q[i].argmax())
            label, suggested, confidence = data.classes[int(y[i])], data.classes[top], float(q[i, top])
        else:
            value = data.scale * float(q[i, 0]) + data.center
            label, suggested, confidence = f"{float(data.y[row]):.6g}", f"{value:.6g}", None
        errors.append(LabelError(row + 1, name, label, float(score[i]), suggested, confidence))
    summary: dict[str, Any] = {"source": source, "rows": len(errors), "errors": int(wrong.sum())}
    area = auroc(score, data.noisy[data.labelled])
    return errors, summary if area is None else {**summary, "auroc": round(area, 4)}


# on disk, and back ----------------------------------------------------------------------------------------------------


def save(errors: list[LabelError], folder: Path, raw: bool = False) -> None:
    """Write label_errors.csv into the run folder, the highest score first; ``raw`` as of `csv_text`."""
    rows: list[Sequence[object]] = [COLUMNS]
    for error in errors:
        confidence = "" if error.confidence is None else f"{error.confidence:.6g}"
        rows.append([error.row, error.name, error.label, f"{error.score:.6g}", error.suggested, confidence])
    write_text(folder / FILE, csv_text(rows, raw))


def read_label_errors(folder: str | Path, top: int | None = None) -> dict[str, Any]:
    """The summary of a finished run, and its ``top`` rows of highest score (all of them by default) under ``labels``.

    Raises:
        CheckpointError: it is no run, is not finished, or was made without scores; or they are damaged.
        DataError: ``top`` counts no rows.
    """
    folder = Path(folder)
    if top is not None and top < 1:
        raise DataError(f"top counts rows, from 1 on, not {top}")
    if not (folder / "run.json").exists():
        raise CheckpointError(f"{folder} is no run folder: it has no run.json; give one that `selfdistill run` wrote")
    record, request = read_record(folder / "run.json")
    if "result" not in record:
        raise CheckpointError(f"{folder} is not finished; finish it by `selfdistill resume {folder}`")
    summary = record["result"].get("label_errors")
    if record["data"].get("task") == "features":
        raise CheckpointError(
            f"{folder} was trained without labels, so there are no label errors to list; label some rows"
        )
    if summary is None or not (folder / FILE).exists():
        raise CheckpointError(f"{folder} has no {FILE}: it was made by an older version; run it again in a new --out")
    try:
        rows = list(csv.DictReader(io.StringIO((folder / FILE).read_text(encoding="utf-8"))))[:top]
        labels = [_parse_row(row if request.raw_csv else _unescape(row)) for row in rows]
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise CheckpointError(f"{folder / FILE} is damaged ({type(error).__name__}); run it again") from error
    return {"run": str(folder), **summary, "labels": [asdict(label) for label in labels], **conflicts_of(record, top)}


def read_conflicts(folder: Path, top: int | None = None) -> dict[str, Any]:
    """The same of a run that scores no labels: its equal inputs with different labels; empty without any."""
    conflicts = conflicts_of(read_record(folder / "run.json")[0], top)
    if not conflicts:
        return {}
    return {"run": str(folder), "source": None, "rows": 0, "errors": 0, "labels": [], **conflicts}


def conflicts_of(record: dict[str, Any], top: int | None = None) -> dict[str, Any]:
    """The equal inputs with different labels that the record of a run lists; empty without any."""
    copies = record["data"].get("copies", {})
    if not copies.get("conflicting"):
        return {}
    return {"conflicting": copies["conflicting"], "conflicts": copies["conflicts"][:top]}


def _unescape(row: dict[str, str]) -> dict[str, str]:
    return {**row, **{name: unescape_formula(row[name]) for name in ("name", "label", "suggested")}}


def _parse_row(row: dict[str, str]) -> LabelError:
    confidence = float(row["confidence"]) if row["confidence"] else None
    return LabelError(int(row[ROW]), row["name"], row["label"], float(row["score"]), row["suggested"], confidence)


def label_error_table(summary: dict[str, Any]) -> str:
    """The label errors of `read_label_errors` as a table of text, and equal inputs with different labels."""
    conflicts = conflict_lines(summary)
    if summary["source"] is None:
        return "\n".join(conflicts)
    has_names = any(label["name"] for label in summary["labels"])
    table = [["row (from 1)", *(["file"] if has_names else []), "label", "suggested", "error score"]]
    for label in summary["labels"]:
        confidence = "" if label["confidence"] is None else f" ({label['confidence']:.2f})"
        name = [label["name"]] if has_names else []
        table.append(
            [str(label["row"]), *name, label["label"], f"{label['suggested']}{confidence}", f"{label['score']:.4f}"]
        )
    table = [[printable(cell, kept="") for cell in line] for line in table]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    sources = {
        "memory": "the model's past predictions",
        "generations": "the mean prediction of its generations at their best epochs",
    }
    count = f"{summary['errors']} of {summary['rows']} training labels contradict the model and may be wrong"
    lines += ["", f"{count} (scored by {sources[summary['source']]})."]
    if "auroc" in summary:
        lines.append(
            f"--label-noise made labels wrong; the score detects these with an AUROC of {summary['auroc']:.3f}."
        )
    return "\n".join([*lines, *([""] if conflicts else []), *conflicts])


def conflict_lines(summary: dict[str, Any]) -> list[str]:
    """The conflicts of `conflicts_of` in lines."""
    if not summary.get("conflicting"):
        return []
    head = (
        f"{summary['conflicting']} rows are copies of others with another label; at least one label of each is wrong:"
    )
    return [head, *(printable(f"  {conflict_text(conflict)}", kept="") for conflict in summary["conflicts"])]
