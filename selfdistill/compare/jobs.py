"""Trainings of a comparison: what each job trains, and the record it leaves.

One job is one seed of one training; its record has a row for every way to use what was trained (the last weights, the
best epoch, the averaged weights). The test split is read in `_judged` alone, after everything is trained and chosen.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import draws
from ..checkpoint import write_json
from ..core import Method, Step, Target, Term
from ..errors import RecipeError
from ..evaluate import answers, covered, scored
from ..finished import product
from ..heads import Peers, space_of
from ..loop import Result, fit
from ..losses import CrossEntropy, Squared
from ..methods.controls import label_smoothing, plain
from ..methods.external import distil
from ..prepared import Prepared, batch_size_for, prepare
from ..request import Request
from ..step import Passes
from ..tasks import metrics
from ..tasks.data import Data
from ..teachers import Ema, Held, Labels
from .memory import Peak

DECAYS = (0.0, 1e-3, 1e-2, 1e-1)
DECAY = 0.999  # of the averaged weights
LONGER, STOPPED, AVERAGED = "plain, longer", "early stopping", "EMA weights"
WIDER = 2  # the larger teacher's width, as a multiple


@dataclass(frozen=True)
class Job:
    """One training of one seed: ``steps`` are those of one generation, ``count`` the models of an ensemble."""

    name: str
    kind: str  # method | plain | longer | smoothing | decay | independent | distil
    steps: int
    seed: int
    expression: str | None = None
    count: int = 1

    @property
    def key(self) -> str:
        """A folder's name: what is trained and for how long, so that nothing else is taken for it."""
        slug = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")[:30]
        tail = hashlib.sha256(f"{self.name} {self.steps} {self.count}".encode()).hexdigest()[:8]
        return f"{slug}-{tail}/{self.seed}"


@dataclass(frozen=True)
class _Average(Ema):
    """The average of the weights, which says nothing during training: no pass is spent on it."""

    def target(self, state: nn.Module, step: Step, term: Term) -> Target:
        student = step.student(term.view, term.head)
        silent = student.new_zeros(student.shape[:-1], dtype=torch.bool)
        return Target(torch.zeros_like(student), space_of(term.head), silent)


def averaged() -> Method:
    """The plain method with an average of its weights kept beside it."""
    average = Term(_Average(DECAY), Squared(), weight=0.0)
    return Method({"label": Term(Labels(), CrossEntropy()), "average": average})


class Spoken(NamedTuple):
    """What a model says of the audit rows and of the test rows: logits (rows, classes), or values (rows,)."""

    audit: Tensor
    test: Callable[[], Tensor]  # asked once everything is chosen


def spoken(model: nn.Module, data: Data, weights: dict[str, Tensor] | None = None) -> Spoken:
    """What a model, with some weights, says; the weights are loaded again when the test rows are asked for."""
    device = next(model.parameters()).device

    def said(rows: Tensor) -> Tensor:
        if weights is not None:
            model.load_state_dict(weights)
        return answers(product(model), data, rows, device)

    return Spoken(said(data.audit), lambda: said(data.test))


def mean_of(several: list[Spoken]) -> Spoken:
    """Probabilities, or values, averaged over models."""

    def mean(logits: list[Tensor]) -> Tensor:
        if logits[0].dim() == 1:
            return torch.stack(logits).mean(0)
        p = torch.stack([torch.softmax(one.double(), -1) for one in logits]).mean(0)
        return p.clamp(min=1e-30).log()

    return Spoken(mean([one.audit for one in several]), lambda: mean([one.test() for one in several]))


