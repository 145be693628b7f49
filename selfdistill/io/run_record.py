"""The request of a run and its record, run.json, which is checked when it is read back."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

from ..errors import CheckpointError
from .expressions import one_line
from .files import check_format

Lines = list[dict[str, Any]]


_RESULT = {"data", "generations", "method", "model", "parameters", "run", "seed", "steps", "seconds", "test"}


@dataclass(frozen=True)
class Request:
    """Everything that decides a run; two runs with equal requests end bit for bit equal on one machine.

    None leaves a choice to the data: the method (`curriculum` with unlabelled rows, `elr` without), the model (an MLP
    for tables and images under 16 pixels, else the small CNN), the batch size (64, or all rows if fewer), the epochs
    (about 2,000 steps), the device (a CUDA device if there is one). ``text`` names a table's column of texts, which a
    pretrained encoder reads, in batches of 32 and about 500 steps. ``audit_folds`` audits on all labels, by so many
    trainings more. ``init`` is a finished run, with whose layers, all but the classifier, the models begin. ``keep``,
    ``checker``, ``skip_long``, ``lora``, ``max_tokens`` and ``checkpointing`` are for language models: prior tasks that
    must not be forgotten, the checker of rows that name none, whether rows beyond the model's context are left out, the
    rank of an adapter (0: all weights), tokens of an answer, and memory for time. ``targets`` is a folder that keeps
    what a frozen outside teacher says.
    ``training`` are further fields of `Settings`. ``columns`` are the types of a table's columns that are not inferred.
    ``groups`` and ``time`` are columns that keep rows together and order them, ``test`` and ``validation`` the files or
    folders of these splits.
    """

    data: str = "digits"
    target: str | None = None
    text: str | None = None
    unlabelled: str | None = None
    labels: int | None = None
    label_noise: float = 0.0
    image_size: int | None = None
    augment: str | None = None
    keep: str | None = None
    checker: str | None = None
    skip_long: bool = False
    lora: int | None = None
    max_tokens: int | None = None
    checkpointing: bool = False
    model: str | None = None
    init: str | None = None
    method: str | None = None
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    seed: int = 0
    device: str | None = None
    control: bool = True
    audit_folds: int | None = None
    targets: str | None = None
    training: tuple[tuple[str, Any], ...] = ()
    columns: tuple[tuple[str, str], ...] = ()
    groups: str | None = None
    time: str | None = None
    test: str | None = None
    validation: str | None = None

    def to_json(self) -> dict[str, Any]:
        later = {
            "text",
            "init",
            "targets",
            "checker",
            "skip_long",
            "groups",
            "time",
            "test",
            "validation",
        }  # unsaid where not asked for: what was asked before they existed is the same
        unsaid = {name for name in later if not getattr(self, name)} | {"columns"}
        types = {"columns": dict(self.columns)} if self.columns else {}
        return {k: v for k, v in asdict(self).items() if k not in unsaid} | {"training": dict(self.training), **types}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Request:
        """Raises ValueError, KeyError or TypeError for what `to_json` did not write."""
        pairs = {name: tuple(sorted(value.get(name, {}).items())) for name in ("training", "columns")}
        if not all(isinstance(kind, str) for _, kind in pairs["columns"]):
            raise ValueError("columns")
        request = cls(**{**value, **pairs})
        kinds = get_type_hints(cls)
        for name, kind in ((name, kind) for name, kind in kinds.items() if name not in pairs):
            if not isinstance(getattr(request, name), kind):
                raise ValueError(f"{name} is {getattr(request, name)!r}")
        return request

    def name(self) -> str:
        """A folder name from data, method, seed and a digest of the request."""
        method = (self.method or "default").split("(")[0]
        tail = hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:6]
        return f"{Path(self.data).stem}-{method}-{self.seed}-{tail}"


def differences(saved: Request, current: Request) -> str:
    """The settings in which two requests differ, in words."""
    old, new = ({**r.to_json(), **dict(r.training)} for r in (saved, current))
    names = [k for k in dict.fromkeys([*new, *old]) if k != "training" and old.get(k) != new.get(k)]
    return ", ".join(f"{k} {old.get(k)!r}, now {new.get(k)!r}" for k in names)


def read_lines(path: Path) -> Lines:
    """The lines of a metrics log; one that is being written now is left out."""
    lines: Lines = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:
                break
    return lines


def read_record(path: Path) -> tuple[dict[str, Any], Request]:
    """The content of run.json, and its request.

    Raises:
        CheckpointError: it is damaged, or of another format.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        check_format(path, record["format"])
        missing = _RESULT - record["result"].keys() if "result" in record else set()
        if missing or not isinstance(record["data"]["fingerprint"], str):
            raise ValueError(f"no {', '.join(sorted(missing)) or 'fingerprint'} in it")
        return dict(record), Request.from_json(record["request"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = one_line(error, 120)
        raise CheckpointError(f"{path} is damaged or foreign ({reason}); start the run again in a new --out") from error
