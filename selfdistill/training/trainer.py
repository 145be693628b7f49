"""The engine: generations > epochs > steps > micro-batches of any `Task`. `fit` drives it.

::

    for each generation:  a model and an objective, the task made ready by what was accepted before
        for each step:    batches > measure > combine > backward > update of optimizer and teachers
        after each epoch: the model is evaluated, a line goes to metrics.jsonl
    a checkpoint whenever enough time has passed, at the start and end of a generation, and when asked to stop

Every random number is addressed and every state is saved, so that a run can be cut anywhere and goes on as if nothing
had happened.
"""

from __future__ import annotations

import contextlib
import copy
import math
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import rng
from ..core import distributed
from ..core.objective import Method
from ..core.parts import TermResult
from ..core.step import Passes, TrainingClock
from ..errors import NotFiniteError
from ..evaluation.audit import Decision
from ..io import checkpoint
from ..io.tensors import digest
from ..methods.cards import cost
from ..teachers.cached import set_cache
from . import budget, checkpointing
from .callbacks import BestWeights, Rollback, VitalsCallback
from .settings import Settings
from .state import (
    BestEpoch,
    Evaluation,
    GenerationResult,
    RunState,
    collect_pseudo_labels,
    copied,
    inherit_pseudo_labels,
)
from .task import Callback, Task, new_model

Progress = Callable[[TrainingClock, dict[str, float]], None]


class Stopped(KeyboardInterrupt):
    """The run was interrupted; everything up to the last step is saved."""


