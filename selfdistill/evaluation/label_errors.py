"""Label errors: a score for every labelled training row that says how far the model doubts its label.

Equation::

    doubt_i = 1 - q_i(y_i)                             for classes
    doubt_i = erf(abs(y_i - m_i) / (s sqrt 2)),  s = 1.4826 median_i abs(y_i - m_i)    for values

q_i (or m_i) is what the model believes of row i: from the memory of the method, where it has one of what was said of
each sample while it trained (`elr`, `self_adaptive`, `selc`, `ps_kd`, `temporal_ensembling`, `joint_optimisation`);
otherwise the mean over the generations of what each said of the row at its best epoch by the audit split, which comes
before wrong labels are learnt by heart. Peers speak together. A label is *doubted* where another class is believed, or,
of values, where the score is above 0.95. Which labels were made wrong on purpose has no part in a score; where a run
did that, it says how well the scores find them. Rows are counted as `selfdistill predict` counts them: the first row of
data is 1, and a table's header is none.
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
from ..data.dataset import Data
from ..errors import CheckpointError, DataError
from ..io.display import printable
from ..io.files import write as write_text
from ..io.run_record import read_record
from ..models.peers import PeerModels
from ..teachers import Ensembled, History, LastEpoch, Relabelled
from ..teachers.relabelling import Window
from .predict import predict_rows

FILE = "doubts.csv"


ROW = "row_from_1"  # files of older versions have "row", which counts from 0


COLUMNS = (ROW, "name", "label", "doubt", "believed", "confidence")


SURELY = 0.95  # from which score on a value is doubted


@dataclass(frozen=True)
class Doubt:
    """A labelled training row and its score: its number (the first row of data is 1: sample id + 1), its file where it
    has one, its label, the score in [0, 1], the class or value believed instead and, of classes, its probability.
    """

    row: int
    name: str
    label: str
    doubt: float
    believed: str
    confidence: float | None


def of_classes(q: Tensor, y: Tensor) -> Tensor:
    """1 - q_i(y_i), from beliefs (rows, classes) and labels (rows,).

    >>> of_classes(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0])).tolist()
    [0.10000002384185791, 0.800000011920929]
    """
    return 1.0 - q.gather(1, y[:, None]).squeeze(1)


def of_values(m: Tensor, y: Tensor) -> Tensor:
    """The probability that an error is no usual one, from beliefs and labels (rows,): see the module.

    >>> of_values(torch.zeros(5), torch.tensor([0.0, 1.0, 1.0, -1.0, 9.0]))[[0, 4]].tolist()
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


# what a run believes --------------------------------------------------------------------------------------------------


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


def _remembered(part: Any, state: nn.Module, ids: Tensor, width: int) -> tuple[Tensor, Tensor] | None:
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
    """Beliefs from the memory of the last generation, if it is one of every row that taught."""
    objective = trained.objective
    for key, part, _ in objective._owners if objective is not None else []:
        assert objective is not None
        memory = _remembered(part, objective.states[key].cpu(), data.labelled, data.outputs)
        if memory is not None and bool(memory[1].all()):
            beliefs = memory[0]
            return beliefs / beliefs.sum(1, keepdim=True).clamp(min=1e-12) if data.task == "classify" else beliefs
    return None


def _from_generations(trained: TrainedModel, data: Data) -> Tensor:
    """The mean over the generations of their predictions at their best epochs."""
    model, beliefs = trained.model, list[Tensor]()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    head = "ensemble" if isinstance(model, PeerModels) and _has_ensemble(model, data) else data.head
    for generation in trained.generations:
        model.load_state_dict(generation.best)
        outputs = predict_rows(model, data, data.labelled, head)
        beliefs.append(F.softmax(outputs, dim=-1) if data.task == "classify" else outputs[..., :1])
    model.load_state_dict(weights)
    return torch.stack(beliefs).mean(0)


def _has_ensemble(model: nn.Module, data: Data) -> bool:
    with torch.no_grad():
        return "ensemble" in model.eval()(data.rows(data.labelled[:2]))


