"""Trainings of a comparison of language models on prompts: how each row is trained, and the record it leaves.

Controls are the model before, which is scored and not trained, and, where all prompts that teach have demonstrations,
`sft()`: for the requested steps as the plain row and, where the budget has room for more, for the whole of it. The test
split is read by `door.Judge` alone, after everything is trained and chosen; the audit rows rank the controls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ...core.step import Passes
from ...data.prompts import Prompts, load_seeds, need
from ...errors import DataError, RecipeError
from ...io.expressions import called
from ...io.run_record import Request
from ...language import evaluation
from ...language.completions import Once
from ...language.completions import check as fits
from ...language.contexts import rendered
from ...language.recipes import sft
from ...language.sampling import Sampling
from ...language.task import Judge, Spoken, choose, product, read_recipe
from ...language.trainer import fit
from ...models.causal_lm import packed
from ...teachers import External
from ...training import threads
from ...training.fit import Result, choose_device
from .controls import Kind
from .plan import BEFORE, Ask, Job, curve, matched, require_splits

METHOD, CONTROL, START = "language method", "language control", "language before"


SFT, LONGER = "sft()", "sft(), longer"


ABOUT = {
    BEFORE: "the model before anything is trained",
    SFT: "cross-entropy on the demonstrations, for the requested steps",
    LONGER: "the same for the whole budget",
}


def judged(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods that get a verdict: `sft()` beside others is their control, and alone a method.

    >>> judged(("sdft()", "sft()")), judged(("sft()",))
    (('sdft()',), ('sft()',))
    """
    others = tuple(name for name in methods if called(name) != "sft" or read_recipe(name) != sft())
    return others or tuple(methods)


def _judgeable(data: Prompts) -> None:
    """Is there something to rank controls by and to test?"""
    require_splits(data)
    if evaluation.checked(data):
        return
    for name, ids in (("audit", data.audit), ("test", data.test)):
        if all(data.rows[i].demonstration is None for i in ids.tolist()):
            raise DataError(
                f"no prompt of the {name} split of {data.name} can be judged; give all of them the fields "
                '"answer" and "checker", or "demonstration"'
            )


# ---- the plan ------------------------------------------------------------------------------------------------------


def planned(ask: Ask, steps: int, costs: Mapping[str, float]) -> tuple[float, list[Job]]:
    """The budget, and the first seed's jobs; what draws no completions gets as many steps as the longest method.

    >>> ask = Ask(("grpo()", "sdft()"), (0, 1, 2), "completions")
    >>> amount, jobs = planned(ask, 10, {"grpo()": 320.0, "sdft()": 40.0, "sft()": 0.0})
    >>> amount, [(job.name, job.steps) for job in jobs]
    (320.0, [('grpo()', 10), ('sdft()', 80), ('before', 0), ('sft()', 10), ('sft(), longer', 80)])
    """
    seed, methods = ask.seeds[0], judged(ask.methods)
    amount = max(costs[name] for name in methods)
    longer = {name: matched(steps, costs[name], amount) for name in costs if costs[name]}
    longest = max(longer.values(), default=steps)
    jobs = [Job(name, METHOD, longer.get(name, longest), seed, expression=name) for name in methods]
    jobs.append(Job(BEFORE, START, 0, seed))
    if SFT not in costs:
        return amount, jobs
    jobs.append(Job(SFT, CONTROL, steps, seed, expression=SFT))
    whole = longer.get(SFT, longest)
    return amount, [*jobs, Job(LONGER, CONTROL, whole, seed, expression=SFT)] if whole > steps else jobs


# ---- a training ----------------------------------------------------------------------------------------------------


def run(job: Job, request: Request, folder: Path) -> dict[str, Any]:
    """The record of a job: the method's product, or the control's last weights, or the model before."""
    steps = job.steps or None
    ready = choose(replace(request, method=job.expression, seed=job.seed, steps=steps, epochs=None))
    trained = None if job.kind == START else _trained(ready, request, folder / "training")
    judge = Judge(ready, choose_device(request.device))
    row = _KINDS[job.kind](judge, trained)
    return {
        "rows": {job.name: {"about": ABOUT.get(job.name, ""), **row}},
        "data": ready.data.describe(),
        "model": str(ready.build),
        "parameters": sum(p.numel() for p in judge.model.parameters()),
        "seconds": trained.seconds if trained else 0.0,
    }


def _trained(ready: Spoken, request: Request, folder: Path) -> Result:
    """Train from wherever it was cut; trouble that a training survives is of no interest in a table."""
    return fit(
        ready.build, ready.data, ready.method, out=folder, resume=True, device=request.device, suite=ready.suite,
        max_tokens=ready.max_tokens, warn=lambda line: None, **ready.settings,
    )  # fmt: skip


def _scored(judge: Judge, weights: Any, trained: Result | None) -> dict[str, Any]:
    """A row's record of these weights (None: as training began), and of what the training took."""
    data, greedy = judge.ready.data, Sampling(0.0, max_tokens=judge.ready.max_tokens)
    passes = trained.passes if trained else Passes()
    audit = evaluation.losses(judge.of(weights), data, data.audit.tolist(), greedy, judge.referee)
    total = passes.cost() + (_dearer(judge, trained) if trained else 0.0)
    return {
        "passes": {**passes._asdict(), "total": total},
        "with_teacher_training": None,
        "steps": trained.steps if trained else 0,
        "generations": len(trained.generations) if trained else 0,
        "curve": curve(trained) if trained else [],
        "decisions": [t.decision["accepted"] for t in trained.generations] if trained else None,
        "drawn": trained.history[-1].get("drawn", 0) if trained else 0,
        "audit": evaluation.figures({"losses": audit}, judge.right),
        "metrics": judge.figures(judge.asked(weights)),
        "trouble": judge.referee.trouble(),
    }


