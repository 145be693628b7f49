"""The task of language models: prompts for rows, and completions that are written on the way."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import distributed
from ..core.objective import Objective
from ..core.step import Batch, Passes, TrainingClock
from ..data.prompts import Prompts
from ..data.sampler import Order
from ..errors import DataError, VitalsError
from ..io.tensors import digest
from ..models.causal_lm import Causal, Pretrained, packed
from ..terms.spans import SpanTerm
from ..training.callbacks import AuditNotice
from ..training.checkpointing import identity
from ..training.fit import Result, choose_device, drive, join, run_folder
from ..training.settings import Settings
from ..training.state import Evaluation, RunState
from ..training.task import Callback, Task, autocast, new_model
from ..training.trainer import Trainer
from . import evaluation
from .alarms import RESPONSES, Alarm, Reading, alarms, reading
from .batches import completion_batch, known_counts, separable
from .completions import Language, TeacherMixed, Writer, check
from .contexts import Rollout, completed, rendered, turn_end
from .prompt_check import check_prompts
from .sampling import CompletionFile, Engine, Vllm, by_transformers
from .step_log import StepLog
from .vllm_engine import ALONE

PART = 32  # prompts whose completions are written between two saves


#: Tokens whose activations are held at once; a batch with more goes through in pieces. A GPU is slow with fewer.
ROOM = {"cpu": 256, "cuda": 16_384}


class LanguageTask(Task):
    """A pre-trained language model that learns by a `Language` method from completions of prompts.

    Args:
        build: a factory of students.
        data: the prompts; the test split is never asked here.
        method: the recipe.
        suite: prior tasks, on which a generation must not get worse than the model before training.
        seed: of the run.
        max_tokens: the longest greedy answer that is judged.
        engine: what writes completions.
        hear: called now and then with how far the model is with its answers.
        response: what follows an alarm: "warn", "roll-back" or "stop"; None looks for none.
        group_lengths: whether prompts of similar length share a batch.

    Attributes:
        writer: has the model of the generation write.
        alarms: what is wrong with the generation that has ended.
        rollouts: the completions of the generation, where they are written before its first step.
        unread: teacher's prompts of the generation that were too long.
    """

    problem = "generate"
    keeps_best = False

    def __init__(
        self,
        build: Callable[[], Causal],
        data: Prompts,
        method: Language,
        *,
        suite: Prompts | None = None,
        seed: int = 0,
        max_tokens: int = 256,
        engine: Engine = by_transformers,
        hear: Callable[[str], None] | None = None,
        response: str | None = None,
        group_lengths: bool = False,
    ) -> None:
        if response not in (None, *RESPONSES):
            raise DataError(f"an alarm is followed by one of {', '.join(RESPONSES)}, not {response!r}")
        self.response, self.alarms, self.first = response, list[Alarm](), Reading()
        self.data, self.method, self.suite = data, method, suite
        self.build: Callable[[], Causal] = method.student(build)
        self.writer = Writer(method, data, seed=seed, max_tokens=max_tokens, engine=engine, hear=hear)
        self.audit_rows = len(data.audit)
        self.rollouts: list[Rollout] = []
        self.order: Order
        self.unread = 0
        self.step_log, self.group_lengths = StepLog(), group_lengths
        self.candidates = dict[str, float]()  # the mean loss of each peer and of their mean, where there are peers
        self._evaluation: Evaluation | None = None  # of the weights as they are; answers take long

    @property
    def identity(self) -> Mapping[str, Any]:
        grouped = {"group_lengths": True} if self.group_lengths else {}
        return {"data": self.data.fingerprint, "augment": self.data.augment, **grouped}

    # models -----------------------------------------------------------------------------------------------------------

    def model(self, state: RunState, generation: int) -> Causal:
        """The pre-trained model, or the last accepted generation where the method goes on from it."""
        model = self.build()
        accepted = [g for g in state.accepted if g < generation]
        if accepted and not self.method.restart:
            if model.origin is None:  # a model in memory: what training began with is what the factory gives
                model.origin = lambda: self._pretrained(state).learning()
            model.load_state_dict(state.generations[accepted[-1]].weights)
        return model

    def _pretrained(self, state: RunState) -> Causal:
        """The model before training."""
        model = new_model(self, state, 0)
        assert isinstance(model, Causal)
        return model

    def restored_model(self, state: RunState, generation: int) -> Causal:
        model = self._pretrained(state)
        model.load_state_dict(state.generations[generation].weights)
        return model.eval()

    def previous_model(self, state: RunState, generation: int) -> Causal | None:
        """The last accepted generation, or the model before training."""
        if generation == 0:
            return None
        return self.restored_model(state, state.accepted[-1]) if state.accepted else self._pretrained(state).eval()

    def bind(self, state: RunState, previous: nn.Module | None) -> Objective:
        objective = super().bind(state, previous)
        assert isinstance(state.model, Causal)
        self.writer.model, self.writer.objective, self.writer.autocast = state.model, objective, autocast(state)
        for name, term in self.method.terms.items():
            if isinstance(term, SpanTerm):
                other = objective.state_of(name, term.teacher).module
                other.match_ends(turn_end(state.model.tokenizer), turn_end(other.pairing.teacher))
        return objective

    def wrap(self, state: RunState) -> Any:
        """As the engine's. Every weight that learns is used at every step; the output matrix outside the wrapper's
        forward pass, which hooks on gradients do not mind. What teachers hold is sharded as the student is.
        """
        if distributed.size() == 1:
            return super().wrap(state)
        if state.settings.parallel != "fsdp":
            return distributed.replicated(state.model)
        distributed.shard_layers(state.model)
        for view in state.objective.weight_views():
            view.shard()
        with distributed.whole(state.model):  # FSDP takes the first module that is called for the outermost one
            self.writer.model.hidden_states(packed([([0], [0])]).to(state.device))
        return state.model

    # completions ------------------------------------------------------------------------------------------------------

    def begin(self, state: RunState) -> int:
        """Write the completions of the generation, where the method learns from those that its first model writes."""
        settings, generation = state.settings, state.clock.generation
        if self.response and not self.first.length:  # the first generation begins with the model before training
            self.first = reading(self.writer)
        if self.method.source.once:
            self.rollouts = self._write(state, generation)
        rows = len(self.rollouts) if self.method.source.once else len(self.data.labelled)
        if not rows:
            raise DataError(
                f"{self.data.name}: no completion of generation {generation} was worth keeping (empty, or below the "
                "threshold); give more samples, easier prompts, or a method with a rescue"
            )
        lengths = self._lengths() if self.group_lengths else None
        self.order = Order(rows, min(settings.batch_size, rows), settings.seed, generation, lengths)
        return self.order.steps_per_epoch

    def _lengths(self) -> Tensor:
        """(rows,) tokens of each prompt with the completion that is learnt, as far as one is known before a step."""
        if self.method.source.once:
            return torch.tensor([len(r.prompt) + len(r.ids) for r in self.rollouts])
        rows, words = [self.data.rows[i] for i in self.data.labelled.tolist()], self.writer.tokenizer
        known = [[] if row.shown is None else completed(words, row.shown) for row in rows]
        return torch.tensor([len(rendered(words, r.messages)) + len(c) for r, c in zip(rows, known, strict=True)])

    def _write(self, state: RunState, generation: int) -> list[Rollout]:
        """The completions of a generation: by the last accepted one where there is one, else by the model before."""
        ids, clock, writer = (
            self.data.labelled.tolist(),
            TrainingClock(generation, self.method.generations),
            self.writer,
        )
        parts = [ids[i : i + PART] for i in range(0, len(ids), PART)]
        student = writer.model
        file = self._file(state, generation)
        writer.model, writer.alike = self.previous_model(state, generation) or student, True

        def make(part: int) -> list[Rollout]:
            state.report(f"generation {generation} writes: part {part + 1} of {len(parts)}")
            return self.method.source.rollouts(writer, parts[part], clock)

        drawn, written = writer.drawn, writer.written

        def count() -> tuple[int, int]:
            return writer.drawn, writer.written

        try:
            rollouts = file.made(len(parts), make, count) if distributed.rank() == 0 else []
            distributed.most(0, state.device)  # the others wait until all is there to read
            if distributed.rank():
                return file.made(len(parts), make)
            # those that an earlier process has written count too
            writer.drawn, writer.written = drawn + file.drawn, written + file.written
            state.passes += Passes(teacher=file.drawn)
            return rollouts
        finally:
            writer.model, writer.alike, writer.passes = student, False, Passes()

    def _file(self, state: RunState, generation: int) -> CompletionFile:
        """Where the completions of a generation go, marked by the run and the weights that write them."""
        if state.folder is None:
            return CompletionFile(None)
        run = json.dumps([identity(state, self), digest(self.writer.model.state_dict())], sort_keys=True, default=str)
        mark = hashlib.sha256(run.encode()).hexdigest()[:16]
        return CompletionFile(state.folder / "rollouts" / f"{generation}.jsonl", mark)

    def batches(self, state: RunState) -> list[Batch]:
        """The completions of a step; where all terms allow it in as many pieces as the memory wants."""
        self._evaluation = None  # the weights are about to change
        clock = state.clock
        rows = self.order.sample(clock)
        if len(rows) < distributed.size():
            raise DataError(
                f"{len(rows)} prompts a step are too few for {distributed.size()} processes; raise --batch-size"
            )
        rollouts = [r for r in self._rollouts(state, distributed.share(rows)) if r.ids]
        if distributed.most(int(not rollouts), state.device):
            raise DataError(
                f"all completions of generation {clock.generation}, step {clock.step} are empty, without even the "
                "token that ends them; look at the engine that writes them"
            )
        examples = list(dict.fromkeys(r.example for r in rollouts))
        parts = self._parts(state, rollouts, len(examples))
        cut = [set(examples[i * len(examples) // parts : (i + 1) * len(examples) // parts]) for i in range(parts)]
        return [self.batch(state, [r for r in rollouts if r.example in part]) for part in cut]

    def _rollouts(self, state: RunState, rows: Tensor) -> list[Rollout]:
        """The completions of this process in a step."""
        if self.method.source.once:
            return [self.rollouts[i] for i in rows.tolist()]
        with self.whole(state) if self.method.sampling else contextlib.nullcontext():
            rollouts = self.method.source.rollouts(self.writer, self.data.labelled[rows].tolist(), state.clock)
        state.passes, self.writer.passes = state.passes + self.writer.passes, Passes()
        return rollouts

    @contextlib.contextmanager
    def whole(self, state: RunState) -> Iterator[None]:
        """Student and teachers in one piece on every process, each of which asks them as often as its own rows need."""
        with distributed.whole(state.model), state.objective.whole():
            yield

    def _parts(self, state: RunState, rollouts: Sequence[Rollout], examples: int) -> int:
        """In how many micro-batches a step goes through: the same number everywhere."""
        parts = state.settings.accumulate
        if separable(self.method):
            tokens = sum(len(r.prompt) + len(r.ids) for r in rollouts)
            parts = max(parts, math.ceil(tokens / ROOM.get(state.device.type, tokens)))
        return -distributed.most(-min(distributed.most(parts, state.device), examples), state.device)

    def batch(self, state: RunState, rollouts: Sequence[Rollout]) -> Batch:
        """What the terms read of some completions."""
        batch, unread = completion_batch(self.writer, rollouts, state.device)
        self.unread += unread
        return batch

    def counts(
        self, state: RunState, batches: Sequence[Batch], seed: Callable[[int], None]
    ) -> dict[str, Tensor] | None:
        """As the engine's, without a pass where none is needed."""
        return known_counts(self.method, batches) or super().counts(state, batches, seed)

    # evaluation -------------------------------------------------------------------------------------------------------

    def baseline(self, state: RunState) -> Evaluation:
        """The pre-trained model, once all prompts and contexts were made and are known to fit."""
        writer = self.writer
        check_prompts(writer.model.reader, self.method, self.data, self.suite, writer.greedy.max_tokens)
        evaluation.check_other_prompts(writer)
        return evaluation.evaluate(self.writer, self.suite, "the model before")

    def evaluate(self, state: RunState) -> Evaluation:
        """Answers to the audit rows and to prior tasks; asked again only when the weights have changed.

        Of peers the best one on the audit rows is chosen, or their mean where that is better.
        """
        if self._evaluation is not None:
            return replace(self._evaluation, passes=Passes())
        who = f"generation {state.clock.generation}"
        self._evaluation, self.candidates = evaluation.evaluate_best(self.writer, self.suite, who)
        return self._evaluation

    def forget_evaluation(self) -> None:
        """The weights that were evaluated are gone."""
        self._evaluation = None

    def objection(self, state: RunState) -> str | None:
        """The alarms of the generation, where they roll it back."""
        return "; ".join(map(str, self.alarms)) if self.response == "roll-back" and self.alarms else None

    def callbacks(self) -> Sequence[Callback]:
        notice = AuditNotice(self.audit_rows, len(self.data.labelled))
        return [LanguageChecks(self), notice, LanguageVitals(self), self.step_log]

    def resume(self, state: RunState) -> None:
        self.step_log.restore(state)

    def state_dict(self) -> dict[str, Any]:
        evaluation = self._evaluation.to_dict() if self._evaluation else None
        counts = {"drawn": self.writer.drawn, "written": self.writer.written, "read": self.step_log.read}
        return {**counts, "evaluation": evaluation, "first": asdict(self.first)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.writer.drawn, self.writer.written = saved["drawn"], saved.get("written", 0)
        self.step_log.read = saved.get("read", 0)
        self._evaluation = Evaluation.from_dict(saved["evaluation"]) if saved["evaluation"] else None
        self.first = Reading(**saved.get("first", {}))


class LanguageChecks(Callback):
    """Warns of teachers that add nothing, of checkers that raise, and of what did not fit into the model's context."""

    def __init__(self, task: LanguageTask) -> None:
        self.task = task
        self.trouble: str | None = None  # the trouble of checkers that was warned of

    def before_training(self, state: RunState) -> None:
        evaluation.check_teachers(self.task.writer, state.warn)
        self._warn_of_checkers(state)

    def on_generation_start(self, state: RunState) -> None:
        self.task.unread = 0

    def on_epoch_end(self, state: RunState, clock: TrainingClock, entry: dict[str, Any]) -> None:
        if entry.get("decision", {}).get("restored"):
            self.task.forget_evaluation()

    def on_generation_end(self, state: RunState) -> None:
        self._warn_of_checkers(state)
        if self.task.unread:
            state.warn(f"warning: {self.task.unread} {self._unread()}, and taught nothing; lower --max-tokens")

    def _unread(self) -> str:
        """What was not read, and why."""
        writer, generation = self.task.writer, self.task.writer.objective.clock.generation
        if any(isinstance(term, SpanTerm) for term in writer.method.terms.values()):
            return f"completions of generation {generation} were no text that the teacher's tokenizer reads as it is"
        room = writer.model.context_length
        return (
            f"solutions or feedbacks of generation {generation} did not fit into the model's context of {room} tokens"
        )

    def _warn_of_checkers(self, state: RunState) -> None:
        """Say which checkers raised, where it is news."""
        trouble = self.task.writer.referee.trouble()
        if trouble and trouble != self.trouble:
            state.warn(f"warning: {trouble}")
        self.trouble = trouble


class LanguageVitals(Callback):
    """Logs the completions drawn so far, their tokens and those read in training, and at the end of a generation the
    vitals of language, which cost two rounds of answers.
    """

    def __init__(self, task: LanguageTask) -> None:
        self.task = task

    def on_epoch_end(self, state: RunState, clock: TrainingClock, entry: dict[str, Any]) -> None:
        writer = self.task.writer
        entry["drawn"], entry["written"], entry["read"] = counts = writer.drawn, writer.written, self.task.step_log.read
        if self.task.candidates:
            entry["candidates"] = self.task.candidates
        if not state.settings.vitals or state.clock.step < state.clock.length:
            return
        with self.task.whole(state):
            entry["language"] = evaluation.measure(writer)
        state.passes += Passes(evaluation=writer.drawn - counts[0])
        writer.drawn, writer.written, writer.passes = *counts[:2], Passes()  # nothing is learnt from looks
        if self.task.response:
            self._look(state, entry)

    def _look(self, state: RunState, entry: dict[str, Any]) -> None:
        """Compare the generation with the model before training.

        Raises:
            VitalsError: something is wrong, and alarms are to stop the run.
        """
        now = reading(self.task.writer)
        self.task.alarms = found = alarms(self.task.first, now, entry["language"])
        entry["reading"] = {"before": self.task.first.means(), "after": now.means()}
        entry["alarms"] = [str(alarm) for alarm in found]
        for alarm in found:
            state.warn(f"warning: generation {state.clock.generation}: {alarm}")
        if found and self.task.response == "stop":
            raise VitalsError(found[0].name, "; ".join(map(str, found)))


def fit(
    build: Callable[[], Causal],
    data: Prompts,
    method: Language,
    *,
    out: Path | str | None = None,
    resume: bool = False,
    device: torch.device | str | None = None,
    suite: Prompts | None = None,
    engine: Engine = by_transformers,
    max_tokens: int = 256,
    progress: Callable[[TrainingClock, dict[str, float]], None] | None = None,
    warn: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    tell: Callable[[str], None] | None = None,
    hear: Callable[[str], None] | None = None,
    response: str | None = None,
    group_lengths: bool = False,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    accumulate: int = 1,
    optimizer: str = "adamw",
    lr: float | None = None,
    weight_decay: float = 1e-4,
    schedule: str = "cosine",
    clip: float | None = None,
    precision: str | None = None,
    compile: bool = False,
    parallel: str = "ddp",
    seed: int = 0,
    audit: str = "safe",
    audit_level: float = 0.05,
    audit_delta: float | None = None,
    audit_measure: str | None = None,
    audit_epochs: int | None = None,
    patience: int | None = None,
    vitals: bool = True,
    cache: bool = True,
    memory_dtype: str = "float32",
    memory_top: int = 0,
    layer_decay: float = 1.0,
    save_seconds: float = 30.0,
    save_steps: int | None = None,
) -> Result:
    """Train a language model on prompts.

    Args:
        build: A factory of students: `Pretrained`, or any function that returns a `Causal`.
        data: The prompts; see `load_prompts` and `of_examples`.
        method: The recipe.
        out: Folder for checkpoints, metrics and generations; nothing is written without it.
        resume: Go on from the newest intact checkpoint in ``out``, if there is one.
        device: Where to train; a CUDA device by default, if there is one.
        suite: Prior tasks, on which a generation must not get worse than the model before training.
        engine: What writes completions.
        max_tokens: The longest greedy answer that is judged.
        progress: Called a few times a second with the clock and the step's figures.
        warn: Called with each line about trouble that the run survives.
        tell: Called with the decisions of the audit, in words.
        hear: Called now and then with how far the model is with its answers [default: tell].
        response: What follows an alarm (see `alarms`): "warn", "roll-back", which keeps what was before unless audits
            are off, or "stop"; without one nothing is compared.
        group_lengths: Put prompts of similar length into a batch, which then has less padding.
        epochs, steps, batch_size, lr, clip: Those that are left out are the method's advice; without advice 1 epoch, 8
            prompts, a rate of 1e-5 and a gradient norm of 1. Epochs that are given take the place of advised steps.
        precision: Of forward passes [default: `Pretrained.precision` where ``build`` is one, else float32].

    The other arguments are the fields of `Settings`.

    Returns:
        The model of the best audited generation, and what all of them took.

    Raises:
        DataError: prompts lack what the method needs, or do not fit the model's context; vLLM in several processes.
        VitalsError: a context is broken, so that student and teacher would not read the same completion.
        Stopped: asked to stop; the run is saved and resumes, also in the midst of its rollouts.
    """
    arguments = locals()
    check(method)
    method.check_fields(data, "this method")
    device = choose_device(device)
    join(device)
    check_engine(engine, method, parallel)
    folder = run_folder(out, resume)
    arguments["precision"] = precision or (build.precision if isinstance(build, Pretrained) else "float32")
    chosen = _settings({field.name: arguments[field.name] for field in fields(Settings)}, method, data)
    options: dict[str, Any] = {"suite": suite, "max_tokens": max_tokens, "engine": engine, "hear": hear or tell}
    options["response"] = response
    options["group_lengths"] = group_lengths
    task = LanguageTask(build, data.sealed(), method, seed=seed, **options)
    trainer = Trainer(task, method, chosen, folder=folder, device=device, warn=warn, tell=tell)
    return drive(trainer, resume, progress)


def check_engine(engine: Engine, method: Language, parallel: str) -> None:
    """Refuse an engine that the method or the processes cannot use.

    Args:
        engine: What writes completions.
        method: The recipe.
        parallel: How several processes train, as of `Settings`.

    Raises:
        DataError: Student and teacher are to write together by another engine, FSDP would shard peers, or vLLM
            is to write for several processes.
    """
    if isinstance(method.source, TeacherMixed) and engine is not by_transformers:
        raise DataError("student and teacher write together by transformers alone; leave the engine out, or the share")
    if distributed.size() > 1 and parallel == "fsdp" and method.wrap_model is not None:
        raise DataError("FSDP does not shard several adapters of a model; leave --parallel away")
    if distributed.size() > 1 and isinstance(engine, Vllm):
        raise DataError(ALONE)


def _settings(given: Mapping[str, Any], method: Language, data: Prompts) -> Settings:
    """The settings that are given, and the method's advice for those that are not."""
    if (given["memory_dtype"], given["memory_top"]) != ("float32", 0):
        raise DataError("no recipe for language models remembers predictions; leave memory_dtype and memory_top out")
    defaults: dict[str, Any] = {"epochs": 1, "batch_size": 8, "clip": 1.0, "lr": 1e-5, **dict(method.advice)}
    if given["epochs"] is not None:
        defaults.pop("steps", None)
    if not evaluation.checked(data.sealed()):
        defaults["audit_measure"] = "nll"
    chosen: dict[str, Any] = {name: defaults.get(name) if value is None else value for name, value in given.items()}
    return Settings(**chosen)
