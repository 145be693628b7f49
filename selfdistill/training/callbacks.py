"""Callbacks of the engine and its tasks: best weights, audits within a generation, warnings, the vitals."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import distributed
from ..core.objective import Method
from ..core.step import Passes, TrainingClock, members
from ..core.vitals import TermHealth, interval, summarise
from ..data.dataset import Data
from ..errors import CheckpointError, DataError, VitalsError
from ..evaluation import linear_probe
from ..evaluation.audit import whole_classes
from ..evaluation.label_next import fewest_rows, safe_labels
from ..evaluation.predict import is_better, predict_rows, task_outputs
from ..gates import ErrorBound
from ..io.run_record import read_lines, read_record
from ..io.tensors import digest
from ..models.peers import PeerModels
from ..teachers import Labels
from .state import BestEpoch, RunState, copied
from .task import Callback, Task

# ---- of every task -----------------------------------------------------------------------------------


class BestWeights(Callback):
    """Keeps the weights of the epoch with the best audit metrics: early stopping, had one known when.

    Where the task does not ask for them it keeps the epoch alone.
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    def on_epoch_end(self, state: RunState, clock: TrainingClock, entry: dict[str, Any]) -> None:
        if "audit" in entry and is_better(entry["audit"], state.best.audit):
            weights = copied(state.model.state_dict()) if self.task.keeps_best else {}
            state.best = BestEpoch(clock.epoch, entry["audit"], weights)


class Rollback(Callback):
    """Audits within a generation, for teachers that move all the time: a worse state is rolled back.

    A moving average, a memory or a peer has no generation after which to look. Every ``audit_epochs`` epochs the
    student is audited against the best state of the generation so far; a state that the audit does not accept is
    replaced by that one (weights, teachers, memories, optimizer moments), while clock and learning rate go on. The
    generation ends in the best state that was audited. Under several processes all take part, and decide alike:
    weights and audit rows are the same everywhere.
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    def on_epoch_end(self, state: RunState, clock: TrainingClock, entry: dict[str, Any]) -> None:
        every, at_end = state.settings.audit_epochs, clock.step + 1 == clock.length
        if every is None or ((clock.epoch + 1) % every and not at_end) or state.audit.policy == "off":
            return
        if not self.task.audit_rows:
            return
        evaluation = self.task.evaluate(state)
        state.passes += evaluation.passes
        entry["decision"] = self._decide(state, clock, every, evaluation.losses)

    def _decide(self, state: RunState, clock: TrainingClock, every: int, losses: list[float]) -> dict[str, Any]:
        """Keep the state or go back to the best one; the decision, for the log."""
        if not state.rollback:
            state.rollback = _snapshot(state, clock.epoch, losses)
            return {"accepted": True, "why": f"epoch {clock.epoch + 1}: the first state audited", "epoch": clock.epoch}
        audits = -(-clock.epochs // every)
        audit = replace(state.audit, planned=max(1, clock.generations * audits))
        number, best_epoch = clock.generation * audits + clock.epoch // every, state.rollback["epoch"] + 1
        decision = audit.decide(number, losses, state.rollback["losses"], against=best_epoch, unit="check")
        is_worse = math.fsum(losses) > math.fsum(state.rollback["losses"])
        restored = not decision.accepted or (clock.step + 1 == clock.length and is_worse)
        if restored:
            _go_back(state)
        elif not is_worse:
            state.rollback = _snapshot(state, clock.epoch, losses)
        reason = f"epoch {clock.epoch + 1} against epoch {best_epoch}: {decision.why}"
        state.report(reason)
        return {**asdict(decision), "why": reason, "epoch": clock.epoch, "restored": restored}


def _snapshot(state: RunState, epoch: int, losses: list[float]) -> dict[str, Any]:
    """All that learns, copied."""
    parts = {
        "student": distributed.gathered(state.model.state_dict()),
        "objective": distributed.gathered(state.objective.state_dict()),
        "moments": distributed.gathered(state.optimizer.state_dict())["state"],
    }
    return {"epoch": epoch, "losses": losses, **_deep_copy(parts)}


def _deep_copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _deep_copy(item) for key, item in value.items()}
    return copy.deepcopy(value)


def _go_back(state: RunState) -> None:
    """Load the snapshot; time goes on, and so does the learning rate in the optimizer's groups."""
    clock = state.clock
    snapshot = _deep_copy({name: state.rollback[name] for name in ("student", "objective", "moments")})
    distributed.load_module(state.model, snapshot["student"])
    distributed.load_module(state.objective, snapshot["objective"])
    state.objective.clock = clock
    groups = distributed.gathered(state.optimizer.state_dict())["param_groups"]
    distributed.load_optimizer(state.optimizer, {"state": snapshot["moments"], "param_groups": groups})


