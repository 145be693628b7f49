"""Label errors: every labelled row with the probability that its label is wrong, by predictions out of fold.

A row that taught is examined by the method's own memory, where the method stores its predictions during training
(`elr`, `self_adaptive`, `selc`, `ps_kd`, `temporal_ensembling`, `joint_optimisation`); otherwise by the mean over the
generations, each at its best epoch by the audit split, before it memorises wrong labels. Peers are averaged. Rows of
validation and test are examined by these generations, which did not learn them. With ``--folds K`` every row is
examined by the model of the fold that left it out, and by the memories of the others; of learners on tables always so.
`label_noise` makes scores of these predictions, and estimates noise rate and noise matrix.

Labels that `--label-noise` made wrong have no part in a score; a run that has such labels reports how well the scores
detect them. Rows are counted as `selfdistill predict` counts them: the first row of data is 1, and the header of a
table is not counted.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..core.memory import SampleMemory
from ..core.objective import Objective
from ..data.annotators import AnnotatorLabels
from ..data.copies import conflict_text
from ..data.dataset import Data
from ..data.decisions import RowNames, label_text
from ..errors import CheckpointError, DataError
from ..io.display import plural, printable
from ..io.files import csv_text, unescape_formula
from ..io.files import write as write_text
from ..io.run_record import read_record
from ..models.peers import PeerModels
from ..teachers import Ensembled, History, LastEpoch, Relabelled
from ..teachers.relabelling import Window
from . import label_noise
from .annotator_noise import Annotator, annotator_lines, find_consensus_errors
from .label_noise import LabelNoise
from .predict import predict_rows

FILE, PROBABILITIES = "label_errors.csv", "probabilities.npz"
COLUMNS = ("row", "split", "name", "given", "suggested", "p_given", "p_suggested", "score", "rank")
TRAIN, VALIDATION, TEST = SPLITS = ("train", "validation", "test")
LEARNT = ("memory", "generations")  # sources of predictions by models that learnt the labels
FEWEST = 50  # rows left out that tell a noise rate
CROSS = "cross"  # the source of predictions where no row tests, and all are scored
NOISY = 0.01  # labels look wrong where the interval of the noise rate begins above


@dataclass(frozen=True)
class LabelError:
    """A labelled row with its score.

    It has its number (sample id + 1, so the first row of data is 1), its split, the name by which a file of decisions
    knows it where that is another one, the given label, the class or value that is suggested and, of classes, the
    model's probability of each; the probability that the given label is wrong, and its rank, 1 for the highest.
    """

    row: int
    split: str
    name: str
    given: str
    suggested: str
    p_given: float | None
    p_suggested: float | None
    score: float
    rank: int


class Examination(NamedTuple):
    """Labelled rows, and the predictions of models that did not learn their labels."""

    ids: NDArray[np.int64]  # (rows,)
    splits: NDArray[np.str_]  # (rows,)
    labels: NDArray[Any]  # (rows,) classes from 0 on, or values in their unit
    predictions: NDArray[np.float64]  # probabilities (rows, classes), or values (rows,)
    classes: tuple[str, ...]  # empty for values
    names: RowNames
    source: str  # of the predictions of rows that taught: memory, generations, folds or learner
    votes: AnnotatorLabels | None = None  # of the same rows
    memory: NDArray[np.float64] | None = None  # (rows, classes), beside the predictions of folds

    @property
    def left_out(self) -> NDArray[np.bool_]:
        """A mask of the rows whose label the models of their predictions did not learn, (rows,)."""
        mask: NDArray[np.bool_] = (self.splits != TRAIN) | (self.source not in LEARNT)
        return mask

    @property
    def pooled(self) -> NDArray[np.float64]:
        """The predictions, of folds the mean of them and the memory."""
        return self.predictions if self.memory is None else (self.predictions + self.memory) / 2


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
            if data.task != "classify":
                return memory[0]
            return _without_labels(memory[0], data.y[data.labelled])
    return None


def _without_labels(targets: Tensor, y: Tensor) -> Tensor:
    """Targets in memory (rows, classes) as distributions, without the share of the label that all rows have: a memory
    that began with the labels (rows,) says how far predictions have moved from them.

    >>> _without_labels(torch.tensor([[0.9, 0.1], [0.2, 0.8]]), torch.tensor([0, 0])).tolist()
    [[0.875, 0.125], [0.0, 1.0]]
    """
    targets = targets.double() / targets.double().sum(1, keepdim=True).clamp(min=1e-12)
    own = targets.gather(1, y[:, None])
    rest = targets.scatter(1, y[:, None], own - float(own.min())).clamp(min=0.0)
    return (rest / rest.sum(1, keepdim=True).clamp(min=1e-12)).float()


def _from_generations(trained: TrainedModel, data: Data, ids: Tensor) -> Tensor:
    """The mean over the generations of their predictions at their best epochs, for some rows."""
    model, predictions = trained.model, list[Tensor]()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    head = "ensemble" if isinstance(model, PeerModels) and _has_ensemble(model, data) else data.head
    for generation in trained.generations:
        model.load_state_dict(generation.best)
        outputs = predict_rows(model, data, ids, head)
        predictions.append(F.softmax(outputs, dim=-1) if data.task == "classify" else outputs[..., :1])
    model.load_state_dict(weights)
    return torch.stack(predictions).mean(0)


def _has_ensemble(model: nn.Module, data: Data) -> bool:
    with torch.no_grad():
        return "ensemble" in model.eval()(data.rows(data.labelled[:2]))


def taught_predictions(trained: TrainedModel, data: Data) -> tuple[Tensor, str]:
    """The predictions of a training for the rows that taught, (rows, outputs), and their source."""
    predictions = _from_memory(trained, data)
    if predictions is None:
        return _from_generations(trained, data, data.labelled), "generations"
    return predictions, "memory"


def held_predictions(trained: TrainedModel, data: Data, ids: Tensor) -> Tensor:
    """The predictions of a training for rows that it did not learn, (rows, outputs)."""
    return _from_generations(trained, data, ids)


def examine(trained: TrainedModel, data: Data) -> Examination:
    """Every labelled row of training, validation and test, by one training.

    Args:
        trained: The training, with its memories or its generations.
        data: Its data.
    """
    taught, source = taught_predictions(trained, data)
    rest = torch.cat([data.audit, data.test])
    predictions = torch.cat([taught, held_predictions(trained, data, rest)]) if len(rest) else taught
    return examination(data, torch.cat([data.labelled, rest]), predictions, source)


def examination(data: Data, ids: Tensor, predictions: Tensor, source: str, memory: Tensor | None = None) -> Examination:
    """The examination of rows of the data (rows,) by the outputs for them and by memories of them, (rows, outputs)."""
    splits = np.full(len(data.y), "", dtype="<U10")
    for name, part in zip(SPLITS, (data.labelled, data.audit, data.test), strict=True):
        splits[part.numpy()] = name
    outputs = predictions.double().cpu() if data.classes else data.in_units(predictions.cpu()).double()
    rows, votes = ids.numpy(), data.votes and data.votes.of_rows(ids)
    labels, names = data.y[ids].numpy(), data.row_names
    kept = None if memory is None else memory.double().cpu().numpy()
    return Examination(rows, splits[rows], labels, outputs.numpy(), data.classes, names, source, votes, kept)


# scores ---------------------------------------------------------------------------------------------------------------


def estimate(examined: Examination, noisy: Tensor | NDArray[np.bool_]) -> tuple[LabelNoise, dict[str, Any]]:
    """The noise of examined labels, and what run.json tells of it.

    Args:
        examined: The rows.
        noisy: A mask of all rows of the data: the label was made wrong on purpose.

    Returns:
        The noise, and ``source``, ``examined``, ``likely``, ``splits``, ``noise``; of classes ``matrix`` and ``pairs``;
        where labels were made wrong, ``auroc``; of several annotators ``annotators``.
    """
    annotators: list[Annotator] = []
    if examined.votes is None:
        noise = _noise(examined)
    else:
        votes = examined.votes.labels.numpy()
        noise, annotators = find_consensus_errors(examined.labels, votes, examined.predictions, examined.votes.names)
    splits = {
        name: {"examined": int(mask.sum()), "likely": int(noise.likely[mask].sum())}
        for name in SPLITS
        if (mask := examined.splits == name).any()
    }
    summary: dict[str, Any] = {
        "source": examined.source, "examined": len(examined.ids), "likely": int(noise.likely.sum()), "splits": splits,
        "noise": noise.noise._asdict(),
    }  # fmt: skip
    summary |= label_noise.matrix_record(noise, examined.labels, examined.classes)
    if annotators:
        summary["annotators"] = [one.to_json(examined.classes) for one in annotators]
    wrong = torch.as_tensor(noisy)[torch.from_numpy(examined.ids)]
    area = auroc(torch.from_numpy(noise.scores), wrong)
    return noise, summary if area is None else {**summary, "auroc": round(area, 4)}


def _noise(examined: Examination) -> LabelNoise:
    """The noise of labels that one annotator gave; of classes at least that of the rows left out."""
    noise = label_noise.find_label_errors(examined.labels, examined.predictions, memory=examined.memory)
    left_out = examined.left_out
    if examined.classes and FEWEST <= left_out.sum() < len(left_out):
        held = label_noise.find_label_errors(examined.labels[left_out], examined.predictions[left_out])
        noise = label_noise.raise_rate(noise, held)
    return noise


def list_errors(examined: Examination, noise: LabelNoise) -> list[LabelError]:
    """The examined rows, the highest score first."""
    errors, pooled = [], examined.pooled
    for rank, i in enumerate(noise.order.tolist(), 1):
        row, classes = int(examined.ids[i]), examined.classes
        name = examined.names.name(row)
        label, suggested = examined.labels[i], noise.suggested[i]
        p = pooled[i] if classes else None
        text, other = label_text(label, classes), label_text(suggested, classes)
        p_given, p_suggested = (None, None) if p is None else (float(p[int(label)]), float(p[int(suggested)]))
        kept, split, score = "" if name == str(row + 1) else name, str(examined.splits[i]), float(noise.scores[i])
        errors.append(LabelError(row + 1, split, kept, text, other, p_given, p_suggested, score, rank))
    return errors


def report_errors(
    examined: Examination,
    noisy: Tensor | NDArray[np.bool_],
    folder: Path,
    raw: bool = False,
    tested: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Score examined labels, write label_errors.csv and probabilities.npz, and return what run.json tells of them.

    Args:
        examined: The rows.
        noisy: As of `estimate`.
        folder: The run folder.
        raw: As of `csv_text`.
        tested: The outputs on the test rows, in the order of the examination, of the final model (``final``) and of the
            baseline (``plain``), where there is one: their scores are adjusted for the noise.
    """
    noise, summary = estimate(examined, noisy)
    save(list_errors(examined, noise), folder, raw)
    if examined.classes:
        save_probabilities(examined, folder)
    test = (examined.splits == TEST) | (examined.source == CROSS)
    if tested and test.any():
        facts = examined.labels[test], noise, examined.predictions[test], noise.scores[test]
        adjusted = {name: label_noise.adjust(outputs.double().numpy(), *facts) for name, outputs in tested.items()}
        summary["adjusted"] = {**adjusted["final"], **({"plain": adjusted["plain"]} if "plain" in adjusted else {})}
    return summary


