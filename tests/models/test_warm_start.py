"""A run begins with the layers of another one: all of them but the classifier, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from selfdistill.errors import CheckpointError, DataError, SelfdistillError
from selfdistill.experiments.network_run import prepare
from selfdistill.experiments.network_task import NetworkTaskType
from selfdistill.experiments.run import Run
from selfdistill.io.run_record import Request
from selfdistill.models import registry, store, warm_start
from selfdistill.report.summary import sentence

SMALL = Request("digits", labels=60, method="simsiam(width=16)", model="mlp(width=12)", steps=4, control=False)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without labels."""
    folder = tmp_path_factory.mktemp("runs") / "features"
    Run.create(SMALL, folder).execute(warn=lambda line: None)
    return folder


def test_every_layer_but_the_classifier_is_taken_over(begun: Path) -> None:
    ready = prepare(replace(SMALL, method="plain()", model=None, init=str(begun)))
    assert str(ready.build) == "mlp(width=12)"  # where none is named, the run's
    kept, (first, second) = store.load(begun / "model").state_dict(), (ready.build().state_dict() for _ in range(2))
    for name, value in first.items():
        same = not name.startswith("classifier")
        assert value.equal(kept[name]) is same, name
        assert second[name].equal(value) is same, name


def test_what_is_drawn_afresh_is_what_would_be_drawn_without(begun: Path) -> None:
    """Of a model of linear layers the classifier is drawn last; the numbers before it are drawn and overwritten."""
    build = registry.parse("mlp(width=12)", (1, 8, 8), 10)
    torch.manual_seed(3)
    plainly = build().state_dict()
    torch.manual_seed(3)
    ours = warm_start.warm_started(build, str(begun))().state_dict()
    assert ours["classifier.weight"].equal(plainly["classifier.weight"])


def test_exits_are_new_and_peers_share_what_they_begin_with(begun: Path) -> None:
    build = warm_start.warm_started(registry.parse("mlp(width=12)", (1, 8, 8), 10), str(begun))
    kept = store.load(begun / "model").state_dict()
    assert build(exits=True).state_dict()["stages.0.1.weight"].equal(kept["stages.0.1.weight"])
    peers = build.wrapped("mean2", 1)().state_dict()
    found = [value for name, value in peers.items() if name.endswith("stages.0.1.weight")]
    assert len(found) == 2
    assert all(value.equal(kept["stages.0.1.weight"]) for value in found)


@pytest.mark.parametrize("method", ["plain()", "mutual()", "born_again(generations=2)", "curriculum(stages=2)"])
def test_a_run_begins_there_resumes_and_leaves_a_model_that_stands_alone(
    method: str, begun: Path, tmp_path: Path
) -> None:
    request = replace(SMALL, method=method, init=str(begun), model=None)
    found = Run.create(request, tmp_path / "run").execute(warn=lambda line: None)
    assert found["model"] == "mlp(width=12)"
    assert Run.open(tmp_path / "run").request == request
    alone = store.load(tmp_path / "run" / "model")
    assert not alone.training
    assert "init" not in (tmp_path / "run" / "model" / "config.json").read_text()


def test_the_methods_model_is_the_product_though_plain_classifies_better(begun: Path, tmp_path: Path) -> None:
    """Features were asked for; the classifier on them is a probe."""
    found = Run.create(replace(SMALL, control=True, steps=12), tmp_path / "run").execute(warn=lambda line: None)
    assert found["chosen"] == "method"
    assert "A linear probe on self-supervised features against plain" in (tmp_path / "run/README.md").read_text()
    assert f"fier on features scores {100 * found['nearest']:.1f} %" in sentence(found, NetworkTaskType())
    assert found["nearest"] > 0.3
    assert found["test"]["accuracy"] > 0.3  # a probe of features that were hardly trained beats chance, which is 0.1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"model": "mlp(width=8)"}, r"--init .*features: its stages.0.1.\w+ is \(12.*\(8.*\) here"),
        ({"model": "cnn"}, r"its stages.0.1.\w+ is .*; leave --model out to take mlp"),
        ({"init": "nowhere"}, "there is no folder nowhere"),
        ({"data": "wine", "model": None, "method": None, "steps": None}, "--init is for networks"),
        ({"data": "reasoning-gym:chain_sum", "model": None, "method": "sft()"}, "--init has no meaning for prompts"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(
    change: dict[str, str | None], why: str, begun: Path, tmp_path: Path
) -> None:
    request = replace(SMALL, **{"method": "plain()", "init": str(begun), **change})  # type: ignore[arg-type]
    with pytest.raises(SelfdistillError, match=why) as refused:
        Run.create(request, tmp_path / "run").execute(warn=lambda line: None)
    assert "\n" not in str(refused.value)
    assert isinstance(refused.value, (DataError, CheckpointError))


def test_a_request_without_it_is_the_same_as_before_it_existed() -> None:
    assert "init" not in Request().to_json()
    assert Request.from_json(replace(SMALL, init="a").to_json()).init == "a"


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("open('executed', 'w').close()",)


FOREIGN = replace(SMALL, method="plain()")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
@pytest.mark.parametrize("inside", [None, "state_dict", "model"])
def test_foreign_weights_are_taken_over(suffix: str, inside: str | None, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    state = registry.parse("mlp(width=12)", (1, 8, 8), 10)().state_dict()
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        prefix = {".pt": "", ".pth": "module._orig_mod."}[suffix]  # of DDP around a compiled model
        saved = {prefix + name: tensor for name, tensor in state.items()}
        torch.save({inside: saved, "epoch": 3} if inside else saved, file)
    built = prepare(replace(FOREIGN, init=str(file))).build().state_dict()
    for name, value in built.items():
        assert value.equal(state[name]) is not name.startswith("classifier"), name


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("code", "no state dict of tensors alone"),
        ("module", "no state dict of tensors alone"),
        ("text", "no state dict of tensors alone"),
        ("script", "no state dict of tensors alone"),
        ("list", "holds a list without weights"),
        ("nested", "'deep' is a dict"),
        ("sparse", "is a sparse tensor"),
        ("other", "no such layer here|it has no stages"),
        ("nan", "nan or infinite"),
    ],
)
def test_a_foreign_file_that_is_no_state_dict_takes_one_line(
    how: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = registry.parse("mlp(width=12)", (1, 8, 8), 10)().state_dict()
    file, first = tmp_path / "weights.pt", next(iter(state))
    if how == "text":
        file.write_text("hello")
    elif how == "script":
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(file))
    else:
        content: dict[str, object] = {
            "code": {**state, "x": _Evil()},
            "module": torch.nn.Linear(2, 2),
            "list": [1, 2],
            "nested": {**state, "deep": {}},
            "sparse": {**state, first: state[first].to_sparse()},
            "other": torch.nn.Linear(2, 2).state_dict(),
            "nan": {**state, first: state[first] * float("nan")},
        }
        torch.save(content[how], file)
    with pytest.raises(SelfdistillError, match=line) as refusal:
        prepare(replace(FOREIGN, init=str(file)))
    assert "\n" not in str(refusal.value)
    assert "weights.pt" in str(refusal.value)
    assert not (tmp_path / "executed").exists()


def test_a_file_of_weights_is_no_model(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="does not say what model it is of"):
        store.load_model(tmp_path / "weights.pt")
