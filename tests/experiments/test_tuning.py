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
from selfdistill.evaluation.predict import predict_rows, task_outputs
from selfdistill.experiments.network_predictor import NetworkPredictor
from selfdistill.experiments.network_run import AutoRun, committee, prepare
from selfdistill.experiments.run import Run
from selfdistill.experiments.tuning import STEPS_FIRST, frozen, head_settings, view_names
from selfdistill.io.run_record import Request
from selfdistill.methods.registry import read_method
from selfdistill.models import store
from selfdistill.models.image_encoder import ImageEncoder
from selfdistill.models.registry import parse
from selfdistill.training.fit import fit
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


# ---- all weights ---------------------------------------------------------------------------------------------------


def test_all_weights_begin_with_the_head_that_plain_training_fits_on_the_features(place: Path) -> None:
    ready = prepare(request(place, "plain()", tune="full"))
    assert ready.settings["layer_decay"] == 0.75
    model, again = ready.build().eval(), ready.build().eval()
    assert isinstance(model, ImageEncoder)
    rows = ready.data.labelled
    start = predict_rows(model, ready.data, rows)
    assert (start.argmax(1) == ready.data.y[rows]).float().mean() > 0.8  # a new head knows nothing
    assert torch.equal(start, predict_rows(again, ready.data, rows))
    data, head = frozen(ready.data, parse(str(place / "vit"), ready.data.shape, 2), [])
    settings = {**head_settings(len(rows)), "steps": STEPS_FIRST, "audit": "off", "batch_size": 16}
    alone = fit(head, replace(data, augment="none"), read_method("plain()"), seed=0, vitals=False, **settings).model
    assert torch.allclose(predict_rows(alone, data, rows), start, atol=1e-4)


def test_a_run_of_all_weights_is_interpolated_with_its_start(place: Path, tmp_path: Path) -> None:
    run = Run.create(request(place, "plain()", tune="full", steps=3, training=(("lr", 0.3),)), tmp_path / "run")
    result = run.execute()
    figures = result["interpolation"]
    accuracies = [one["accuracy"] for one in figures["validated"].values()]
    assert len(accuracies) == 11
    assert figures["validated"][f"{figures['coefficient']:g}"]["accuracy"] == max(accuracies)
    ready = prepare(run.request)
    final = store.load(tmp_path / "run/model")
    found = predict_rows(final, ready.data, ready.data.audit).argmax(1) == ready.data.y[ready.data.audit]
    assert found.float().mean().item() == pytest.approx(max(accuracies))
    if figures["coefficient"] == 0:
        start = ready.build().state_dict()
        assert all(torch.equal(tensor, start[name]) for name, tensor in final.state_dict().items())


def test_batch_norm_keeps_the_statistics_of_pretraining(tmp_path: Path) -> None:
    model = parse("efficientnet-lite0", (3, 32, 32), 2)()
    norms = [module for module in model.train().modules() if isinstance(module, torch.nn.BatchNorm2d)]
    before = norms[3].running_mean
    assert before is not None
    before = before.clone()
    model(torch.rand(2, 3, 32, 32))
    assert torch.equal(norms[3].running_mean, before)  # type: ignore[arg-type]