class VitalsCallback(Callback):
    """Logs the vitals of the epoch, and the warnings that are new in the generation."""

    def on_epoch_end(self, state: RunState, clock: TrainingClock, entry: dict[str, Any]) -> None:
        entry |= vitals_entry(state.objective.pulse, state.history, clock.generation)


class AuditNotice(Callback):
    """Reports before training the change that an audit of ``rows`` can detect, beside so many ``labelled`` rows."""

    def __init__(self, rows: int, labelled: int) -> None:
        self.rows, self.labelled = rows, labelled

    def before_training(self, state: RunState) -> None:
        several = state.method.generations > 1 or state.settings.audit_epochs
        if several and state.audit.policy != "off":
            state.report(state.audit.foreword(self.rows, self.labelled))


# ---- of networks -------------------------------------------------------------------------------------


class AuditedClasses(Callback):
    """Refuses an audit split that lacks a class, where there is something to audit."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def before_training(self, state: RunState) -> None:
        data, several = self.data, state.method.generations > 1 or state.settings.audit_epochs
        if several and state.audit.policy != "off" and len(data.audit) and data.task == "classify":
            whole_classes(data.y[data.audit], data.classes, data.name)


class LinearProbe(Callback):
    """Fits the classifier of a method without labels, which nothing else teaches, before each evaluation."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def before_evaluation(self, state: RunState) -> None:
        state.passes += Passes(evaluation=linear_probe.fit_classifier(state.model, self.data))


class FreshStart(Callback):
    """Warns if a generation begins as an earlier one did, and refuses one that begins with its final weights.

    A method that starts warm does so by choice.
    """

    def on_model(self, state: RunState) -> None:
        if (wrapper := state.method.wrap_model) is not None and wrapper.warm:
            return
        digests = [(result.start, digest(result.weights)) for result in state.generations]
        warning = fresh_start(state.start, digests)
        if warning and state.settings.vitals:
            state.warn(f"warning: {warning}")


def fresh_start(start: str, digests: Sequence[tuple[str, str]]) -> str | None:
    """A warning where a generation starts as an earlier one did; None where it starts afresh.

    Equal starts are right for a factory that loads pre-trained weights, so they are no error.

    Args:
        start: digest of its initial weights.
        digests: for each generation so far the digests of its initial and of its final weights.

    Raises:
        VitalsError: it starts from what an earlier one ended with.
    """
    for number, (initial, final) in enumerate(digests):
        if start == final != initial:
            raise VitalsError(
                "trained-start",
                f"trained-start: generation {len(digests)} starts from the final weights of generation {number}; "
                "let build() make a new model at every call, not return the one it made before",
            )
    equal = [number for number, (initial, _) in enumerate(digests) if initial == start]
    if not equal:
        return None
    return (
        f"generation {len(digests)} starts from the very weights that generation {equal[0]} started from; "
        "unless build() loads pre-trained weights, let it draw new ones"
    )


MOST = 1000  # rows on which the diversity of peers is measured


HEADS = {"classify": "peers", "regress": "peer_values"}


ALIKE, ONE_VOICE = 0.01, 0.001  # distance of peers over their uncertainty: below these they are nearly, and quite, one


class Diversity(Callback):
    """Logs how far peers differ: in the linear theory equal peers bring no gain at all.

    Peers that taught each other until they say the same, though they are not sure, are told; a run in which they still
    do an epoch later is stopped.
    """

    def __init__(self, data: Data) -> None:
        self.data = data

    def on_epoch_end(self, state: RunState, clock: TrainingClock, entry: dict[str, Any]) -> None:
        diversity = measure_diversity(state.model, self.data, state.device)
        uncertainty = diversity.pop("uncertainty", 0.0)
        entry |= {"diversity": diversity} if diversity else {}
        taught = any(term.head in HEADS.values() for term in state.method.terms.values())
        if not diversity or not taught or not state.settings.vitals or clock.step + 1 < SETTLED:
            return
        if diversity["distance"] < ALIKE * uncertainty:
            diversity["uncertainty"] = uncertainty
            of_epochs = [line.get("diversity", {}) for line in state.history if line["generation"] == clock.generation]
            warning = alike(diversity, of_epochs[-1] if of_epochs else {})
            if not any("uncertainty" in earlier for earlier in of_epochs):
                entry["warnings"] = [*entry.get("warnings", []), warning]


