"""The trainer: the state of a run, and the steps that change it. `fit` drives it.

Every random number is addressed and every state is saved, so that a run can be cut anywhere and goes on as if nothing
had happened.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import rng
from ..core import distributed
from ..core.objective import Method, Objective
from ..core.parts import GenerationData, TermResult
from ..core.step import Batch, Clock, Passes, members
from ..data.dataset import Data
from ..data.sampler import Drawn, Sampler
from ..errors import DataError, NotFiniteError
from ..evaluation.audit import Decision, champion, exhausted
from ..evaluation.predict import better, losses, predict_rows, score
from ..io import checkpoint
from ..io.tensors import digest
from ..models.peers import Peers
from ..teachers.cached import live, pinned
from ..teachers.generations import wanted
from . import accumulation, callbacks, generations
from .callbacks import fresh_start
from .checkpointing import Log, copied
from .generations import Trained
from .preflight import dry_run
from .settings import PRECISIONS, Settings

__all__ = ["Trained", "Trainer", "Watch", "digest"]

Watch = Callable[[Clock, list[Batch], float], None]


class Trainer:
    """The state of a run and the steps that change it; `fit` is the way in."""

    def __init__(
        self,
        build: Callable[..., nn.Module],
        data: Data,
        method: Method,
        settings: Settings,
        folder: Path | None = None,
        external: nn.Module | None = None,
        device: torch.device | str = "cpu",
        watch: Watch | None = None,
        warn: Callable[[str], None] = print,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.build = method.wrap_model(build) if method.wrap_model else build
        self.data, self.method, self.settings, self.folder = data, method, settings, folder
        self.external, self.device = external, torch.device(device)
        self.watch, self.warn, self.tell = watch, warn, tell
        self.done: list[Trained] = []
        self.audit, self.passes = settings.make_audit(method.generations, data.task), Passes()
        self.history: list[dict[str, Any]] = []
        self.sums: dict[str, Tensor] = {}
        self.kept: dict[str, Any] = {}  # the best state audited within the generation
        self._last: dict[str, Tensor] = {}
        self.log = Log(folder) if folder else None
        self.elapsed, self._since, self.saved_at, self.steps_done = 0.0, time.monotonic(), time.monotonic(), 0

    def say(self, line: str) -> None:
        """A line for who watches; one process speaks."""
        if self.tell and distributed.rank() == 0:
            self.tell(line)

    # one generation ------------------------------------------------------------------------------------------------

    def _fresh(self, generation: int) -> nn.Module:
        """A new model; its initialisation depends on the seed and the generation alone."""
        torch.manual_seed(rng.seed(self.settings.seed, "init", generation))
        return self.build().to(self.device).train()  # a factory may have left it in eval mode

    def first(self) -> nn.Module:
        """Generation 0 as it ended."""
        return self.as_it_was(0)

    def as_it_was(self, generation: int) -> nn.Module:
        """A generation as it ended, in eval mode."""
        model = self._fresh(generation)
        model.load_state_dict(self.done[generation].weights)
        return model.eval()

    def _previous(self, generation: int) -> nn.Module | None:
        if generation == 0:
            return None
        every = wanted(self.method)
        if every is None:
            return self.as_it_was(self.accepted()[-1])
        numbers = range(generation) if every.at_last else self.accepted()
        return Peers([self.as_it_was(g) for g in numbers], values=self.data.task == "regress").eval()

    @cached_property
    def blueprint(self) -> str:
        """A digest of the model's layers and shapes, before any engine is put around it."""
        model = self._fresh(0)
        shapes = [(name, tuple(value.shape)) for name, value in model.state_dict().items()]
        return hashlib.sha256(f"{model!r}{shapes}".encode()).hexdigest()[:12]

    def begin(self, generation: int) -> None:
        """Everything a generation starts with, as a pure function of the settings and the generations before."""
        s, method = self.settings, self.method
        self.model = self._fresh(generation)
        self.start = digest(copied(self.model.state_dict()))
        self.warn_of_start()
        clock = Clock(generation, method.generations)
        self.objective: Objective = method.bind(
            self.model,
            previous=self._previous(generation),
            external=self.external,
            scale=(self.data.center, self.data.scale),
            autocast=self._autocast,
            vitals=s.vitals,
        )
        live(self.objective.to(self.device), s.cache)
        generations.hand_on(self.done[taken[-1]].carried if (taken := self.accepted()) else {}, self.objective)
        ids, teach = self.data.unlabelled, self.data.labelled
        self.objective.prepare(GenerationData(ids, self._look, clock, teach, s.seed, self.data.targets[teach]))
        self.sample(generation)
        per_epoch = self.sampler.steps_per_epoch
        epochs = -(-s.steps // per_epoch) if s.steps else s.epochs
        self.objective.clock = Clock(generation, method.generations, 0, epochs, 0, per_epoch, s.steps or 0)
        self._wrap()
        self.optimizer = s.make_optimizer(self.model)
        cycles = max((part.cycles for term in method.terms.values() for part in term.parts()), default=1)
        self.scheduler = s.make_scheduler(self.optimizer, self.objective.clock.length, cycles)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=s.precision == "float16")
        self.best: dict[str, Any] = {"epoch": -1, "audit": None, "weights": {}}
        self.sums, self.kept = {}, {}

    def warn_of_start(self) -> None:
        """Say so if a generation begins as an earlier one did, or with its weights."""
        again = fresh_start(self.start, [(t.start, digest(t.weights)) for t in self.done])
        if again and self.settings.vitals:
            self.warn(f"warning: {again}")

    def rehearse(self) -> None:
        """What can be found out before step 0, is."""
        dry_run(self)

    def sample(self, generation: int) -> None:
        """Make the generation's sampler; teachers may have chosen which unlabelled rows it draws."""
        s, admitted = self.settings, self.objective.eligible_ids()
        self.sampler = Sampler(
            self.data,
            pinned(self.method),
            s.batch_size,
            seed=s.seed,
            generation=generation,
            admitted=None if admitted is None else admitted.cpu(),
        )

    def _wrap(self) -> None:
        """Put PyTorch's own engine around the model; the objective calls the wrapper and owns nothing of it."""
        forward: Any = self.model
        if self.settings.compile:
            forward = torch.compile(self.model)
        if distributed.size() > 1 and self.settings.parallel == "fsdp":
            distributed.shard(self.model)
            for state in self.objective.states.values():
                distributed.shard_children(state)
        elif distributed.size() > 1:
            with torch.no_grad():
                some = torch.cat([self.data.labelled, self.data.unlabelled])[:2]
                shown = self.model.eval()(self.data.rows(some).to(self.device))
            self.model.train()
            # a method need not use every head, and DDP waits for gradients that never come unless it is told
            forward = distributed.replicated(forward, heads=isinstance(shown, Mapping))
        self.forward = forward
        self.objective.call_through(forward)

    def _autocast(self) -> Any:
        dtype = PRECISIONS[self.settings.precision]
        return torch.autocast(self.device.type, dtype) if dtype else contextlib.nullcontext()

    def _look(self, module: nn.Module, ids: Tensor) -> Tensor:
        self.passes += Passes(teacher=members(module) * len(ids))
        return predict_rows(module, self.data, ids, self.data.head, self.device)

    # one step ------------------------------------------------------------------------------------------------------

    def _seeded(self, micro: int) -> None:
        """What the step draws (dropout) depends on where it is, not on what was drawn before."""
        c = self.objective.clock
        rng.reseed(self.device, self.settings.seed, "step", c.generation, c.step, distributed.rank(), micro)

    def batches(self) -> list[Batch]:
        """The micro-batches of this process for the step at hand."""
        clock, parts = self.objective.clock, self.settings.accumulate
        drawn = self.sampler.drawn(clock.epoch, clock.step - clock.epoch * clock.per_epoch)
        if max(len(d.ids) for d in drawn.values()) < parts * distributed.size():
            raise DataError(
                f"a batch of {max(len(d.ids) for d in drawn.values())} rows cannot be split into {parts} micro-batches "
                f"on {distributed.size()} processes; raise --batch-size or lower --accumulate"
            )
        mine = {kind: Drawn(distributed.share(d.ids), distributed.share(d.visits)) for kind, d in drawn.items()}

        def piece(d: Drawn, i: int) -> Drawn:
            return d.part(slice(i * len(d.ids) // parts, (i + 1) * len(d.ids) // parts))

        return [
            self.sampler.batch({kind: piece(d, i) for kind, d in mine.items()}, clock.epoch, self.device)
            for i in range(parts)
        ]

    def _counts(self, batches: list[Batch]) -> dict[str, Tensor] | None:
        """What to divide each term by, over all micro-batches: a pass without gradient, where there are several."""
        return None if len(batches) == 1 else accumulation.counts(self.objective, batches, self._seeded)

    def step(self) -> float:
        """One optimizer step; returns the loss.

        Raises:
            NotFiniteError: the loss is nan or infinite; weights and checkpoint stay as they were.
        """
        batches, world = self.batches(), distributed.size()
        counts = self._counts(batches)
        self.optimizer.zero_grad(set_to_none=True)
        rows: dict[str, Tensor] = {}
        total = 0.0
        for i, batch in enumerate(batches):
            self._seeded(i)
            last = i == len(batches) - 1
            quiet = contextlib.nullcontext() if last or not hasattr(self.forward, "no_sync") else self.forward.no_sync()
            with quiet:
                measured = self.objective.measure(batch)
                shared = counts
                if shared is None and world > 1:
                    shared = {name: distributed.add(m.tally.count) for name, m in measured.items()}
                loss = self.objective.combine(measured, shared)
                self._refuse_unless_finite(measured, loss)
                self.scaler.scale(loss * world).backward()
            accumulation.add_up(rows, measured, loss)
            total += float(loss.detach())
        if self.settings.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        distributed.average_(self.model.buffers())
        self._last = rows
        for name, row in rows.items():
            self.sums[name] = self.sums[name] + row if name in self.sums else row
        clock = self.objective.clock
        self.passes += self.objective.passes()
        self.objective.update()
        self.steps_done += 1
        if self.watch:
            self.watch(clock, batches, total)
        return total

    def _refuse_unless_finite(self, measured: dict[str, TermResult], loss: Tensor) -> None:
        """All processes stop together; the one that has seen the trouble says which samples."""
        bad = ~torch.isfinite(loss.detach())
        if not bool(distributed.add(bad.float())):
            return
        clock = self.objective.clock
        kept = checkpoint.newest(self.folder / "checkpoints", warn=self.warn) if self.folder else None
        where = "on another process"
        if bool(bad):
            name, ids = self.objective.blame(measured)
            where = f"term {name!r}, samples {ids}"
        raise NotFiniteError(
            f"the loss is {float(loss.detach())} at generation {clock.generation}, step {clock.step}, {where}; "
            f"the last checkpoint is kept ({kept or 'none was due yet'}); "
            "lower --lr or set --clip 1.0, and look at those samples"
        )

    # between steps -------------------------------------------------------------------------------------------------

    def seconds(self) -> float:
        """Time spent training, over all sittings."""
        return self.elapsed + time.monotonic() - self._since

    def epoch_ended(self) -> bool:
        clock = self.objective.clock
        return clock.step % clock.per_epoch == 0 or clock.step == clock.length

    def due(self) -> bool:
        """Is it time for a checkpoint?"""
        every = self.settings.save_steps
        if every is not None:
            return self.objective.clock.step % every == 0
        return self.folder is not None and time.monotonic() - self.saved_at > self.settings.save_seconds

    def figures(self) -> dict[str, float]:
        """The last step by term: its mean loss, and the share of its targets kept by the gate."""
        figures = {}
        for name, term in self.method.terms.items():
            total, count, kept, valid = self._last[name].tolist()
            figures[name] = total / count if count else 0.0
            if term.gate is not None and not term.gate.full:
                figures[f"{name} kept"] = kept / max(valid, 1.0)
        return figures

    def end_epoch(self, clock: Clock) -> None:
        """Score the audit split, keep the best weights so far, write one line of metrics."""
        sums = {name: distributed.add(row).tolist() for name, row in self.sums.items()}
        line: dict[str, Any] = {
            "generation": clock.generation,
            "epoch": clock.epoch,
            "step": clock.step + 1,
            "loss": sums[""][0] / (clock.step + 1 - clock.epoch * clock.per_epoch),
            "terms": {},
        }
        for name, (total, count, kept, valid) in ((n, row) for n, row in sums.items() if n):
            weight = self.method.terms[name].weight_at(clock)
            share = kept / valid if valid else None
            line["terms"][name] = {"loss": total / count if count else None, "weight": weight, "kept": share}
        if len(self.data.audit):
            line["audit"] = self.scored()
            if better(line["audit"], self.best["audit"]):
                self.best = {"epoch": clock.epoch, "audit": line["audit"], "weights": copied(self.model.state_dict())}
            decision = callbacks.check_rollback(self, clock)
            line |= {"decision": decision} if decision else {}
        diverse = callbacks.measure_diversity(self.model, self.data, self.device)
        line |= {"diversity": diverse} if diverse else {}
        line |= callbacks.vitals_entry(self, clock, line.get("audit")) | self.remarks()
        for warning in line.get("warnings", []):
            self.warn(f"warning: {warning}")
        self.sums = {}
        self.history.append(line)
        if self.log:
            self.log.append(line)

    def end_generation(self) -> None:
        """Keep the generation's weights: its successor learns from them."""
        weights = copied(self.model.state_dict())
        last = self.history[-1]
        best = self.best["weights"] or weights
        done = Trained(self.start, weights, best, max(0, self.best["epoch"]), last.get("audit", {}), self.audited())
        done.carried = generations.collect(self.objective)
        done.decision = asdict(self._decide(len(self.done), done))
        self.done.append(done)

    def scored(self) -> dict[str, float]:
        """Metrics of the model as it is, on the audit split."""
        self.passes += Passes(evaluation=members(self.model) * len(self.data.audit))
        return score(self.model, self.data, self.data.audit, device=self.device)

    def remarks(self) -> dict[str, Any]:
        """What a trainer of another kind adds to an epoch's line."""
        return {}

    def extra(self) -> dict[str, Any]:
        """What it adds to a checkpoint."""
        return {}

    def restore_extra(self, saved: dict[str, Any]) -> None:
        """Take it back before the generation begins."""

    def audited(self) -> list[float]:
        """The loss of each audit row; none where nothing is audited."""
        rows = self.data.audit
        if not len(rows) or self.audit.policy == "off":
            return []
        self.passes += Passes(evaluation=members(self.model) * len(rows))
        return losses(self.model, self.data, rows, self.audit.measure, self.device)

    def _decide(self, generation: int, done: Trained) -> Decision:
        """May this generation teach and be the product?"""
        if not done.losses:
            return Decision(generation, True, f"generation {generation} accepted: nothing audits it")
        if generation == 0:
            return Decision(0, True, "generation 0 accepted: there is none before it", rows=len(done.losses))
        against = self.product()
        return self.audit.decide(generation, done.losses, self.done[against].losses, against=against)

    def accepted(self) -> list[int]:
        """The generations that the audit accepted; the last of them teaches the next."""
        return [number for number, t in enumerate(self.done) if t.decision["accepted"]]

    def product(self) -> int:
        """The best audited generation; the last one where nothing was audited."""
        losses = [t.losses for t in self.done]
        return champion(losses, self.accepted()) if all(losses) else len(self.done) - 1

    def exhausted(self) -> bool:
        """Does the audit see no further gain?"""
        losses = [t.losses for t in self.done]
        return all(losses) and exhausted(losses, self.audit.patience)

    def whole(self) -> nn.Module:
        """The product as one process knows it, in eval mode."""
        product = self.product()
        if product == len(self.done) - 1 and not distributed.is_sharded(self.model):
            return self.model.eval()
        return self.as_it_was(product)