def _dearer(judge: Judge, trained: Result) -> float:
    """What another model's passes cost beyond the student's own, by its parameters; completions are the student's."""
    assert trained.objective is not None
    for name, term in judge.ready.method.distils.items():
        if isinstance(term.teacher, External):
            (other,) = trained.objective.state_of(name, term.teacher).module.student
            sizes = [sum(p.numel() for p in model.parameters()) for model in (other, judge.model)]
            looks: int = trained.passes.teacher - trained.history[-1].get("drawn", 0)
            return (sizes[0] / sizes[1] - 1.0) * looks
    return 0.0


def _method(judge: Judge, trained: Result | None) -> dict[str, Any]:
    assert trained is not None
    return {**_scored(judge, product(trained), trained), "product": trained.product}


def _control(judge: Judge, trained: Result | None) -> dict[str, Any]:
    assert trained is not None
    return _scored(judge, trained.generations[-1].weights, trained)


def _before(judge: Judge, trained: Result | None) -> dict[str, Any]:
    return _scored(judge, None, None)


_KINDS: dict[str, Callable[[Judge, Result | None], dict[str, Any]]] = {
    METHOD: _method, CONTROL: _control, START: _before,
}  # fmt: skip


# ---- what the runner asks ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LanguageModels(Kind):
    """The kind of comparison in which language models learn prompts (`kinds.Kind`)."""

    request: Request
    ask: Ask
    ready: Spoken  # of the first seed and method

    @staticmethod
    def judged(methods: Sequence[str]) -> tuple[str, ...]:
        return judged(methods)

    @staticmethod
    def plain(control: bool) -> str:
        return SFT if control else BEFORE

    @staticmethod
    def settled(request: Request, ask: Ask) -> Request:
        """The largest batch that one of the recipes advises; an adapter that one advises, all rows would need."""
        if ask.budget == "trainings":
            raise DataError(
                "--budget trainings is for learners on tables; for prompts give steps, passes or completions"
            )
        advice = {name: dict(read_recipe(name).advice) for name in ask.methods}
        for name, given in advice.items():
            if request.lora is None and given.get("lora"):
                raise DataError(
                    f"{name} advises an adapter of rank {given['lora']}, and all rows of a comparison train the same "
                    "weights; give --lora, 0 for all weights"
                )
        batch = request.batch_size or max(given.get("batch_size", 8) for given in advice.values())
        return replace(request, batch_size=batch)

    @staticmethod
    def run(job: Job, request: Request, folder: Path) -> dict[str, Any]:
        return run(job, request, folder)

    @classmethod
    def begun(cls, request: Request, ask: Ask) -> LanguageModels:
        return cls(request, ask, choose(replace(request, method=ask.methods[0], seed=ask.seeds[0])))

    @cached_property
    def _every_seed(self) -> list[Prompts]:
        return load_seeds(self.request.data, self.ask.seeds, labels=self.request.labels)

    def check(self) -> None:
        """What a method lacks on some seed, and what cannot be matched."""
        recipes = {name: read_recipe(name) for name in self.ask.methods}
        drawn = self.ask.budget == "completions"
        for name, method in recipes.items():
            fits(method)
            if drawn and isinstance(method.source, Once):
                raise RecipeError(f"{name} writes once a generation, however many steps it takes, so --budget "
                                  "completions cannot match it; give steps or passes")  # fmt: skip
        if drawn and not any(method.sampling for method in recipes.values()):
            raise RecipeError("no method draws completions that --budget completions could match; give steps or passes")
        for data in self._every_seed:
            _judgeable(data)
            for name, method in recipes.items():
                for field in method.needs:
                    need(data, field, f"{called(name)}()")

    def threads(self) -> int:
        """For a batch of prompts; a small model takes one, and trainings then run side by side."""
        ready, model = self.ready, self.ready.build()
        few = ready.data.labelled[: ready.settings["batch_size"]].tolist()
        prompts = [rendered(model.tokenizer, ready.data.rows[i].messages) for i in few]
        return threads.suitable(model, packed([(prompt, prompt[-1:]) for prompt in prompts]))

    def control(self, tell: Callable[[str], None]) -> bool:
        """`sft()`: has every prompt that teaches, on every seed, a demonstration, and is it no method?"""
        if SFT in judged(self.ask.methods):
            return False
        teaching = (data.rows[i] for data in self._every_seed for i in data.labelled.tolist())
        return all(row.demonstration for row in teaching)

    def _steps(self) -> int:
        """Steps of one generation: what was asked for, else the most that one of the recipes advises."""
        if self.request.steps:
            return self.request.steps
        per_epoch: int = math.ceil(len(self.ready.data.labelled) / self.ready.settings["batch_size"])
        if self.request.epochs:
            return self.request.epochs * per_epoch
        advice = [dict(read_recipe(name).advice) for name in self.ask.methods]
        return max(int(given.get("steps") or given.get("epochs", 1) * per_epoch) for given in advice)

    def pilots(self, control: bool) -> list[Job]:
        seed, steps = self.ask.seeds[0], self._steps()
        jobs = [Job(name, METHOD, steps, seed, expression=name) for name in judged(self.ask.methods)]
        return [*jobs, Job(SFT, CONTROL, steps, seed, expression=SFT)] if control else jobs

    def planned(self, costs: Mapping[str, float]) -> tuple[float, list[Job]]:
        return planned(self.ask, self._steps(), costs)
