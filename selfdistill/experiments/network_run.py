"""A run of a network: every choice made, trained with its control, judged on the test split, and asked of new rows.

Several models may predict as one: generations or peers together, and how much of their gain a single model keeps.
"""

from __future__ import annotations

import contextlib
import copy
import math
import operator
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core import distributed
from ..core.objective import Method, untaught
from ..core.regression import for_task
from ..data import tables, text
from ..data.dataset import Data, load, with_clean_rows, write_card
from ..data.sampler import Sampler
from ..data.splits import difference, draw
from ..errors import (
    DataError,
    NotFiniteError,
    RecipeError,
    SelfdistillError,
    SpaceError,
    VitalsError,
)
from ..evaluation import label_errors, linear_probe
from ..evaluation.audit import FEW
from ..evaluation.cross_scores import CROSS_FIT, CrossScores
from ..evaluation.importance import PREDICTIONS, ROWS, permutation_importance
from ..evaluation.label_next import Committee, require_unlabelled
from ..evaluation.linear_probe import by_neighbours
from ..evaluation.metrics import breakdown, reliability
from ..evaluation.predict import (
    COVERAGE,
    final_score,
    points,
    predict,
    predict_rows,
    scored,
    some_of,
    task_outputs,
)
from ..evaluation.predict import losses as row_losses
from ..io.run_record import Request
from ..io.tensors import read_tensors
from ..methods import cards
from ..methods.controls import plain
from ..methods.prior import CLASSES, VALUES, auto, expected, read_auto, simplicity
from ..methods.registry import AUTO, is_auto, read_method, recipes
from ..methods.validate import check_method
from ..models import image_encoder, registry, store, text_encoder, warm_start
from ..models.peers import MOST_MEMBERS, JointGenerations, PeerMean, PeerModels, final_model
from ..teachers import CachedTeacher
from ..teachers.cached import store_targets
from ..teachers.generations import ensemble_teacher
from ..training import budget, callbacks, reservoir, threads
from ..training.budget import most_trials
from ..training.comparison import ignore
from ..training.cross_fitting import all_labels, cross_examine, crossfit, every_label, train_without_fold
from ..training.fit import Result, fit, step_cost, time_step
from ..training.shortlist import WORDS, Choice, Trial, candidate_folder, copy_log, foreword, try_each, visible
from ..training.state import GenerationResult
from ..training.task_type import HeldOut, LabelledRows, Listeners, require_same_data
from ..views import TOGETHER
from . import tuning

if TYPE_CHECKING:
    from ..models.registry import Build


def ensemble_of(ready: NetworkRun, trained: Result) -> tuple[nn.Module, list[int]] | None:
    """What predicts by the mean of several models, and the generations it is made of; None where none does.

    Of a group of peers it is the group, with the head ``ensemble`` as its main one; of a method whose teacher are all
    earlier generations, these (the accepted ones, or all but the last).
    """
    if isinstance(trained.model, PeerModels) and not hasattr(trained.model, "jointly"):
        return EnsembleOutput(trained.model, ready.data.head), [trained.final_generation]
    teacher, last = ensemble_teacher(ready.method), len(trained.generations) - 1
    if teacher is None:
        return None
    numbers = [g for g, t in enumerate(trained.generations) if t.decision.get("accepted", True)]
    if teacher.at_last:  # the ensemble is what the last one learnt from
        numbers = list(range(min(last, ready.method.generations - 1)))
    if len(numbers) < 2:
        return None
    return PeerMean([_generation_model(trained, g) for g in numbers], ready.data.task == "regress").eval(), numbers


def _generation_model(trained: Result, generation: int) -> nn.Module:
    model = copy.deepcopy(trained.model)
    model.load_state_dict(trained.generations[generation].weights)
    return model


class EnsembleOutput(nn.Module):
    """A group of peers that answers for all of them: its head ``ensemble`` under the name of its main one."""

    def __init__(self, group: PeerModels, head: str) -> None:
        super().__init__()
        self.group, self.head = group, head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs = self.group(x)
        return {self.head: outputs["ensemble"]}


@torch.no_grad()
def score_ensemble(ready: NetworkRun, trained: Result, plain: dict[str, float] | None) -> dict[str, Any]:
    """The ensemble on the test split, beside the single model that was made with it; empty without one.

    Returns:
        ``generations``, or the number of ``peers``; ``test``: its metrics; ``distance`` and ``disagreement`` of its
        members (see `callbacks.pairwise`); ``single``: the metrics of the single model; with the control's metrics
        ``plain``, ``gain`` of the ensemble and ``kept``, the share of it that the single one keeps.
    """
    ensemble, data = ensemble_of(ready, trained), ready.data
    if ensemble is None:
        return {}
    whole, numbers = ensemble
    test = scored(task_outputs(whole, data, data.test), data.y[data.test], data.task)
    group = whole.group if isinstance(whole, EnsembleOutput) else whole
    outputs = callbacks.peer_outputs(group, data, data.test[: callbacks.MOST])
    single = _single(ready, trained, data)
    peers = len(group.members) if isinstance(group, PeerModels) else len(numbers)
    named: dict[str, Any] = {"peers": peers} if isinstance(whole, EnsembleOutput) else {"generations": numbers}
    result = {**named, "test": test, "single": single}
    result |= callbacks.pairwise(outputs, data.task) if outputs is not None else {}
    return result | (gain(test, single, plain) if plain else {})


def _single(ready: NetworkRun, trained: Result, data: Data) -> dict[str, float]:
    """The single model: a group's final model, or the last generation."""
    number = trained.final_generation if isinstance(trained.model, PeerModels) else len(trained.generations) - 1
    return scored(
        task_outputs(final_model(_generation_model(trained, number)), data, data.test), data.y[data.test], data.task
    )


