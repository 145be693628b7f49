"""Stored features: computed once for each image and view, whatever the split, and components as linear algebra says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from selfdistill.data import augment
from selfdistill.data.dataset import Data, from_tensors
from selfdistill.data.embeddings import Components, Embedding, FeatureStore, content_keys
from selfdistill.errors import DataError, RecipeError
from selfdistill.models.registry import parse


def images(rows: int = 90, seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (rows, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return from_tensors(x, torch.arange(rows) % 3, augment="weak", flips=True)


class Counted:
    """A model whose features are the means of quarters; it counts the images it was asked for."""

    def __init__(self) -> None:
        self.images = 0

    def __call__(self, x: Tensor) -> Tensor:
        self.images += len(x)
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def wanted(data: Data, *views: str) -> dict[str, Tensor]:
    return {view: torch.arange(len(data.y)) for view in views}


def test_features_are_computed_once_for_an_image_and_a_view(tmp_path: Path) -> None:
    data, model, said = images(), Counted(), list[str]()
    store = FeatureStore(tmp_path, "m", 12, model, said.append)
    first = store.features(data, wanted(data, "none", "weak"), draws=2)
    assert model.images == 3 * 90
    assert len(said) == 1
    order = torch.randperm(90)
    shuffled = from_tensors(data.tensor[order], data.y[order], flips=True)
    again = FeatureStore(tmp_path, "m", 12, model, said.append).features(shuffled, wanted(shuffled, "none", "weak"), 2)
    assert model.images == 3 * 90  # another order, another process: nothing is computed
    for view in first:
        assert torch.equal(again[view], first[view][order])
    FeatureStore(tmp_path, "m", 12, model).features(data, wanted(data, "weak"), draws=3)
    assert model.images == 4 * 90
    FeatureStore(tmp_path, "other", 12, model).features(data, wanted(data, "none"))
    FeatureStore(tmp_path, "m", 12, model).features(replace(data, flips=False), wanted(data, "weak"), 1)
    assert model.images == 6 * 90


def test_a_feature_is_that_of_the_augmented_image(tmp_path: Path) -> None:
    data, model = images(15), Counted()
    found = FeatureStore(tmp_path, "m", 12, model).features(data, wanted(data, "none", "strong"), draws=2)
    x = data.rows(torch.arange(15))
    assert torch.allclose(found["none"][:, 0], model(x))
    assert not torch.allclose(found["strong"][:, 0], found["strong"][:, 1])
    keys = content_keys(data)
    alone = augment.apply("strong", x[3:4], keys[3:4], ("features", "strong", 1), kind="image", flips=True)
    assert torch.allclose(found["strong"][3, 1], model(alone)[0])


def test_components_are_those_of_a_singular_value_decomposition_of_standardised_features() -> None:
    rng = np.random.default_rng(0)
    f = rng.normal(size=(200, 6)) @ rng.normal(size=(6, 6)) * [1, 10, 100, 1, 1, 0] + 5
    made = Components.fit(torch.from_numpy(f).float(), 4)(torch.from_numpy(f).float()).numpy()
    z = (f[:, :5] - f[:, :5].mean(0)) / f[:, :5].std(0)
    left, sizes, _ = np.linalg.svd(z, full_matrices=False)
    own = left[:, :4] * sizes[:4]
    own /= np.sqrt((own**2).mean())
    assert np.allclose(np.abs(made), np.abs(own), atol=1e-3)
    with pytest.raises(DataError, match="equal features"):
        Components.fit(torch.ones(20, 3), 2)


def test_a_draw_is_addressed_and_of_the_row_itself() -> None:
    views = {"weak": torch.arange(30.0).view(10, 3, 1)}
    components = Components(torch.zeros(1), torch.ones(1, 1))
    embedding = Embedding(parse("mlp", (1,), 2), (3, 8, 8), torch.zeros(10, 3, 8, 8), 255, views, components)
    ids = torch.tensor([7, 2, 7])
    key = ids + (torch.tensor([0, 0, 1]) << 40)
    drawn = embedding.draw("weak", ids, key, (0, "augment", 4))
    assert torch.equal((drawn[:, 0] / 3).long(), ids)
    assert torch.equal(drawn[1:2], embedding.draw("weak", ids[1:2], key[1:2], (0, "augment", 4)))
    epochs = {embedding.draw("weak", ids[:1], key[:1], (0, "augment", epoch)).item() for epoch in range(30)}
    assert epochs == {21.0, 22.0, 23.0}
    with pytest.raises(RecipeError, match="no features of the view 'crop'"):
        embedding.draw("crop", ids, key, (0,))