def alike(diversity: Mapping[str, float], before: Mapping[str, float]) -> str:
    """The warning about peers that say nearly the same though they are not sure.

    Args:
        diversity: their ``distance`` and ``uncertainty``.
        before: those of the epoch before; without an ``uncertainty`` where the peers still differed.

    Raises:
        VitalsError: they say the same in both epochs.

    >>> alike({"distance": 0.001, "uncertainty": 0.2}, {"distance": 0.1}).partition(":")[0]
    'the peers are nearly one model'
    """
    reason = (
        f"their predictions differ by {diversity['distance']:.2g} and are uncertain by {diversity['uncertainty']:.2g}, "
        "so they teach each other nothing; weigh what peers say less, or give them other rows or networks"
    )
    if all(d["distance"] < ONE_VOICE * d.get("uncertainty", 0.0) for d in (diversity, before) if d) and before:
        raise VitalsError("equal-peers", f"equal-peers: the peers are one model: {reason}")
    return f"the peers are nearly one model: {reason}"


def pairwise(outputs: Tensor, task: str = "classify") -> dict[str, float]:
    """Means over rows and pairs of peers, from probabilities (rows, K, classes) or values (rows, K, 1).

    ``distance`` is the total variation of two peers' probabilities, or the absolute difference of their values;
    ``disagreement``, of classes, the share of rows to which two peers give another class.

    >>> import torch
    >>> pairwise(torch.tensor([[[1.0, 0.0], [0.25, 0.75]]]))
    {'distance': 0.75, 'disagreement': 1.0}
    """
    peers = outputs.shape[1]
    pairs = [(i, j) for i in range(peers) for j in range(i + 1, peers)]
    if not pairs or not len(outputs):
        return {}
    distances = [(outputs[:, i] - outputs[:, j]).abs().sum(-1).mean() for i, j in pairs]
    if task != "classify":
        return {"distance": float(sum(distances)) / len(pairs)}
    classes = outputs.argmax(-1)
    disagreements = [(classes[:, i] != classes[:, j]).double().mean() for i, j in pairs]
    return {
        "distance": float(sum(distances)) / (2 * len(pairs)),
        "disagreement": float(sum(disagreements)) / len(pairs),
    }


def measure_diversity(model: nn.Module, data: Data, device: torch.device | str = "cpu") -> dict[str, float]:
    """`pairwise` of a group's members on rows of the audit split, or of the training rows where nothing is audited.

    Of classes ``uncertainty`` is 1 minus the largest probability of their mean.

    Nothing for a model that is no group, or one whose members speak of a mean and a variance.
    """
    rows = (data.audit if len(data.audit) else data.labelled)[:MOST]
    outputs = peer_outputs(model, data, rows, device)
    figures = {} if outputs is None else pairwise(outputs, data.task)
    if outputs is not None and "disagreement" in figures:
        figures["uncertainty"] = 1.0 - float(outputs.mean(1).amax(-1).mean())
    return figures


def peer_outputs(model: nn.Module, data: Data, ids: Tensor, device: torch.device | str = "cpu") -> Tensor | None:
    """The members of a group on rows: probabilities (rows, K, classes) or standardised values (rows, K, 1)."""
    if not isinstance(model, PeerModels) or hasattr(model, "jointly"):
        return None
    outputs = predict_rows(model, data, ids, HEADS[data.task], device)
    return F.softmax(outputs, dim=-1) if data.task == "classify" else outputs


