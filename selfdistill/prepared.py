"""A request with every choice made: data loaded, method read, model, batch size, epochs and threads chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from . import encoders, expressions, initial, models, threads
from .arguments import checked
from .core import Method
from .errors import DataError, RecipeError
from .methods import Recipe, recipes
from .probes import untaught
from .request import Request
from .sampling import Sampler
from .tasks import text
from .tasks.data import Data, load
from .teachers.cached import Cached, stored
from .views import TOGETHER

STEPS = 2000  # what a run takes by default, within 3 to 100 epochs


def read_method(expression: str, known: Mapping[str, Recipe] | None = None) -> Method:
    """A recipe's own expression, such as ``ps_kd(alpha=0.8)``, read without evaluating code.

    >>> read_method("ps_kd(alpha=0.5)") == recipes()["ps_kd"](alpha=0.5)
    True
    """
    known = recipes() if known is None else known
    method = expressions.read(expression, {name: checked(recipe) for name, recipe in known.items()})
    assert isinstance(method, Method)
    return method


@dataclass
class Prepared:
    """A request with every choice made."""

    data: Data
    method: Method
    expression: str
    build: models.Build
    settings: dict[str, Any]


def prepare(request: Request) -> Prepared:
    """Load the data and fill in what the request leaves open."""
    spec, reader = request.model, None
    if request.text is not None:
        spec, reader = request.model or encoders.USUAL, text.reader(request.model, request.text)
    elif spec is not None and spec.partition("(")[0].strip() not in models.MODELS and encoders.named(spec):
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
    usual_model = initial.spec_of(request.init) if request.init else "mlp" if small else "cnn"
    build = models.parse(spec if spec is not None else usual_model, data.shape, data.outputs)
    if request.init:
        build = initial.started(build, request.init)
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
        teacher: Any = getattr(term, "teacher", None)
        look = next(
            (one for one in method.views.looks if one.name == (getattr(teacher, "view", None) or term.view)), None
        )
        if isinstance(teacher, Cached) and look is not None:
            how = data.augment if look.augment == "default" else look.augment
            if look.rows == "mixed" or look.of or how != "none":
                remedy = "add --augment none" if look.augment == "default" and how != "none" else "leave --targets out"
                raise RecipeError(f"--targets keeps what a teacher says of inputs that stay as they are, and view "
                                  f"{look.name!r} changes with every epoch; {remedy}")  # fmt: skip
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