def flops(model: nn.Module, data: Data) -> float:
    """Floating-point operations of one row's forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    x = data.rows(data.labelled[:1]).to(next(model.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(x)
    return float(counter.get_total_flops())


class Bench:
    """Everything that one job needs: data and settings of its seed, a folder, and how to train there."""

    def __init__(self, job: Job, request: Request, folder: Path) -> None:
        self.job, self.folder = job, folder
        expression = job.expression or "plain()"
        self.ready: Prepared = prepare(replace(request, method=expression, seed=job.seed, steps=job.steps))
        self.data, self.device, self.asked = self.ready.data, request.device, request.batch_size
        self.spent, self.steps, self.seconds = Passes(), 0, 0.0

    def train(self, method: Method, name: str = "", build: Any = None, seed: int | None = None, **more: Any) -> Result:
        """Train a method in a sub-folder of the job's, from wherever it was cut."""
        batch = min(self.asked, len(self.data.labelled)) if self.asked else batch_size_for(self.data, method)
        settings = {**self.ready.settings, "batch_size": batch, "seed": self.job.seed if seed is None else seed}
        external = more.pop("external", None)
        found = fit(
            build or self.ready.build, self.data, method, out=self.folder / "training" / name, resume=True,
            external=external, device=self.device, warn=_quiet, **{**settings, **more},
        )  # fmt: skip
        self.spent += found.passes
        self.steps += found.steps
        self.seconds += found.seconds
        return found


def _quiet(line: str) -> None:
    """Trouble that a training survives is of no interest in a table."""


def run(job: Job, request: Request, folder: Path, trained: Callable[[Job, Request, Path], dict[str, Any]]) -> None:
    """Train a job and write its record: ``cell.json``, and beside it ``times.json``, which no two runs share.

    ``trained`` makes the record; it may say ``seconds`` of earlier sittings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        if (folder / "cell.json").exists():  # a worker that outlived its comparison may just have ended it
            return
        peak, begun = Peak(), time.monotonic()
        record = trained(job, request, folder)
        seconds = max(record.pop("seconds", 0.0), time.monotonic() - begun)
        write_json(folder / "times.json", {"seconds": seconds, "peak_memory_mb": peak.megabytes()})
        write_json(folder / "cell.json", {"job": asdict(job), **record})
        shutil.rmtree(folder / "training", ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait for the folder: a comparison that was killed may have left a worker that still trains there."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def run_networks(job: Job, request: Request, folder: Path) -> dict[str, Any]:
    """The record of a job that trains networks."""
    bench = Bench(job, request, folder)
    rows = _KINDS[job.kind](bench)
    return {
        "rows": rows,
        "data": bench.data.describe(),
        "model": str(bench.ready.build),
        "parameters": sum(p.numel() for p in bench.ready.build().parameters()),
        "seconds": bench.seconds,
    }


def _row(bench: Bench, result: Result, says: Spoken, **more: Any) -> dict[str, Any]:
    """A row's record, but for what the test split says."""
    cost = bench.spent.cost(float(more.pop("ratio", 1.0)))
    return {
        "says": says,
        "passes": {**bench.spent._asdict(), "total": cost},
        "with_teacher_training": None,
        "steps": bench.steps,
        "generations": len(result.generations),
        "curve": curve(result),
        "decisions": None,
        **more,
    }


def curve(result: Result) -> list[dict[str, float]]:
    """Audit accuracy, or RMSE, or NLL, by step, counted over all generations."""
    points: list[dict[str, float]] = []
    before, generation, step = 0, 0, 0
    for line in result.history:
        if line["generation"] != generation:
            before += step
        generation, step = line["generation"], line["step"]
        score = next(line["audit"][name] for name in ("accuracy", "rmse", "nll") if name in line["audit"])
        points.append({"step": before + step, "score": score, "generation": generation})
    return points


