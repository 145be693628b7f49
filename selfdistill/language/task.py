"""The task type of language models on prompts: its recipes, its controls in a comparison, how each is trained.

Controls are the model before, which is scored and not trained, and, where all prompts that teach have demonstrations,
`sft()`: for the requested steps as the plain row and, where the budget has room for more, for the whole of it. The test
split is read by `run.Evaluator` alone, after everything is trained and chosen; the audit rows rank the controls.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..core.step import Passes
from ..data.examples import tell_prompts
from ..data.prompt_files import columns, is_file_of_prompts, may_hold_prompts
from ..data.prompts import Prompts, load_prompts, load_seeds
from ..data.reasoning import is_task
from ..errors import CheckpointError, DataError, RecipeError
from ..evaluation.label_errors import read_conflicts
from ..evaluation.statistics import FEWEST
from ..io.display import change
from ..io.expressions import expression_name, nearest
from ..io.run_record import WRITERS, Request, read_lines
from ..methods import recipes as network_recipes
from ..methods.registry import AUTO, is_auto
from ..models.causal_folder import card_fields
from ..models.causal_lm import packed
from ..teachers import External
from ..training import threads
from ..training.comparison import (
    BEFORE,
    ComparisonDesign,
    ComparisonSettings,
    Job,
    curve,
    ignore,
    matching_steps,
    require_splits,
)
from ..training.fit import Result, choose_device
from ..training.task_type import FigureTable, Rows, TaskType, generation_name
from . import evaluation, recipes
from .completions import Language, OncePerGeneration
from .completions import check as check_method
from .contexts import rendered
from .preflight import preflight
from .recipes import sft
from .run import (
    CARD,
    Evaluator,
    LanguagePredictor,
    LanguageRun,
    default_recipe,
    final_weights,
    prepare,
    prepare_update,
    read_recipe,
)
from .sampling import Sampling
from .trainer import fit

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
    others = tuple(name for name in methods if expression_name(name) != "sft" or read_recipe(name) != sft())
    return others or tuple(methods)


def _require_scores(data: Prompts) -> None:
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


def planned(
    settings: ComparisonSettings, steps: int, costs: Mapping[str, float], fixed: Mapping[str, float] | None = None
) -> tuple[float, list[Job]]:
    """The budget, and the first seed's jobs; what draws no completions gets as many steps as the longest method.

    >>> settings = ComparisonSettings(("grpo()", "sdft()"), (0, 1, 2), "completions")
    >>> amount, jobs = planned(settings, 10, {"grpo()": 320.0, "sdft()": 40.0, "sft()": 0.0})
    >>> amount, [(job.name, job.steps) for job in jobs]
    (320.0, [('grpo()', 10), ('sdft()', 80), ('before', 0), ('sft()', 10), ('sft(), longer', 80)])
    """
    seed, methods = settings.seeds[0], judged(settings.methods)
    amount, once = max(costs[name] for name in methods), fixed or {}
    longer = {name: matching_steps(steps, cost, amount, once.get(name, 0.0)) for name, cost in costs.items() if cost}
    longest = max(longer.values(), default=steps)
    jobs = [Job(name, METHOD, longer.get(name, longest), seed, expression=name) for name in methods]
    jobs.append(Job(BEFORE, START, 0, seed))
    if SFT not in costs:
        return amount, jobs
    jobs.append(Job(SFT, CONTROL, steps, seed, expression=SFT))
    whole = longer.get(SFT, longest)
    return amount, [*jobs, Job(LONGER, CONTROL, whole, seed, expression=SFT)] if whole > steps else jobs


# ---- a training ----------------------------------------------------------------------------------------------------


def train_job(job: Job, request: Request, folder: Path) -> dict[str, Any]:
    """The record of a job: the method's final model, or the control's last weights, or the model before."""
    steps = job.steps or None
    ready = prepare(replace(request, method=job.expression, seed=job.seed, steps=steps, epochs=None))
    trained = None if job.kind == START else _trained(ready, request, folder / "training")
    evaluator = Evaluator(ready, choose_device(request.device))
    row = _TRAININGS[job.kind](evaluator, trained)
    return {
        "rows": {job.name: {"about": ABOUT.get(job.name, ""), **row}},
        "data": ready.data.describe(),
        "model": str(ready.build),
        "parameters": sum(p.numel() for p in evaluator.model.parameters()),
        "seconds": trained.seconds if trained else 0.0,
    }


def _trained(ready: LanguageRun, request: Request, folder: Path) -> Result:
    """Train from wherever it was cut; trouble that a training survives is of no interest in a table."""
    return fit(
        ready.build, ready.data, ready.method, out=folder, resume=True, device=request.device, suite=ready.suite,
        max_tokens=ready.max_tokens, warn=ignore, engine=ready.engine, **ready.settings,
    )  # fmt: skip


def _scored(evaluator: Evaluator, weights: Any, trained: Result | None) -> dict[str, Any]:
    """A row's record of these weights (None: as training began), and of what the training took."""
    data, greedy = evaluator.ready.data, Sampling(0.0, max_tokens=evaluator.ready.max_tokens)
    passes = trained.passes if trained else Passes()
    audit = evaluation.losses(evaluator.of(weights), data, data.audit.tolist(), greedy, evaluator.referee)
    total = passes.cost() + (_teacher_cost(evaluator, trained) if trained else 0.0)
    return {
        "passes": {**passes._asdict(), "total": total},
        "with_teacher_training": None,
        "steps": trained.steps if trained else 0,
        "generations": len(trained.generations) if trained else 0,
        "curve": curve(trained) if trained else [],
        "decisions": [t.decision["accepted"] for t in trained.generations] if trained else None,
        "drawn": trained.history[-1].get("drawn", 0) if trained else 0,
        "tokens": _tokens(evaluator.ready.method, trained),
        "audit": evaluation.figures({"losses": audit}, evaluator.right),
        "metrics": evaluator.figures(evaluator.asked(weights)),
        "trouble": evaluator.referee.trouble(),
    }


