"""Several models as one: generations that predict together, and how much of their gain a single model keeps.

A request with every choice made: data loaded, method read, model, batch size, epochs and threads chosen.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..core.objective import Method, untaught
from ..data import text
from ..data.dataset import Data, load
from ..data.sampler import Sampler
from ..errors import DataError, RecipeError
from ..evaluation.predict import answers, scored
from ..io.run_record import Request
from ..methods.registry import read_method
from ..models import registry, text_encoder, warm_start
from ..models.peers import Mean, Peers, Together, product
from ..models.wrappers import MOST_MEMBERS
from ..teachers import Cached
from ..teachers.cached import stored
from ..teachers.generations import wanted
from ..training import callbacks, threads
from ..views import TOGETHER

if TYPE_CHECKING:
    from ..models.registry import Build
    from ..training.fit import Result


def gathered(ready: Prepared, trained: Result) -> tuple[nn.Module, list[int]] | None:
    """What predicts by the mean of several models, and the generations it is made of; None where none does.

    Of a group of peers it is the group, with the head ``ensemble`` as its main one; of a method whose teacher are all
    earlier generations, these (the accepted ones, or all but the last).
    """
    if isinstance(trained.model, Peers) and not hasattr(trained.model, "jointly"):
        return Speaking(trained.model, ready.data.head), [trained.product]
    teacher, last = wanted(ready.method), len(trained.generations) - 1
    if teacher is None:
        return None
    numbers = [g for g, t in enumerate(trained.generations) if t.decision.get("accepted", True)]
    if teacher.at_last:  # the ensemble is what the last one learnt from
        numbers = list(range(min(last, ready.method.generations - 1)))
    if len(numbers) < 2:
        return None
    return Mean([_of(trained, g) for g in numbers], ready.data.task == "regress").eval(), numbers


def _of(trained: Result, generation: int) -> nn.Module:
    model = copy.deepcopy(trained.model)
    model.load_state_dict(trained.generations[generation].weights)
    return model


class Speaking(nn.Module):
    """A group of peers that answers for all of them: its head ``ensemble`` under the name of its main one."""

    def __init__(self, group: Peers, head: str) -> None:
        super().__init__()
        self.group, self.head = group, head

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        said = self.group(x)
        return {self.head: said["ensemble"]}


@torch.no_grad()
def judge(ready: Prepared, trained: Result, plain: dict[str, float] | None) -> dict[str, Any]:
    """The ensemble on the test split, beside the single model that was made with it; empty without one.

    Returns:
        ``of``: the generations, or the number of peers; ``test``: its metrics; ``distance`` and ``disagreement`` of its
        members (see `diversity.pairwise`); ``single``: the metrics of the single model; with the control's metrics
        ``plain``, ``gain`` of the ensemble and ``kept``, the share of it that the single one keeps.
    """
    found, data = gathered(ready, trained), ready.data
    if found is None:
        return {}
    whole, numbers = found
    test = scored(answers(whole, data, data.test), data.y[data.test], data.task)
    group = whole.group if isinstance(whole, Speaking) else whole
    said = callbacks.together(group, data, data.test[: callbacks.MOST])
    single = _single(ready, trained, data)
    peers = len(group.members) if isinstance(group, Peers) else len(numbers)
    named: dict[str, Any] = {"peers": peers} if isinstance(whole, Speaking) else {"generations": numbers}
    result = {**named, "test": test, "single": single}
    result |= callbacks.pairwise(said, data.task) if said is not None else {}
    return result | (gain(test, single, plain) if plain else {})


def _single(ready: Prepared, trained: Result, data: Data) -> dict[str, float]:
    """The single model: a group's product, or the last generation."""
    number = trained.product if isinstance(trained.model, Peers) else len(trained.generations) - 1
    return scored(answers(product(_of(trained, number)), data, data.test), data.y[data.test], data.task)


def gain(ensemble: dict[str, float], single: dict[str, float], plain: dict[str, float]) -> dict[str, float | None]:
    """The ensemble's gain over plain, and the share that the single model keeps; None where there is no gain.

    In accuracy; of values in the root of the squared error, which falls.

    >>> gain({"accuracy": 0.75}, {"accuracy": 0.625}, {"accuracy": 0.5})
    {'gain': 0.25, 'kept': 0.5}
    """
    measure, sign = ("accuracy", 1.0) if "accuracy" in ensemble else ("rmse", -1.0)
    whole, part = (sign * (one[measure] - plain[measure]) for one in (ensemble, single))
    return {"gain": whole, "kept": part / whole if whole > 0 else None}


def added(result: dict[str, Any], ready: Prepared, trained: Result) -> dict[str, Any]:
    """A run's result with what `judge` says of the ensemble; of generations `Together` that is the product's."""
    found = judge(ready, trained, result.get("plain", {}).get("end"))
    if not found:
        return result
    product = isinstance(ready.method.wrap_model, Together) and result["chosen"] != "plain"
    return {**result, "ensemble": found, **({"test": found["test"]} if product else {})}


def joined(ready: Prepared, trained: Result) -> tuple[nn.Module, Build] | None:
    """The product of a method whose generations predict `Together`, and what builds it; None for others.

    Raises:
        RecipeError: more of them than a model folder can name.
    """
    found = gathered(ready, trained) if isinstance(ready.method.wrap_model, Together) else None
    if found is None:
        return None
    whole, numbers = found
    if len(numbers) > MOST_MEMBERS:
        raise RecipeError(f"{len(numbers)} generations cannot be one product; train at most {MOST_MEMBERS}")
    values = "_values" if ready.data.task == "regress" else ""
    return whole, ready.build.wrapped(f"mean{len(numbers)}{values}", 1)


