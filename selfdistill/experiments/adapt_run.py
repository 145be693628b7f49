"""Runs that adapt a finished run to unlabelled domains in turn, beside all unlabelled rows at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core import distributed
from ..data import column_types, domains, tables
from ..data.dataset import PREPROCESSOR, Data
from ..data.splits import difference, draw
from ..errors import DataError
from ..evaluation.predict import scored, task_outputs
from ..evaluation.statistics import accuracy_interval
from ..io.display import change, plural
from ..io.expressions import one_line
from ..io.run_record import Request
from ..methods.registry import read_method
from ..models import store
from ..models.growth import single_build
from ..training import budget, reservoir
from ..training.stream import LEAVE_OUT, fit_adapt, task_accuracy
from ..training.task_type import FigureTable, Listeners, Rows
from .network_run import STEPS, NetworkRun
from .stream_run import SequenceTaskType, check_recipe, read_base

#: options of a run that an adaptation has no use for
_FIXED = (
    "text",
    "unlabelled",
    "labels",
    "label_noise",
    "image_size",
    "model",
    "init",
    "audit_folds",
    "refit",
    "effort",
    "targets",
    "tasks",
    "keep",
    "checker",
    "eval_tasks",
    "fields",
    "student_template",
    "teacher_template",
    "group_lengths",
    "skip_long",
    "lora",
    "max_tokens",
    "checkpointing",
    "alarms",
    "dtype",
    "save",
    "load_in_4bit",
    "columns",
    "groups",
    "time",
    "validation",
    "update",
)


VERIFY = 1 / 3  # of the rows of a domain: so many labelled ones at most verify, and never teach


MOST_SHOWN = 12  # domains in a line


AT_ONCE = "all unlabelled rows at once"


@dataclass
class AdaptRun(NetworkRun):
    """An adaptation with every choice made; steps are those of a domain.

    ``before`` is the model of the earlier run, ``domains`` the rows of each domain that teach, ``labelled`` those that
    verify, and ``names`` the names of the domains.
    """

    before: nn.Module
    domains: Sequence[Tensor]
    labelled: Sequence[Tensor]
    names: Sequence[str]
    sample: Mapping[str, Tensor]

    @property
    def stored(self) -> Mapping[str, Tensor]:
        return self.sample

    @property
    def note(self) -> str:
        """The domains, and the rows that verify."""
        parts = zip(self.names, self.domains, self.labelled, strict=True)
        shown = [f"{name} ({len(rows)} + {len(checks)})" for name, rows, checks in parts]
        more = f", ... {shown[-1]}" if len(shown) > MOST_SHOWN else ""
        note = (
            f"{self.data.name}: {len(shown)} domains (rows that teach without a label + rows whose label verifies): "
            f"{', '.join(shown[:MOST_SHOWN])}{more}"
        )
        return "\n".join(filter(None, (note, self.data.skip_note)))

    def title(self, generation: int) -> str:
        return "the adapted model"

    def train(self, folder: Path, listeners: Listeners) -> dict[str, Any]:
        """Domain after domain, then all rows at once for as many steps; each goes on from its checkpoints."""
        request, begin = self.request, listeners.progress
        common: dict[str, Any] = {
            "leave_out": LEAVE_OUT if request.leave_out is None else request.leave_out,
            "warm": request.warm,
            "resume": True,
            "device": request.device,
            **self.settings,
        }
        budget.expect(2 if request.control else 1)
        trained = fit_adapt(
            self.build,
            self.data,
            self.method,
            self.before,
            self.domains,
            out=folder,
            progress=begin(f"{self.expression}, domain after domain"),
            warn=listeners.warn,
            **common,
        )
        models = {"before": self.before, "method": trained.model.cpu()}
        if request.control:
            every = [torch.cat(list(self.domains))] * len(self.domains)
            with budget.following(alike=True):
                models["at_once"] = fit_adapt(
                    self.build,
                    self.data,
                    self.method,
                    self.before,
                    every,
                    out=folder / "at_once",
                    progress=begin(AT_ONCE),
                    warn=listeners.warn_of(AT_ONCE),
                    **common,
                ).model.cpu()
        result = self._result(folder, trained, None, False)
        result.pop("plain", None)  # plain() learns pseudo-labels here and is no baseline
        result["reliability"] = {self.title(0): result["reliability"][self.title(0)]}
        result["adapt"] = adapt = self._scores(models)
        if adapt["gain"]["high"] < 0:  # nobody is served a model that is shown to be worse
            trained = replace(trained, model=self.before)
            result |= {"chosen": "before", "test": adapt["before"]}
        if distributed.rank() == 0:
            self._save_final_model(folder / "model", trained, result)
        return result

    def _scores(self, models: Mapping[str, nn.Module]) -> dict[str, Any]:
        """Each model on the rows that verify, and the intervals of the differences, paired by row."""
        data, ids = self.data, self.data.test
        outputs = {name: task_outputs(model, data, ids) for name, model in models.items()}
        right = {name: logits.argmax(-1) == data.y[ids] for name, logits in outputs.items()}
        own = [k for k, rows in enumerate(self.labelled) if len(rows) and bool(torch.isin(rows, ids).all())]
        result: dict[str, Any] = {
            "target": self.request.target,
            "on": f"domain {own[0] + 1} of {len(self.names)}, {self.names[own[0]]}" if own else str(self.request.test),
            "rows": len(ids),
            "warm": self.request.warm,
            "gain": _difference(right["method"], right["before"]),
            "domains": [],
        }
        if "at_once" in models:
            result["over_at_once"] = _difference(right["method"], right["at_once"])
        every = torch.cat(list(self.labelled))
        for name, model in models.items():
            scores = scored(outputs[name], data.y[ids], data.task)
            if len(every) > len(ids) or (not own and len(every)):
                scores["domains"] = task_accuracy(task_outputs(model, data, every), data.y[every])
            result[name] = scores
        for name, rows, checks in zip(self.names, self.domains, self.labelled, strict=True):
            facts: dict[str, Any] = {"name": name, "rows": len(rows), "labelled": len(checks)}
            for key, model in models.items() if len(checks) else ():
                facts[key] = task_accuracy(task_outputs(model, data, checks), data.y[checks])
            result["domains"].append(facts)
        return result


def _difference(right: Tensor, reference: Tensor) -> dict[str, float]:
    """The difference of two accuracies on the same rows, (n,) of bool, with its 95 % interval."""
    better, worse = int((right & ~reference).sum()), int((reference & ~right).sum())
    low, high = accuracy_interval(better, worse, len(right))
    return {"mean": (better - worse) / len(right), "low": low, "high": high}


def _held_out(new: domains.NewRows, share: float, seed: int) -> list[Tensor]:
    """The labelled rows of each domain that verify: all, or of many a drawn share of the domain's rows."""
    held = []
    for number, rows in enumerate(new.domains):
        labelled, most = rows[new.y[rows] >= 0].sort().values, int(share * len(rows))
        address = (seed, "verify", number)
        held.append(labelled if len(labelled) <= most else draw(labelled, new.y, most, address))
    return held


