"""A run of a language model on prompts: every choice made, trained with its control, judged, and asked new prompts.

::

    rollouts/         what each generation wrote, where it writes before it learns
    control/          sft() for as many steps, where all prompts have demonstrations
    model/            the final model as plain transformers load it, and selfdistill's card of it
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..core import distributed
from ..data.copies import notices
from ..data.examples import FIELDS, Example
from ..data.inputs import source_of, texts_of
from ..data.prompt_files import columns
from ..data.prompts import Prompts, load_prompts, load_suite
from ..data.reasoning import is_task
from ..errors import CheckpointError, DataError
from ..evaluation import statistics
from ..io.expressions import Range, expression_name, one_line
from ..io.files import FORMAT, check_format
from ..io.run_record import VLLM, Request, read_record
from ..io.schema import read_json
from ..io.tensors import write_json
from ..methods.prior import read_most
from ..methods.registry import is_auto, read_method
from ..models.causal_folder import check_save, rounded
from ..models.causal_lm import Causal, Pretrained
from ..models.causal_peers import AdapterPeers, CausalPeers
from ..models.hub import ENCODERS, causal, is_adapter, locate, stored_dtype
from ..models.store import model_folder
from ..training import budget, threads
from ..training.fit import Result, choose_device
from ..training.shortlist import WORDS, Trial, candidate_folder, copy_log, foreword, refuse_budget, try_each
from ..training.task_type import Listeners, Predictor
from . import evaluation
from .completions import Language, check
from .contexts import template_notes
from .eval_harness import HarnessTasks, TaskScores
from .prompt_check import check_answers, check_prompts, long_prompts, without
from .recipes import RECIPES, sft
from .sampling import (
    ContinuousBatching,
    Engine,
    RewardCheckers,
    Sampling,
    Vllm,
    WritingProgress,
    by_transformers,
    export,
)
from .trainer import fit
from .vllm_engine import check_vllm

CARD = "selfdistill.json"  # in a model folder: what plain transformers does not know of it


USUAL = "smollm2"  # the model where none is named


MEASURED = 32  # answers whose length is told


PROMPTED = ("sft()", "ssd()", "sdft()", "sdpo()")  # what auto() tries, the simplest first


TOKENS = 256  # of an answer that is judged, and of a rollout unless the recipe asks for fewer


_NETWORKS = (
    "target",
    "text",
    "unlabelled",
    "image_size",
    "augment",
    "init",
    "audit_folds",
    "targets",
    "columns",
    "explore",
    "refit",
    "effort",
)


def read_recipe(expression: str) -> Language:
    """A recipe's own expression, such as ``sdft(rate=0.05)``, read without evaluating code.

    >>> read_recipe("sdft(rate=0.05)").terms["distil"].teacher
    Ema(decay=0.95, view='context', train=False, warm_up=False)
    """
    method = read_method(expression, RECIPES)
    assert isinstance(method, Language)
    return method


@dataclass
class LanguageRun:
    """A run of a language model with every choice made."""

    request: Request
    data: Prompts
    method: Language
    expression: str
    build: Pretrained
    settings: dict[str, Any]
    suite: Prompts | None
    max_tokens: int
    note: str = ""
    tasks: HarnessTasks | None = None

    def threads(self) -> int:
        """The threads that torch has."""
        return threads.requested()

    def train(self, folder: Path, listeners: Listeners) -> dict[str, Any]:
        """Train the method and its control, then ask the test prompts; see `train`."""
        return train(self, folder, listeners)

    def train_method(self, folder: Path, listeners: Listeners, title: str | None = None) -> Result:
        """Train the method alone, from wherever it was cut."""
        return fit(
            self.build,
            self.data,
            self.method,
            out=folder,
            progress=listeners.progress(title or self.expression),
            tell=listeners.tell,
            response=self.request.alarms,
            **self.options(listeners),
            **self.settings,
        )

    def options(self, listeners: Listeners) -> dict[str, Any]:
        """What the trainings of the method and of its control share."""
        return {
            "suite": self.suite,
            "max_tokens": self.max_tokens,
            "device": self.request.device,
            "resume": True,
            "warn": listeners.warn,
            "engine": self.engine,
        }

    @property
    def engine(self) -> Engine:
        """What writes completions."""
        if self.request.engine == VLLM:
            return _vllm()
        return by_transformers if self.request.engine is None else ContinuousBatching()


@dataclass
class AutoLanguageRun(LanguageRun):
    """A run that trains several recipes, each audited beside the model before; the audit prompts choose one."""

    candidates: Sequence[LanguageRun] = ()

    def train(self, folder: Path, listeners: Listeners) -> dict[str, Any]:
        """Every candidate from wherever it was cut; then the chosen one is the method of the run."""
        names = [one.expression for one in self.candidates]

        def train_candidate(number: int) -> tuple[list[Trial], int]:
            title = f"candidate {number + 1} of {len(names)}, {names[number]}"
            trained = self.candidates[number].train_method(
                folder / candidate_folder(number, names[number]), listeners, title
            )
            final, rows = trained.final_generation, len(self.data.audit)
            losses = trained.generations[final].losses if final >= 0 else [math.inf] * rows  # the model before is kept
            return [Trial(names[number], losses, trained.steps, trained.passes, trained.seconds)], number

        choice = try_each(names, train_candidate, names.index, listeners.tell)
        number = choice.kept[choice.chosen]
        own = folder / candidate_folder(number, names[number])
        result = train(self.candidates[number], folder, listeners, own)
        copy_log(own, folder)
        return {**result, **choice.spent(), "auto": choice.to_json(audit_measure(self.data))}


def audit_measure(data: Prompts) -> str:
    """The measure of the audit: right answers where rows have checkers, else the likelihood of demonstrations."""
    return "accuracy" if evaluation.checked(data) else "nll"


def shortlisted(request: Request) -> AutoLanguageRun:
    """The run of ``auto()`` on prompts: the recipes whose fields the prompts have, the simplest first.

    Raises:
        DataError: no recipe of the shortlist fits the prompts, or nothing audits.
    """
    refuse_budget(request.budget)
    if dict(request.training).get("audit") == "off":
        raise DataError("auto() chooses on the audit prompts and --audit off has none; leave it out or give --method")
    data, runs = _load(request), list[LanguageRun]()
    for expression in PROMPTED[: read_most(request.method)]:
        with suppress(DataError):
            read_recipe(expression).check_fields(data, f"{expression_name(expression)}()")
            runs.append(prepare(replace(request, method=expression)))
    if not runs:
        raise DataError(f"{data.name} has neither demonstrations nor checkers for auto(); give --method 'ssd()'")
    names = [one.expression for one in runs]
    chooses = f"the audit, beside the model before, by {WORDS[audit_measure(data)]} on {len(data.audit)} prompts"
    note = "\n".join([runs[0].note, *foreword(names, "as long as each advises", chooses)])
    return AutoLanguageRun(
        **{**vars(runs[0]), "request": request, "expression": "auto()", "note": note}, candidates=runs
    )


def _refuse_options(request: Request) -> None:
    """Refuse options that only networks have, and an engine that is not there.

    Raises:
        DataError: There is one.
    """
    if request.decisions is not None:
        raise DataError(f"--labels {request.decisions} is a file of labels, and prompts have none; give a number")
    for name in (*_NETWORKS, "memory"):
        if getattr(request, name) not in (None, ()):
            raise DataError(f"--{name.replace('_', '-')} has no meaning for prompts; leave it out")
    if "cache" in dict(request.training):
        raise DataError("--cache and --no-cache have no meaning for prompts; leave them out")
    if request.engine == VLLM:
        check_vllm(request.device, request.load_in_4bit)


def prepare(request: Request) -> LanguageRun:
    """Load the prompts and fill in what the request leaves open.

    Raises:
        DataError: the prompts, the suite or the model; or an option that only networks have.
    """
    _refuse_options(request)
    if is_auto(request.method):
        return shortlisted(request)
    data = _load(request)
    suite = None if request.keep is None else load_suite(request.keep, checker=request.checker)
    expression = request.method or _chosen_recipe(request, data)
    method = read_recipe(expression)
    method.check_fields(data, f"{expression_name(expression)}()")
    most = request.max_tokens or TOKENS
    method = method.drawing(lambda s: replace(s, max_tokens=min(s.max_tokens, most)))
    advice = dict(method.advice)
    model = request.model or USUAL
    if model in ENCODERS:
        raise DataError(f"{model} reads texts and writes none; give a language model, such as smollm2 or a folder")
    lora = advice.get("lora", 0) if request.lora is None else request.lora
    build = Pretrained(
        model,
        lora=lora,
        checkpointing=request.checkpointing,
        dtype=request.dtype or "auto",
        load_in_4bit=request.load_in_4bit,
        student_template=request.student_template,
        teacher_template=request.teacher_template,
    )
    _check_parts(request, method, model, lora)
    reader = build.check()
    if request.skip_long:
        data = without(data, list(long_prompts(reader, method, data, most)))
    check_prompts(reader, method, data, suite, most)
    settings = {**dict(request.training), "seed": request.seed, "steps": request.steps or advice.get("steps")}
    settings["batch_size"] = min(request.batch_size or advice.get("batch_size", 8), len(data.labelled))
    settings["epochs"] = request.epochs or advice.get("epochs", 1)
    if request.epochs:
        settings["steps"] = None
    if request.group_lengths:
        settings["group_lengths"] = True
    settings.setdefault("lr", 1e-4 if lora and request.lora is not None else advice.get("lr", 1e-5))
    settings.setdefault("clip", advice.get("clip", 1.0))
    fields = _field_notes(request, data, expression, method)
    templates = template_notes(reader.tokenizer, reader.ends)
    if reader.teacher_template and not (method.distils or method.source.contexts):
        templates.append(f"--teacher-template changes nothing: nothing of {expression} is read with a context")
    note = "\n".join([*fields, *notices(data.name, data.describe()), *templates])
    tasks = HarnessTasks(request.eval_tasks.split("|")) if request.eval_tasks else None
    return LanguageRun(request, data, method, expression, build, settings, suite, most, note, tasks)


@cache
def _vllm() -> Vllm:
    """The one engine of the process, whose memory all trainings share."""
    return Vllm()


def _check_parts(request: Request, method: Language, model: str, lora: int) -> None:
    """Refuse parts that do not fit each other, and a rank that cannot be trained, or saved as the request asks."""
    check(method)
    if isinstance(method.wrap_model, AdapterPeers):
        method.wrap_model.check(lora, request.checkpointing)
    check_save(_save(request), lora, request.load_in_4bit)
    if _save(request) != "merged" and is_adapter(locate(model)):
        raise DataError(f"{model} is an adapter, which can be no base of another one; give --save merged")


def _save(request: Request) -> str:
    """What the model is saved as: an adapter of a base of 4 bits, as merging would round it."""
    return request.save or ("adapter" if request.load_in_4bit else "merged")


def prepare_update(request: Request) -> LanguageRun:
    """A run that begins with the model of a finished one; the prompts of that run are never opened.

    Raises:
        CheckpointError: that run is not finished.
        DataError: a model is named, or as of `prepare`.
    """
    run = Path(str(request.update))
    if request.model is not None:
        raise DataError(f"`update` goes on with the model of {run}; leave --model out")
    place, (_, base) = model_folder(run), read_record(run / "run.json")
    lora = base.lora if request.lora is None else request.lora
    most = base.max_tokens if request.max_tokens is None else request.max_tokens
    teacher = base.teacher_template if request.teacher_template is None else request.teacher_template
    ready = prepare(replace(request, model=str(place), lora=lora, max_tokens=most, teacher_template=teacher))
    if request.keep is None:
        warning = "no prior prompts (--keep SUITE): nothing shows whether the model forgets what it knew"
        ready.note = f"{ready.note}\n{warning}"
    return replace(ready, request=request)


def default_recipe(request: Request) -> str:
    """The recipe that a request is trained with where it names none."""
    if request.method:
        return request.method
    return _chosen_recipe(request, _load(request))


def _load(request: Request) -> Prompts:
    """The prompts of a request with their splits."""
    return load_prompts(
        request.data, labels=request.labels, audit=request.validation, test=request.test, seed=request.seed,
        checker=request.checker, groups=request.groups, time=request.time, columns=request.fields,
    )  # fmt: skip


def _default_recipe(data: Prompts) -> str:
    """Demonstrations are distilled; where there are only checkers, attempts are; else samples."""
    demonstrated, checked = _counts(data)
    return "sdft()" if demonstrated == len(data.rows) else "sdpo()" if checked == len(data.rows) else "ssd()"


def _chosen_recipe(request: Request, data: Prompts) -> str:
    """The recipe that the fields of the prompts suggest, where it leaves none of them aside.

    Raises:
        DataError: Some fields would not be used.
    """
    expression, some = _default_recipe(data), len(data.has("demonstration"))
    method = read_recipe(expression)
    unused = _unused_fields(request, data, method)
    if 0 < some < len(data.rows) and "demonstration" not in {*unused, *method.reads}:
        unused.insert(0, "demonstration")  # of too few rows for the recipe that would read it
    if not unused:
        return expression
    names, few = ", ".join(one_line(name, 40) for name in unused), len(unused) == 1
    remedy = "answer=solution"
    if "answer" in unused and not len(data.has("checker")):
        remedy += ", or compare the answers by --checker exact"
    raise DataError(
        f"{data.name}: the field{'' if few else 's'} {names} {'is' if few else 'are'} not used by {expression}, which "
        f"the others suggest, so no recipe is chosen; name one, as in --method '{expression}', or name columns, as in "
        f"--columns {remedy}"
    )


def _unused_fields(request: Request, data: Prompts, method: Language) -> list[str]:
    """The fields that neither the method nor what stands beside it reads."""
    present = [name for name in FIELDS if len(data.has(name))]
    used = {*method.reads, *(("checker", "answer") if "checker" in present else ())}
    if request.control or not evaluation.checked(data):  # sft() beside it, or the likelihood that is measured
        used.add("demonstration")
    return [*(name for name in present if name not in used), *data.extra]


def _counts(data: Prompts) -> tuple[int, int]:
    """How many rows have something that the teacher alone reads, and how many a checker."""
    return sum(row.shown is not None for row in data.rows), len(data.has("checker"))


def _field_notes(request: Request, data: Prompts, expression: str, method: Language) -> list[str]:
    """How the fields of the prompts were read, and which of them are not used, a line each."""
    rows, present = len(data.rows), {name: len(data.has(name)) for name in FIELDS if len(data.has(name))}
    counts = "".join(f", {name} ({count})" for name, count in present.items())
    notes = [f"{data.name}: {rows} prompts{counts}"]
    if data.renamed:
        notes[0] += "; read " + ", ".join(f"{name} as {field}" for name, field in data.renamed)
    if data.left_out:
        notes.append(f"{data.left_out} of {rows} rows are longer than the model's context and are left out")
    if request.method is None:
        demonstrated, checked = _counts(data)
        notes.append(
            f"method: {expression}, as {demonstrated} of {rows} prompts have a demonstration or privileged context, "
            f"and {checked} a checker"
        )
    unused = _unused_fields(request, data, method)
    if unused:
        notes.append(f"fields not used by {expression}: {', '.join(one_line(name, 40) for name in unused)}")
    if "answer" in present and "checker" not in present and "answer" not in method.needs:
        notes.append("answers are not compared, as no row has a checker; add the field checker, or --checker exact")
    return notes


def train(ready: LanguageRun, folder: Path, listeners: Listeners, own: Path | None = None) -> dict[str, Any]:
    """Train the method and, beside it, sft() for as many steps; then ask the test prompts, once.

    A run that was cut goes on where it was. ``own`` is the folder of the method's training, where it is not the run's.
    """
    request, tell, options = ready.request, listeners.tell, ready.options(listeners)
    demonstrated = all(ready.data.rows[i].demonstration is not None for i in ready.data.labelled.tolist())
    beside = request.control and demonstrated and expression_name(ready.expression) != "sft"
    budget.expect(2 if beside else 1)
    trained = ready.train_method(own or folder, listeners)
    control = None
    if beside:
        longer = {**ready.settings, "steps": trained.steps}
        with budget.following():
            control = fit(
                ready.build,
                ready.data,
                sft(),
                out=folder / "control",
                progress=listeners.progress("sft(), the baseline"),
                hear=lambda line: tell(f"sft(), the baseline: {line}"),
                **options,
                **longer,
            )
    evaluator = Evaluator(ready, choose_device(request.device), tell)
    result = _result(ready, folder, trained, control, evaluator)
    if distributed.rank() == 0:
        export(evaluator.final_model(trained), folder / "model", _save(request), ready.build.name)
        card = {"format": FORMAT, "method": ready.expression, "model": str(ready.build), "max_tokens": ready.max_tokens}
        card["load_in_4bit"] = request.load_in_4bit
        write_json(folder / "model" / CARD, card)
    return result


def final_weights(trained: Result) -> dict[str, torch.Tensor] | None:
    """The weights of the final model; None where that is the model before training."""
    return None if trained.final_generation < 0 else trained.generations[trained.final_generation].weights


class Evaluator:
    """Asks models the test prompts and the suite, greedily; one model is in memory at a time."""

    def __init__(self, ready: LanguageRun, device: torch.device, hear: Callable[[str], None] | None = None) -> None:
        self.hear = hear if distributed.rank() == 0 else None
        self.ready, self.referee, self.right = ready, RewardCheckers(), evaluation.checked(ready.data)
        self.model: Causal = ready.method.student(ready.build)().to(device).eval()
        if not self.model.has_adapter:  # what is judged is what is saved
            rounded(self.model.lm, self.model.saved_dtype)
        self.start = {n: p.detach().clone() for n, p in self.model.learning().items()}

    def of(self, weights: dict[str, torch.Tensor] | None) -> Causal:
        """The student with given weights; None: as training began."""
        self.model.load_state_dict(self.start if weights is None else weights)
        return self.model

    def final_model(self, trained: Result) -> Causal:
        return self.of(final_weights(trained))

    def asked(self, weights: dict[str, torch.Tensor] | None, who: str = "the model") -> dict[str, Any]:
        """Losses by row on test and suite, and how long the first answers are; tells how far ``who`` is."""
        model, data, sampling = self.of(weights), self.ready.data, Sampling(0.0, max_tokens=self.ready.max_tokens)
        ids, suite = data.test.tolist(), self.ready.suite
        asked = ids if self.right else ids[:MEASURED]
        rows = len(asked) + (0 if self.right else len(ids)) + (0 if suite is None else len(suite.test))
        wait = WritingProgress(self.hear, f"the final tests: {who} answers", rows)
        answers = evaluation.answered(model, data, asked, sampling, self.referee, wait)
        scores: dict[str, Any] = {
            "losses": evaluation.wrong(answers) if self.right else evaluation.unlikely(model, data, wait.each(ids)),
            "length": sum(len(r.ids) for r in answers[:MEASURED]) / max(1, len(answers[:MEASURED])),
        }
        if suite is not None:
            scores["suite"] = evaluation.losses(model, suite, suite.test.tolist(), sampling, self.referee, wait)
        if self.ready.tasks is not None:
            scores["tasks"] = self.ready.tasks.scores(model)
        return scores

    def figures(self, asked: dict[str, Any]) -> dict[str, float]:
        """Accuracy (or NLL), accuracy on the suite, score on the documents of the harness's tasks, and length."""
        documents = _documents(asked)
        tasks = {"tasks": math.fsum(documents) / len(documents)} if documents else {}
        return {**evaluation.figures(asked, self.right), **tasks, "length": asked["length"]}