def gain(ensemble: dict[str, float], single: dict[str, float], plain: dict[str, float]) -> dict[str, float | None]:
    """The ensemble's gain over plain, and the share that the single model keeps; None where there is no gain.

    In accuracy; of values in the root of the squared error, which falls.

    >>> gain({"accuracy": 0.75}, {"accuracy": 0.625}, {"accuracy": 0.5})
    {'gain': 0.25, 'kept': 0.5}
    """
    measure, sign = ("accuracy", 1.0) if "accuracy" in ensemble else ("rmse", -1.0)
    whole, part = (sign * (one[measure] - plain[measure]) for one in (ensemble, single))
    return {"gain": whole, "kept": part / whole if whole > 0 else None}


def test_breakdown(data: Data, outputs: Tensor) -> dict[str, Any]:
    """The answers of the final model on the test rows, class by class and row by row."""
    names = [data.row_names.name(row) for row in data.test.tolist()]
    return breakdown(outputs, data.y[data.test], data.classes, names, data.test)


def with_ensemble(result: dict[str, Any], ready: NetworkRun, trained: Result) -> dict[str, Any]:
    """The result of a run with the figures of the ensemble, which is the final model under `JointGenerations`."""
    figures = score_ensemble(ready, trained, result.get("plain", {}).get("end"))
    if not figures:
        return result
    joint = joint_model(ready, trained) if result["chosen"] != "plain" else None
    if joint is None:
        return {**result, "ensemble": figures}
    shown = test_breakdown(ready.data, task_outputs(joint[0], ready.data, ready.data.test))
    return {**result, "ensemble": figures, "test": figures["test"], "breakdown": shown}


def joint_model(ready: NetworkRun, trained: Result) -> tuple[nn.Module, Build] | None:
    """The final model of a method whose generations predict `JointGenerations`, and what builds it; None for others.

    Raises:
        RecipeError: more of them than a model folder can name.
    """
    ensemble = ensemble_of(ready, trained) if isinstance(ready.method.wrap_model, JointGenerations) else None
    if ensemble is None:
        return None
    whole, numbers = ensemble
    if len(numbers) > MOST_MEMBERS:
        raise RecipeError(
            f"{len(numbers)} generations cannot be combined in one final model; train at most {MOST_MEMBERS}"
        )
    values = "_values" if ready.data.task == "regress" else ""
    return whole, ready.build.wrapped(f"mean{len(numbers)}{values}", 1)


LEAST_TIMED = 20  # steps of a run that is timed beforehand


STEPS = 2000  # what a run takes by default, within 3 to 100 epochs


#: `--effort quick`: 1,200 images of 32 x 32 take about 40 s of one core
QUICK, QUICK_CNN, QUICK_STEPS = "quick", "cnn(width=24, stem=2)", 400