# on disk, and back ----------------------------------------------------------------------------------------------------


def save(errors: list[LabelError], folder: Path, raw: bool = False) -> None:
    """Write label_errors.csv into the run folder, the highest score first; ``raw`` as of `csv_text`."""
    rows: list[Sequence[object]] = [COLUMNS]
    for error in errors:
        cells = asdict(error)
        numbers = {name: "" if cells[name] is None else f"{cells[name]:.6g}" for name in COLUMNS[5:8]}
        rows.append([{**cells, **numbers}[name] for name in COLUMNS])
    write_text(folder / FILE, csv_text(rows, raw))


def save_probabilities(examined: Examination, folder: Path) -> None:
    """Write probabilities.npz into the run folder: arrays without objects, as cleanlab's filters take them."""
    order = np.argsort(examined.ids, kind="stable")
    arrays = {
        "ids": examined.ids[order],
        "splits": examined.splits[order],
        "labels": examined.labels[order],
        "pred_probs": examined.predictions[order].astype(np.float32),
        "classes": np.array(examined.classes, dtype=np.str_),
    }
    if examined.votes is not None:
        arrays |= {"votes": examined.votes.labels.numpy()[order], "annotators": np.array(examined.votes.names)}
    with io.BytesIO() as buffer:
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_text(folder / PROBABILITIES, buffer.getvalue())


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
    return {"run": str(folder), "source": None, "examined": 0, "likely": 0, "labels": [], **conflicts}