def _tokens(method: Language, trained: Result | None) -> dict[str, int]:
    """Tokens written by sampling, ``once`` a generation or at every step, and those read in training."""
    last = trained.history[-1] if trained else {}
    written, once = last.get("written", 0), method.source.once
    return {"once": written if once else 0, "written": 0 if once else written, "read": last.get("read", 0)}


def _teacher_cost(evaluator: Evaluator, trained: Result) -> float:
    """What another model's passes cost beyond the student's own, by its parameters; completions are the student's."""
    assert trained.objective is not None
    for name, term in evaluator.ready.method.terms.items():
        if isinstance(term.teacher, External):
            (other,) = trained.objective.state_of(name, term.teacher).module.student
            sizes = [sum(p.numel() for p in model.parameters()) for model in (other, evaluator.model)]
            looks: int = trained.passes.teacher - trained.history[-1].get("drawn", 0)
            return (sizes[0] / sizes[1] - 1.0) * looks
    return 0.0


def _method(evaluator: Evaluator, trained: Result | None) -> dict[str, Any]:
    assert trained is not None
    return {**_scored(evaluator, final_weights(trained), trained), "final_generation": trained.final_generation}


def _control(evaluator: Evaluator, trained: Result | None) -> dict[str, Any]:
    assert trained is not None
    return _scored(evaluator, trained.generations[-1].weights, trained)


def _before(evaluator: Evaluator, trained: Result | None) -> dict[str, Any]:
    return _scored(evaluator, None, None)


_TRAININGS: dict[str, Callable[[Evaluator, Result | None], dict[str, Any]]] = {
    METHOD: _method, CONTROL: _control, START: _before,
}  # fmt: skip