def _documents(asked: dict[str, Any]) -> list[float]:
    """The scores on the documents of all tasks of the harness."""
    tasks: list[TaskScores] = asked.get("tasks", [])
    return [score for task in tasks for score in task.scores]


def spread(gains: Sequence[float], bounded: bool = True) -> tuple[float, float | None]:
    """Mean gain over rows and half of its interval of 95 % (Student); None for fewer than 3 rows, which show nothing.

    Equation::

        half = t s / sqrt(n);  where rows are right or wrong, or all alike, at least u (1 + |mean|), u = 1 - 0.025^(1/n)

    A share u of all prompts may gain otherwise though none of n did (Clopper & Pearson, Biometrika, 1934), each by at
    most 1 + |mean|, since rewards lie in [0, 1]; of likelihoods (``bounded`` False) nothing like it is known.

    >>> mean, half = spread([0.0] * 20)
    >>> mean, round(half, 2), spread([1.0])
    (0.0, 0.17, (1.0, None))
    """
    if len(gains) < statistics.FEWEST:
        return math.fsum(gains) / max(1, len(gains)), None
    mean, half = statistics.interval(gains)
    if _coarse(gains, bounded):
        half = max(half, (1 - 0.025 ** (1 / len(gains))) * (1 + abs(mean)))
    return mean, half


