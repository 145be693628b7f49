"""The task of networks: labelled and unlabelled rows of fixed data, drawn by a sampler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core import distributed
from ..core.objective import Method, Objective, untaught
from ..core.parts import GenerationData
from ..core.step import Batch, Passes, members
from ..data.dataset import Data
from ..data.image_store import ImageStore
from ..data.loading import Ahead
from ..data.sampler import SampledRows, Sampler
from ..errors import DataError
from ..evaluation.audit import row_losses
from ..evaluation.predict import predict_rows, scored, task_outputs
from ..models.peers import PeerModels
from ..teachers.cached import fixed_views
from ..teachers.generations import ensemble_teacher
from ..teachers.self_training import InheritedPseudoLabels
from .callbacks import (
    AuditedClasses,
    AuditNotice,
    ChanceCheck,
    Diversity,
    FreshStart,
    LinearProbe,
    ValidatedThresholds,
)
from .drift import DriftMonitor
from .preflight import check_memory, dry_run
from .settings import PRECISIONS
from .state import Evaluation, RunState
from .task import Callback, Task, autocast


class _Drawing(NamedTuple):
    """The rows of a step: those of each view in each micro-batch."""

    epoch: int
    sets: list[dict[str, SampledRows]]


def _make_batches(sampler: Sampler, drawing: _Drawing, device: torch.device | str = "cpu") -> list[Batch]:
    batches = []
    for sets in drawing.sets:
        batches.append(sampler.batch(sets, drawing.epoch, device))
    return batches


class NetworkTask(Task):
    """A network that classifies, predicts values or learns features, on rows of fixed data.

    Args:
        build: a factory of fresh models; it is called once a generation.
        data: their test split is never read here.
        method: the recipe; it may adapt the models.
        external: the teacher of `distil`, where the recipe names none.
    """

    def __init__(
        self, build: Callable[..., nn.Module], data: Data, method: Method, external: nn.Module | None = None
    ) -> None:
        self.build = method.wrap_model(build) if method.wrap_model else build
        self.data, self.method, self.external = data, method, external
        self.problem, self.audit_rows = data.task, len(data.audit)
        self.sampler: Sampler
        self._ahead: Ahead[_Drawing, list[Batch]]

    @property
    def identity(self) -> Mapping[str, Any]:
        data = self.data
        return {"data": data.fingerprint, "augment": f"{data.augment}{', flips' if data.flips else ''}"}

    def model(self, state: RunState, generation: int) -> nn.Module:
        """A new network; where the method starts warm, with the weights of the last accepted generation."""
        model, wrapper = self.build(), self.method.wrap_model
        if generation and state.accepted and wrapper is not None and wrapper.warm:
            model.load_state_dict(state.generations[state.accepted[-1]].weights)
        return model

    def previous_model(self, state: RunState, generation: int) -> nn.Module | None:
        """The last accepted generation; all of them as peers, for a teacher of ancestors."""
        ancestors = ensemble_teacher(self.method)
        if ancestors is None or not generation:
            return super().previous_model(state, generation)
        numbers = range(generation) if ancestors.at_last else state.accepted
        return PeerModels([self.restored_model(state, g) for g in numbers], values=self.data.task == "regress").eval()

    def bind(self, state: RunState, previous: nn.Module | None) -> Objective:
        return self.method.bind(
            state.model,
            previous=previous,
            external=self.external,
            scale=(self.data.center, self.data.scale),
            autocast=autocast(state),
            vitals=state.settings.vitals,
            memory_dtype=PRECISIONS[state.settings.memory_dtype] or torch.float32,
            memory_top=state.settings.memory_top,
        )

    def begin(self, state: RunState) -> int:
        """Let teachers label the pool, and make the generation's sampler."""

        def look(module: nn.Module, ids: Tensor) -> Tensor:
            state.passes += Passes(teacher=members(module) * len(ids))
            return predict_rows(module, self.data, ids, self.data.head, state.device)

        labelled = self.data.labelled
        state.objective.prepare(
            GenerationData(
                self.data.unlabelled, look, state.clock, labelled, state.settings.seed, self.data.targets[labelled]
            )
        )
        self.resume(state)
        return self.sampler.steps_per_epoch

    def resume(self, state: RunState) -> None:
        """Make the sampler: teachers may have chosen which unlabelled rows it draws."""
        settings, eligible = state.settings, state.objective.eligible_ids()
        self.sampler = Sampler(
            self.data,
            fixed_views(self.method),
            settings.batch_size,
            seed=settings.seed,
            generation=state.clock.generation,
            eligible=None if eligible is None else eligible.cpu(),
            epochs=settings.epochs,
            steps=settings.steps,
        )
        self._ahead = self._read_ahead(state)

    def has_heads(self, state: RunState) -> bool:
        with torch.no_grad():
            ids = torch.cat([self.data.labelled, self.data.unlabelled])[:2]
            output = state.model.eval()(self.data.rows(ids).to(state.device))
        state.model.train()
        return isinstance(output, Mapping)

    def batches(self, state: RunState) -> list[Batch]:
        clock = state.objective.clock
        if isinstance(self.data.x, ImageStore):
            return [batch.to(state.device) for batch in self._ahead.result(clock.step, clock.length)]
        return _make_batches(self.sampler, self._draw(state, clock.step), state.device)

    def _read_ahead(self, state: RunState) -> Ahead[_Drawing, list[Batch]]:
        """Batches of images on disk, which workers read while a step runs."""
        rows = state.settings.batch_size * len(self.sampler.views.views)
        workers = self.data.x.workers(rows, 4) if isinstance(self.data.x, ImageStore) else 0
        return Ahead(partial(_make_batches, self.sampler), partial(self._draw, state), workers)

    def _draw(self, state: RunState, step: int) -> _Drawing:
        """The rows of this process in each micro-batch of a step."""
        clock, parts = state.objective.clock.at(step), state.settings.accumulate
        sets = self.sampler.sample(clock.epoch, clock.step - clock.epoch * clock.per_epoch)
        if parts == 1 and distributed.size() == 1:
            return _Drawing(clock.epoch, [sets])
        rows = max(len(d.ids) for d in sets.values())
        if rows < parts * distributed.size():
            raise DataError(
                f"a batch of {rows} rows cannot be split into {parts} micro-batches "
                f"on {distributed.size()} processes; raise --batch-size or lower --accumulate"
            )
        local_sets = {
            kind: SampledRows(distributed.share(d.ids), distributed.share(d.visits)) for kind, d in sets.items()
        }

        def micro(d: SampledRows, i: int) -> SampledRows:
            return d.part(slice(i * len(d.ids) // parts, (i + 1) * len(d.ids) // parts))

        return _Drawing(clock.epoch, [{kind: micro(d, i) for kind, d in local_sets.items()} for i in range(parts)])

    def evaluate(self, state: RunState) -> Evaluation:
        """Metrics and losses of the audit split; nothing without one."""
        data, model = self.data, state.model
        if not self.audit_rows:
            return Evaluation()
        outputs, y = task_outputs(model, data, data.audit, state.device), data.y[data.audit]
        return Evaluation(
            scored(outputs, y, data.task),
            row_losses(outputs, y, state.audit.measure),
            passes=Passes(evaluation=members(model) * self.audit_rows),
        )

    def callbacks(self) -> Sequence[Callback]:
        data = self.data
        probes = [LinearProbe(data)] if untaught(self.method) else []
        return [
            FreshStart(),
            DryRun(self),
            AuditedClasses(data),
            ValidatedThresholds(data),
            AuditNotice(self.audit_rows, len(data.labelled)),
            PoolNotice(data),
            LengthWarning(),
            *probes,
            Diversity(data),
            ChanceCheck(data),
            DriftMonitor(self, data),
        ]


class DryRun(Callback):
    """Checks one micro-batch without learning from it before training: a mismatch is refused there."""

    def __init__(self, task: NetworkTask) -> None:
        self.task = task

    def before_training(self, state: RunState) -> None:
        data = self.task.data
        dry_run(state.objective, self.task.batches(state)[0], data.shape, len(data.classes))
        rows = len(data.labelled) + len(data.unlabelled)
        check_memory(state.objective, rows, len(data.classes), state.device)


class LengthWarning(Callback):
    """Warns before training where the run is too short for the method."""

    def before_training(self, state: RunState) -> None:
        least = state.method.least
        if least and (warning := least.warning(state.objective.clock.length)):
            state.warn(f"warning: {warning}")


class PoolNotice(Callback):
    """Reports before training if the generations need more fresh unlabelled rows than there are."""

    def __init__(self, data: Data) -> None:
        self.data = data

    def before_training(self, state: RunState) -> None:
        if notice := pool_notice(state.method, len(self.data.unlabelled)):
            state.report(notice)


def pool_notice(method: Method, unlabelled: int) -> str | None:
    """A line if the generations of a method need more fresh rows than there are; None if there are enough.

    >>> from selfdistill.methods.generations import self_training
    >>> pool_notice(self_training(generations=4, fresh=50), 120)
    'the pool of 120 unlabelled rows is exhausted in generation 3 of 3: rows come again, with the labels they have'
    >>> pool_notice(self_training(generations=3, fresh=50), 120)
    """
    rounds = method.generations - 1
    for term in method.terms.values():
        teacher = term.teacher
        if isinstance(teacher, InheritedPseudoLabels) and teacher.fresh * rounds > unlabelled:
            labelling = "with the labels they have" if teacher.keep == "accumulate" else "labelled anew"
            generation = unlabelled // teacher.fresh + 1
            exhausted = f"the pool of {unlabelled} unlabelled rows is exhausted in generation {generation} of {rounds}"
            return f"{exhausted}: rows come again, {labelling}"
    return None