def prepare_adapt(request: Request) -> AdaptRun:
    """Load the new rows and the model that adapts; the data of its run are never opened.

    Raises:
        CheckpointError: there is no such run, or it is not finished.
        DataError, RecipeError: it cannot adapt to these rows, or nothing could verify it.
    """
    place, target, card = read_base(request, str(request.adapt), "adapt", _FIXED)
    request = replace(request, target=request.target or target)
    new = domains.read_domains(request.data, place, card, request.target, request.order, request.domains)
    held = _held_out(new, VERIFY if request.verify is None else request.verify, request.seed)
    teach = [difference(rows, checks).sort().values for rows, checks in zip(new.domains, held, strict=True)]
    data = _data(request, place, card, new, held)
    expression = request.method or "plain()"
    method = read_method(expression)
    check_recipe(method, expression, "adaptation; give plain() or another recipe of one generation")
    if method.generations > 1:
        raise DataError(f"{expression} has generations of its own, and a domain is one; give plain() or another recipe")
    leave_out = LEAVE_OUT if request.leave_out is None else request.leave_out
    sizes = [max(1, round((1 - leave_out) * len(rows))) for rows in teach]
    settings = {**dict(request.training), "seed": request.seed}
    settings["batch_size"] = min(request.batch_size or 64, *sizes)
    per_epoch = -(-sum(sizes) // (len(sizes) * settings["batch_size"]))
    settings["epochs"] = request.epochs or min(100, max(3, -(-STEPS // per_epoch)))
    settings["steps"] = request.steps or settings["epochs"] * per_epoch
    rows = reservoir.read_sample(place.parent, data.shape, len(data.classes)) or {}
    build = single_build(place, "adapt")
    return AdaptRun(request, data, method, expression, build, settings, store.load(place), teach, held, new.names, rows)


def _data(request: Request, place: Path, card: Mapping[str, Any], new: domains.NewRows, held: Sequence[Tensor]) -> Data:
    """The new rows as data whose test split verifies: the rows of --test, or those of the last domain with labels.

    Raises:
        DataError: nothing verifies.
    """
    count = len(new.y)
    if request.test:
        new = domains.joined(new, domains.read_labelled(request.test, place, card, request.target))
        test = torch.arange(count, len(new.y))
    else:
        test = next((rows for rows in reversed(held) if len(rows)), torch.zeros(0, dtype=torch.int64))
    if not len(test):
        where = f"the column '{request.target}'" if request.target else "a folder of its class"
        raise DataError(
            f"{request.data}: no row has a label, and nothing could show whether the adapted model is better; label "
            f"some rows of the last domain ({where}), or give labelled rows by --test"
        )
    y, every = torch.full_like(new.y, -1), torch.cat([test, *held])
    y[every] = new.y[every]
    prepared = (place / PREPROCESSOR).exists()
    unlabelled = difference(torch.arange(count), torch.cat(list(held)))
    return Data(
        name=Path(request.data).name,
        kind=card["kind"],
        task="classify",
        x=new.x,
        y=y,
        classes=tuple(card["classes"]),
        labelled=unlabelled[:0],
        unlabelled=unlabelled,
        audit=unlabelled[:0],
        test=test,
        flips=bool(card.get("flips", False)),
        augment="none",
        noisy=torch.zeros(len(y), dtype=torch.bool),
        preprocessor=tables.load(place / PREPROCESSOR) if prepared else None,
        columns=tuple(column_types.from_json(card.get(column_types.RECORD), str(place))) if prepared else (),
        digests=new.digests,
        skip_note=new.note,
    ).with_augmentation(request.augment or str(card.get("augment", "none")))


class AdaptTaskType(SequenceTaskType):
    """Finished runs of networks that adapt to unlabelled domains."""

    name, learner, title = "adapt", "adaptations", "For adaptation"
    about = "Finished runs that adapt to unlabelled rows whose distribution moves."

    def serves(self, request: Request) -> bool:
        return request.adapt is not None

    def prepare(self, request: Request) -> AdaptRun:
        return prepare_adapt(request)

    def rows(self, result: dict[str, Any]) -> Rows:
        """The run before, all unlabelled rows at once, and domain after domain."""
        how = "warm starts" if result["adapt"]["warm"] else "a fresh network each"
        names = {"before": "the run before", "at_once": AT_ONCE, "method": f"domain after domain, {how}"}
        return [(names[name], result["adapt"][name]) for name in names if name in result["adapt"]]

    def part(self, generation: int) -> str:
        return f"domain {generation + 1}"

    def explain(self, expression: str, example: str | None = None) -> dict[str, Any]:
        """The recipe, as what learns the pseudo-labels of a domain."""
        card = super().explain(expression, example)
        summary = (
            "Gradual self-training: the model of the last domain labels the next one, and a network learns these "
            f"pseudo-labels by {expression}. {card['summary']}"
        )
        source = "Kumar, Ma and Liang, Understanding Self-Training for Gradual Domain Adaptation, ICML 2020; "
        return {**card, "summary": summary, "source": source + card["source"]}

    def tables(self, result: dict[str, Any]) -> list[FigureTable]:
        """The accuracy by domain."""
        names = {"before": "the run before", "at_once": AT_ONCE, "method": "the adapted model"}
        names = {key: name for key, name in names.items() if key in result["adapt"]}
        rows = [
            [
                one_line(domain["name"], 40),
                *(f"{domain[key]:,}" for key in ("rows", "labelled")),
                *(f"{100 * domain[key]:.1f} %" if key in domain else "-" for key in names),
            ]
            for domain in result["adapt"]["domains"]
        ]
        caption = "In the order in which they were learnt; accuracy on the labelled rows of each domain, which verify."
        return [FigureTable("By domain", ["", "rows that teach", "rows that verify", *names.values()], rows, caption)]

    def verdict(self, result: dict[str, Any]) -> str:
        """The adapted model against the run before and against all rows at once, with intervals over rows."""
        adapt = result["adapt"]
        gain, over = adapt["gain"], adapt.get("over_at_once")
        after, before = (100 * adapt[name]["accuracy"] for name in ("method", "before"))
        text = (
            f"On {plural(adapt['rows'], 'labelled row')} of {adapt['on']}: the adapted model has {after:.1f} % right "
            f"and the run before {before:.1f} % ({_points(gain)}), so it {_outcome(gain)} than the run before."
        )
        if gain["high"] < 0:
            text += " The model of the run before stays the final model."
        if over:
            helped = "helped" if over["low"] > 0 else "harmed" if over["high"] < 0 else "are not shown to help"
            text += f" Against {AT_ONCE} at equal steps: {_points(over)}, so the steps between the domains {helped}."
        return f"{text} Intervals are 95 %, over rows; one seed proves little: repeat with other --seed values."


def _points(difference: Mapping[str, float]) -> str:
    mean, low, high = (100 * difference[name] for name in ("mean", "low", "high"))
    return f"{change(mean, ' points')} [{change(low)} to {change(high)}]"


def _outcome(gain: Mapping[str, float]) -> str:
    return "is better" if gain["low"] > 0 else "is worse" if gain["high"] < 0 else "is not shown to be better"