def paired(ours: Sequence[float], theirs: Sequence[float], bounded: bool = True) -> dict[str, Any]:
    """The mean gain of the first over the second on the same rows, with its interval, and a verdict if there can be
    one. A model ties itself for certain."""
    gains = [b - a for a, b in zip(ours, theirs, strict=True)]
    mean, half = (0.0, 0.0) if ours is theirs else spread(gains, bounded)
    verdict: statistics.Verdict | None = None
    if half is not None:
        p = partial(_p_value, bounded=bounded)
        verdict = "TIES" if ours is theirs else statistics.compare_paired({"method": gains}, p)["method"].verdict
    return {"gain": mean, "half": half, "rows": len(gains), "verdict": verdict}


def _p_value(gains: Sequence[float], bounded: bool) -> float:
    """The two-sided p-value that belongs to the interval of `spread`: at most 0.05 where that does not hold 0.

    Solving ``|mean| = u (1 + |mean|)`` for the level gives ``p = 2 (1 + |mean|)^-n`` where rows say so little.
    """
    p = statistics.two_sided_t(gains)
    if not _coarse(gains, bounded):
        return p
    return max(p, min(1.0, 2.0 * (1.0 + abs(math.fsum(gains) / len(gains))) ** -len(gains)))


def _coarse(gains: Sequence[float], bounded: bool) -> bool:
    """Whether rows in [0, 1] are right or wrong, or all alike, so that their spread says too little."""
    return bounded and (max(gains) - min(gains) < statistics.TIE or set(gains) <= {-1.0, 0.0, 1.0})


