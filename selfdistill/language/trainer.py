"""The trainer of language models: the engine's, with prompts for rows and completions that are written on the way."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import rng
from ..core import distributed
from ..core.step import Batch, Clock, Passes, Rows
from ..data.prompts import Prompts, need
from ..data.sampler import Order
from ..errors import DataError
from ..evaluation.audit import Decision, champion
from ..io.tensors import digest
from ..models.causal_lm import Causal, fits, packed
from ..training.checkpointing import identity
from ..training.fit import Result, choose_device, drive, join, run_folder
from ..training.generations import Trained
from ..training.settings import Settings
from ..training.trainer import Trainer
from . import dry_run, evaluation
from .batched import pieces
from .completions import Language, Together, check, views
from .contexts import Context, Nothing, Rollout, completed, paired, rendered
from .sampling import Engine, Referee, Sampling, Vllm, Waiting, Written, beside, by_transformers, ends, roll

PART = 32  # prompts that are written to between two saves


#: Tokens whose activations are held at once; a batch with more goes through in pieces. A GPU is slow with fewer.
ROOM = {"cpu": 256, "cuda": 16_384}


class LanguageTrainer(Trainer):
    """Trains a `Language` method; ``suite`` holds prior tasks, on which it must not get worse."""

    data: Prompts  # type: ignore[assignment]
    method: Language
    model: Causal

    def __init__(self, *args: Any, suite: Prompts | None = None, engine: Engine = by_transformers,
                 max_tokens: int = 256, hear: Callable[[str], None] | None = None, **options: Any) -> None:  # fmt: skip
        super().__init__(*args, **options)
        self.suite, self.engine, self.referee, self.hear = suite, engine, Referee(), hear or self.tell
        self.greedy = Sampling(0.0, max_tokens=max_tokens)
        self.audit = replace(self.audit, planned=self.method.generations)  # the first is audited too: a model was there
        self.before: dict[str, Any] = {}  # what the model that training began with says
        self.written: list[Rollout] = []
        self.wrote = -1  # the generation that they are of
        self.last: dict[str, Any] = {}  # the same of the model as it was when it was last asked
        self.told: str | None = None  # the trouble of checkers that was warned of
        self.unread = 0  # teacher's prompts that were too long in this generation
        self.together = False  # do all processes write the same now?
        self.drawn, self.ahead = 0, 0  # completions to learn from, and those of this generation before its first step

    @property
    def tokenizer(self) -> Any:
        return self.model.tokenizer

    @property
    def stop(self) -> list[int]:
        return ends(self.model)

    def waiting(self, what: str, prompts: int) -> Waiting:
        """The engine for so many prompts, telling how far it is."""
        return Waiting(self.hear if distributed.rank() == 0 else None, what, prompts, self.engine)

    def _wrap(self) -> None:
        """As the engine's. Every weight that learns is used at every step; the output matrix outside the wrapper's
        forward pass, which hooks on gradients do not mind. What teachers hold is not sharded.
        """
        if distributed.size() == 1:
            return super()._wrap()
        if self.settings.parallel == "fsdp":
            distributed.shard_layers(self.model)
            with distributed.whole(self.model):  # FSDP takes the first module that is called for the outermost one
                self.model.look(packed([([0], [0])]).to(self.device))
        self.forward = self.model if self.settings.parallel == "fsdp" else distributed.replicated(self.model)
        self.objective.call_through(self.forward)
        return None

    # generations ---------------------------------------------------------------------------------------------------

    def _fresh(self, generation: int) -> nn.Module:
        """The pre-trained model, or the last accepted generation where the method goes on from it."""
        model = cast(Causal, super()._fresh(generation))
        before = [g for g in self.accepted() if g < generation]
        if before and not self.method.restart:
            if model.origin is None:  # a model in memory: what training began with is what the factory gives
                model.origin = lambda: cast(Causal, Trainer._fresh(self, 0)).learning()
            model.load_state_dict(self.done[before[-1]].weights)
        return model

    def _previous(self, generation: int) -> nn.Module | None:
        if generation == 0:
            return None
        model = super()._fresh(0)
        if accepted := self.accepted():
            model.load_state_dict(self.done[accepted[-1]].weights)
        return model.eval()

    def warn_of_start(self) -> None:
        """Generations of a pre-trained model may begin alike."""

    def sample(self, generation: int) -> None:
        s = self.settings
        if not self.before:
            dry_run.check(self)
            self.before = evaluation.judged(self)
        if self.method.source.once and self.wrote != generation:  # resumed, it comes here twice
            self.written, self.wrote = self._write(generation), generation
        rows = len(self.written) if self.method.source.once else len(self.data.labelled)
        if not rows:
            raise DataError(
                f"{self.data.name}: no completion of generation {generation} was worth keeping (empty, or below the "
                "threshold); give more samples, easier prompts, or a method with a rescue"
            )
        self.sampler = Order(rows, min(s.batch_size, rows), s.seed, generation)  # type: ignore[assignment]

    def _write(self, generation: int) -> list[Rollout]:
        """The completions of a generation: by the last accepted one where there is one, else as training began."""
        ids, clock = self.data.labelled.tolist(), Clock(generation, self.method.generations)
        parts = [ids[i : i + PART] for i in range(0, len(ids), PART)]
        student, previous = self.model, self._previous(generation)
        if previous is not None:
            self.model = cast(Causal, previous)

        def make(part: int) -> list[Rollout]:
            self.say(f"generation {generation} writes: part {part + 1} of {len(parts)}")
            return self.method.source.rollouts(self, parts[part], clock)

        file, self.together = self._file(generation), True
        drawn, passes = self.drawn, self.passes
        try:
            found = file.made(len(parts), make, lambda: self.drawn) if distributed.rank() == 0 else []
            distributed.most(0, self.device)  # the others wait until all is there to read
            if distributed.rank():
                return file.made(len(parts), make)
            self.ahead, self.drawn, self.passes = file.drawn, drawn + file.drawn, passes + Passes(teacher=file.drawn)
            return found
        finally:
            self.model, self.together = student, False

    def _file(self, generation: int) -> Written:
        """Where the completions of a generation go, marked by the run and the weights that write them."""
        if self.folder is None:
            return Written(None)
        run = json.dumps([identity(self), digest(self.model.state_dict())], sort_keys=True, default=str)
        return Written(self.folder / "rollouts" / f"{generation}.jsonl", hashlib.sha256(run.encode()).hexdigest()[:16])

    # rows ----------------------------------------------------------------------------------------------------------

    def prompt(self, example: int, context: Context | None = None) -> list[int]:
        """Token ids of an example's prompt, or of a context's; of the plain prompt where that has nothing to add."""
        row = self.data.rows[example]
        plain = rendered(self.tokenizer, row.messages)
        if context is None or isinstance(context, Nothing):
            return plain
        return paired(self.tokenizer, context, row, [Rollout(example, tuple(plain), ())], 0) or plain

    def given(self, example: int) -> Rollout:
        """The demonstration as a completion, ended as the model ends its own."""
        text = self.data.rows[example].demonstration or ""
        found = Rollout(example, tuple(self.prompt(example)), tuple(completed(self.tokenizer, text)), text, 1.0)
        self.refuse_long(found.prompt, found, "a demonstration")
        return found

    def refuse_long(self, prompt: Sequence[int], rollout: Rollout, what: str) -> None:
        line = self.data.rows[rollout.example].line
        fits(prompt, self.model, len(rollout.ids), f"{what} (line {line} of {self.data.name})")

    def roll(self, examples: Sequence[int], sampling: Sampling, address: rng.Address, samples: int = 1,
             context: Context | None = None, share: float = 0.0) -> list[Rollout]:  # fmt: skip
        """Checked completions, ``samples`` of each example; written after a context, learnt after the plain prompt.
        The teacher has its ``share`` in each token."""
        if distributed.size() > 1 and not self.together:
            address = (*address, distributed.rank())
        asked = [(i, self.prompt(i, context)) for i in examples for _ in range(samples)]
        by = beside(self, [i for i, _ in asked], share) if share else None
        self.passes, self.drawn = self.passes + Passes(teacher=len(asked) * (1 + bool(by))), self.drawn + len(asked)
        engine = self.waiting("completions are written", len(asked))
        with self._autocast():
            found = roll(self.model, asked, sampling, address, engine, by)
        if context is not None and not isinstance(context, Nothing):
            # drawn from another distribution on purpose: nothing of it is to be corrected by importance weights
            found = [replace(r, prompt=tuple(self.prompt(r.example)), log_probs=None) for r in found]
        return [self.referee(r, self.data.rows[r.example]) for r in found]

    def batches(self) -> list[Batch]:
        clock, parts = self.objective.clock, self.settings.accumulate
        rows = cast(Order, self.sampler).drawn(clock)
        if len(rows) < distributed.size():
            raise DataError(
                f"{len(rows)} prompts a step are too few for {distributed.size()} processes; raise --batch-size"
            )
        rows = distributed.share(rows)
        if self.method.source.once:
            rollouts = [self.written[i] for i in rows.tolist()]
        else:
            with distributed.whole(self.model) if self.method.sampling else contextlib.nullcontext():
                rollouts = self.method.source.rollouts(self, self.data.labelled[rows].tolist(), clock)
        kept = [r for r in rollouts if r.ids]
        if distributed.most(int(not kept), self.device):
            raise DataError(
                f"all completions of generation {clock.generation}, step {clock.step} are empty, without even the "
                "token that ends them; look at the engine that writes them"
            )
        groups = sorted({r.example for r in kept}, key=[r.example for r in kept].index)
        if self._separable():
            tokens = sum(len(r.prompt) + len(r.ids) for r in kept)
            parts = max(parts, math.ceil(tokens / ROOM.get(self.device.type, tokens)))
        parts = -distributed.most(
            -min(distributed.most(parts, self.device), len(groups)), self.device
        )  # the same everywhere
        cut = [set(groups[i * len(groups) // parts : (i + 1) * len(groups) // parts]) for i in range(parts)]
        batches = [self._batch([r for r in kept if r.example in part]) for part in cut]
        return pieces(batches) if distributed.size() == 1 else batches  # sharded ones are all asked equally often

    def _batch(self, rollouts: Sequence[Rollout]) -> Batch:
        found = views(self.method, self, rollouts)
        self.unread += found["unread"]
        batch = Batch({"x": Rows(packed(found["x"]), found["rewards"], found["examples"])})
        for name in ("context", "against"):
            if name in found and found[name][0]:
                batch[name] = Rows(packed(found[name][0]), None, found[name][1])
        if "other" in found:
            batch["other"] = Rows(packed(found["other"]), None, found["examples"])
        if rollouts and all(r.log_probs is not None for r in rollouts):
            known = [torch.tensor(r.log_probs) for r in rollouts]
            batch["sampler"] = Rows(nn.utils.rnn.pad_sequence(known, batch_first=True))
        moved = {
            n: Rows(x.to(self.device), *(None if v is None else v.to(self.device) for v in (y, i)))
            for n, (x, y, i) in batch.items()
        }
        return Batch(moved)

    def _counts(self, batches: list[Batch]) -> dict[str, Tensor] | None:
        """As the engine's, without a pass where none is needed."""
        if (len(batches) == 1 and distributed.size() == 1) or not self._separable():
            return super()._counts(batches)
        terms = self.method.terms.items()
        return {name: distributed.add(torch.stack([term.counted(b) for b in batches]).sum()) for name, term in terms}

    def _separable(self) -> bool:
        return all(term.separable for term in self.method.terms.values())

    # what is said of it --------------------------------------------------------------------------------------------

    def scored(self) -> dict[str, float]:
        self.last = evaluation.judged(self)
        return evaluation.figures(self.last, evaluation.checked(self.data))

    def audited(self) -> list[float]:
        self.last = self.last or evaluation.judged(self)  # no audit row was asked, or what was said is gone
        return list(self.last["losses"]) if self.audit.policy != "off" else []

    def end_epoch(self, clock: Clock) -> None:
        super().end_epoch(clock)
        if self.history[-1].get("decision", {}).get("restored"):
            self.last = {}  # that was said of weights which are gone

    def end_generation(self) -> None:
        super().end_generation()
        self.warn_of_checkers()
        if self.unread:
            self.warn(
                f"warning: {self.unread} solutions or feedbacks of generation {len(self.done) - 1} did not fit into "
                f"the model's context of {self.model.longest} tokens, and taught nothing; lower --max-tokens"
            )
        self.unread, self.last = 0, {}

    def warn_of_checkers(self) -> None:
        """Say which checkers raised, where it is news."""
        trouble = self.referee.trouble()
        if trouble and trouble != self.told:
            self.warn(f"warning: {trouble}")
        self.told = trouble

    def _decide(self, generation: int, done: Trained) -> Decision:
        """As the engine's, from the model that training began with on; forgetting counts as much as failing."""
        done.drift = {"suite": self.last["suite"]} if "suite" in self.last else {}
        found = Decision(generation, True, f"generation {generation} accepted: nothing audits it")
        if done.losses:
            best = self.product()
            against = self.before["losses"] if best < 0 else self.done[best].losses
            found = self.audit.decide(generation + 1, done.losses, against, against=best)
            found = replace(found, generation=generation, why=_worded(found.why, generation))
        if found.accepted and self.suite is not None and self.audit.policy != "off":
            measure = replace(self.audit, measure="accuracy", policy="safe")
            kept = measure.decide(generation + 1, self.last["suite"], self.before["suite"], against=-1)
            if not kept.accepted:
                why = _worded(kept.why, generation).replace("rolled back", "rolled back, it forgets what it knew")
                found = replace(found, accepted=False, why=why)
        return found

    def product(self) -> int:
        """The best audited generation; -1 is the model that training began with."""
        if self.audit.policy == "off":
            return len(self.done) - 1
        if not (accepted := self.accepted()):
            return -1
        if not all(t.losses for t in self.done) or not self.before.get("losses"):
            return accepted[-1]
        best = champion([t.losses for t in self.done], accepted)
        return -1 if math.fsum(self.done[best].losses) > math.fsum(self.before["losses"]) else best

    def whole(self) -> nn.Module:
        product = self.product()
        if product == len(self.done) - 1 and not distributed.is_sharded(self.model):
            return self.model.eval()
        model = Trainer._fresh(self, 0)
        if product >= 0:
            model.load_state_dict(self.done[product].weights)
        return model.eval()

    def remarks(self) -> dict[str, Any]:
        """Completions drawn so far, and once a generation the vitals of language: they cost two rounds of answers."""
        clock, drawn, passes = self.objective.clock, self.drawn, self.passes
        if not self.settings.vitals or clock.step < clock.length:
            return {"drawn": drawn}
        with distributed.whole(self.model):
            found = evaluation.look(self)
        self.passes, self.drawn = passes + Passes(evaluation=self.drawn - drawn), drawn  # nothing is learnt from looks
        return {"drawn": drawn, "language": found}

    def extra(self) -> dict[str, Any]:
        drawn = self.drawn - self.ahead  # which the file of rollouts counts again
        return {"before": self.before, "last": self.last, "drawn": drawn}

    def restore_extra(self, saved: dict[str, Any]) -> None:
        self.before, self.last, self.drawn = saved.get("before", {}), saved.get("last", {}), saved.get("drawn", 0)

    def rehearse(self) -> None:
        """All prompts and contexts were made before a completion was written; is there anything to learn from them?"""
        dry_run.alive(self)
        self.warn_of_checkers()