STEPS = 2000  # what a run takes by default, within 3 to 100 epochs


@dataclass
class Prepared:
    """A request with every choice made."""

    data: Data
    method: Method
    expression: str
    build: registry.Build
    settings: dict[str, Any]


def prepare(request: Request) -> Prepared:
    """Load the data and fill in what the request leaves open."""
    spec, reader = request.model, None
    if request.text is not None:
        spec, reader = request.model or text_encoder.USUAL, text.reader(request.model, request.text)
    elif spec is not None and spec.partition("(")[0].strip() not in registry.MODELS and text_encoder.named(spec):
        raise DataError(f"the model {spec} reads text; say which column has it (--text COL), or give another --model")
    bare = request.method is not None and reader is None and untaught(read_method(request.method))
    data = load(
        request.data,
        target=request.target,
        unlabelled=request.unlabelled,
        labels=request.labels,
        label_noise=request.label_noise,
        image_size=request.image_size,
        seed=request.seed,
        reader=reader,
        labelled=not bare,
    )
    if data.task == "features":
        _refuse_judging(request, data)
    if request.augment:
        data = replace(data, augment=request.augment)
    if request.init and reader:
        raise DataError("--init is for networks of images and tables; a reader of texts begins with --model FOLDER")
    expression = request.method or _usual(data)
    method = read_method(expression)
    if request.targets is not None:
        method = _stored(method, request, data)
    small = data.kind == "table" or max(data.shape[-2:]) < 16
    usual_model = warm_start.spec_of(request.init) if request.init else "mlp" if small else "cnn"
    build = registry.parse(spec if spec is not None else usual_model, data.shape, data.outputs)
    if request.init:
        build = warm_start.started(build, request.init)
    usual = text.SETTINGS if reader else {}
    settings = {**usual, **dict(request.training), "seed": request.seed, "steps": request.steps}
    settings["batch_size"] = request.batch_size or batch_size_for(data, method)
    settings["epochs"] = request.epochs or _epochs(data, method, settings["batch_size"])
    return Prepared(data, method, expression, build, settings)


def _stored(method: Method, request: Request, data: Data) -> Method:
    """The method with its outside teachers' answers on disk.

    Raises:
        RecipeError: there is no such teacher, or what it sees changes, or nothing is to be kept.
    """
    if dict(request.training).get("cache") is False:
        raise RecipeError("--targets keeps what a teacher says and --no-cache forgets it; leave one of them out")
    method = stored(method, str(request.targets))
    for term in method.terms.values():
        teacher = term.teacher
        if not isinstance(teacher, Cached):
            continue
        name = teacher.view or term.view
        look = next((one for one in method.views.looks if one.name == name), None)
        how = data.augment if look is None or look.augment == "default" else look.augment
        if look is None or look.of or how != "none":
            default = look is not None and look.augment == "default" and how != "none"
            raise RecipeError(
                f"--targets keeps what a teacher says of inputs that stay as they are, and view {name!r} changes with "
                f"every epoch; {'add --augment none' if default else 'leave --targets out'}"
            )
    return method


def _refuse_judging(request: Request, data: Data) -> None:
    """What audits by labels has no meaning where there are none."""
    for name in ("audit_folds", "audit_epochs", "audit_measure"):
        if getattr(request, name, None) is not None or dict(request.training).get(name) is not None:
            raise DataError(
                f"{data.name}: no row has a label, and nothing audits; leave --{name.replace('_', '-')} out"
            )


def _usual(data: Data) -> str:
    """What is learnt by where nothing is asked for."""
    if data.task == "regress":
        return "mean_teacher(weight=1.0)" if len(data.unlabelled) else "born_again(xi=0.5)"
    return "curriculum()" if len(data.unlabelled) else "elr()"


def default_method(request: Request) -> str:
    """The method that `run` would choose for the data."""
    return prepare(replace(request, method=None)).expression


def batch_size_for(data: Data, method: Method) -> int:
    """64 rows, 32 of texts, or all if there are fewer."""
    both = any(look.rows in TOGETHER for look in method.views.looks)
    usual = text.BATCH if data.kind == "text" else 64
    return max(1, min(usual, len(data.labelled) + (len(data.unlabelled) if both else 0)))


def _epochs(data: Data, method: Method, batch_size: int) -> int:
    steps = Sampler(data, method.views, batch_size, seed=0).steps_per_epoch
    if data.kind == "text":
        return min(text.EPOCHS[1], max(text.EPOCHS[0], math.ceil(text.STEPS / steps)))
    return min(100, max(3, math.ceil(STEPS / steps)))


def suitable_threads(ready: Prepared) -> int:
    """Threads for this model and batch; where the model does not run, the dry run will say why."""
    some = torch.cat([ready.data.labelled, ready.data.unlabelled])[:1]
    x = ready.data.rows(some).repeat(ready.settings["batch_size"], *[1] * len(ready.data.shape))
    try:
        return threads.suitable(ready.build(), x)
    except Exception:  # another's code may raise anything
        return torch.get_num_threads()