@dataclass
class NetworkRun:
    """A run of a network with every choice made."""

    request: Request
    data: Data
    method: Method
    expression: str
    build: registry.Build
    settings: dict[str, Any]
    crossed: CrossScores | None = field(default=None, kw_only=True)  # in place of scores on a test split

    @property
    def stored(self) -> Mapping[str, Tensor]:
        """The rows of an earlier run that this one goes on from; of a run of its own none."""
        return {}

    @property
    def note(self) -> str:
        """What a person should know of the data."""
        return self.data.note

    @property
    def model_name(self) -> str:
        """The model as records name it."""
        frozen = self.data.embedding
        return str(self.build) if frozen is None else f"{dict(frozen.model.options)['name']}, frozen, with {self.build}"

    def title(self, generation: int) -> str:
        """The name of the final model in the report."""
        return f"generation {generation}, the method's best"

    def labelled_rows(self) -> LabelledRows:
        """All labelled rows.

        Raises:
            DataError: there are none.
        """
        data = all_labels(self.data)
        if data.task == "features":
            raise DataError(
                f"{data.name}: no row has a label, and --test {CROSS_FIT} scores labelled rows; leave it out"
            )
        ids = difference(data.labelled, data.guessed)  # labels that a model gave judge none
        groups = None if data.groups is None else data.groups[ids]
        return LabelledRows(ids, data.y[ids], data.classes, groups)

    def without(self, held: Tensor) -> NetworkRun:
        """The run on the other rows, of which as large a share validates. Inputs stay scaled by all rows."""
        data, request = self.data, replace(self.request, test=None, refit=None, folds=None)
        rest = difference(all_labels(data).labelled, held)
        count = round(len(rest) * len(data.audit) / (len(rest) + len(held)))
        audit = draw(
            difference(rest, data.guessed),
            data.y,
            count,
            (request.seed, "fold", int(held[0])),
            reserve=1,
            groups=data.groups,
        )
        clean, labelled = difference(data.clean, held), difference(rest, audit)
        cut = replace(data, labelled=labelled, audit=difference(audit, clean), test=held, clean=clean)
        if data.task == "regress":
            y = data.y[labelled].double()
            cut = replace(cut, center=float(y.mean()), scale=float(y.std(correction=0)) or 1.0)
        return planned(request, cut)

    def answers(self, folder: Path) -> Tensor:
        """What the final model in a folder predicts for the test rows."""
        outputs = predict_rows(store.load(folder / "model"), self.data, self.data.test, self.data.head)
        return outputs if self.data.classes else outputs[:, 0]

    def scored_by(self, scores: CrossScores) -> NetworkRun:
        """The run whose final model learns from all labelled rows."""
        request = replace(self.request, refit="all", folds=None)
        _refuse_following(request, self.method)
        return replace(self, request=request, crossed=scores)

    def threads(self) -> int:
        """Threads for this model and batch; where the model does not run, the dry run will say why."""
        rows = torch.cat([self.data.labelled, self.data.unlabelled])
        batch = min(self.settings["batch_size"], len(rows))
        x = self.data.rows(rows[:1]).repeat(batch, *[1] * len(self.data.shape))
        try:
            return threads.for_model(self.build(), x)
        except Exception:  # another's code may raise anything
            return torch.get_num_threads()

    def planned_passes(self) -> float:
        """About how many sample passes the training takes, over all its generations."""
        steps = total_steps(self) * self.method.generations
        rows = float(steps * self.settings["batch_size"])
        return 3 * rows * cards.cost(self.method)["of_plain"]

    def foretell(self, passes: float, tell: Callable[[str], None]) -> None:
        """Say before the start how long so many sample passes will take, if that is long and no budget bounds it."""
        batch = int(self.settings["batch_size"])
        steps = passes / (3 * batch)
        if budget.active() is not None or distributed.size() > 1 or steps < LEAST_TIMED:
            return
        rows = torch.cat([self.data.labelled, self.data.unlabelled])[:batch]
        step = time_step(self.build, self.data.rows(rows), self.request.device)
        budget.foretell(steps * step, "give --budget 2min, a smaller --steps or a smaller --model", tell)

    def train(self, folder: Path, listeners: Listeners) -> dict[str, Any]:
        """The folds of the audit, if any, the method, then its control; each goes on from its own checkpoints."""
        request = self.request
        if self.data.preprocessor is not None:
            tables.skops()  # which the model is saved with, after hours perhaps
        taught = len(self.data.labelled) > 0
        beside = request.control and request.effort != QUICK and self.method != plain() and taught
        ready, folds = self, None
        budget.expect(1 + (request.audit_folds or 0) + bool(request.refit), self._control_cost if beside else None)
        control_passes = 3.0 * total_steps(self) * self.method.generations * self.settings["batch_size"] * beside
        self.foretell((1 + (request.audit_folds or 0)) * (self.planned_passes() + control_passes), listeners.tell)
        if request.audit_folds is not None:
            folds = crossfit(
                self.build,
                self.data,
                self.method,
                request.audit_folds,
                folder / "folds",
                control=beside,
                device=request.device,
                make=listeners.progress,
                warn=listeners.warn,
                tell=listeners.tell,
                **self.settings,
            )
            ready = replace(
                self,
                data=all_labels(self.data),
                method=replace(self.method, generations=folds.generations),
                settings={**self.settings, "audit": "off"},
            )
        trained = fit(
            ready.build,
            ready.data,
            ready.method,
            out=folder,
            resume=True,
            device=request.device,
            progress=listeners.progress(ready.expression),
            warn=listeners.warn,
            tell=listeners.tell,
            **ready.settings,
        )
        trained, interpolation = ready._interpolated(trained, listeners)
        control = ready._train_control(folder / "control", trained.steps, listeners) if beside else None
        for training in filter(None, (trained, control)):
            training.model.cpu()
        preferred = folds.plain if folds else control is not None and _better(control, trained)
        preferred = preferred and not untaught(ready.method)  # features were asked for, whoever classifies better
        result = {**ready._result(folder, trained, control, preferred), **interpolation}
        if folds:
            result["folds"] = folds.to_json()
        final = control if control and preferred else trained
        if request.refit:
            final = ready._refit(folder, final, plain() if preferred else ready.method, result, listeners)
        if distributed.rank() == 0:
            if taught:
                result["label_errors"] = ready.report_label_errors(folder, trained, control, preferred, listeners)
            ready._save_final_model(folder / "model", final, result)
        return result

    def _interpolated(self, trained: Result, listeners: Listeners) -> tuple[Result, dict[str, Any]]:
        """The training between its start and its end, of a pretrained model of which all weights learnt."""
        if not isinstance(self.build, tuning.FullBuild):
            return trained, {}
        trained.model.cpu()
        found = tuning.interpolate(self.build, trained, self.data)
        if found is None:
            return trained, {}
        listeners.tell(
            f"the final model lies at {found[1]['coefficient']:g} of the way from the head-first start to the end of "
            "training, by validation rows"
        )
        return found[0], {"interpolation": found[1]}

    def report_label_errors(
        self, folder: Path, trained: Result, control: Result | None, preferred: bool, listeners: Listeners
    ) -> dict[str, Any]:
        """Examine every labelled row, write its score, and return what run.json tells of label errors."""
        data = self.data
        if self.crossed is not None:
            examined = self.crossed.examination(data.y, data.classes, data.row_names, data.votes)
            tested = {"final": self.crossed.outputs}
            return label_errors.report_errors(examined, data.noisy, folder, self.request.raw_csv, tested)
        models = {"final": trained, **({"plain": control} if control else {})}
        if preferred and control:
            models = {"final": control, "plain": control}
        tested = {name: task_outputs(final_model(one.model), data, data.test) for name, one in models.items()}
        joint = None if preferred else joint_model(self, trained)
        if joint is not None:
            tested["final"] = task_outputs(joint[0], data, data.test)
        if self.request.folds is None:
            examined = label_errors.examine(trained, data)
        else:
            with budget.following():
                found = cross_examine(
                    self.build, data, self.method, self.request.folds, folder / "label_folds",
                    make=listeners.progress, warn=listeners.warn, device=self.request.device, **self.settings,
                )  # fmt: skip
            examined = label_errors.examination(data, found.ids, found.held, "folds", found.memory)
            shutil.rmtree(folder / "label_folds", ignore_errors=True)
        return label_errors.report_errors(examined, data.noisy, folder, self.request.raw_csv, tested)

    def _train_control(self, folder: Path, steps: int, listeners: Listeners) -> Result:
        """The plain model, trained for as many steps."""
        settings = {**self.settings, "steps": steps, "batch_size": batch_size_for(self.data, plain())}
        if self.request.batch_size:
            settings["batch_size"] = min(self.request.batch_size, len(self.data.labelled))
        with budget.following():
            return fit(
                self.build,
                self.data,
                plain(),
                out=folder,
                resume=True,
                device=self.request.device,
                progress=listeners.progress("plain(), the baseline"),
                warn=listeners.warn,
                **settings,
            )

    def _refit(
        self,
        folder: Path,
        trained: Result,
        method: Method,
        result: dict[str, Any],
        listeners: Listeners,
        share: float = 1.0,
    ) -> Result:
        """Train once more on every labelled row, for as many passes over each; ``share`` is that of the epochs."""
        data = every_label(self.data)
        longer = share * len(data.labelled) / len(self.data.labelled)
        steps = max(1, round(longer * trained.steps / len(trained.generations)))
        result["refit"] = {
            "rows": len(data.labelled),
            "about": f"the final model was trained again on all {len(data.labelled):,} labelled rows; the scores are "
            + ("cross-fitted" if self.crossed else "of the model before, which learnt from the training split alone"),
        }
        again = fit(
            self.build,
            data,
            replace(method, generations=trained.final_generation + 1),
            out=folder / "refit",
            resume=True,
            device=self.request.device,
            progress=listeners.progress("the final model, on all labelled rows"),
            warn=listeners.warn,
            tell=listeners.tell,
            **{**self.settings, "audit": "off", "steps": steps},
        )
        again.model.cpu()
        return again

    def held_out(self, fold: int, folds: int, folder: Path, listeners: Listeners) -> HeldOut:
        """Train on all labelled rows but those of a fold, and score these."""
        loss, trained = train_without_fold(
            self.build,
            self.data,
            self.method,
            fold,
            folds,
            folder,
            resume=True,
            device=self.request.device,
            progress=listeners.progress(f"{self.expression}, fold {fold + 1}"),
            warn=ignore,
            **self.settings,
        )
        return HeldOut(loss, trained.passes.cost(), trained.seconds)

    def _control_cost(self, meter: budget.Meter) -> budget.Expense:
        """The cost of a step of the plain model, which trains for as many steps as the method."""
        settings = {**self.settings, "batch_size": batch_size_for(self.data, plain())}
        return step_cost(meter, self.build, self.data, plain(), self.request.device, **settings)

    def _result(self, folder: Path, trained: Result, control: Result | None, preferred: bool) -> dict[str, Any]:
        """Every generation and the control on the test split: the only place that reads it."""
        data, test = self.data, self.data.test
        scratch = final_model(trained.model)

        def tested(weights: dict[str, Tensor], model: nn.Module) -> dict[str, float]:
            model.load_state_dict(weights)
            return final_score(final_model(model), data)

        def judged(number: int, t: GenerationResult) -> dict[str, Any]:
            facts = {"generation": number, "start": t.start, "audit": t.audit, "best_epoch": t.best_epoch}
            return {**facts, "decision": t.decision, "drift": t.drift, "test": tested(t.weights, trained.model)}

        generations = [judged(number, t) for number, t in enumerate(trained.generations)]
        against, name = (trained, "method") if control is None and self.method == plain() else (control, "control")
        result: dict[str, Any] = {
            "run": str(folder),
            "method": self.expression,
            "model": self.model_name,
            "parameters": sum(p.numel() for p in scratch.parameters()),
            "data": data.describe(),
            "seed": self.request.seed,
            "final_generation": trained.final_generation,
            "chosen": "plain" if preferred else "method",
            "test": generations[trained.final_generation]["test"],
            "generations": generations,
            "starts_differ": len({t.start for t in trained.generations}) == len(trained.generations),
            "steps": trained.steps,
            "seconds": round(trained.seconds, 2),
            "passes": trained.passes._asdict(),
        }
        weights = trained.generations[trained.final_generation].weights
        shown_models = {self.title(trained.final_generation): (trained, weights)}
        if against is not None:
            last = against.generations[-1]
            shown_models = {"plain": (against, last.weights), **shown_models}
            result["plain"] = {
                "steps": against.steps,
                "seconds": round(against.seconds, 2),
                "passes": against.passes._asdict(),
                "end": tested(last.weights, against.model),
                "early_stopped": {"epoch": last.best_epoch, **tested(last.best, against.model)},
                "from": name,
            }
            if preferred:
                result["test"] = result["plain"]["end"]
        result |= self._drawn(shown_models, preferred)
        result |= self._without_copies(shown_models, preferred)
        for one in filter(None, (trained, control)):
            one.model.load_state_dict(one.generations[one.final_generation].weights)
        if untaught(self.method):
            result |= {"probed": True, **({"nearest": by_neighbours(trained.model, data)} if len(test) else {})}
        if self.crossed is not None:
            return self.crossed.result(result, data.classes, data.row_names)
        return with_ensemble(result, self, trained)

    def _drawn(self, models: dict[str, tuple[Result, dict[str, Tensor]]], preferred: bool) -> dict[str, Any]:
        """What a report draws of the answers of the shown models on the test rows."""
        data, test, drawn = self.data, self.data.test, dict[str, Any]()
        found: dict[str, Any] = {"reliability" if data.task == "classify" else "predicted": drawn}
        for name, (one, weights) in models.items() if len(test) else ():
            one.model.load_state_dict(weights)
            outputs = task_outputs(final_model(one.model), data, test)
            drawn[name] = reliability(outputs, data.y[test]) if data.classes else points(outputs, data.y[test])
            if (name == "plain") == preferred or len(models) == 1:
                found |= {"breakdown": test_breakdown(data, outputs), **self._importance(final_model(one.model))}
        return found

    def _importance(self, model: nn.Module) -> dict[str, Any]:
        """By how much the test score falls where a column is shuffled; of tables alone, and where it costs little."""
        data, rows = self.data, some_of(self.data.test, ROWS)
        if data.preprocessor is None or data.kind != "table" or self.request.budget is not None:
            return {}
        columns = tables.feature_columns(data.preprocessor)
        repeats, x = min(5, PREDICTIONS // len(set(columns))), data.rows(rows)

        def score(inputs: Tensor) -> float:
            outputs = predict(model, inputs, data.head)
            outputs = outputs if data.classes else data.in_units(outputs)
            figures = scored(outputs, data.y[rows], data.task)
            return figures["accuracy"] if data.classes else -figures["rmse"]

        if not repeats:
            return {}
        return {"importance": permutation_importance(score, x, columns, repeats, self.request.seed)}

    def _without_copies(self, models: dict[str, tuple[Result, dict[str, Tensor]]], preferred: bool) -> dict[str, Any]:
        """The scores of the shown models on the test rows that are no copies of others; empty where no row is one."""
        data = self.data
        rest = replace(data, test=difference(data.test, data.copies.across))
        if len(rest.test) in (0, len(data.test)):
            return {}
        scores = []
        for trained, weights in models.values():
            trained.model.load_state_dict(weights)
            scores.append(final_score(final_model(trained.model), rest))
        plain = {"plain": scores[0]} if len(scores) > 1 else {}
        return {"without_copies": {"rows": len(rest.test), "test": scores[0 if preferred else -1], **plain}}

    def _save_final_model(self, folder: Path, trained: Result, result: dict[str, Any]) -> None:
        """Write the final model, what builds it, and the card of its data."""
        model = final_model(trained.model)
        plainly = result["chosen"] == "plain"
        wrapped = self.method.wrap_model
        build = self.build if plainly or wrapped is None else wrapped.single(self.build)
        facts: dict[str, Any] = {"classes": list(self.data.classes)}
        facts["method"] = "plain()" if plainly else self.expression
        if not plainly and (joint := joint_model(self, trained)):
            model, build = joint
        if self.data.task == "regress":
            build = replace(build, scale=(self.data.center, self.data.scale))
            half = result["test"].get("width")
            facts |= {"half": half / 2, "coverage": COVERAGE} if half else {}
        if self.data.embedding is not None:
            model, build = tuning.with_body(self.data.embedding, model, build)
        store.save(model, folder, build, facts)
        write_card(self.data, folder)
        room = reservoir.ROWS if self.request.memory is None else self.request.memory
        teachers = len(self.data.labelled) or self.stored
        if room and teachers and self.data.task == "classify" and self.data.kind in ("image", "table"):
            rows = reservoir.sample_rows(self.data, model, room, self.request.seed, self.stored)
            reservoir.save_sample(rows, folder.parent)


# ---- auto() --------------------------------------------------------------------------------------------------------

STOPPED = "plain(), stopped early"
AUDITING = ("audit_level", "audit_delta", "audit_measure", "audit_epochs", "patience")  # options of generations


@dataclass
class AutoRun(NetworkRun):
    """A run that trains a shortlist of recipes at full length and keeps the one that validation rows choose.

    ``candidates`` are runs with every choice made, that of plain() first; the chosen one is trained again, ``longer``
    times as long. ``apart`` are the validation rows, by position, that score early stopping and do not choose its
    epoch; ``left_out`` says what is not tried, and why.
    """

    candidates: Sequence[NetworkRun] = ()
    longer: int = 1
    apart: Sequence[int] = ()
    left_out: Sequence[str] = ()

    @property
    def measure(self) -> str:
        """The measure that chooses."""
        return "mse" if self.data.task == "regress" else "accuracy"

    def planned_passes(self) -> float:
        """About how many sample passes all candidates take, and the chosen one again."""
        costs = [candidate.planned_passes() for candidate in self.candidates]
        return sum(costs) + (self.longer * statistics.fmean(costs) if self.longer > 1 else 0.0)

    @property
    def note(self) -> str:
        """What a person should know of the data, what will be tried, what it costs, and how sure the choice can be."""
        whole, alone = self.planned_passes(), self.candidates[0].planned_passes()
        cost = f"about {whole:,.0f} sample passes, {whole / alone:.1f} times those of plain()"
        chooses = f"{WORDS[self.measure]}, {visible(len(self.data.audit), self.measure)}"
        names = [candidate.expression for candidate in self.candidates]
        lines = [*filter(None, [self.data.note])]
        lines += foreword(names, f"of {total_steps(self):,} steps each, {cost}", chooses)
        if self.longer > 1:
            lines.append(f"auto(): the chosen recipe is trained again, {self.longer} times as long")
        return "\n".join(lines + [f"auto(): not tried: {line}" for line in self.left_out])

    def train(self, folder: Path, listeners: Listeners) -> dict[str, Any]:
        """Train every candidate from wherever it was cut, choose, and read the test split, once."""
        if self.data.preprocessor is not None:
            tables.skops()
        self.candidates = self._affordable()
        budget.expect(len(self.candidates) + (self.longer if self.longer > 1 else 0) + bool(self.request.refit))
        self.foretell(self.planned_passes(), listeners.tell)

        positions, whole = count(1), len(self.candidates) + (self.longer > 1)

        def fit_candidate(number: int) -> Result:
            ready = self.candidates[number]
            title = f"candidate {next(positions)} of {whole}, {ready.expression}"
            out = folder / candidate_folder(number, ready.expression)
            return fit(
                ready.build,
                ready.data,
                ready.method,
                out=out,
                resume=True,
                device=self.request.device,
                progress=listeners.progress(title),
                warn=listeners.warn_of(ready.expression),
                **ready.settings,
            )

        choice = self.choose(fit_candidate, listeners.tell)
        ready, trained, control = self.chosen(choice)
        for training in filter(None, (trained, control)):
            training.model.cpu()
        result = {
            **ready._result(folder, trained, control, False),
            **choice.spent(),
            "auto": choice.to_json(self.measure),
        }
        final = trained
        if self.request.refit:
            last = trained.generations[-1]
            share = (last.best_epoch + 1) / len(trained.history) if choice.winner.rows is not None else 1.0
            final = ready._refit(folder, trained, ready.method, result, listeners, share)
        if distributed.rank() == 0:
            result["label_errors"] = ready.report_label_errors(folder, trained, control, False, listeners)
            ready._save_final_model(folder / "model", final, result)
            self._show_logs(folder, ready.expression)
        return result

    def _affordable(self) -> Sequence[NetworkRun]:
        """The candidates of which each may take at least half of its steps; the first two at the least.

        A short training sees no memorised labels, so a small budget tries fewer candidates before it shortens them.
        """
        meter, whole = budget.active(), 0.0
        if meter is None:
            return self.candidates
        if "candidates" not in meter.steps:
            step = self.candidates[0]._control_cost(meter)
            left, each = meter.left(), step.seconds / max(1.0, step.passes) / budget.MARGIN
            for number, one in enumerate(self.candidates, 1):
                whole += one.planned_passes()
                if number < 3 or (whole <= 2 * left.passes and whole * each <= 2 * left.seconds):
                    meter.steps["candidates"] = number
        number = meter.steps["candidates"]
        if number < len(self.candidates):
            meter.cut(f"{number} candidates in place of {len(self.candidates)}: no more fit at half of their steps")
        return self.candidates[:number]

    def choose(self, train: Callable[[int], Result], tell: Callable[[str], None] = ignore) -> Choice[Result]:
        """Train the candidates, each by its number, and choose."""

        history: list[dict[str, Any]] = []

        def trials(number: int) -> tuple[list[Trial], Result]:
            trained = train(number)
            history.extend(trained.history if number == 0 else [])
            return self.trials(self.candidates[number], trained), trained

        names = [one.expression for one in self.candidates]

        def follow(tried: Sequence[Trial], rest: Sequence[int]) -> int:
            """The recipe that the prior expects most of, by what the trainings so far tell."""
            gains = expected(self.features(tried, history))
            return max(rest, key=lambda number: gains.get(names[number], -math.inf))

        choice = try_each(names, trials, simplicity, tell, follow)
        choice.left_out[:0] = self.left_out
        self._extend(choice, train, tell)
        return choice

    def _extend(self, choice: Choice[Result], train: Callable[[int], Result], tell: Callable[[str], None]) -> None:
        """Train the chosen recipe again, for longer, where it is not early stopping and a budget has room for it.

        A short training finds the recipe; a longer one of it is what the controls get that have the whole price.
        """
        winner, meter = choice.winner, budget.active()
        if self.longer < 2 or winner.rows is not None:
            return
        budget.expect(1 + bool(self.request.refit))
        if meter is not None:
            twice = budget.Expense(2 * winner.seconds, 2 * winner.passes.cost())
            if not meter.steps.setdefault("longer", int(meter.affords(twice))):
                meter.cut(f"no longer training of {winner.name}: less than twice its cost is left")
                return
        ready = candidate(self, winner.name, self.longer)
        assert ready is not None  # it was a candidate
        ready.expression = f"{winner.name}, {self.longer} times as long"
        self.candidates = [*self.candidates, ready]
        try:
            trained = train(len(self.candidates) - 1)
        except (NotFiniteError, VitalsError) as error:
            choice.left_out.append(f"{ready.expression}: {error}")
            tell(f"auto(): {ready.expression} is left out: {error}")
            return
        choice.extend(self.trials(ready, trained)[0], trained)
        tell(f"auto(): {ready.expression}, is trained")

    def features(self, trials: Sequence[Trial], history: Sequence[dict[str, Any]]) -> dict[str, float]:
        """What the prior knows of the setting; ``history`` is that of plain(), the first trial."""
        data = self.data
        labelled, unlabelled = len(data.labelled), len(data.unlabelled)
        known = {
            "rows": math.log10(labelled),
            "classes": math.log10(data.outputs),
            "labelled": labelled / (labelled + unlabelled),
            "image": float(data.kind == "image"),
            "epochs": math.log10(max(1.0, total_steps(self) * self.settings["batch_size"] / labelled)),
        }
        scores = [line["audit"]["accuracy"] for line in history if "accuracy" in line.get("audit", {})]
        if scores:
            known |= {"error": 1 - max(scores), "memorised": max(scores) - scores[-1]}
        whole = [trial.losses for trial in trials if trial.rows is None][:2]
        if len(whole) == 2:
            known["agreement"] = sum(map(operator.eq, *whole)) / len(data.audit)
        return known

    def trials(self, ready: NetworkRun, trained: Result) -> list[Trial]:
        """The last weights on all validation rows; of plain() also its best epoch, on those that are kept apart."""

        def losses(one: Result, rows: Tensor) -> list[float]:
            device = next(one.model.parameters()).device
            return row_losses(final_model(one.model), self.data, rows, self.measure, device)

        rows = self.data.audit
        trials = [Trial(ready.expression, losses(trained, rows), trained.steps, trained.passes, trained.seconds)]
        if ready.method == plain() and len(self.apart):
            apart = losses(best_epoch(trained), rows[list(self.apart)])
            trials.append(Trial(STOPPED, apart, rows=self.apart))
        return trials

    def chosen(self, choice: Choice[Result]) -> tuple[NetworkRun, Result, Result | None]:
        """The run of the chosen candidate, its training, and that of plain(), where this is another one."""
        winner, first = choice.winner, choice.kept[0]
        stopped = winner.rows is not None
        ready = self.candidates[0 if stopped else [one.expression for one in self.candidates].index(winner.name)]
        trained = best_epoch(first) if stopped else choice.kept[choice.chosen]
        ready = replace(ready, expression=winner.name, data=self.data, request=self.request, crossed=self.crossed)
        return ready, trained, None if choice.chosen == 0 else first

    def _show_logs(self, folder: Path, chosen: str) -> None:
        """Show the metrics of the chosen training as those of the run, and those of plain() as its control."""
        names = [one.expression for one in self.candidates]
        number = names.index(chosen) if chosen in names else 0  # early stopping is of the first
        copy_log(folder / candidate_folder(number, names[number]), folder)
        if chosen != names[0]:
            copy_log(folder / candidate_folder(0, names[0]), folder / "control")


def best_epoch(trained: Result) -> Result:
    """A training of one generation with the weights of its best epoch in the place of its last ones."""
    model, last = copy.deepcopy(trained.model), trained.generations[-1]
    model.load_state_dict(last.best)
    return replace(trained, model=model, generations=[replace(last, weights=last.best)])


def shortlisted(ready: NetworkRun) -> AutoRun:
    """The run of ``auto()``, of a run that is prepared for plain().

    Every candidate takes as many steps in all as plain(); no generation is audited, since the choice among candidates
    spends the validation rows.

    Raises:
        DataError: there are no validation rows, or an option is for the audit of generations.
    """
    request, data = ready.request, ready.data
    audited = [name for name in AUDITING if dict(request.training).get(name) is not None]
    audited += ["audit"] * (dict(request.training).get("audit") not in (None, "off"))
    audited += ["audit_folds"] * (request.audit_folds is not None)
    if audited:
        raise DataError(
            f"auto() chooses on the validation rows and audits no generations; leave --{audited[0].replace('_', '-')} "
            "out, or give --method 'elr()' or another recipe"
        )
    if not len(data.audit):
        raise DataError(f"auto() chooses on validation rows, and {data.name} has none; give --method 'elr()'")
    halves, first = apart_rows(data, request.seed), data
    if halves:
        kept = torch.tensor(halves)
        first = replace(data, audit=difference(data.audit, data.audit[kept]))
    candidates, left_out = [], []
    if not halves:
        left_out.append(f"{STOPPED}: {len(data.audit)} validation rows are too few to choose an epoch and score it too")
    for expression in VALUES if data.task == "regress" else CLASSES:
        try:
            one = candidate(ready, expression)
        except SelfdistillError as error:
            left_out.append(f"{expression}: {error}")
            continue
        if one is not None:
            candidates.append(one)
    candidates[0].data = first
    chooser = read_auto(ready.expression)
    run = AutoRun(**vars(ready), candidates=candidates, longer=chooser.longer, apart=halves, left_out=left_out)
    gains = expected(run.features((), ()))
    rest = sorted(candidates[1:], key=lambda one: -gains.get(one.expression, -math.inf))
    listed = [candidates[0], *rest][: chooser.most]
    run.candidates = listed[: most_trials(len(listed), request.explore)]
    left_out += [f"{one.expression}: --explore {request.explore:g}" for one in listed[len(run.candidates) :]]
    return run


def candidate(ready: NetworkRun, expression: str, longer: int = 1) -> NetworkRun | None:
    """The run of a recipe for as many steps in all as one generation of another run, or ``longer`` times as many; None
    without rows that it needs.

    Raises:
        SelfdistillError: the recipe does not fit the data.
    """
    method, data = read_method(expression), ready.data
    if method.views.need_unlabelled() and not len(data.unlabelled):
        return None
    check_method(for_task(method, data.task), data)
    settings = {
        **ready.settings,
        "audit": "off",
        "steps": max(1, round(longer * total_steps(ready) / method.generations)),
    }
    settings["batch_size"] = ready.request.batch_size or batch_size_for(data, method)
    return NetworkRun(ready.request, data, method, expression, ready.build, settings)


def apart_rows(data: Data, seed: int) -> list[int]:
    """The positions of half of the validation rows, kept apart to score early stopping; none where they are few."""
    if len(data.audit) < 2 * FEW:
        return []
    half = draw(data.audit, data.y, len(data.audit) // 2, (seed, "early stopping"), groups=data.groups)
    return torch.nonzero(torch.isin(data.audit, half)).squeeze(1).tolist()


def total_steps(ready: NetworkRun) -> int:
    """Steps of one generation of a run."""
    if ready.settings["steps"]:
        return int(ready.settings["steps"])
    sampler = Sampler(ready.data, ready.method.views, ready.settings["batch_size"], seed=0)
    return int(ready.settings["epochs"]) * sampler.steps_per_epoch


# ---- choices -------------------------------------------------------------------------------------------------------


def prepare(request: Request) -> NetworkRun:
    """Load the data and fill in what the request leaves open."""
    spec, reader = request.model, None
    if request.text is not None:
        spec, reader = request.model or text_encoder.USUAL, text.reader(request.model, request.text)
    elif spec is not None and _reads_texts(spec):
        raise DataError(f"the model {spec} reads text; say which column has it (--text COL), or give another --model")
    chooses = is_auto(request.method)
    bare = request.method is not None and not chooses and reader is None and untaught(_read(request.method))
    data = load(
        request.data,
        target=request.target,
        unlabelled=request.unlabelled,
        labels=request.labels,
        decisions=request.decisions,
        raw_csv=request.raw_csv,
        label_noise=request.label_noise,
        image_size=tuning.image_size(request),
        seed=request.seed,
        reader=reader,
        labelled=not bare,
        columns=dict(request.columns),
        groups=request.groups,
        time=request.time,
        tasks=request.tasks if isinstance(request.tasks, str) else None,
        test=0.0 if request.test == CROSS_FIT else request.test,
        audit=request.validation,
        annotators=request.annotators,
    )
    if data.task == "features":
        _refuse_judging(request, data)
    return planned(request, data)


def planned(request: Request, data: Data) -> NetworkRun:
    """The run of a request on data that were loaded: it fills in what is open."""
    reader, chooses = data.reader, is_auto(request.method)
    spec = request.model or (text_encoder.USUAL if reader else None)
    data = data.with_augmentation(request.augment)
    if request.init and reader:
        raise DataError("--init is for networks of images and tables; a reader of texts begins with --model FOLDER")
    quick = request.effort == QUICK and not request.tasks
    usual_method = "auto()" if not quick else "elr()" if data.task == "classify" else "mean_teacher(weight=1.0)"
    expression = request.method or ("der_pp()" if request.tasks else usual_method)
    chooses = is_auto(expression)
    method = plain() if chooses else _read(expression)
    if request.targets is not None:
        method = _stored(method, request, data)
    _refuse_following(request, method)
    data = with_clean_rows(data, method.views, request.seed)
    small = data.kind == "table" or max(data.shape[-2:]) < 16
    spec = spec if spec is not None else warm_start.spec_of(request.init) if request.init else None
    build = registry.parse(
        spec if spec is not None else "mlp" if small else QUICK_CNN if quick else "cnn", data.shape, data.outputs
    )
    if request.init:
        build = warm_start.warm_started(build, request.init)
    usual = text.SETTINGS if reader else {}
    depth = tuning.depth_of(request, build)
    if depth == tuning.FULL:
        build, usual = tuning.full(data, build, request), tuning.FULL_SETTINGS
    elif depth == tuning.HEAD:
        data, build = tuning.frozen(data, build, tried_methods(method, data.task, chooses), request.device)
        usual = tuning.head_settings(len(data.labelled))
    settings = {**usual, **dict(request.training), "seed": request.seed, "steps": request.steps}
    settings["batch_size"] = request.batch_size or batch_size_for(data, method)
    if (quick or depth == tuning.FULL) and not (request.steps or request.epochs):
        settings["steps"] = QUICK_STEPS if quick else tuning.FULL_STEPS
    settings["epochs"] = request.epochs or usual_epochs(data, method, settings["batch_size"])
    ready = NetworkRun(request, data, method, expression, build, settings)
    return shortlisted(ready) if chooses and not request.tasks else ready


def _reads_texts(spec: str) -> bool:
    """Whether a model's text names a pretrained encoder of texts."""
    if spec.partition("(")[0].strip() in registry.MODELS or image_encoder.named(spec) is not None:
        return False
    return text_encoder.named(spec) is not None


def tried_methods(method: Method, task: str, chooses: bool) -> list[Method]:
    """The method of a run; all that ``auto()`` may choose from, where it chooses."""
    return [method, *(read_method(one) for one in (VALUES if task == "regress" else CLASSES))] if chooses else [method]


def _read(expression: str) -> Method:
    """A recipe's method; a message about a name that is none has ``auto`` among the recipes."""
    return read_method(expression, {**recipes(), AUTO: auto})


def _stored(method: Method, request: Request, data: Data) -> Method:
    """The method with its outside teachers' answers on disk.

    Raises:
        RecipeError: there is no such teacher, or what it sees changes, or nothing is to be kept.
    """
    if dict(request.training).get("cache") is False:
        raise RecipeError("--targets stores a teacher's outputs and --no-cache discards them; leave one of them out")
    method = store_targets(method, str(request.targets))
    for term in method.terms.values():
        teacher = term.teacher
        if not isinstance(teacher, CachedTeacher):
            continue
        name = teacher.view or term.view
        look = next((one for one in method.views.views if one.name == name), None)
        how = data.augment if look is None or look.augment == "default" else look.augment
        if look is None or look.of or how != "none":
            default = look is not None and look.augment == "default" and how != "none"
            raise RecipeError(
                f"--targets stores a teacher's outputs for fixed inputs, but view {name!r} is augmented anew in "
                f"every epoch; {'add --augment none' if default else 'leave --targets out'}"
            )
    return method


def _refuse_following(request: Request, method: Method) -> None:
    """Thresholds follow validation rows, and a training on all labelled rows has none."""
    if request.refit and callbacks.error_bounds_of(method):
        raise DataError("max_error follows validation rows, and --refit learns from all of them; leave one of them out")


def _refuse_judging(request: Request, data: Data) -> None:
    """What audits by labels has no meaning where there are none."""
    for name in ("audit_folds", "audit_epochs", "audit_measure", "refit"):
        if getattr(request, name, None) is not None or dict(request.training).get(name) is not None:
            raise DataError(
                f"{data.name}: no row has a label, and nothing audits; leave --{name.replace('_', '-')} out"
            )


def batch_size_for(data: Data, method: Method) -> int:
    """64 rows, 32 of texts, or all if there are fewer."""
    both = any(view.rows in TOGETHER for view in method.views.views)
    usual = text.BATCH if data.kind == "text" else 64
    return max(1, min(usual, len(data.labelled) + (len(data.unlabelled) if both else 0)))


def usual_epochs(data: Data, method: Method, batch_size: int) -> int:
    """About as many steps as `STEPS`, or `text.STEPS`, within 3 to 100 epochs."""
    steps = Sampler(data, method.views, batch_size, seed=0).steps_per_epoch
    if data.kind == "text":
        return min(text.EPOCHS[1], max(text.EPOCHS[0], math.ceil(text.STEPS / steps)))
    return min(100, max(3, math.ceil(STEPS / steps)))


def _better(control: Result, trained: Result) -> bool:
    """Is the plain model's loss on the audit split smaller than the best generation's?"""
    plainly, ours = control.generations[-1].losses, trained.generations[trained.final_generation].losses
    return math.fsum(plainly) < math.fsum(ours)  # of equals the method, which was asked for


MEMBERS = 16  # of a committee


def committee(folder: Path, request: Request) -> Committee:
    """The final model, the generations of all trainings in the folder, and the rows that they are asked of.

    Raises:
        CheckpointError: the run has no model yet, or its files are damaged.
        DataError: the data cannot be read, or have changed since.
    """
    ready = prepare(request)
    data, final = ready.data, store.load(store.model_folder(folder))
    final = final if data.embedding is None else tuning.head_alone(final)
    require_same_data(folder, data.fingerprint)
    require_unlabelled(data.name, len(data.unlabelled))

    def outputs(model: nn.Module, ids: Tensor) -> Tensor:
        output = predict_rows(model, data, ids, data.head)
        return torch.softmax(output, -1) if data.classes else output[:, 0]

    members = [outputs(final, data.unlabelled)]
    for path in sorted(folder.rglob("generations/*-final.safetensors"))[: MEMBERS - 1]:
        model = _restored(ready, read_tensors(path))
        if model is None:
            continue
        peers = callbacks.peer_outputs(model, data, data.unlabelled)
        several = outputs(model, data.unlabelled)[None] if peers is None else peers.transpose(0, 1)
        members += [one if data.classes else data.in_units(one.reshape(-1, 1)) for one in several]

    def features(places: Tensor) -> Tensor:
        try:
            return linear_probe.features(final, data, data.unlabelled[places], data.head)
        except SpaceError:  # another's model without a linear layer
            return members[0][places].reshape(len(places), -1)

    held = outputs(final, data.audit) if data.classes and len(data.audit) else None
    return Committee(
        data.unlabelled, data.row_names, data.classes, torch.stack(members), features, held, data.y[data.audit]
    )


def _restored(ready: NetworkRun, weights: dict[str, Tensor]) -> nn.Module | None:
    """The model of a training with these weights; None where they are of another one."""
    candidates = ready.candidates if isinstance(ready, AutoRun) else [ready]
    wrappers = {candidate.method.wrap_model for candidate in candidates} - {None}
    builds: list[Callable[[], nn.Module]] = [ready.build, *(wrapped(ready.build) for wrapped in wrappers if wrapped)]
    for build in builds:
        model = build()
        with contextlib.suppress(RuntimeError):
            model.load_state_dict(weights)
            return model.eval()
    return None
