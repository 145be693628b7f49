"""How far a pretrained image model learns: its head, on features that are computed once, or all of its weights."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..core import distributed
from ..core.objective import Method
from ..data.dataset import Data
from ..data.embeddings import COMPONENTS, Components, Embedding, FeatureStore
from ..data.splits import difference
from ..errors import DataError
from ..evaluation.predict import scored, task_outputs
from ..io.run_record import Request
from ..io.tensors import digest
from ..methods.controls import plain
from ..models import hub, image_encoder
from ..models.image_encoder import ImageEncoder
from ..models.networks import Scaled
from ..models.registry import Build
from ..training.comparison import ignore
from ..training.fit import Result, choose_device, fit

HEAD, FULL = "head", "full"

MOST_DECAY = 0.5  # of the weights of a head

DEPTHS = (HEAD, FULL)  # of ``--tune``


def depth_of(request: Request, build: Build) -> str | None:
    """How far the model of a run learns, or None where it is not a pretrained image model.

    Raises:
        DataError: a depth is asked of another model.
    """
    if build.spec == image_encoder.SPEC:
        return request.tune or HEAD
    if request.tune is not None:
        raise DataError(
            f"--tune {request.tune} says how far a pretrained image model learns, and {build} is none; give --model "
            "efficientnet-lite0 or the folder of an image model, or leave it out"
        )
    return None


def head_of(build: Build, components: int) -> Build:
    """The factory of the head of an image model, on so many components."""
    options = image_encoder.head_options(dict(build.options))
    return Build("mlp", (components,), build.outputs, tuple(options.items()))


def frozen(data: Data, build: Build, methods: Iterable[Method], device: str | None = None) -> tuple[Data, Build]:
    """The data as `embed` makes them, once, and the factory of the head that learns from them."""
    if data.embedding is None:
        data = embed(data, build, methods, device)
    return data, head_of(build, data.shape[0])


def head_settings(labelled: int) -> dict[str, Any]:
    """The settings of a head on components of features: SGD with the weight decay of a regularised regression.

    Weight decay w under SGD is the penalty (w / 2) ||W||^2 of the mean loss: scikit-learn's C = 1 / (rows w). C is 0.05
    here, about the best on components of variance 1.

    Args:
        labelled: Rows that teach with their label.

    >>> head_settings(100)["weight_decay"]
    0.2
    """
    return {"optimizer": "sgd", "lr": 0.1, "weight_decay": min(MOST_DECAY, 20 / max(1, labelled))}


FULL_SETTINGS: dict[str, Any] = {"lr": 3e-4, "weight_decay": 0.05, "layer_decay": 0.75}


FULL_STEPS = 300  # of a training of all weights, by default


STEPS_FIRST = 200  # of a head alone, before all weights learn


COEFFICIENTS = tuple(k / 10 for k in range(11))  # of an interpolation with the start


class HeadFirst:
    """The start of a training of all weights: the pretrained body with a head that plain training fitted.

    Source: Kumar et al., Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution, ICLR 2022.

    Args:
        data: Images.
        build: The factory of the image model.
        seed: Of the head's training.
        device: Where the features are computed.
    """

    def __init__(self, data: Data, build: Build, seed: int, device: str | None) -> None:
        self.data, self.build, self.seed, self.device = data, build, seed, device

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """The components and the head, by their names in the image model."""
        data, head = frozen(self.data, self.build, [], self.device)
        data = replace(data, augment="none")
        settings = head_settings(len(data.labelled)) | {"steps": STEPS_FIRST, "audit": "off", "vitals": False}
        settings["batch_size"] = min(64, len(data.labelled))
        with torch.random.fork_rng(devices=[]):
            trained = fit(head, data, plain(), seed=self.seed, warn=ignore, **settings).model
        assert data.embedding is not None
        found = {f"head.{name}": tensor.detach() for name, tensor in trained.state_dict().items()}
        return {**found, "center": data.embedding.components.center, "basis": data.embedding.components.basis}


@dataclass(frozen=True)
class FullBuild(Build):
    """A factory of image models that begin with the head of `HeadFirst`."""

    first: HeadFirst | None = field(default=None, compare=False, repr=False)

    def __call__(self, **overrides: Any) -> nn.Module:
        """A new model with those weights."""
        model = super().__call__(**overrides)
        if self.first is not None and isinstance(model, ImageEncoder):  # inside a wrapper they are loaded already
            own = model.state_dict()
            fitting = {n: t for n, t in self.first.weights.items() if n in own and own[n].shape == t.shape}
            model.load_state_dict(fitting, strict=False)
        return model


def full(data: Data, build: Build, request: Request) -> FullBuild:
    """The factory of models of which all weights learn, head first.

    Raises:
        DataError: there are no images or no labels, or the model cannot be loaded.
    """
    if data.kind != "image" or not len(data.labelled):
        raise DataError(f"{data.name} has no labelled images, which --tune full needs; give some, or another --model")
    first = HeadFirst(data, build, request.seed, request.device)
    built = build.having(components=len(first.weights["basis"].T))
    return FullBuild(**{item.name: vars(built)[item.name] for item in fields(Build)}, first=first)


def interpolate(build: FullBuild, trained: Result, data: Data) -> tuple[Result, dict[str, Any]] | None:
    """The final model between its start and its end, where validation rows say.

    Equation::

        theta(a) = (1 - a) theta_start + a theta_end,  a of 0, 0.1, ..., 1 with the best validation accuracy

    Of equals the one with the smaller validation loss, for values by the error alone.

    Source: Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022 (WiSE-FT).

    Args:
        build: The factory that trained it.
        trained: The training.
        data: Its data.

    Returns:
        The training with the interpolated weights, and the figures; None without validation rows, or where the method
        has put something around the model.
    """
    number = trained.final_generation
    end = trained.generations[number].weights
    with torch.random.fork_rng(devices=[]):
        model = build()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if not len(data.audit) or start.keys() != end.keys():
        return None
    found = dict[float, dict[str, float]]()
    for share in COEFFICIENTS:
        model.load_state_dict(between(start, end, share))
        found[share] = scored(task_outputs(model, data, data.audit), data.y[data.audit], data.task)
    best = max(COEFFICIENTS, key=lambda share: _worth(found[share]))
    weights = between(start, end, best)
    trained.model.load_state_dict(weights)
    generations = list(trained.generations)
    generations[number] = replace(generations[number], weights=weights)
    figures = {"coefficient": best, "validated": {f"{share:g}": found[share] for share in COEFFICIENTS}}
    return replace(trained, generations=generations), figures


def _worth(figures: Mapping[str, float]) -> tuple[float, float]:
    """By which validation rows choose: the larger the better."""
    return (figures["accuracy"], -figures["nll"]) if "accuracy" in figures else (-figures["rmse"], 0.0)


def between(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights on the line from a start to an end; whole numbers, as of batches seen, are those of the end.

    >>> between({"w": torch.zeros(1)}, {"w": torch.ones(1)}, 0.25)["w"]
    tensor([0.2500])
    """
    return {
        name: torch.lerp(start[name], tensor, share) if tensor.is_floating_point() else tensor
        for name, tensor in end.items()
    }