def _judged(bench: Bench, rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Score every row, on the audit split and, now that all is chosen, on the test split."""
    data = bench.data
    for row in rows.values():
        says: Spoken = row.pop("says")
        said, y = says.test(), data.y[data.test]
        row["audit"] = scored(says.audit, data.y[data.audit], data.task)
        row["metrics"] = scored(said, y, data.task)
        if data.task == "regress":
            row["metrics"] |= covered(said, y, says.audit - data.y[data.audit])
            continue
        row["metrics"]["aurc"] = metrics.aurc(torch.softmax(said.double(), -1), y)
        row["reliability"] = metrics.reliability(said, y)
    return rows


def _method(bench: Bench) -> dict[str, Any]:
    found = bench.train(bench.ready.method)
    says = spoken(found.model, bench.data, found.generations[found.product].weights)
    decisions = [t.decision["accepted"] for t in found.generations] if len(found.generations) > 1 else None
    ratio = _teacher_ratio(bench)
    more = {"product": found.product, "peers": isinstance(found.model, Peers)}
    row = _row(bench, found, says, decisions=decisions, ratio=ratio, **more)
    return _judged(bench, {bench.job.name: row})


def _teacher_ratio(bench: Bench) -> float:
    """What a pass of a recipe's own external teacher costs, against the student's."""
    from ..finished import load_model
    from ..teachers import External

    for term in bench.ready.method.terms.values():
        teacher = getattr(term, "teacher", None)
        if isinstance(teacher, External) and teacher.source is not None:
            return flops(load_model(teacher.source), bench.data) / flops(bench.ready.build(), bench.data)
    return 1.0


def _plain(bench: Bench) -> dict[str, Any]:
    method = label_smoothing() if bench.job.kind == "smoothing" else plain()
    found = bench.train(method)
    return _judged(bench, {bench.job.name: _row(bench, found, spoken(found.model, bench.data))})


def _longer(bench: Bench) -> dict[str, Any]:
    """One training, three rows: its last weights, its best epoch by the audit split, the average of its weights."""
    found = bench.train(averaged())
    last = found.generations[-1]
    assert found.objective is not None
    held = next(state for state in found.objective.states.values() if isinstance(state, Held))
    uses = {
        LONGER: spoken(found.model, bench.data, last.weights),
        STOPPED: spoken(found.model, bench.data, last.best),
        AVERAGED: spoken(held.module, bench.data),
    }
    rows = {name: _row(bench, found, says) for name, says in uses.items()}
    return _judged(bench, rows)


def _decay(bench: Bench) -> dict[str, Any]:
    """Weight decay chosen by audit accuracy, of equals by audit NLL, or by audit RMSE; all the trainings count."""
    tried = []
    for decay in DECAYS:
        found = bench.train(plain(), f"{decay:g}", weight_decay=decay)
        says = spoken(found.model, bench.data)
        score = scored(says.audit, bench.data.y[bench.data.audit], bench.data.task)
        worth = (-score["accuracy"], score["nll"]) if bench.data.classes else (score["rmse"], 0.0)
        tried.append((*worth, decay, found, says))
    best = min(tried, key=lambda one: one[:3])
    return _judged(bench, {bench.job.name: _row(bench, best[3], best[4], weight_decay=best[2])})


def _independent(bench: Bench) -> dict[str, Any]:
    """Plain models of other initialisations and data orders; the first is that of the plain row."""
    members = []
    for k in range(bench.job.count):
        seed = bench.job.seed if k == 0 else draws.seed(bench.job.seed, "member", k) % (1 << 31)
        found = bench.train(plain(), str(k), seed=seed)
        members.append(spoken(found.model, bench.data))
    return _judged(bench, {bench.job.name: _row(bench, found, mean_of(members))})


def larger(build: Any) -> Any:
    """A wider model of the same kind, to be a teacher.

    Raises:
        RecipeError: the model has no width to raise.
    """
    width = build.default("width") if build.accepts("width") else None
    if not isinstance(width, int):
        raise RecipeError(f"{build} has no width, so there is no larger teacher of its kind")
    return build.having(width=WIDER * width)


def _distil(bench: Bench) -> dict[str, Any]:
    """A wider plain model teaches: its own training is told apart, weighed by its operations."""
    build = larger(bench.ready.build)
    big = bench.train(plain(), "teacher", build=build, steps=bench.job.count)
    ratio = flops(big.model, bench.data) / flops(bench.ready.build(), bench.data)
    own, bench.spent, bench.steps = bench.spent.cost(), Passes(), 0
    found = bench.train(distil(), "student", external=big.model)
    row = _row(bench, found, spoken(found.model, bench.data), ratio=ratio, teacher=f"{build}, a pass {ratio:.3g} x")
    row["with_teacher_training"] = row["passes"]["total"] + ratio * own
    return _judged(bench, {bench.job.name: row})


_KINDS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "method": _method,
    "plain": _plain,
    "smoothing": _plain,
    "longer": _longer,
    "decay": _decay,
    "independent": _independent,
    "distil": _distil,
}