def _result(
    ready: LanguageRun, folder: Path, trained: Result, control: Result | None, evaluator: Evaluator
) -> dict[str, Any]:
    before = evaluator.asked(None, "the model before")
    asked = [evaluator.asked(t.weights, f"generation {g}") for g, t in enumerate(trained.generations)]
    answers = before if trained.final_generation < 0 else asked[trained.final_generation]
    result: dict[str, Any] = {
        "kind": "language", "run": str(folder), "method": ready.expression, "model": str(ready.build),
        "base": ready.build.name, "saved": _save(ready.request), "parameters": evaluator.model.parameter_count,
        "learning": sum(p.numel() for p in evaluator.model.learning().values()),
        "data": ready.data.describe(), "seed": ready.request.seed,
        "final_generation": trained.final_generation, "chosen": "method",
        "test": evaluator.figures(answers), "before": evaluator.figures(before),
        "generations": [
            {"generation": g, "start": t.start, "audit": t.audit, "decision": t.decision, "test": evaluator.figures(a)}
            for g, (t, a) in enumerate(zip(trained.generations, asked, strict=True))
        ],
        "steps": trained.steps, "seconds": round(trained.seconds, 2), "passes": trained.passes._asdict(),
        "against": {"before": _against(answers, before, evaluator.right)},
        "trouble": evaluator.referee.trouble(),
    }  # fmt: skip
    if isinstance(model := evaluator.final_model(trained), CausalPeers):
        result["adapter"] = model.candidates[int(model.chosen)]
    models = {"before": before, "test": answers}
    result |= _by_task(before, answers)
    if control is not None:
        theirs = evaluator.asked(control.generations[-1].weights, "sft()")
        result["plain"] = {
            "steps": control.steps, "seconds": round(control.seconds, 2), "from": "control",
            "passes": control.passes._asdict(), "end": evaluator.figures(theirs),
        }  # fmt: skip
        result["against"]["sft"] = _against(answers, theirs, evaluator.right)
        models["plain"] = theirs
    return {**result, **_without_copies(models, ready.data, evaluator)}