class ValidatedThresholds(Callback):
    """Renews the thresholds of the gates `ErrorBound` from the validation rows after each epoch."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def before_training(self, state: RunState) -> None:
        rows = len(self.data.audit)
        for name, gate in error_bounds_of(state.method):
            if rows < (fewest := fewest_rows(gate.max_error, gate.level)):
                raise DataError(
                    f"term {name!r}: an error rate of {gate.max_error:g} is certain from {fewest} validation rows on, "
                    f"all of them right, and {self.data.name} has {rows}; give more by --validation, or a larger "
                    "max_error"
                )

    def on_epoch_end(self, state: RunState, clock: TrainingClock, entry: dict[str, Any]) -> None:
        gates, data = error_bounds_of(state.method), self.data
        if not gates:
            return
        outputs = task_outputs(state.model, data, data.audit, state.device)
        state.passes += Passes(evaluation=members(state.model) * len(data.audit))
        for name, gate in gates:
            safe = safe_labels(F.softmax(outputs, dim=-1), data.y[data.audit], gate.max_error, gate.level)
            entry.setdefault("thresholds", {})[name] = safe.threshold
            limit = math.inf if safe.threshold is None else safe.threshold
            state.objective.state_of(name, gate).threshold.fill_(limit)


def error_bounds_of(method: Method) -> list[tuple[str, ErrorBound]]:
    """The gates of a method whose thresholds follow validation rows, by the names of their terms."""
    return [(name, term.gate) for name, term in method.terms.items() if isinstance(term.gate, ErrorBound)]


ONE = 0.9  # share of the rows above which answers are called one class


SPREAD = 0.5  # share that the commonest label must stay below: else one class may be a good answer


FELL = 0.8  # of its first value: a labelled loss below it has fallen


LEVEL = 0.05


FEWEST = 20  # rows; nothing is concluded from fewer


SETTLED = 50  # steps; before, nothing need be learnt


class ChanceCheck(Callback):
    """Warns at the end of a generation that calls nearly all audit rows one class, or is right as often as chance."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def on_epoch_end(self, state: RunState, clock: TrainingClock, entry: dict[str, Any]) -> None:
        data, ended = self.data, clock.step + 1 >= max(clock.length, SETTLED)
        if not ended or "audit" not in entry or not state.settings.vitals or data.task != "classify":
            return
        y, accuracy = data.y[data.audit], entry["audit"]["accuracy"]
        largest_share = float(y.bincount().max()) / len(y)
        if len(y) < FEWEST or largest_share >= SPREAD:
            return
        warning = None
        if (
            accuracy <= largest_share + 1 - ONE
        ):  # where more is right than one class could be, the model need not be asked
            state.passes += Passes(evaluation=members(state.model) * len(y))
            warning = one_class(task_outputs(state.model, data, data.audit, state.device), data.classes)
        if (
            warning is None
            and fell(_label_losses(state, clock.generation))
            and by_chance(accuracy, len(y), largest_share)
        ):
            warning = (
                f"the labelled loss fell, and {accuracy:.0%} of {len(y)} validation rows are right, which is chance: "
                "the model does not generalise; check that the labels belong to their rows"
            )
        if warning:
            entry["warnings"] = [*entry.get("warnings", []), warning]


def one_class(logits: Tensor, classes: Sequence[str]) -> str | None:
    """A warning where answers (rows, classes) are nearly all one class; None where they are not.

    >>> import torch
    >>> one_class(torch.eye(3)[[0, 1, 2, 1]], "abc")
    >>> one_class(torch.eye(3)[[1, 1, 1, 1]], "abc").partition(":")[0]
    "4 of 4 validation rows are predicted as 'b'"
    """
    counts = logits.argmax(-1).bincount(minlength=len(classes))
    count = int(counts.max())
    if count <= ONE * len(logits):
        return None
    return (
        f"{count} of {len(logits)} validation rows are predicted as {classes[int(counts.argmax())]!r}: "
        "the training has collapsed; train more steps, weigh the model's own predictions less, or use another method"
    )


def fell(losses: Sequence[float]) -> bool:
    """Whether losses, one an epoch, fell by a fifth or more.

    >>> fell([2.3, 1.1]), fell([2.3, 2.4]), fell([2.3])
    (True, False, False)
    """
    return len(losses) > 1 and losses[-1] < FELL * losses[0]


def by_chance(accuracy: float, rows: int, share: float) -> bool:
    """Whether a constant answer of this share could be right as often, by exact binomial tests at 0.05.

    Who is right more seldom than that knows something, and says the opposite.

    >>> by_chance(0.14, 100, 0.1), by_chance(0.2, 100, 0.1), by_chance(0.0, 100, 0.1)
    (True, False, False)
    """
    from scipy.stats import binom

    correct = round(accuracy * rows)
    return min(float(binom.sf(correct - 1, rows, share)), float(binom.cdf(correct, rows, share))) > LEVEL


def _label_losses(state: RunState, generation: int) -> list[float]:
    """The loss of the first term that learns from labels, by epoch of a generation; without the epoch under way."""
    terms = state.method.terms.items()
    name = next((name for name, term in terms if isinstance(term.teacher, Labels)), None)
    entries = [entry["terms"].get(name) for entry in state.history if entry["generation"] == generation]
    return [entry["loss"] for entry in entries if entry and entry["loss"] is not None]


VITALS_COLUMNS = {
    "gradient_share": "gradient",
    "disagreement": "disagreement",
    "entropy": "entropy",
    "kept": "kept",
    "accuracy": "accuracy",
    "class_distance": "class shift",
    "weight_distance": "weights",
    "spread": "spread",
}