# ---- what the runner asks ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LanguageDesign(ComparisonDesign):
    """How language models on prompts are compared."""

    request: Request
    settings: ComparisonSettings
    ready: LanguageRun  # of the first seed and method

    match = "steps"

    @staticmethod
    def judged(methods: Sequence[str]) -> tuple[str, ...]:
        return judged(methods)

    @staticmethod
    def plain(control: bool) -> str:
        return SFT if control else BEFORE

    @staticmethod
    def shared(request: Request, settings: ComparisonSettings) -> Request:
        """The largest batch that one of the recipes advises; an adapter that one advises, all rows would need."""
        if settings.match == "trainings":
            raise DataError(
                "--match trainings is for learners on tables; for prompts give steps, passes, completions or tokens"
            )
        advice = {name: dict(read_recipe(name).advice) for name in settings.methods}
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
        return train_job(job, request, folder)

    @classmethod
    def load(cls, request: Request, settings: ComparisonSettings) -> LanguageDesign:
        return cls(request, settings, prepare(replace(request, method=settings.methods[0], seed=settings.seeds[0])))

    @cached_property
    def _every_seed(self) -> list[Prompts]:
        request = self.request
        return load_seeds(
            request.data, self.settings.seeds, labels=request.labels, audit=request.validation, test=request.test,
            checker=request.checker, groups=request.groups, time=request.time, columns=request.fields,
        )  # fmt: skip

    def check(self) -> None:
        """What a method lacks on some seed, and what cannot be matched."""
        recipes = {name: read_recipe(name) for name in self.settings.methods}
        drawn = self.settings.match == "completions"
        for name, method in recipes.items():
            check_method(method)
            if drawn and isinstance(method.source, OncePerGeneration):
                raise RecipeError(f"{name} writes once a generation, however many steps it takes, so --match "
                                  "completions cannot match it; give steps, passes or tokens")  # fmt: skip
        if drawn and not any(method.sampling for method in recipes.values()):
            raise RecipeError("no method draws completions that --match completions could match; give steps or passes")
        for data in self._every_seed:
            _require_scores(data)
            for name, method in recipes.items():
                method.check_fields(data, f"{expression_name(name)}()")

    def threads(self) -> int:
        """For a batch of prompts; a small model takes one, and trainings then run side by side."""
        ready, model = self.ready, self.ready.build()
        few = ready.data.labelled[: ready.settings["batch_size"]].tolist()
        prompts = [rendered(model.tokenizer, ready.data.rows[i].messages) for i in few]
        return threads.for_model(model, packed([(prompt, prompt[-1:]) for prompt in prompts]))

    def control(self, tell: Callable[[str], None]) -> bool:
        """`sft()`: has every prompt that teaches, on every seed, a demonstration, and is it no method?"""
        if SFT in judged(self.settings.methods):
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
        advice = [dict(read_recipe(name).advice) for name in self.settings.methods]
        return max(int(given.get("steps") or given.get("epochs", 1) * per_epoch) for given in advice)

    def pilots(self, control: bool) -> list[Job]:
        seed, steps = self.settings.seeds[0], self._steps()
        jobs = [Job(name, METHOD, steps, seed, expression=name) for name in judged(self.settings.methods)]
        return [*jobs, Job(SFT, CONTROL, steps, seed, expression=SFT)] if control else jobs

    def planned(self, costs: Mapping[str, float], fixed: Mapping[str, float] | None = None) -> tuple[float, list[Job]]:
        return planned(self.settings, self._steps(), costs, fixed)


# ---- the task type -------------------------------------------------------------------------------------------------


def holds_prompts(request: Request) -> bool:
    """Whether the data are prompts: a task of reasoning-gym or a file of prompts; or a table or saved data set whose
    columns say so or are named as fields of prompts, or that a recipe for prompts is to learn.

    Args:
        request: The request; one that names a target or a column of texts means a table.
    """
    if any(column is not None for column in (request.target, request.text, request.annotators)):
        return False
    if is_task(request.data) or is_file_of_prompts(request.data):
        return True
    if not may_hold_prompts(request.data):
        return False
    if request.method is not None and not is_auto(request.method):
        name = expression_name(request.method)
        return name in recipes.RECIPES and name not in network_recipes()
    return bool(request.fields) or tell_prompts(columns(request.data))


#: The options that have a meaning for prompts alone, by the fields of a request.
_PROMPT_OPTIONS = {
    "keep": "--keep",
    "checker": "--checker",
    "eval_tasks": "--eval-tasks",
    "fields": "--columns",
    "student_template": "--student-template",
    "teacher_template": "--teacher-template",
    "group_lengths": "--group-lengths",
    "skip_long": "--skip-long",
    "lora": "--lora",
    "max_tokens": "--max-tokens",
    "checkpointing": "--checkpointing",
    "alarms": "--alarms",
    "dtype": "--dtype",
    "save": "--save",
    "load_in_4bit": "--load-in-4bit",
}


#: The vitals of language models, in words.
VITALS = {
    "accuracy": "answers that are right",
    "teacher_accuracy": "right when the context is read",
    "context_share": "answers that a context judges",
    "kl": "teacher from student, nats a token",
    "kl_to_start": "student from the model it began as, nats a token",
    "entropy": "entropy, nats a token",
    "length": "tokens an answer",
    "doubt": "words of doubt in a hundred",
    "style": "share of that KL on tokens of style",
    "leakage": "answers that speak of what was not shown",
}