def _without_copies(models: dict[str, dict[str, Any]], data: Prompts, evaluator: Evaluator) -> dict[str, Any]:
    """The scores of models on the test prompts that are no copies of others; empty where none is one."""
    kept = (~torch.isin(data.test, data.copies.across)).tolist()
    if all(kept) or not any(kept):
        return {}

    def scores(answers: dict[str, Any]) -> dict[str, float]:
        losses = [loss for loss, keep in zip(answers["losses"], kept, strict=True) if keep]
        return evaluator.figures({**answers, "losses": losses})

    return {"without_copies": {"rows": sum(kept), **{name: scores(answers) for name, answers in models.items()}}}


def _against(ours: dict[str, Any], theirs: dict[str, Any], bounded: bool) -> dict[str, Any]:
    comparisons = {"test": paired(ours["losses"], theirs["losses"], bounded)}
    if "suite" in ours:
        comparisons["kept"] = paired(ours["suite"], theirs["suite"])
    if documents := _documents(ours):
        comparisons["tasks"] = _task_gain(documents, documents if ours is theirs else _documents(theirs))
    return comparisons


def _task_gain(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """As of `paired`, of scores: more is better, and some metrics do not lie between 0 and 1."""
    losses = [-score for score in ours]
    others = losses if ours is theirs else [-score for score in theirs]
    return paired(losses, others, all(0.0 <= score <= 1.0 for score in (*ours, *theirs)))


def _by_task(before: dict[str, Any], answers: dict[str, Any]) -> dict[str, Any]:
    """What the model before and the final one score on each task of the harness; empty where there is none."""
    pairs: list[tuple[TaskScores, TaskScores]] = list(
        zip(before.get("tasks", []), answers.get("tasks", []), strict=True)
    )
    rows = [
        {
            "task": new.task,
            "metric": new.metric,
            "rows": len(new.scores),
            "before": old.mean,
            "after": new.mean,
            **_task_gain(new.scores, new.scores if before is answers else old.scores),
        }
        for old, new in pairs
    ]
    return {"eval_tasks": rows} if rows else {}


class Completions(NamedTuple):
    """What a language model answered: a row a prompt, with its reward where there is a checker."""

    rows: list[dict[str, Any]]
    note: str = ""

    def text(self, raw: bool = False) -> str:
        """The rows as JSON lines, which have no formulas."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)

    def records(self) -> list[dict[str, Any]]:
        """The rows."""
        return self.rows


def _columns_of(folder: Path, source: str) -> list[tuple[str, str]]:
    """The columns that a run named, as far as another file has them too."""
    if not (folder / "run.json").is_file() or is_task(source):
        return []
    named = read_record(folder / "run.json")[1].fields
    there = columns(source) if named else ()
    return [(field, name) for field, name in named if name in there]


#: Its fields that are read.
_CARD = {"format?": Any, "max_tokens?": Range(1, 2**20), "load_in_4bit?": bool}


class LanguagePredictor(Predictor):
    """The final language model of a run, which answers greedily.

    Args:
        folder: The run folder or its model folder.

    Raises:
        CheckpointError: the run has no model yet, or it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, place = folder, model_folder(folder)
        path = place / CARD
        if not path.exists():
            raise CheckpointError(f"{folder} has no model yet; finish it by `selfdistill resume {folder}`")
        try:
            card = read_json(path, _CARD)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged or foreign ({one_line(error, 120)}); run it again") from error
        check_format(path, card.get("format"))
        loaded = causal(str(place), stored_dtype(str(place)), load_in_4bit=card.get("load_in_4bit", False))
        self.model = Causal(*loaded).eval()
        self.max_tokens = int(card.get("max_tokens", TOKENS))

    def predict(self, rows: object, exit_number: int | None = None) -> Completions:
        """The answers to prompts: those of a file, or a list of texts.

        Raises:
            DataError: the prompts, or an early exit is asked for.
        """
        if exit_number is not None:
            raise DataError(f"the model of {self.folder} is a language model and has no early exits; leave out --exit")
        data = self._prompts(rows)
        check_answers(self.model.reader, data, self.max_tokens)
        sampling, every = Sampling(0.0, max_tokens=self.max_tokens), range(len(data.rows))
        answers = evaluation.answered(self.model, data, every, sampling, RewardCheckers())
        found = [{"prompt": data.rows[r.example].prompt, "completion": r.text, "reward": r.reward} for r in answers]
        return Completions(found)

    def _prompts(self, rows: object) -> Prompts:
        if (source := source_of(rows)) is not None:
            return load_prompts(source, columns=_columns_of(self.folder, source))
        texts = texts_of(rows)
        if texts is None or not all(text.strip() for text in texts):
            raise DataError("the model reads prompts; give a list of texts that are not empty, or the path of a file")
        none = torch.zeros(0, dtype=torch.int64)
        return Prompts("texts", tuple(Example((("user", text),)) for text in texts), none, none, none)
