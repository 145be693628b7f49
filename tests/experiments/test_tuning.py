"""Pretrained image models in a run: the head on stored features is the model that is saved, and nothing comes twice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfdistill.errors import DataError, RecipeError
from selfdistill.evaluation.predict import task_outputs
from selfdistill.experiments.network_predictor import NetworkPredictor
from selfdistill.experiments.network_run import AutoRun, committee, prepare
from selfdistill.experiments.run import Run
from selfdistill.experiments.tuning import view_names
from selfdistill.io.run_record import Request
from selfdistill.models import store
from selfdistill.models.image_encoder import ImageEncoder
from tests import tiny


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pretrained model, and one with 80 images of two classes that differ in brightness."""
    folder, rng = tmp_path_factory.mktemp("tuning"), np.random.default_rng(0)
    tiny.image_model(folder / "vit")
    for i in range(80):
        pixels = rng.integers(0, 200, (20, 20, 3)) + 55 * (i % 2)
        (folder / "data" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "data" / "ab"[i % 2] / f"{i}.png")
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFDISTILL_CACHE", str(tmp_path / "cache"))


def request(place: Path, method: str = "fixmatch()", **options: object) -> Request:
    options = {"labels": 16, "steps": 4, **options}
    return Request(data=str(place / "data"), model=str(place / "vit"), method=method, **options)  # type: ignore[arg-type]


def test_the_saved_model_reads_images_and_agrees_with_the_head_on_stored_features(place: Path, tmp_path: Path) -> None:
    run = Run.create(request(place, "mutual()", steps=3), tmp_path / "run")
    result = run.execute()
    assert result["data"]["shape"] == [3, 32, 32]
    assert "frozen, with mlp" in result["model"]
    ready = prepare(run.request)
    final = store.load(tmp_path / "run/model")
    assert isinstance(final, ImageEncoder)
    test = ready.data.test
    of_features = task_outputs(final.head, ready.data, test)
    names = [ready.data.names[row] for row in test[:3].tolist()]
    predictor = NetworkPredictor(tmp_path / "run")
    read = {name: predictor.predict(name) for name in names}
    for row, name in enumerate(names):
        assert torch.allclose(read[name].numbers[0], of_features[row].softmax(0), atol=1e-4)
    card = json.loads((tmp_path / "run/model/data.json").read_text())
    assert (card["kind"], card["shape"]) == ("image", [3, 32, 32])
    asked = committee(tmp_path / "run", run.request)
    assert asked.outputs.shape[1:] == (len(ready.data.unlabelled), 2)


def test_a_second_run_computes_no_features(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(request(place))

    def refuse(self: ImageEncoder, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("features were stored")

    monkeypatch.setattr(ImageEncoder, "features", refuse)
    second = prepare(request(place, seed=1, labels=20))
    assert not torch.equal(first.data.labelled, second.data.labelled)
    assert first.data.embedding is not None
    assert second.data.embedding is not None
    assert sorted(second.data.embedding.views) == ["strong", "weak"]


def test_views_of_test_rows_are_not_computed(place: Path) -> None:
    ready = prepare(request(place))
    assert ready.data.embedding is not None
    for views in ready.data.embedding.views.values():
        assert not views[ready.data.test].any()
        assert views[ready.data.labelled].any(-1).all()


def test_auto_has_the_views_of_all_that_it_may_choose(place: Path) -> None:
    ready = prepare(request(place, "auto()", steps=2))
    assert isinstance(ready, AutoRun)
    assert ready.data.embedding is not None
    methods = [candidate.method for candidate in ready.candidates]
    assert len(methods) > 2
    assert set(view_names(replace(ready.data, kind="image"), methods)) <= {"none", *ready.data.embedding.views}


def test_a_depth_of_another_model_and_images_that_are_none_are_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--tune head says how far a pretrained image model learns, and cnn is none"):
        prepare(Request(data="digits", model="cnn", tune="head"))
    (tmp_path / "table.csv").write_text("a,b\n" + "".join(f"{i},{'xy'[i % 2]}\n" for i in range(60)))
    with pytest.raises((DataError, RecipeError), match="image"):
        prepare(Request(data=str(tmp_path / "table.csv"), target="b", model=str(place / "vit"), method="plain()"))