def judge(trained: TrainedModel, data: Data) -> tuple[list[Doubt], dict[str, Any]]:
    """Every row that taught, the most doubted first, and a summary: where beliefs come from, how many are doubted."""
    q, source = _from_memory(trained, data), "memory"
    if q is None:
        q, source = _from_generations(trained, data), "generations"
    classes, y = data.task == "classify", data.targets[data.labelled]
    score = of_classes(q, y) if classes else of_values(q[:, 0], y)
    doubted = q.argmax(1) != y if classes else score > SURELY
    doubts = []
    for i in score.argsort(descending=True, stable=True).tolist():
        row = int(data.labelled[i])
        name = data.names[row] if data.names else ""
        if classes:
            top = int(q[i].argmax())
            label, believed, sure = data.classes[int(y[i])], data.classes[top], float(q[i, top])
        else:
            value = data.scale * float(q[i, 0]) + data.center
            label, believed, sure = f"{float(data.y[row]):.6g}", f"{value:.6g}", None
        doubts.append(Doubt(row + 1, name, label, float(score[i]), believed, sure))
    summary: dict[str, Any] = {"from": source, "rows": len(doubts), "doubted": int(doubted.sum())}
    area = auroc(score, data.noisy[data.labelled])
    return doubts, summary if area is None else {**summary, "auroc": round(area, 4)}


# on disk, and back ----------------------------------------------------------------------------------------------------


def save(doubts: list[Doubt], folder: Path) -> None:
    """Write doubts.csv into the run folder, the most doubted row first."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for doubt in doubts:
        sure = "" if doubt.confidence is None else f"{doubt.confidence:.6g}"
        writer.writerow([doubt.row, doubt.name, doubt.label, f"{doubt.doubt:.6g}", doubt.believed, sure])
    write_text(folder / FILE, text.getvalue())


def read_label_errors(folder: str | Path, top: int | None = None) -> dict[str, Any]:
    """The summary of a finished run, and its ``top`` most doubted rows (all of them by default) under ``labels``.

    Raises:
        CheckpointError: it is no run, is not finished, or was made without scores; or they are damaged.
        DataError: ``top`` counts no rows.
    """
    folder = Path(folder)
    if top is not None and top < 1:
        raise DataError(f"top counts rows, from 1 on, not {top}")
    if not (folder / "run.json").exists():
        raise CheckpointError(f"{folder} is no run folder: it has no run.json; give one that `selfdistill run` wrote")
    record, _ = read_record(folder / "run.json")
    if "result" not in record:
        raise CheckpointError(f"{folder} is not finished; finish it by `selfdistill resume {folder}`")
    summary = record["result"].get("doubts")
    if record["data"].get("task") == "features":
        raise CheckpointError(
            f"{folder} was trained without labels, so there are no label errors to list; label some rows"
        )
    if summary is None or not (folder / FILE).exists():
        raise CheckpointError(f"{folder} has no {FILE}: it was made by an older version; run it again in a new --out")
    try:
        rows = list(csv.DictReader(io.StringIO((folder / FILE).read_text(encoding="utf-8"))))[:top]
        labels = [_typed(row) for row in rows]
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise CheckpointError(f"{folder / FILE} is damaged ({type(error).__name__}); run it again") from error
    return {"run": str(folder), **summary, "labels": [asdict(label) for label in labels]}


def _typed(row: dict[str, str]) -> Doubt:
    sure = float(row["confidence"]) if row["confidence"] else None
    number = int(row[ROW]) if ROW in row else int(row["row"]) + 1
    return Doubt(number, row["name"], row["label"], float(row["doubt"]), row["believed"], sure)


def label_error_table(summary: dict[str, Any]) -> str:
    """The label errors of `read_label_errors` as a table of text."""
    has_names = any(label["name"] for label in summary["labels"])
    table = [["row (from 1)", *(["file"] if has_names else []), "label", "predicted", "error score"]]
    for label in summary["labels"]:
        sure = "" if label["confidence"] is None else f" ({label['confidence']:.2f})"
        name = [label["name"]] if has_names else []
        table.append([str(label["row"]), *name, label["label"], f"{label['believed']}{sure}", f"{label['doubt']:.4f}"])
    table = [[printable(cell, kept="") for cell in line] for line in table]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    sources = {
        "memory": "the model's past predictions",
        "generations": "the mean prediction of its generations at their best epochs",
    }
    count = f"{summary['doubted']} of {summary['rows']} training labels contradict the model and may be wrong"
    lines += ["", f"{count} (scored by {sources[summary['from']]})."]
    if "auroc" in summary:
        lines.append(
            f"--label-noise made labels wrong; the score detects these with an AUROC of {summary['auroc']:.3f}."
        )
    return "\n".join(lines)
