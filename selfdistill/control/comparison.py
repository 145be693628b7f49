"""How policies are compared: methods beside a restart, one with equal gradient steps, and the teacher that goes on.

All rows of a seed begin from the same weights and environments, and take as many environment steps. The audit episodes
rank the controls; the test episodes are others, and the same for all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.step import TrainingClock
from ..errors import DataError, RecipeError
from ..io.run_record import Request, read_lines
from ..methods.registry import is_auto
from ..training.comparison import ComparisonDesign, ComparisonSettings, Job, ignore
from ..training.task_type import Listeners
from .recipes import CONTINUED, MATCHED, RESTARTED, PolicyMethod
from .run import AUDITED, ControlRun, prepare

METHOD, CONTROL = "policy method", "policy control"

ABOUT = {
    RESTARTED: "a fresh policy on reward alone",
    MATCHED: "the same with more epochs: as many gradient steps as the method that takes the most",
    CONTINUED: "the teacher itself, trained on",
}


def train_job(job: Job, request: Request, folder: Path) -> dict[str, Any]:
    """The record of a training on one seed; ``count`` of a job are the epochs of its engine, where it says any."""
    teacher = None if job.kind == CONTROL else request.teacher  # that of a control stands in its expression
    request = replace(request, method=job.expression, seed=job.seed, steps=job.steps, teacher=teacher, control=False)
    ready = prepare(request)
    if job.count > 1:
        ready = replace(ready, arm=replace(ready.arm, epochs=job.count))
    place = folder / "training"
    outcome, lineage, _ = ready.train_policy(place, Listeners(lambda name: None, ignore, ignore))
    decisions = [one["decision"]["accepted"] for one in lineage.generations if one.get("decision")]
    count = request.episodes or AUDITED
    audit, test = (float(ready.player.play(outcome.policy, use, count).returns.mean()) for use in ("audit", "test"))
    total = float(outcome.steps + 3 * outcome.updates * ready.arm.batch_size)
    taught = outcome.teacher_steps
    row = {
        "about": ABOUT.get(job.name, ""),
        "passes": {"total": total},
        "with_teacher_training": None if taught is None else total * (1.0 + taught / max(1, outcome.steps)),
        "steps": outcome.steps,
        "generations": max(1, len(lineage.generations)),
        "curve": _curve(place / outcome.folder),
        "decisions": decisions or None,
        "audit": {"return": audit},
        "metrics": {"return": test, "teacher_steps": float(taught or 0), "updates": float(outcome.updates)},
    }
    return {
        "rows": {job.name: row},
        "data": ready.data._replace(tested=count, steps=outcome.steps).describe(),
        "model": ready.build,
        "parameters": sum(p.numel() for p in outcome.policy.parameters()),
    }


def _curve(folder: Path) -> list[dict[str, float]]:
    """The mean return of training episodes by environment step."""
    rollouts = [line.get("control", {}) for line in read_lines(folder / "metrics.jsonl")]
    return [
        {"step": one["steps"], "score": one["return"], "generation": 0}
        for one in rollouts
        if one.get("return") is not None
    ]


def extra_steps(method: PolicyMethod, rollouts: int) -> int:
    """The extra distillation steps of a training of so many rollouts."""
    clock = TrainingClock(epochs=rollouts)
    return sum(method.extra_steps(clock.at(done)) for done in range(1, rollouts + 1))


@dataclass(frozen=True)
class PolicyDesign(ComparisonDesign):
    """How policies are compared: at equal environment steps, and in one control at equal gradient steps."""

    request: Request
    settings: ComparisonSettings
    ready: ControlRun  # of the first seed and method

    match = "steps"

    @staticmethod
    def plain(control: bool) -> str:
        return RESTARTED

    @staticmethod
    def shared(request: Request, settings: ComparisonSettings) -> Request:
        """Equal environment steps are the budget of every comparison of policies."""
        if settings.match != "steps":
            raise DataError("--match of policies is steps, those of the environment; leave it out")
        if any(map(is_auto, settings.methods)):
            raise RecipeError(
                "auto() takes the environment steps of several policies, and all rows have equal ones here; give its "
                "candidates as --methods"
            )
        wrong = [name for name in settings.methods if name in ABOUT]
        if wrong:
            raise RecipeError(f"{wrong[0]} is a control and stands in every comparison; leave it out of --methods")
        return request

    @staticmethod
    def run(job: Job, request: Request, folder: Path) -> dict[str, Any]:
        return train_job(job, request, folder)

    @classmethod
    def load(cls, request: Request, settings: ComparisonSettings) -> PolicyDesign:
        return cls(request, settings, prepare(replace(request, method=settings.methods[0], seed=settings.seeds[0])))

    @cached_property
    def _every_method(self) -> list[ControlRun]:
        """The methods on the first seed, each with every choice made."""
        seed = self.settings.seeds[0]
        return [prepare(replace(self.request, method=name, seed=seed)) for name in self.settings.methods]

    def check(self) -> None:
        """Whether every method can be trained in the environment."""
        _ = self._every_method

    def threads(self) -> int:
        return self.ready.threads()

    def control(self, tell: Callable[[str], None]) -> bool:
        """Whether a teacher is there that can go on training: with the network and the observation of the rows."""
        return self._continued is not None

    @cached_property
    def _continued(self) -> str | None:
        """The teacher that goes on; None if there is none."""
        return next((ready.teacher for ready in self._every_method if ready.can_continue()), None)

    def pilots(self, control: bool) -> list[Job]:
        return []

    def planned(self, costs: Mapping[str, float], fixed: Mapping[str, float] | None = None) -> tuple[float, list[Job]]:
        seed, arm = self.settings.seeds[0], self.ready.arm
        jobs = [Job(name, METHOD, arm.steps, seed, expression=name) for name in self.settings.methods]
        jobs.append(Job(RESTARTED, CONTROL, arm.steps, seed, expression=RESTARTED))
        extra = [extra_steps(ready.method, arm.rollouts) for ready in self._every_method]
        epochs = arm.matched_epochs(arm.gradient_steps + max(extra))
        if epochs > arm.epochs:
            jobs.append(Job(MATCHED, CONTROL, arm.steps, seed, expression=RESTARTED, count=epochs))
        if self._continued is not None:
            jobs.append(Job(CONTINUED, CONTROL, arm.steps, seed, expression=f"continued({self._continued!r})"))
        return float(arm.rollouts * arm.per_rollout), jobs
