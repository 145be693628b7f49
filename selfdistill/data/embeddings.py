"""Embeddings: features of images by a frozen model, computed once for each image and view and kept on disk.

An image is known by its content, so that another run, another split or a larger folder finds what was computed. What a
view draws for it depends on its content and the number of the draw alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .. import rng
from ..errors import DataError, RecipeError
from ..io.target_store import Dense, Store, marks
from ..io.tensors import canonical
from ..models.registry import Build
from . import augment
from .image_store import ImageStore

BATCH = 64  # images that the model reads at once

DRAWS = 2  # of each view that is augmented

COMPONENTS = 256  # of the features, that a head learns from

Encode = Callable[[Tensor], Tensor]  # images (rows, channels, height, width) in [0, 1] -> features (rows, width)


class ImageRows(Protocol):
    """Images as rows; `data.dataset.Data` is one."""

    @property
    def x(self) -> Tensor | ImageStore: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def digests(self) -> Tensor | None: ...
    @property
    def flips(self) -> bool: ...
    def chunks(self, ids: Tensor, rows: int) -> Iterator[Tensor]: ...


@dataclass(frozen=True, eq=False)
class Components:
    """Features -> their principal components, (f - center) basis, of the standardised features.

    The components are not whitened: a pretrained model has its knowledge in the directions that vary most. They share
    one scale, by which their variances have the mean 1.

    Source: Hotelling 1933.

    >>> made = Components.fit(torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 4.0], [2.0, 4.0]]), 2)
    >>> made(torch.tensor([[2.0, 4.0]])).square().mean()
    tensor(1.)
    """

    center: Tensor  # (width,)
    basis: Tensor  # (width, components)

    @classmethod
    def fit(cls, features: Tensor, count: int) -> Components:
        """The most varied components of features (rows, width); fewer where they have fewer.

        Raises:
            DataError: all features are equal.
        """
        f = features.double()
        center, deviation = f.mean(0), f.std(0, correction=0)
        scale = torch.where(deviation > 0, 1 / deviation.clamp(min=1e-12), 0.0)
        z = (f - center) * scale
        variances, vectors = torch.linalg.eigh(z.T @ z / len(z))  # ascending
        kept = min(count, len(f) - 1, int((variances > 1e-10 * variances[-1].clamp(min=1e-30)).sum()))
        if kept < 1:
            raise DataError("the images have equal features, so that nothing can be learnt; look at the images")
        variances, vectors = variances.flip(0)[:kept], vectors.flip(1)[:, :kept]
        largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
        basis = scale[:, None] * vectors * largest.sign() / variances.mean().sqrt()
        return cls(center.float(), basis.float())

    def __call__(self, features: Tensor) -> Tensor:
        return (features - self.center) @ self.basis


@dataclass(frozen=True, eq=False)
class Embedding:
    """What stands behind rows that are embeddings: their images, their views, and how they were made.

    ``views`` has the embeddings (rows, draws, components) of each augmentation.
    """

    model: Build  # of the frozen model
    shape: tuple[int, ...]  # of an image
    pixels: Tensor | ImageStore  # all images
    white: int  # the pixel value that stands for 1.0
    views: Mapping[str, Tensor]
    components: Components

    def draw(self, view: str, ids: Tensor, key: Tensor, address: rng.Address) -> Tensor:
        """For each row one of the stored draws of a view, (rows, components), by its key and the address.

        Raises:
            RecipeError: nothing is stored for this view.
        """
        if view not in self.views:
            raise RecipeError(
                f"no features of the view {view!r} are stored (there are {', '.join(sorted(self.views))}); a frozen "
                "model has those that the method names; give --tune full for others"
            )
        stored = self.views[view]
        number = (rng.uniform((*address, "draw"), key, 1)[:, 0] * stored.shape[1]).long()
        return stored[ids, number.clamp(max=stored.shape[1] - 1)]


def content_keys(data: ImageRows) -> Tensor:
    """A whole number for each image, equal for equal images, (rows,) int64."""
    if data.digests is not None:
        return data.digests[:, :8].contiguous().view(torch.int64)[:, 0]
    assert isinstance(data.x, Tensor), "images on disk have digests"
    return torch.cat([marks(part) for part in data.x.split(1024)])


@dataclass(frozen=True)
class FeatureStore:
    """Features on disk, in a folder for each frozen model, view and draw.

    Args:
        root: Folder of all of them.
        model: Hash of the model's weights and of how it reads images.
        width: Of its features.
        encode: The model, asked for what is not there yet.
        tell: Called with a line before features of many images are computed.
    """

    root: Path
    model: str
    width: int
    encode: Encode
    tell: Callable[[str], None] = lambda line: None

    def stores(self, data: ImageRows, views: Mapping[str, int]) -> dict[tuple[str, int], Store]:
        """A store for each draw of each view; ``views`` has the numbers of draws."""
        stores = {}
        for view, draws in views.items():
            for draw in range(draws):
                bound = {"model": self.model, "view": view, "draw": str(draw), "shape": repr(tuple(data.shape))}
                bound |= {"flips": str(data.flips)} if view != "none" else {}
                name = hashlib.sha256(canonical(bound)).hexdigest()[:16]
                stores[view, draw] = Store(self.root / name, Dense(self.width), bound)
        return stores

    def features(self, data: ImageRows, wanted: Mapping[str, Tensor], draws: int = DRAWS) -> dict[str, Tensor]:
        """Features (rows, draws, width) of the images ``wanted`` for each view; computed where none are stored."""
        keys = content_keys(data)
        stores = self.stores(data, {view: 1 if view == "none" else draws for view in wanted})
        missing = {
            (view, draw): wanted[view][torch.from_numpy(~store.contains(keys[wanted[view]].numpy()))]
            for (view, draw), store in stores.items()
        }
        count = sum(map(len, missing.values()))
        if count > BATCH:
            self.tell(f"computing {count:,} features of images, once; they are kept in {self.root}")
        for (view, draw), ids in missing.items():
            self._compute(stores[view, draw], data, keys, ids, view, draw)
        found = {place: store.read(keys[wanted[place[0]]].numpy())[0] for place, store in stores.items()}
        layout = Dense(self.width)
        return {
            view: torch.stack([layout.decode(found[place]) for place in found if place[0] == view], 1)
            for view in wanted
        }

    def _compute(self, store: Store, data: ImageRows, keys: Tensor, ids: Tensor, view: str, draw: int) -> None:
        for part, x in zip(ids.split(BATCH), data.chunks(ids, BATCH), strict=True) if len(ids) else ():
            address = ("features", view, draw)
            shown = augment.apply(view, x, keys[part], address, kind="image", flips=data.flips)
            store.write(keys[part].numpy(), store.layout.encode(self.encode(shown)))
        store.flush()
