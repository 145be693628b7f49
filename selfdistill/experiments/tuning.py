"""How far a pretrained image model learns: its head, on features that are computed once, or all of its weights."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core import distributed
from ..core.objective import Method
from ..data.dataset import Data
from ..data.embeddings import COMPONENTS, Components, Embedding, FeatureStore
from ..data.splits import difference
from ..errors import DataError
from ..io.run_record import Request
from ..io.tensors import digest
from ..models import hub, image_encoder
from ..models.image_encoder import ImageEncoder
from ..models.networks import Scaled
from ..models.registry import Build
from ..training.fit import choose_device

HEAD, FULL = "head", "full"

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
    views = view_names(data, methods)
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
