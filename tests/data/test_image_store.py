"""Images that are read while a run trains: the same numbers as in memory, for any number of workers."""

import os
import pickle
from typing import Any

import pytest
import torch
from torch import nn

from selfdistill.data import dataset, image_store, loading
from selfdistill.data.sampler import Sampler
from selfdistill.errors import DataError
from selfdistill.evaluation.predict import predict, predict_rows
from selfdistill.methods import elr, fixmatch, plain
from selfdistill.training.fit import fit
from tests.data.test_images import pets


@pytest.fixture
def folder(tmp_path):
    return pets(tmp_path / "pets", 20)


def load(folder, monkeypatch, memory=True, workers=0, **options):
    monkeypatch.setenv(loading.VARIABLE, str(workers))
    if not memory:
        monkeypatch.setattr(image_store, "IN_MEMORY", 0)
    return dataset.load(str(folder), image_size=8, **options)


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))


@pytest.mark.parametrize(("method", "workers"), [(elr(), 0), (elr(), 2), (fixmatch(), 1)])
def test_training_is_the_same_in_memory_and_from_disk(folder, monkeypatch, method, workers):
    options: dict[str, Any] = {"batch_size": 8, "steps": 5, "vitals": False}
    kept = load(folder, monkeypatch, labels=20)
    in_memory = fit(build, kept, method, **options)
    data = load(folder, monkeypatch, memory=False, workers=workers, labels=20)
    assert isinstance(data.x, image_store.ImageStore)
    assert data.fingerprint == kept.fingerprint
    on_disk = fit(build, data, method, **options)
    for (name, value), other in zip(
        in_memory.model.state_dict().items(), on_disk.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name
    assert in_memory.history == on_disk.history


def test_micro_batches_and_resuming_from_disk(folder, monkeypatch, tmp_path):
    data = load(folder, monkeypatch, memory=False, workers=2)
    options: dict[str, Any] = {"batch_size": 8, "accumulate": 2, "save_steps": 2, "steps": 5}
    whole = fit(build, data, plain(), **options)

    def stop(clock, batches, loss):
        if clock.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(build, data, plain(), out=tmp_path / "run", watch=stop, **options)
    resumed = fit(build, data, plain(), out=tmp_path / "run", resume=True, **options)
    for value, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(value, other)


def test_prediction_of_many_reads_ahead(folder, monkeypatch):
    data = load(folder, monkeypatch, memory=False, workers=2)
    model = build()
    kept = data.x[torch.arange(40)].float() / 255
    monkeypatch.setattr(image_store, "TOGETHER", 7)
    assert predict_rows(model, data, torch.arange(40)).equal(predict(model, kept))
    assert predict(model, data.x).equal(predict(model, kept))


def test_a_file_that_goes_away_is_named_by_a_worker(folder, monkeypatch):
    data = load(folder, monkeypatch, memory=False, workers=2)
    for path in folder.rglob("*.png"):
        path.unlink()
    with pytest.raises(
        DataError, match=r"\.png: not a readable image \(unreadable: no such file or directory\)"
    ) as caught:
        fit(build, data, plain(), batch_size=8, steps=3)
    assert "\n" not in str(caught.value)


def test_a_sampler_goes_to_another_process(folder, monkeypatch):
    data = load(folder, monkeypatch, memory=False)
    sampler = Sampler(data, elr().views, 8, seed=0)
    sets = sampler.sample(0, 0)
    copy = pickle.loads(pickle.dumps(sampler))  # noqa: S301
    assert copy.batch(sets, 0)["x"].x.equal(sampler.batch(sets, 0)["x"].x)


@pytest.mark.parametrize("value", ["two", "-1", "1000"])
def test_a_number_of_workers_that_is_none_is_refused(monkeypatch, value):
    monkeypatch.setenv(loading.VARIABLE, value)
    with pytest.raises(DataError, match="a number of worker processes from 0 to 256"):
        loading.num_workers()


def test_workers_have_room_for_their_results(monkeypatch):
    monkeypatch.setenv(loading.VARIABLE, "2")
    assert loading.num_workers(1 << 60) == 0


def group(item):
    return os.getpgrp()


def test_signals_to_the_group_of_a_run_spare_its_workers():
    """Ctrl-C reaches a whole group, and the run still finishes its step."""
    (worker,) = loading.in_order(group, [0], 1)
    assert worker != os.getpgrp()