def embed(data: Data, build: Build, methods: Iterable[Method], device: str | None = None) -> Data:
    """The data with the features of a frozen model in the place of images.

    Args:
        data: Images.
        build: The factory of the image model.
        methods: What will be trained; their views are computed.
        device: Where the model computes.

    Returns:
        Data whose rows are components of features (rows, components), with the stored views beside them.

    Raises:
        DataError: there are no images, or the model cannot be loaded.
    """
    if data.kind != "image":
        raise DataError(f"{data.name} has no images, which {build} reads; give another --model")
    views = (
        view_names(replace(data, augment="none"), []) if not (methods := list(methods)) else view_names(data, methods)
    )
    with torch.random.fork_rng(devices=[]):
        model = build()
    assert isinstance(model, ImageEncoder)
    place = choose_device(device)
    model.to(place).eval()

    @torch.no_grad()
    def encode(x: Tensor) -> Tensor:
        return model.features(x.to(place)).float().cpu()

    kept = {"pixels": str(model.kept["pixels"]), "side": str(model.side), "config": str(model.kept["config"])}
    name = digest({**model.body.state_dict(), **{f"{k}={v}": torch.zeros(1) for k, v in kept.items()}})
    store = FeatureStore(hub.cache() / "features", name, model.width, encode, _tell)
    every = torch.arange(len(data.y))
    shown = difference(every, data.test)  # those that another seed lets teach, too
    features = store.features(data, {view: every if view == "none" else shown for view in views})
    components = Components.fit(features["none"][torch.cat([data.labelled, data.unlabelled]), 0], COMPONENTS)
    stored = {view: components(values) for view, values in features.items()}
    x, spread = stored.pop("none")[:, 0], dict[str, Tensor]()
    for view, values in stored.items():  # by the numbers of rows; those of the test split have no views
        spread[view] = values.new_zeros(len(data.y), *values.shape[1:])
        spread[view][shown] = values
    embedding = Embedding(build, data.shape, data.x, data.white, spread, components)
    return replace(data, x=x, kind="embedding", embedding=embedding)


def _tell(line: str) -> None:
    if distributed.rank() == 0:
        print(line, file=sys.stderr)


def view_names(data: Data, methods: Iterable[Method]) -> Sequence[str]:
    """The augmentations that the views of methods have, "none" first."""
    found = {
        data.augment if view.augment == "default" else view.augment
        for method in methods
        for view in method.views.views
        if not view.of
    }
    return ["none", *sorted(found - {"none"})]


def with_body(embedding: Embedding, head: nn.Module, build: Build) -> tuple[ImageEncoder, Build]:
    """The whole model that reads images, of a head that was trained on their embeddings, and what builds it."""
    described = {"outputs": build.outputs, "options": dict(build.options), "wrap": build.wrap}
    components = embedding.components.basis.shape[1]
    whole = replace(embedding.model, outputs=build.outputs, scale=build.scale)
    whole = whole.having(components=components, head=described)
    with torch.random.fork_rng(devices=[]):
        model = whole()
    assert isinstance(model, ImageEncoder)
    model.center.copy_(embedding.components.center)
    model.basis.copy_(embedding.components.basis)
    model.head.load_state_dict(head.state_dict())
    return model.eval(), whole


def head_alone(model: nn.Module) -> nn.Module:
    """The head of a saved model, which reads embeddings; of values in their unit, as the model gives them."""
    if isinstance(model, Scaled):
        return Scaled(head_alone(model.model), model.center, model.scale)
    assert isinstance(model, ImageEncoder)
    return model.head


def image_size(request: Request) -> int | None:
    """The pixels a side at which images are kept: what was asked for, or what the pretrained image model reads."""
    if request.image_size is not None or request.model is None:
        return request.image_size
    known: Mapping[str, Any] | None = image_encoder.named(request.model)
    return None if known is None else image_encoder.side(known)