class Trainer:
    """Trains a task by a method, one generation after another; ``state`` is all that changes.

    Args:
        task: what is learnt.
        method: the recipe.
        settings: how to train.
        folder: for checkpoints, metrics and generations; nothing is written without it.
        device: where to train.
        callbacks: called after the engine's own and the task's.
        warn: receives each line about trouble that the run survives.
        tell: receives the decisions of the audit, in words.
    """

    def __init__(
        self,
        task: Task,
        method: Method,
        settings: Settings,
        *,
        folder: Path | None = None,
        device: torch.device | str = "cpu",
        callbacks: Sequence[Callback] = (),
        warn: Callable[[str], None] = print,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        audit = settings.make_audit(method.generations, task.problem)
        self.task = task
        self.state = RunState(method, settings, audit, torch.device(device), folder, warn, tell)
        self.allowance: budget.Allowance | None = None
        self.callbacks = [BestWeights(task), Rollback(task), VitalsCallback(), *task.callbacks(), *callbacks]
        self._after_step = [c for c in self.callbacks if type(c).on_step_end is not Callback.on_step_end]

    # one generation -------------------------------------------------------------------------------------------------

    def begin(self, generation: int) -> None:
        """Everything a generation starts with, as a pure function of the settings and the generations before."""
        state, method = self.state, self.state.method
        state.task_start = copy.deepcopy(self.task.state_dict())
        state.model = new_model(self.task, state, generation)
        state.start = digest(copied(state.model.state_dict()))
        for callback in self.callbacks:
            callback.on_model(state)
        state.objective = self.task.bind(state, self.task.previous_model(state, generation))
        set_cache(state.objective.to(state.device), state.settings.cache)
        accepted = state.accepted
        inherit_pseudo_labels(state.generations[accepted[-1]].pseudo_labels if accepted else {}, state.objective)
        state.objective.clock = TrainingClock(generation, method.generations)
        self._evaluate_baseline()
        per_epoch, steps = self.task.begin(state), self._steps(generation)
        epochs = -(-steps // per_epoch) if steps else state.settings.epochs
        state.objective.clock = TrainingClock(generation, method.generations, 0, epochs, 0, per_epoch, steps or 0)
        state.forward = self.task.wrap(state)
        state.objective.call_through(state.forward)
        state.optimizer = state.settings.make_optimizer(state.model)
        cycles = max((part.cycles for term in method.terms.values() for part in term.parts()), default=1)
        state.scheduler = state.settings.make_scheduler(state.optimizer, state.clock.length, cycles)
        state.scaler = torch.amp.GradScaler(state.device.type, enabled=state.settings.precision == "float16")
        state.best, state.sums, state.rollback = BestEpoch(), {}, {}
        for callback in self.callbacks:
            callback.on_generation_start(state)

    def _evaluate_baseline(self) -> None:
        """The model before training is evaluated once, and is audited against like a generation."""
        state = self.state
        if state.baseline is None:
            state.baseline = self.task.baseline(state)
            state.passes += state.baseline.passes if state.baseline else Passes()
        if state.baseline is not None:  # then every generation is audited, the first one too
            state.audit = replace(state.audit, planned=state.method.generations)

    # one step -------------------------------------------------------------------------------------------------------

    def _seed(self, micro: int) -> None:
        """Seed the draws of a step (dropout) by its position, not by earlier draws."""
        state, clock = self.state, self.state.objective.clock
        rng.reseed(state.device, state.settings.seed, "step", clock.generation, clock.step, distributed.rank(), micro)

    def step(self) -> float:
        """One optimizer step; returns the loss.

        Raises:
            NotFiniteError: the loss is nan or infinite; weights and checkpoint stay as they were.
        """
        state, objective, world = self.state, self.state.objective, distributed.size()
        batches = self.task.batches(state)
        several = world > 1 or len(batches) > 1
        counts = self.task.counts(state, batches, self._seed) if several else None
        state.optimizer.zero_grad(set_to_none=True)
        state.last, total = {}, 0.0
        for micro, batch in enumerate(batches):
            self._seed(micro)
            with contextlib.nullcontext() if micro == len(batches) - 1 else self._without_synchronising():
                measured = objective.measure(batch)
                divisors = counts
                if divisors is None and world > 1:
                    divisors = {name: distributed.add(m.tally.count) for name, m in measured.items()}
                loss = objective.combine(measured, divisors)
                value = float(loss.detach())
                if world > 1 or not math.isfinite(value):
                    self._refuse_unless_finite(measured, value)
                state.scaler.scale(loss * world).backward()
            total += value
            self._add_up(measured, loss)
        self._update(world)
        clock = objective.clock
        state.passes += objective.passes()
        objective.update()
        state.steps_done += 1
        for callback in self._after_step:
            callback.on_step_end(state, clock, batches, total)
        return total

    def _without_synchronising(self) -> Any:
        """DDP adds up gradients once a step, at its last micro-batch."""
        forward = self.state.forward
        return forward.no_sync() if hasattr(forward, "no_sync") else contextlib.nullcontext()

    def _add_up(self, measured: dict[str, TermResult], loss: Tensor) -> None:
        """Add a micro-batch to the figures of the step."""
        sums = self.state.last
        for name, m in measured.items():
            row = torch.stack([m.tally.total.detach(), m.tally.count, m.kept, m.valid])
            sums[name] = sums[name] + row if name in sums else row
        row = loss.detach().reshape(1)
        sums[""] = sums[""] + row if "" in sums else row

    def _update(self, world: int) -> None:
        """Move the weights by the gradients, and add the step to the figures of the epoch."""
        state = self.state
        if state.settings.clip is not None:
            state.scaler.unscale_(state.optimizer)
            state.gradient_norm = nn.utils.clip_grad_norm_(state.model.parameters(), state.settings.clip)
        state.lr = state.optimizer.param_groups[0]["lr"]
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.scheduler.step()
        if world > 1:
            distributed.average_(state.model.buffers())
        for name, row in state.last.items():
            state.sums[name] = state.sums[name] + row if name in state.sums else row

    def _refuse_unless_finite(self, measured: dict[str, TermResult], loss: float) -> None:
        """Stop all processes together on a loss that is not finite; the process that has it names the samples."""
        state, finite = self.state, math.isfinite(loss)
        if not bool(distributed.add(torch.tensor(float(not finite), device=state.device))):
            return
        path = checkpoint.newest(state.folder / "checkpoints", warn=state.warn) if state.folder else None
        location = "on another process"
        if not finite:
            name, ids = state.objective.blame(measured)
            location = f"term {name!r}, samples {ids}"
        raise NotFiniteError(
            f"the loss is {loss} at generation {state.clock.generation}, step {state.clock.step}, {location}; "
            f"the last checkpoint is kept ({path or 'none was due yet'}); "
            "lower --lr or set --clip 1.0, and look at those samples"
        )

    # between steps --------------------------------------------------------------------------------------------------

    def end_epoch(self, clock: TrainingClock) -> None:
        """Evaluate the model, let the callbacks look at it, and write one line of metrics.

        Args:
            clock: of the epoch's last step.
        """
        state = self.state
        for callback in self.callbacks:
            callback.before_evaluation(state)
        sums = {name: distributed.add(row).tolist() for name, row in state.sums.items()}
        entry: dict[str, Any] = {
            "generation": clock.generation,
            "epoch": clock.epoch,
            "step": clock.step + 1,
            "loss": sums[""][0] / (clock.step + 1 - clock.epoch * clock.per_epoch),
            "terms": {},
        }
        for name, (total, count, kept, valid) in ((n, row) for n, row in sums.items() if n):
            entry["terms"][name] = {
                "loss": total / count if count else None,
                "weight": state.method.terms[name].weight_at(clock),
                "kept": kept / valid if valid else None,
            }
        if self.task.audit_rows:
            evaluation = self.task.evaluate(state)
            state.passes += evaluation.passes
            entry["audit"] = evaluation.metrics
        for callback in self.callbacks:
            callback.on_epoch_end(state, clock, entry)
        for warning in entry.get("warnings", []):
            place = f"{self.task.title(clock.generation)}: " if state.method.generations > 1 else ""
            state.warn(f"warning: {place}{warning}")
        state.sums = {}
        state.history.append(entry)
        if state.log:
            state.log.append(entry)

    def end_generation(self) -> None:
        """Audit the generation and keep its weights: its successor learns from them."""
        state = self.state
        weights = copied(state.model.state_dict())
        evaluation = Evaluation() if state.audit.policy == "off" else self.task.evaluate(state)
        state.passes += evaluation.passes
        result = GenerationResult(
            state.start,
            weights,
            (state.best.weights or weights) if self.task.keeps_best else {},
            max(0, state.best.epoch),
            state.history[-1].get("audit", {}),
            evaluation.losses,
            evaluation.guard,
            pseudo_labels=collect_pseudo_labels(state.objective),
        )
        result.decision = asdict(self.decide(result))
        state.generations.append(result)
        checkpointing.save_generation(state)
        if state.clock.generation:
            state.report(result.decision["why"])
        for callback in self.callbacks:
            callback.on_generation_end(state)

    def decide(self, result: GenerationResult) -> Decision:
        """Whether a generation may teach and be the final model: it must not be worse than the best one so far, nor, on
        prior tasks, than the model before training.
        """
        state, generation = self.state, len(self.state.generations)
        baseline, offset = state.baseline, 0 if state.baseline is None else -1
        decision = Decision(generation, True, f"generation {generation} accepted: nothing audits it")
        if result.losses and generation == 0 and baseline is None:
            reason = "generation 0 accepted: there is none before it"
            decision = Decision(0, True, reason, rows=len(result.losses))
        elif result.losses:
            reference = state.final_generation
            losses = baseline.losses if baseline and reference < 0 else state.generations[reference].losses
            decision = state.audit.decide(
                generation, result.losses, losses, against=reference, audit=generation - offset
            )
        if decision.accepted and result.guard and baseline:
            guard = replace(state.audit, measure="accuracy", policy="safe")
            forgets = "rolled back, it forgets what it knew"
            guard_decision = guard.decide(
                generation, result.guard, baseline.guard, against=-1, audit=generation - offset, rejected=forgets
            )
            decision = (
                decision if guard_decision.accepted else replace(decision, accepted=False, why=guard_decision.why)
            )
        if decision.accepted and (why := self.task.objection(state)):
            decision = replace(decision, accepted=False, why=f"generation {generation} rolled back: {why}")
        return decision

    def final_model(self) -> nn.Module:
        """The best audited generation's model as one process knows it, in eval mode."""
        state, number = self.state, self.state.final_generation
        if number == len(state.generations) - 1 and not distributed.is_sharded(state.model):
            return state.model.eval()
        return new_model(self.task, state, 0).eval() if number < 0 else self.task.restored_model(state, number)

    # the run --------------------------------------------------------------------------------------------------------

    def run(self, stop: threading.Event, *, resume: bool = False, progress: Progress | None = None) -> None:
        """Train to the end.

        Args:
            stop: when it is set, the run is saved after the step under way, and ends.
            resume: go on from the newest checkpoint, if there is one.
            progress: called a few times a second with the clock and the step's figures.

        Raises:
            Stopped: ``stop`` was set.
        """
        state, meter = self.state, budget.active()
        self.allowance = None if meter is None else meter.allowance(state.folder, state.method)
        if not (resume and checkpointing.restore(state, self.task, self.begin)):
            self.begin(0)
            checkpointing.check_space(state)
            for callback in self.callbacks:
                callback.before_training(state)
            self._fit_into_budget()
        while self._train_generation(stop, progress):
            self.begin(state.clock.generation + 1)
            if not self._fit_into_budget():
                break
            checkpointing.save(state, self.task)
        if self.allowance is not None:
            self.allowance.spend(state.passes.cost())

    def _steps(self, generation: int) -> int | None:
        """The steps of a generation: those that fit into the budget, or those that were asked for."""
        planned = self.allowance and self.allowance.planned(generation)
        return planned if planned else self.state.settings.steps

    def _last(self, generation: int) -> bool:
        """Whether the budget ends the training with this generation."""
        return self.allowance is not None and self.allowance.planned(generation + 1) == 0

    def _fit_into_budget(self) -> bool:
        """Measure the first steps of the generation that has begun, and begin it again with as many steps as fit.

        Returns:
            Whether the generation is worth its cost.

        Raises:
            DataError: memory, time or passes do not allow a step.
        """
        state, allowance = self.state, self.allowance
        if allowance is None:
            return True
        generation, clock = state.clock.generation, state.clock
        planned = allowance.planned(generation)
        if allowance.meter.follows or planned is not None:
            return planned != 0
        weights = sum(p.nbytes for p in state.model.parameters() if p.requires_grad)
        allowance.meter.check_memory("the training with its optimizer", 0.0 if generation else 4.0 * weights)
        step, evaluation = self.measure(allowance)
        allowance.meter.check_memory("a step of the training")
        per_epoch = step.seconds + evaluation / clock.per_epoch
        plain = 3.0 * state.settings.batch_size  # the first generation has no teacher, or nothing to replay, as yet
        later = 1.0 if generation or not step.passes else max(1.0, cost(state.method)["of_plain"] * plain / step.passes)
        steps = allowance.plan(
            generation,
            state.method.generations,
            step._replace(seconds=per_epoch),
            clock.length,
            1 if self.task.every_generation else clock.per_epoch,
            2.0 * evaluation,
            later,
        )
        if self.task.every_generation and not steps:
            steps = 1
        if steps < clock.length:
            allowance.cut(generation, steps, clock.length, "no more fit" if steps else "no further one fits")
        if steps:
            self.begin(generation)
        return bool(steps)

    def measure(self, allowance: budget.Allowance) -> tuple[budget.Expense, float]:
        """The cost of a step, and the seconds of an evaluation, from the first steps of the generation that has begun.

        The weights have moved afterwards, so the generation is to begin again.
        """
        state, callbacks, clock = self.state, self._after_step, self.state.clock
        passes, steps = state.passes, state.steps_done
        self._after_step = []
        costs = list[budget.Expense]()
        generations = clock.generations - clock.generation
        while not costs or allowance.goes_on(costs, min(budget.FIRST_STEPS, clock.length), generations):
            before, at = state.passes.cost(), time.monotonic()
            self.step()
            costs.append(budget.Expense(time.monotonic() - at, state.passes.cost() - before))
        at = time.monotonic()
        if self.task.audit_rows and math.isfinite(allowance.until.seconds):
            self.task.evaluate(state)
        evaluation = time.monotonic() - at
        allowance.spend(state.passes.cost() - passes.cost(), f", first steps of generation {clock.generation}")
        state.passes, state.steps_done, self._after_step = passes, steps, callbacks
        seconds = statistics.median(cost.seconds for cost in costs[1:] or costs)  # the first one is slower
        return budget.Expense(seconds, max(cost.passes for cost in costs)), evaluation

    def _train_generation(self, stop: threading.Event, progress: Progress | None) -> bool:
        """Train and audit the generation under way; whether another one follows."""
        state, progress_at = self.state, 0.0
        while state.clock.step < state.clock.length:
            clock, before = state.clock, state.passes.cost()
            loss = self.step()
            if state.epoch_ended:
                self.end_epoch(clock)
            if progress and (time.monotonic() - progress_at > 0.2 or state.epoch_ended):
                progress_at = time.monotonic()
                progress(clock, {"loss": loss, **state.figures()})
            over = self.allowance and self.allowance.over(
                state.passes.cost(), state.steps_done, state.passes.cost() - before
            )
            stopping, due, ending = _agree(stop.is_set(), state.checkpoint_due, bool(over), state.device)
            if stopping or due:
                checkpointing.save(state, self.task)
            if stopping:
                raise Stopped(f"stopped after step {clock.step + 1} of generation {clock.generation}")
            if ending and self.allowance and state.clock.step < state.clock.length:
                if not state.epoch_ended:
                    self.end_epoch(clock)
                reason, last = over or "another process ends", not self.task.every_generation
                self.allowance.cut(clock.generation, clock.step + 1, clock.length, reason, last)
                state.objective.clock = replace(state.clock, steps=clock.step + 1)  # a resumed run ends here too
        checkpointing.save(state, self.task)
        self.end_generation()
        if state.clock.generation + 1 >= state.method.generations or self._last(state.clock.generation):
            return False
        if state.exhausted:
            state.report(f"ended after generation {state.clock.generation}: the audit sees no further gain")
        return not state.exhausted


def _agree(stop: bool, due: bool, over: bool, device: torch.device) -> tuple[bool, bool, bool]:
    """The decision of all processes to stop, to save or to end, if any of them is due: all are collective."""
    if distributed.size() == 1:
        return stop, due, over
    wishes: Tensor = distributed.add(torch.tensor([float(stop), float(due), float(over)], device=device))
    return bool(wishes[0]), bool(wishes[1]), bool(wishes[2])