VITALS_LEGEND = """\
Means over the checked steps of the first epoch > of the last epoch.
gradient      the term's share of the gradient
disagreement  total variation between target and student; for regression their
              distance in standard deviations
entropy       of the target: 1 is uniform, 0 is one class
kept          share of the targets that the gate keeps
accuracy      of the target, where labels are known
class shift   total variation between the classes of targets and of labels
weights       distance of teacher and student over the norm of the student
spread        of the directions of the features: 0 if all are the same"""


def vitals_entry(
    pulses: Mapping[str, TermHealth], lines: Sequence[Mapping[str, Any]], generation: int
) -> dict[str, Any]:
    """The entry of an epoch's log line: ``vitals`` by term, and the ``warnings`` that are new in the generation.

    Args:
        pulses: of the objective.
        lines: the lines so far.
        generation: the one that trains.
    """
    vitals = interval(pulses)
    if not vitals:
        return {}
    known_patterns = {
        _warning_pattern(w) for line in lines if line["generation"] == generation for w in line.get("warnings", [])
    }
    warnings = [warning for warning in summarise(pulses).warnings if _warning_pattern(warning) not in known_patterns]
    return {"vitals": vitals, **({"warnings": warnings} if warnings else {})}


def _warning_pattern(warning: str) -> str:
    return re.sub(r"\d+", "#", warning)


def read_vitals(folder: str | Path) -> dict[str, Any]:
    """The vitals of a run folder, finished or not.

    Returns:
        ``run``; ``generations``: each a ``generation``, ``steps`` and ``terms`` {name: {figure: [first, last]}};
        ``warnings``: each a ``generation``, ``epoch`` and ``text``.

    Raises:
        CheckpointError: it is no run, it is damaged, or it was made without vitals.
    """
    folder = Path(folder)
    if not (folder / "run.json").exists():
        raise CheckpointError(f"{folder} is no run folder: it has no run.json; give one that `selfdistill run` wrote")
    read_record(folder / "run.json")  # refuses what is damaged
    lines = read_lines(folder / "metrics.jsonl")
    if not any(line.get("vitals") for line in lines):
        reason = "it was run with --no-vitals or by an older version" if lines else "it has not ended an epoch yet"
        raise CheckpointError(f"{folder} has no vitals: {reason}; run it again without --no-vitals, or let it go on")
    generations = []
    for number in sorted({line["generation"] for line in lines}):
        of_generation = [line for line in lines if line["generation"] == number]
        terms: dict[str, dict[str, list[float]]] = {}
        for line in of_generation:
            for name, figures in line.get("vitals", {}).items():
                pairs = terms.setdefault(name, {})
                for figure, value in figures.items():
                    pairs[figure] = [pairs.get(figure, [value])[0], value]
        generations.append({"generation": number, "steps": of_generation[-1]["step"], "terms": terms})
    warnings = [
        {"generation": line["generation"], "epoch": line["epoch"], "text": text}
        for line in lines
        for text in line.get("warnings", [])
    ]
    return {"run": str(folder), "generations": generations, "warnings": warnings}


def vitals_table(vitals: Mapping[str, Any]) -> str:
    """The answer of `read_vitals` as a table for a terminal of 80 columns and more."""
    columns = [
        name
        for name in VITALS_COLUMNS
        if any(name in term for generation in vitals["generations"] for term in generation["terms"].values())
    ]
    rows = [["", *(VITALS_COLUMNS[name] for name in columns)]]
    for generation in vitals["generations"]:
        rows.append([f"generation {generation['generation']}, {generation['steps']} steps"])
        for name, figures in generation["terms"].items():
            rows.append([f"  {name}", *(_change(figures.get(figure)) for figure in columns)])
    widths = [max(len(row[i]) for row in rows if i < len(row) and len(row) > 1) for i in range(len(columns) + 1)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        if len(row) > 1
        else row[0]
        for row in rows
    ]
    warnings = [
        f"warning in generation {w['generation']}, epoch {w['epoch'] + 1}: {w['text']}" for w in vitals["warnings"]
    ]
    return "\n".join([*lines, "", *(warnings or ["no warnings"]), "", VITALS_LEGEND])


def _change(pair: Sequence[float] | None) -> str:
    if pair is None:
        return ""
    start, end = (f"{value:.2f}".removeprefix("0") for value in pair)
    return start if start == end else f"{start}>{end}"