#: What a final model is compared on, in words that follow what it is compared with.
_SPLITS = {"test": "", "kept": " on prior tasks", "tasks": " on tasks of lm-eval"}


def _outcome(figures: Mapping[str, Any], against: str, nats: bool) -> str:
    """A paired gain over rows in words: with its verdict, where there are rows enough for one."""
    unit, scale = (" nats", 1) if nats else (" points", 100)
    half = "" if figures["half"] is None else f" ± {scale * figures['half']:.2g}"
    gain = change(scale * figures["gain"], f"{half}{unit}", ".3g")
    if figures["verdict"] is None:
        count = f"{figures['rows']} prompt{'' if figures['rows'] == 1 else 's'}"
        return f"has no verdict against {against}: {gain} over {count}, and at least {FEWEST} show one"
    word = "LOSES to" if figures["verdict"] == "LOSES" else figures["verdict"]
    return f"{word} {against} ({gain})"


class LanguageTaskType(TaskType):
    """Language models that learn prompts."""

    name, learner, title = "language", "language models", "For language models"
    about = "Prompts; a step is told without the completions that it samples."
    control = "sft()"
    model_file = CARD

    def recipes(self) -> Mapping[str, Callable[..., Language]]:
        return recipes.RECIPES

    def design(self) -> type[ComparisonDesign]:
        return LanguageDesign

    def serves(self, request: Request) -> bool:
        """Prompts: see `holds_prompts`.

        Raises:
            RecipeError: the method is for prompts and the data are none, or the other way round.
            DataError: an option has a meaning for prompts alone, and the data are none.
        """
        prompts = holds_prompts(request)
        name = None if request.method is None else expression_name(request.method)
        networks = network_recipes()
        if prompts and name is not None and name not in (AUTO, *self.recipes()):
            if name in networks:
                raise RecipeError(
                    f"{name}() learns classes or values and {request.data} holds prompts; give one of "
                    f"{', '.join(f'{recipe}()' for recipe in self.recipes())}"
                )
            close = nearest(name, list(self.recipes()))
            raise RecipeError(
                f"unknown method {name!r}; {f'nearest: {close}. ' if close else ''}known for prompts: "
                f"{', '.join(self.recipes())}"
            )
        if not prompts and name in self.recipes() and name not in networks:
            if is_file_of_prompts(request.data):
                option = "--text" if request.target is None else "--target"
                raise RecipeError(f"{option} has no meaning for prompts, which {name}() learns; leave it out")
            raise RecipeError(
                f"{name}() learns prompts and {request.data} holds none; give a .jsonl file with a prompt a line, or "
                "reasoning-gym:TASK"
            )
        for name, option in _PROMPT_OPTIONS.items():
            if not prompts and getattr(request, name):
                raise DataError(f"{option} has a meaning for prompts alone; leave it out")
        if not prompts and request.engine in WRITERS:
            raise DataError(f"--engine {request.engine} has a meaning for prompts alone; leave it out")
        return prompts

    def updates(self, record: Mapping[str, Any]) -> bool:
        """Those of language models."""
        return record.get("kind") == self.name

    def prepare(self, request: Request) -> LanguageRun:
        """As of `prepare`; an update goes on with the model of its run.

        Raises:
            DataError: the data of an update are no prompts.
        """
        if request.update is None:
            return prepare(request)
        if not self.serves(request):
            raise DataError(
                f"{request.update} is a run of a language model, and {request.data} holds no prompts; give a .jsonl "
                "file with a prompt a line"
            )
        return prepare_update(request)

    def default_recipe(self, request: Request) -> str:
        return default_recipe(request)

    def card(self, name: str) -> dict[str, Any]:
        return recipes.card(name)

    def explain(self, expression: str, example: str | None = None) -> dict[str, Any]:
        """With an example also what student and teacher read of its first prompt."""
        method = read_recipe(expression)
        card = recipes.explain(expression, method)
        if example is None:
            return card
        shown = recipes.example(method, load_prompts(example))
        return {**card, "example": shown, "example_of": example} if shown else card

    def text(self, card: dict[str, Any]) -> str:
        text = recipes.text(card)
        if "example" not in card:
            return text
        head = f"One prompt of {card['example_of']}; + is read by the teacher alone, - by the student alone:"
        return f"{text}\n\n{head}\n{card['example']}"

    def predictor(self, folder: Path) -> LanguagePredictor:
        return LanguagePredictor(folder)

    def label_errors(self, folder: Path, top: int | None = None) -> dict[str, Any]:
        """Equal prompts with different answers; without any it is refused: prompts have no labels."""
        if conflicts := read_conflicts(folder, top):
            return conflicts
        raise CheckpointError(f"{folder} trained a language model, and prompts have no labels to check")

    def vitals(self, folder: Path) -> dict[str, Any]:
        """Those of language models by generation; before a generation has ended, those of any run."""
        lines = [line for line in read_lines(folder / "metrics.jsonl") if line.get("language")]
        if not lines:
            return super().vitals(folder)
        generations = [{"generation": line["generation"], **line["language"]} for line in lines]
        alarms = [f"generation {line['generation']}: {alarm}" for line in lines for alarm in line.get("alarms", [])]
        return {"run": str(folder), "language": generations, "generations": [], "warnings": alarms}

    def vitals_text(self, vitals: dict[str, Any]) -> str:
        """A table with a column a generation."""
        generations = vitals.get("language")
        if not generations:
            return super().vitals_text(vitals)
        table = [["", *(f"generation {one['generation']}" for one in generations)]]
        for name, words in VITALS.items():
            values = [one.get(name) for one in generations]
            if any(value is not None for value in values):
                table.append([words, *("-" if value is None else f"{value:.3g}" for value in values)])
        lines = ["  ".join([row[0].ljust(52), *(cell.rjust(12) for cell in row[1:])]) for row in table]
        return "\n".join([*lines, *(f"alarm in {alarm}" for alarm in vitals["warnings"])])

    def preflight(self, request: Request, prompts: int, tell: Callable[[str], None]) -> dict[str, Any]:
        return preflight(prepare(request), prompts, choose_device(request.device), tell)

    def rows(self, result: dict[str, Any]) -> Rows:
        """The model before, the control, and the generations."""
        table = [
            (
                f"{result['model']}, before" + (", the final model" if result["final_generation"] < 0 else ""),
                result["before"],
            )
        ]
        if plain := result.get("plain"):
            table.append((f"{self.control}, after {plain['steps']} steps", plain["end"]))
        return table + [
            (f"{result['method']}, {generation_name(result, generation)}", generation["test"])
            for generation in result["generations"]
        ]

    def verdict(self, result: dict[str, Any]) -> str:
        """The gain of the final model over the model before training and the control, on prompts and prior tasks."""
        parts = []
        for name, split in itertools.product(("before", "sft"), _SPLITS):  # run.json is sorted by name
            if figures := result["against"].get(name, {}).get(split):
                nats = split == "test" and "nll" in result["test"]
                against = "the model before" if name == "before" else f"{self.control} at equal steps"
                parts.append(_outcome(figures, against + _SPLITS[split], nats))
        kept = (
            " No generation was accepted, so the final model is the model before training."
            if result["final_generation"] < 0
            else ""
        )
        peer = f" It is {result['adapter']}, by validation." if "adapter" in result else ""
        trouble = f" {result['trouble']}." if result.get("trouble") else ""
        return (
            f"The final model {'; '.join(parts)} (over {result['data']['rows']['test']} test prompts)."
            f"{peer}{kept}{trouble} One seed proves little; repeat with other --seed values, or use "
            "`selfdistill compare`."
        )

    def tables(self, result: dict[str, Any]) -> Sequence[FigureTable]:
        """The tasks of lm-eval one by one."""
        found = result.get("eval_tasks")
        if not found:
            return []
        rows = [
            (
                one["task"],
                one["metric"],
                str(one["rows"]),
                f"{one['before']:.3f}",
                f"{one['after']:.3f}",
                change(one["gain"], "" if one["half"] is None else f" ± {one['half']:.2g}", ".3f"),
                one["verdict"] or "-",
            )
            for one in found
        ]
        head = ("task", "metric", "documents", "before", "final model", "gain, 95 %", "verdict")
        caption = "The mean of each task's first metric; gains are paired by document. Verdicts are not corrected."
        return [FigureTable("Tasks of lm-eval", head, rows, caption)]

    def card_fields(self, result: dict[str, Any], record: dict[str, Any]) -> dict[str, str]:
        """With the base model."""
        return card_fields("peft" if result["saved"] == "adapter" else "transformers", result["base"])

    def loading(self, folder: str) -> list[str]:
        return [
            "Load the model by transformers alone:",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            f'model = AutoModelForCausalLM.from_pretrained("{folder}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{folder}")',
            "```",
            "",
        ]