def conflicts_of(record: dict[str, Any], top: int | None = None) -> dict[str, Any]:
    """The equal inputs with different labels that the record of a run lists; empty without any."""
    copies = record["data"].get("copies", {})
    if not copies.get("conflicting"):
        return {}
    return {"conflicting": copies["conflicting"], "conflicts": copies["conflicts"][:top]}


def _unescape(row: dict[str, str]) -> dict[str, str]:
    return {**row, **{name: unescape_formula(row[name]) for name in ("name", "given", "suggested")}}


def _parse_row(row: dict[str, str]) -> LabelError:
    p_given, p_suggested = (float(row[name]) if row[name] else None for name in ("p_given", "p_suggested"))
    if row["split"] not in SPLITS:
        raise ValueError("split")
    return LabelError(
        int(row["row"]), row["split"], row["name"], row["given"], row["suggested"], p_given, p_suggested,
        float(row["score"]), int(row["rank"]),
    )  # fmt: skip


SOURCES = {
    "memory": "training rows by the model's past predictions, the others by predictions for rows left out",
    "generations": "training rows by the mean prediction of its generations at their best epochs, the others by "
    "predictions for rows left out",
    "folds": "each by a model that left it out",
    CROSS: "each by a training that left it out",
    "learner": "training rows by learners that left them out, the others by the final model",
}