def _worded(why: str, generation: int) -> str:
    """The engine numbers decisions; people read of generations, and of the model at the start."""
    return why.replace(f"generation {generation + 1} ", f"generation {generation} ", 1).replace(
        "generation -1", "the model it started from"
    )


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
    progress: Callable[[Clock, dict[str, float]], None] | None = None,
    warn: Callable[[str], None] = lambda line: print(line, file=sys.stderr),
    tell: Callable[[str], None] | None = None,
    hear: Callable[[str], None] | None = None,
    **settings: Any,
) -> Result:
    """Train a method on prompts; as `selfdistill.fit`, with a ``suite`` of prior tasks that must not be forgotten.

    Args:
        build: a factory of students: `Pretrained`, or any function that returns a `Causal`.
        engine: what writes completions; ``max_tokens`` bounds the greedy answers that are judged.
        hear: called now and then with how far the model is with its answers [default: tell].
        settings: fields of `Settings`; the method's advice takes the place of their defaults.

    Raises:
        DataError: prompts lack what the method needs, or do not fit the model's context; vLLM under FSDP.
        VitalsError: a context is broken, so that student and teacher would not read the same completion.
        Stopped: asked to stop; the run is saved and resumes, also in the midst of its rollouts.
    """
    check(method)
    if isinstance(method.source, Together) and engine is not by_transformers:
        raise DataError("student and teacher write together by transformers alone; leave the engine out, or the share")
    for field in method.needs:
        need(data, field, "this method")
    device = choose_device(device)
    join(device)
    if distributed.size() > 1 and settings.get("parallel") == "fsdp" and isinstance(engine, Vllm):
        raise DataError("vLLM cannot be handed weights that FSDP has sharded; leave --parallel or vLLM away")
    folder = run_folder(out, resume)
    if not evaluation.checked(data.sealed()):
        settings.setdefault("audit_measure", "nll")
    known = {name: value for name, value in method.advice if name in {f.name for f in fields(Settings)}}
    usual = {"epochs": 1, "batch_size": 8, "clip": 1.0, "lr": 1e-5, **known}
    trainer = LanguageTrainer(
        build, data.sealed(), method, Settings(**{**usual, **settings}), folder, None, device, None, warn, tell,
        suite=suite, engine=engine, max_tokens=max_tokens, hear=hear,
    )  # fmt: skip
    return drive(trainer, resume, progress)
