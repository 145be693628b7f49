"""The request of a run and its record, run.json, which is checked when it is read back."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch

from ..errors import CheckpointError, DataError
from .expressions import BatchSize, Count, Epochs, Range, Seed, Size, Steps, field_fault, one_line
from .files import check_format
from .schema import find_fault, parse_json, read_json, read_regular
from .tensors import canonical, write_json
from .trust import require_trust, split_function

Lines = list[dict[str, Any]]


ENVIRONMENT = "gym:"  # data that are an environment of gymnasium begin so: gym:ID, or gym:module:ID
CONTINUOUS = "continuous"  # the engine of language models that refills its batch
VLLM = "vllm"  # the engine of language models that is vLLM on the GPU that trains
WRITERS = (CONTINUOUS, VLLM)  # engines of language models
SCRIPT = "gym:script"  # the data of the log that a training script of one's own leaves


_FIGURES = {str: (float, None)}


_COUNTS = {str: int}


_PASSES = {"forward": int, "backward": int, "teacher": int, "saved?": int}


_DECISION = {"accepted": bool, "why": str}


_TASKS = frozenset({"classify", "regress", "generate", "features", "control"})


_DATA = {"name": str, "task": _TASKS, "rows": _COUNTS, "classes": [str], "noise": float, "fingerprint": str}


_PLAIN = {
    "steps": int,
    "from": str,
    "end": _FIGURES,
    "seconds?": float,
    "passes?": _PASSES,
    "early_stopped?": (_FIGURES, None),
}


_DRIFT = {
    **dict.fromkeys(("generation", "looked", "missed", "missed_before", "labels", "lost", "won", "audited"), int),
    **dict.fromkeys(("moved", "p_lost", "level"), float),
    **dict.fromkeys(("growth", "p_missed"), (float, None)),
    "follows": (str, None),
    "alarm": bool,
}


_GENERATION = {
    "generation": int,
    "decision?": (_DECISION, None),
    "test?": _FIGURES,
    "drift?": ({"moved?": None}, _DRIFT),
    "loss?": (float, None),
    "measure?": str,
}


_ENSEMBLE = {
    "test": _FIGURES,
    "single": _FIGURES,
    "peers?": int,
    "generations?": [int],
    **dict.fromkeys(("gain?", "kept?", "disagreement?", "distance?"), (float, None)),
}


_TRIAL = {
    **dict.fromkeys(("score", "gain", "passes", "seconds"), (float, None)),
    "method": str,
    "rows": int,
    "steps": int,
    "chosen": bool,
}


_ESTIMATE = {"rate": float, "low": float, "high": float}


_MATRIX = {"rates": [[float]], "low": [[float]], "high": [[float]]}


_PAIR = {"true": str, "given": str, "rows?": int, **_ESTIMATE}


_ADJUSTED = {"raw": float, "adjusted": float, "low": float, "high": float}


_LABEL_ERRORS = {
    "source": str,
    "examined": int,
    "likely": int,
    "splits": {str: {"examined": int, "likely": int}},
    "noise": _ESTIMATE,
    "matrix?": {"classes": [str], "counts": [[int]], **_MATRIX},
    "pairs?": [_PAIR],
    "adjusted?": {"metric": str, "assumption": str, "plain?": _ADJUSTED, **_ADJUSTED},
    "annotators?": [
        {"name": str, "rows": int, "rank": int, "agreement": _ESTIMATE, "matrix?": _MATRIX, "pairs": [_PAIR]}
    ],
    "auroc?": float,
}


_BREAKDOWN = {
    "worst": [{"row": int, "name": str, "label": str, "predicted": str, "confidence": (float, None)}],
    "by_class?": [{"name": str, "rows": int, "precision": (float, None), "recall": (float, None)}],
    "confused?": [{"label": str, "predicted": str, "rows": int}],
    "confusion?": [[int]],
}


_RESULT = {
    "data": _DATA,
    "generations": [_GENERATION],
    "method": str,
    "model": str,
    "parameters": (int, None),
    "run": str,
    "seed": int,
    "steps": int,
    "seconds": float,
    "test": _FIGURES,
    "final_generation": int,
    "chosen": str,
    "kind?": str,
    "passes?": _PASSES,
    "plain?": (_PLAIN, None),
    "before?": _FIGURES,
    "nearest?": (float, None),
    "probed?": bool,
    "reliability?": {str: [{"confidence": float, "accuracy": float, "share": float}]},
    "predicted?": {str: [[float]]},
    "label_errors?": (_LABEL_ERRORS, None),
    "ensemble?": _ENSEMBLE,
    "breakdown?": _BREAKDOWN,
    "importance?": [{"name": str, "mean": float, "deviation": float}],
    "eval_tasks?": [
        {
            "task": str,
            "metric": str,
            "rows": int,
            "before": float,
            "after": float,
            "gain": float,
            "half": (float, None),
            "verdict": (str, None),
        }
    ],
    "folds?": {"passes": _PASSES, "steps": int, "seconds": float},
    "auto?": ({"why": str, "tried": [_TRIAL]}, None),
    "trouble?": (str, None),
    "search?": {
        "space": str,
        "planned": int,
        "folds": int,
        "sampler": str,
        "passes": float,
        "trials": [{"expression": str, "loss": float, "folds": int, "pruned": bool, "trouble": str}],
    },
    "interpolation?": {"coefficient": float, "validated": {str: _FIGURES}},
    "exploration?": {"unit": str, "trying": float, "winner": float},
    "cross_fit?": {"folds": int, "rows": int, "metric": str, "low": float, "high": float, "about": str},
    "refit?": {"rows": int, "about": str},
    "budget?": {"bound": str, "seconds": float, "passes": float, "peak_mib": float, "cut": [str]},
    "control?": {
        "deployment": str,
        "frames": (str, None),
        "note": str,
        "arms": [{"name": str, "log": str, "scores": _FIGURES}],
    },
    "against?": {str: {str: {"gain": float, "half": (float, None), "rows": int, "verdict": (str, None)}}},
}


_RECORD = {
    "format": Any,
    "request": {"training": dict},
    "kind?": str,
    "method": str,
    "model": str,
    "settings": dict,
    "data": _DATA,
    "command": [str],
    "versions": {str: str},
    "threads": Range(1, 4096),
    "result?": _RESULT,
    "logs?": {str: str},
    "sha256": {"run": str, "result?": str},
}


_LINE = {
    "generation": int,
    "epoch": int,
    "step": int,
    "loss": Range(-math.inf),
    "terms": {str: dict},
    "audit?": dict,
    "vitals?": {str: dict},
    "warnings?": [str],
    "decision?": ({"why": str}, None),
    "diversity?": (dict, None),
    "language?": (dict, None),
    "control?": (dict, None),
}


@dataclass(frozen=True)
class Request:
    """Everything that decides a run; two runs with equal requests end bit for bit equal on one machine.

    None leaves a choice to the data: the method (`auto` of networks), the model (an MLP
    for tables and images under 16 pixels, else the small CNN), the batch size (64, or all rows if fewer), the epochs
    (about 2,000 steps), the device (a CUDA device if there is one). ``text`` names a table's column of texts, which a
    pretrained encoder reads, in batches of 32 and about 500 steps. ``audit_folds`` audits on all labels, by so many
    trainings more. ``init`` is a finished run, with whose layers, all but the classifier, the models begin. ``keep``,
    ``checker``, ``fields``, ``student_template``, ``teacher_template``, ``skip_long``, ``lora``, ``max_tokens``,
    ``checkpointing``, ``dtype``, ``load_in_4bit`` and ``save`` are for language models: prior tasks that must not be
    forgotten, the checker of rows that name none, (field, column) of fields that the file calls otherwise, options of
    the chat template, whether rows beyond the model's context are left out, the rank of an adapter (0: all weights),
    tokens of an answer, memory for time, the dtype of the base weights, whether they have 4 bits, and whether the
    model is saved merged, as an adapter, or both. ``group_lengths`` puts prompts of similar length into a batch;
    ``eval_tasks`` are YAML files of tasks of lm-eval, ``|`` between them, on which models are evaluated as well.
    ``alarms`` is what follows where answers go wrong in other ways than their score. ``targets`` is a folder that
    keeps what a frozen outside teacher says.
    ``decisions`` is a file of labels that were decided (`data.decisions`), which come to those of the data.
    ``training`` are further fields of `Settings`. ``columns`` are the types of a table's columns that are not inferred.
    ``groups`` and ``time`` are columns that keep rows together and order them, ``test`` and ``validation`` the files or
    folders of these splits. ``tasks`` makes a stream of so many tasks of classes, or names the column with
    the task of each row.
    ``memory`` is how many rows the reservoir beside the model holds [200; 0: none]. ``update`` is a finished run, whose
    model and reservoir go on with new data. ``adapt`` is one whose model adapts to unlabelled ``data``: by the column
    ``order``, in so many ``domains`` [10], without the share ``leave_out`` of the least certain rows of each [0.1], and
    ``warm`` or by a fresh network each; labelled rows verify, at most the share ``verify`` of a domain [1/3].
    ``net``, ``sees``, ``teacher``, ``episodes``, ``engine`` and ``deployment`` are for environments: sizes of hidden
    layers, the part of the observation that the teacher alone sees, a trained policy, the number of test episodes
    [planned], ``ppo`` or ``a2c`` [ppo], and whether actions are ``greedy`` or ``sampled`` where it counts [greedy]. For
    prompts ``engine`` may be ``continuous``, where the batch that writes is refilled, or ``vllm``.
    ``budget`` bounds time, memory or sample passes of the whole run, such as ``10min|4GiB|20000passes``. ``search`` is
    an expression with ranges, whose arguments ``trials`` trials search, which Optuna's ``storage`` keeps [a journal in
    the run folder]; ``explore`` is the largest share of the trainings that only try something out. ``tune`` says how
    far a pretrained image model learns. ``annotators`` names columns of a table, as in ``a,b,c``, with the labels of
    several annotators, whose consensus is the target.
    """

    data: str = "digits"
    target: str | None = None
    text: str | None = None
    unlabelled: str | None = None
    labels: Annotated[int, Range(1, limit=10**12)] | None = None
    label_noise: float = 0.0
    image_size: Annotated[int, Range(1, limit=4096)] | None = None
    augment: str | None = None
    keep: str | None = None
    checker: str | None = None
    eval_tasks: str | None = None
    fields: tuple[tuple[str, str], ...] = ()
    student_template: str | None = None
    teacher_template: str | None = None
    group_lengths: bool = False
    skip_long: bool = False
    lora: Annotated[int, Range(0, limit=8192)] | None = None
    max_tokens: Size | None = None
    checkpointing: bool = False
    alarms: str | None = None
    dtype: str | None = None
    save: str | None = None
    load_in_4bit: bool = False
    model: str | None = None
    init: str | None = None
    method: str | None = None
    epochs: Epochs | None = None
    steps: Steps | None = None
    batch_size: BatchSize | None = None
    seed: Seed = 0
    device: str | None = None
    control: bool = True
    audit_folds: Count | None = None
    targets: str | None = None
    training: tuple[tuple[str, Any], ...] = ()
    columns: tuple[tuple[str, str], ...] = ()
    groups: str | None = None
    time: str | None = None
    test: str | None = None
    validation: str | None = None
    raw_csv: bool = False
    tasks: Annotated[int, Range(2, limit=1000)] | str | None = None
    memory: Annotated[int, Range(0, limit=10**6)] | None = None
    update: str | None = None
    adapt: str | None = None
    order: str | None = None
    domains: Annotated[int, Range(2, limit=1000)] | None = None
    leave_out: Annotated[float, Range(0, 0.9)] | None = None
    verify: Annotated[float, Range(0, 0.9, above=True)] | None = None
    warm: bool = False
    net: str | None = None
    sees: str | None = None
    teacher: str | None = None
    episodes: Annotated[int, Range(2, limit=10**6)] | None = None
    engine: str | None = None
    deployment: str | None = None
    decisions: str | None = None
    budget: str | None = None
    search: str | None = None
    trials: Annotated[int, Range(1, limit=10**6)] | None = None
    storage: str | None = None
    explore: Annotated[float, Range(0, 1)] | None = None
    refit: str | None = None
    effort: str | None = None
    folds: Annotated[int, Range(2, limit=1000)] | None = None
    annotators: str | None = None
    tune: str | None = None

    def __post_init__(self) -> None:
        if fault := field_fault(self):
            raise DataError(fault)
        for name in ("order", "domains", "leave_out", "verify", "warm"):
            if self.adapt is None and getattr(self, name):
                raise DataError(f"{name.replace('_', ' ')} has a meaning for an adaptation alone; leave it out")

    def to_json(self) -> dict[str, Any]:
        later = {
            "text",
            "init",
            "targets",
            "checker",
            "eval_tasks",
            "student_template",
            "teacher_template",
            "group_lengths",
            "skip_long",
            "groups",
            "time",
            "test",
            "validation",
            "raw_csv",
            "tasks",
            "update",
            "adapt",
            "order",
            "domains",
            "warm",
            "net",
            "sees",
            "teacher",
            "episodes",
            "engine",
            "deployment",
            "decisions",
            "budget",
            "search",
            "refit",
            "effort",
            "annotators",
            "storage",
            "tune",
        }  # unsaid where not asked for: what was asked before they existed is the same
        unsaid = {name for name in later if not getattr(self, name)} | {"columns", "fields"}
        unsaid |= {
            name
            for name in ("memory", "leave_out", "verify", "trials", "explore", "folds")
            if getattr(self, name) is None
        }
        pairs = {"columns": self.columns, "fields": self.fields}
        types = {name: dict(given) for name, given in pairs.items() if given}
        return {k: v for k, v in asdict(self).items() if k not in unsaid} | {"training": dict(self.training), **types}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Request:
        """Raises ValueError, KeyError or TypeError for what `to_json` did not write."""
        given = {"training": value["training"], **{name: value.get(name, {}) for name in ("columns", "fields")}}
        pairs = {name: tuple(sorted(entries.items())) for name, entries in given.items()}
        if not all(isinstance(kind, str) for name in ("columns", "fields") for _, kind in pairs[name]):
            raise ValueError("columns")
        try:
            return cls(**{**value, **pairs})
        except DataError as error:
            raise ValueError(str(error)) from None

    def name(self, usual: str = "default") -> str:
        """A folder name from data, method (or the ``usual`` one), seed and a digest of the request."""
        method = (self.method or usual).split("(")[0]
        tail = hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:6]
        return f"{Path(self.data).stem}-{method}-{self.seed}-{tail}"


def differences(saved: Request, current: Request) -> str:
    """The settings in which two requests differ, in words."""
    old, new = ({**r.to_json(), **dict(r.training)} for r in (saved, current))
    names = [k for k in dict.fromkeys([*new, *old]) if k != "training" and old.get(k) != new.get(k)]
    return ", ".join(f"{k} {old.get(k)!r}, now {new.get(k)!r}" for k in names)


def read_lines(path: Path) -> Lines:
    """The lines of a metrics log; one that is being written now is left out.

    Raises:
        CheckpointError: it cannot be read, or a line is none that a run writes.
    """
    try:
        whole = read_regular(path).split(b"\n")[:-1] if path.exists() else []
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
    lines: Lines = []
    for number, line in enumerate(whole, 1):
        try:
            lines.append(parse_json(line, _LINE, nan=True))
        except ValueError as error:
            raise CheckpointError(
                f"{path}, line {number} is damaged or foreign ({one_line(error, 120)}); resume the run, which writes "
                "its lines again, or run it in a new --out"
            ) from error
    return lines


def read_record(path: Path) -> tuple[dict[str, Any], Request]:
    """The content of run.json, and its request.

    Raises:
        CheckpointError: it is damaged, or of another format.
    """
    try:
        record = read_json(path, {"format": Any})
        check_format(path, record.get("format"))
        if fault := find_fault(record, _RECORD):
            raise ValueError(fault)
        request = Request.from_json(record["request"])
        if any(record["sha256"].get(part) != digest for part, digest in _digests(record).items()):
            if function := split_function(request.model or ""):  # the graver fault, if it was written by a stranger
                require_trust(*function[:2], path, path.parent)
            raise ValueError("it was changed after it was written: its digest is another")
        return record, request
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = one_line(error, 120)
        raise CheckpointError(f"{path} is damaged or foreign ({reason}); start the run again in a new --out") from error


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write run.json with its digests: one of the run, and one of its result.

    Raises:
        CheckpointError: it cannot be written.
    """
    body = json.loads(canonical({name: value for name, value in record.items() if name != "sha256"}))
    write_json(path, {**body, "sha256": _digests(body)})


METRICS = "metrics.jsonl"
STEPS = "steps.jsonl"  # of language models, a line a step
LOGS = (METRICS, f"control/{METRICS}")


def log_digests(folder: Path) -> dict[str, str]:
    """The digests of the logs of a run that has ended."""
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in LOGS if (folder / name).exists()}


def changed_logs(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """A line for each log of a finished run that is no longer what the run wrote."""
    written, now = record.get("logs", {}), log_digests(folder)
    names = [name for name in written if now.get(name) != written[name]]
    return [
        f"{folder / name} was changed after the run had ended; curves that are drawn of it are not its own"
        for name in names
    ]


def _digests(record: Mapping[str, Any]) -> dict[str, str]:
    """A digest of what was asked for and, in a finished run, one of the result."""
    begun = {name: value for name, value in record.items() if name not in ("result", "logs", "sha256")}
    parts = {"run": begun, **({"result": record["result"]} if "result" in record else {})}
    return {name: hashlib.sha256(canonical(part)).hexdigest() for name, part in parts.items()}


def versions() -> dict[str, str]:
    """The versions that decide bits, as records hold them."""
    return {"selfdistill": version("selfdistill"), "torch": torch.__version__, "python": platform.python_version()}