def label_error_table(summary: dict[str, Any]) -> str:
    """The label errors of `read_label_errors` as a table of text, and equal inputs with different labels."""
    conflicts = conflict_lines(summary)
    if summary["source"] is None:
        return "\n".join(conflicts)
    has_names = any(label["name"] for label in summary["labels"])
    table = [["row (from 1)", "split", *(["name"] if has_names else []), "label", "suggested", "error score"]]
    for label in summary["labels"]:
        confidence = "" if label["p_suggested"] is None else f" ({label['p_suggested']:.2f})"
        name = [label["name"]] if has_names else []
        cells = [label["given"], f"{label['suggested']}{confidence}", f"{label['score']:.4f}"]
        table.append([str(label["row"]), label["split"], *name, *cells])
    table = [[printable(cell, kept="") for cell in line] for line in table]
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
    lines += ["", *summary_lines(summary), *annotator_lines(summary.get("annotators", []))]
    lines.append(f"Examined: {SOURCES[summary['source']]}.")
    if "auroc" in summary:
        lines.append(
            f"--label-noise made labels wrong; the score detects these with an AUROC of {summary['auroc']:.3f}."
        )
    return "\n".join([*lines, *([""] if conflicts else []), *conflicts])


def summary_lines(summary: Mapping[str, Any]) -> list[str]:
    """The noise rate, and scores adjusted for it where labels look wrong, in sentences.

    Args:
        summary: ``label_errors`` of a result, or of `read_label_errors`.
    """
    splits = [(name, summary["splits"][name]) for name in SPLITS if name in summary["splits"]]
    parts = ", ".join(f"{part['likely']} of {part['examined']} in {name}" for name, part in splits)
    noise, annotators = summary["noise"], summary.get("annotators", [])
    share = f"{_percent(noise['rate'])} of all labels [{_percent(noise['low'])}, {_percent(noise['high'])}]"
    what = "consensus label" if annotators else "label"
    lines = [
        f"{plural(summary['likely'], what)} of {summary['examined']} may be wrong ({parts}). "
        f"Estimated noise rate: {share}."
    ]
    adjusted = summary.get("adjusted")
    if adjusted is not None and noise["low"] > NOISY:
        scores = [("", adjusted), *([(" of the baseline", adjusted["plain"])] if "plain" in adjusted else [])]
        what = "Cross-fitted" if summary["source"] == CROSS else "Test"
        lines += [_adjusted_line(what, adjusted["metric"], whose, score) for whose, score in scores]
        lines.append(f"Assumption: {adjusted['assumption']}.")
    return lines


def _adjusted_line(what: str, metric: str, whose: str, score: Mapping[str, Any]) -> str:
    def text(value: float) -> str:
        return _percent(value) if metric == "accuracy" else f"{value:.4g}"

    name = "accuracy" if metric == "accuracy" else "RMSE"
    return (
        f"{what} {name}{whose}: {text(score['raw'])} against the given labels; adjusted for label noise "
        f"{text(score['adjusted'])} [{text(score['low'])}, {text(score['high'])}]."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def conflict_lines(summary: dict[str, Any]) -> list[str]:
    """The conflicts of `conflicts_of` in lines."""
    if not summary.get("conflicting"):
        return []
    head = (
        f"{summary['conflicting']} rows are copies of others with another label; at least one label of each is wrong:"
    )
    return [head, *(printable(f"  {conflict_text(conflict)}", kept="") for conflict in summary["conflicts"])]
