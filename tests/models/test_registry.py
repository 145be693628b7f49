"""Factories that build afresh, whatever names the model, and folders that load anywhere."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from selfdistill.errors import CheckpointError, RecipeError
from selfdistill.models.registry import Build, parse
from selfdistill.models.store import load, save

IMAGE = (3, 16, 16)
USER = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class Width:
    value: int = 4

def net(shape, outputs, width=4, *, skip=False, sizes=()):
    return nn.Sequential(nn.Flatten(), nn.Linear(torch.Size(shape).numel(), width), nn.Linear(width, outputs))

def fixed():
    return nn.Linear(4, 3)

def own_defaults(width=4, depth=2):
    return nn.Linear(width, 3)

def anything(*args, **options):
    return nn.Linear(args[0][0], args[1])

def one(size):
    return nn.Linear(size, 1)

def not_a_model(shape, outputs):
    return "linear"

def breaks(shape, outputs):
    raise KeyError("weights\\nmissing")

class Net(nn.Linear):
    def __init__(self, shape, outputs):
        super().__init__(shape[0], outputs)

number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with a user's module in it."""
    (tmp_path / "mynets.py").write_text(USER)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mynets", None)


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize(
    ("spec", "shape", "what"),
    [
        ("cnn", (5,), r"cnn reads images \(channels, height, width\), not rows of shape \(5,\); use mlp"),
        ("resnet", (5, 5), "use mlp"),
        ("cnn(norm='layer')", IMAGE, "norm 'batch' or 'group', not 'layer'"),
        ("mlp(width=0)", IMAGE, "whole number from 1 on as width, not 0"),
        ("mlp(depth=2.5)", IMAGE, "depth, not 2.5"),
        ("resnet(blocks=True)", IMAGE, "blocks, not True"),
        ("mlp(dropout=1)", IMAGE, r"dropout in \[0, 1\), not 1"),
        ("mlp(dropout='x')", IMAGE, "cannot be built .*TypeError"),
        ("mlp(depth=1, exits=True)", IMAGE, "depth 2 or more"),
    ],
)
def test_values_that_make_no_model_are_refused(spec, shape, what):
    with pytest.raises(RecipeError, match=what) as caught:
        parse(spec, shape, 5)()
    assert "\n" not in str(caught.value)


def test_parse_gives_a_value_that_builds_afresh():
    build = parse("cnn(width=8, norm='group')", torch.Size(IMAGE), 5)
    assert build == Build("cnn", IMAGE, 5, (("width", 8), ("norm", "group")))
    assert hash(build) == hash(parse(str(build), IMAGE, 5))
    assert str(build) == "cnn(width=8, norm='group')"
    assert pickle.loads(pickle.dumps(build)) == build  # noqa: S301 - our own bytes, as spawned processes get them
    torch.manual_seed(1)
    first: Any = build()
    second: Any = build()
    assert first is not second
    assert not torch.equal(first.classifier.weight, second.classifier.weight)
    torch.manual_seed(1)
    assert same(bits(first), bits(build()))


def test_overrides_and_options_reach_the_model():
    build = parse("mlp(width=8)", (4,), 3)
    assert build()(torch.zeros(1, 4)).shape == (1, 3)
    assert build(exits=True)(torch.zeros(1, 4))["feature"].shape == (1, 8)
    assert build.having(exits=True)().bottlenecks
    wide: Any = build.having(width=9)()
    assert wide.classifier.in_features == 9
    assert [build.accepts(name) for name in ("exits", "width", "shape", "norm")] == [True, True, False, False]
    with pytest.raises(RecipeError, match="nearest: width"):
        build(widht=3)


@pytest.mark.parametrize(
    ("spec", "what"),
    [
        ("cnm", "unknown model 'cnm'; nearest: cnn. known: cnn, mlp, resnet"),
        ("cnn(wdth=3)", "cnn has no argument 'wdth'; nearest: width; it is written cnn"),
        ("cnn(64)", "cnn takes 0 arguments by position"),
        ("cnn(width=__import__('os').system('x'))", "a dotted name at column"),
        ("mynets.py", "names no function; write module:function"),
        ("mynets.net", "names no function"),
        ("mynet:net", "there is no module 'mynet', installed or in the current folder; nearest: mynets"),
        ("torch.nothing:net", "there is no module 'torch.nothing'"),
        ("mynest.py:net", "there is no file mynest.py with a model .*; nearest: mynets.py"),
        ("mynets:ent", "mynets has no function 'ent'; nearest: net"),
        ("mynets.py:ent", "mynets.py has no function 'ent'; nearest: net"),
        ("mynets:number", "has no function 'number'"),
        ("mynets:net(wdth=3)", "net has no argument 'wdth'; nearest: width"),
        ("mynets:one", r"mynets:one\(size\) must take \(shape, outputs\)"),
        ("mynets:not_a_model", "returned a str; it must return a torch.nn.Module"),
        ("mynets:breaks", "cannot be built for rows of shape .*KeyError: 'weights"),
        ("broken.py:net", "broken.py failed while it was loaded .SyntaxError"),
        ("broken:net", "broken failed while it was loaded .SyntaxError"),
        (
            "needs:net",
            "needs failed while it was loaded .ModuleNotFoundError: No module named 'nothing_such'",
        ),
    ],
)
def test_what_cannot_be_found_or_built_is_named(here, spec, what):
    (here / "broken.py").write_text("def net(:")
    (here / "needs.py").write_text("import nothing_such")
    with pytest.raises(RecipeError, match=what) as caught:
        parse(spec, (4,), 3)()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["mynets", "mynets.py", "./mynets.py", "ABSOLUTE"])
def test_a_users_function_is_called_as_its_signature_asks(here, place):
    place = str(here / "mynets.py") if place == "ABSOLUTE" else place
    path = list(sys.path)
    for call, width in [("net", 4), ("net(width=6)", 6), ("net(skip=True, sizes=[1, (2, [3])])", 4)]:
        build = parse(f"{place}:{call}", (4,), 3)
        net: Any = build()
        assert net[1].out_features == width
        assert parse(str(build), (4,), 3) == build
        hash(build)
    for call in ("fixed", "own_defaults", "own_defaults(width=4)", "anything", "Net"):
        assert parse(f"{place}:{call}", (4,), 3)()(torch.zeros(2, 4)).shape == (2, 3)
    assert parse(f"{place}:net", (4,), 3).accepts("skip")
    assert not parse(f"{place}:anything", (4,), 3).accepts("exits")
    assert sys.path == path


def test_a_changed_file_is_read_again(here):
    assert parse("mynets.py:fixed", (4,), 3)().out_features == 3
    (here / "mynets.py").write_text(USER.replace("nn.Linear(4, 3)", "nn.Linear(4, 33)"))
    assert parse("mynets.py:fixed", (4,), 3)().out_features == 33


class Tied(nn.Module):
    """Two names for one weight, a buffer that is a view of another, and one that is not contiguous."""

    def __init__(self, shape, outputs):
        super().__init__()
        self.a, self.b = nn.Linear(shape[0], outputs), nn.Linear(shape[0], outputs)
        self.b.weight = self.a.weight
        self.register_buffer("both", torch.arange(6.0).view(2, 3).T)
        self.register_buffer("part", self.get_buffer("both")[1:])
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("none", torch.zeros(0))

    def forward(self, x):
        return self.a(x) + self.b(x)


@pytest.mark.parametrize("spec", ["mlp(width=8)", "cnn(width=4)", "resnet(width=4, blocks=1)", "mynets:net(sizes=[1])"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_saved_model_loads_bit_for_bit_in_eval_mode(here, spec, dtype):
    build = parse(spec, IMAGE, 5)
    model = build()
    model(torch.rand(4, *IMAGE))  # moves the running statistics
    model.to(dtype)
    save(model, here / "a" / "model", build, {"classes": ["x", "y"], "note": None})
    config = json.loads((here / "a" / "model" / "config.json").read_text())
    assert config["format"] == 2
    assert (config["spec"], config["shape"], config["outputs"]) == (build.spec, list(IMAGE), 5)
    assert config["classes"] == ["x", "y"]
    state = torch.get_rng_state()
    loaded = load(here / "a" / "model", trust_code=":" in spec)
    save(model, here / "a" / "model", build, {})  # over an existing one
    assert torch.equal(torch.get_rng_state(), state), "saving and loading must not change later draws"
    assert not loaded.training
    assert same(bits(loaded), bits(model))
    assert sorted(p.name for p in (here / "a" / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_tied_weights_are_stored_once_and_tied_again(tmp_path):
    build = Build(f"{__name__}:Tied", (4,), 3)
    model: Any = build()
    nn.init.normal_(model.a.weight)
    save(model, tmp_path, build, {})
    stored = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert "b.weight" not in stored
    loaded: Any = load(tmp_path, trust_code=True)
    assert loaded.a.weight is loaded.b.weight
    assert same(bits(loaded), bits(model))
    assert loaded.part.data_ptr() != model.part.data_ptr()


def test_exits_are_saved_with_the_factory_that_has_them(tmp_path):
    build = parse("cnn(width=4)", IMAGE, 5)
    model = build(exits=True).eval()
    with pytest.raises(CheckpointError, match=r"not what cnn\(width=4\) builds; save it with build.having"):
        save(model, tmp_path / "m", build, {})
    assert not (tmp_path / "m").exists()
    save(model, tmp_path / "m", build.having(exits=True), {})
    x = torch.rand(2, *IMAGE)
    assert torch.equal(load(tmp_path / "m")(x)["exits"], model(x)["exits"])


def test_loading_imports_no_training_code_and_no_other_heavy_package(tmp_path):
    build = parse("cnn(width=4)", IMAGE, 5)
    save(build(), tmp_path, build, {})
    code = f"""
import sys
from selfdistill.models import load
model = load({str(tmp_path)!r})
ours = sorted({{name.split(".")[1] for name in sys.modules if name.startswith("selfdistill.")}})
heavy = [name for name in ("sklearn", "pandas", "PIL", "rich", "torchvision") if name in sys.modules]
print(ours, heavy, model.training)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['core', 'errors', 'io', 'models'] [] False"


def spoil(folder: Path, how: str) -> None:
    """Damage a model folder in one way."""
    tensors, config = folder / "model.safetensors", folder / "config.json"
    whole = tensors.read_bytes()
    stored = safetensors.torch.load(whole)
    lost = {name: tensor for name, tensor in stored.items() if name != "classifier.bias"}
    pickled = io.BytesIO()
    torch.save(stored, pickled)
    bad_tensors = {
        "truncated": whole[:-1],
        "empty": b"",
        "pickled": pickled.getvalue(),
        "lost tensor": safetensors.torch.save(lost),
        "new tensor": safetensors.torch.save({**stored, "more": torch.zeros(1)}),
        "other shape": safetensors.torch.save({**lost, "classifier.bias": torch.zeros(9)}),
    }
    values = json.loads(config.read_text())
    bad_config = {
        "no json": b"\x80\x04K\x01.",
        "deep json": b"[" * 100_000,
        "a list": b"[]",
        "newer": json.dumps({**values, "format": 3}).encode(),
        "no shape": json.dumps({**values, "shape": None}).encode(),
        "unknown model": json.dumps({**values, "spec": "cnm"}).encode(),
        "no module": json.dumps({**values, "spec": "nothing_such:net"}).encode(),
        "unknown option": json.dumps({**values, "options": {"wdth": 3}}).encode(),
    }
    gone = {"gone": tensors, "no config": config}
    if how in gone:
        gone[how].unlink()
    elif how == "pickle beside":
        (folder / "pytorch_model.bin").touch()
    elif how in bad_tensors:
        tensors.write_bytes(bad_tensors[how])
    else:
        config.write_bytes(bad_config[how])


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("truncated", "model.safetensors is damaged"),
        ("empty", "model.safetensors is damaged"),
        ("gone", "has no model.safetensors"),
        ("pickled", "model.safetensors is damaged, pickled or foreign"),
        ("pickle beside", r"pickled content \(pytorch_model.bin\)"),
        ("lost tensor", "does not fit mlp.* .classifier.bias is missing"),
        ("new tensor", "more is unknown"),
        ("other shape", r"classifier.bias has shape \(9,\), not \(5,\)"),
        ("no config", "no model folder: it has no readable config.json"),
        ("no json", "config.json is damaged or foreign: it is not JSON"),
        ("deep json", "it is not JSON"),
        ("a list", "states no format; this version of selfdistill reads format 2"),
        ("newer", "is of format 3; this version of selfdistill reads format 2"),
        ("no shape", "spec, shape, outputs and options are needed"),
        ("unknown model", "config.json: unknown model 'cnm'; known: cnn, mlp, resnet"),
        ("no module", "names nothing_such:net, code that is not part of selfdistill .* --trust-code"),
        ("unknown option", "config.json: mlp has no argument 'wdth'"),
    ],
)
def test_a_damaged_or_foreign_folder_is_refused_by_name(tmp_path, how, what):
    build = parse("mlp(width=8)", (4,), 5)
    save(build(), tmp_path, build, {})
    assert load(tmp_path)(torch.zeros(1, 4)).shape == (1, 5)
    spoil(tmp_path, how)
    with pytest.raises(CheckpointError, match=what) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_pickle_in_place_of_the_tensors_is_never_run(tmp_path):
    build = parse("mlp(width=8)", (4,), 5)
    save(build(), tmp_path, build, {})
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return Path.touch, (ran,)

    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(CheckpointError):
        load(tmp_path)
    assert not ran.exists()


def test_code_in_the_model_folder_is_not_what_is_loaded(here):
    """A model folder from elsewhere must not bring its own program along."""
    build = parse("mynets:net", (4,), 3)
    save(build(), here / "m", build, {})
    sys.modules.pop("mynets")
    (here / "mynets.py").rename(here / "m" / "mynets.py")
    for trust_code in (False, True):
        with pytest.raises(CheckpointError, match="mynets"):
            load(here / "m", trust_code)


def test_what_cannot_be_saved_leaves_the_old_folder_whole(tmp_path, monkeypatch):
    build = parse("mlp(width=8)", (4,), 5)
    old = build()
    save(old, tmp_path, build, {})
    with pytest.raises(CheckpointError, match="shape in extra"):
        save(build(), tmp_path, build, {"shape": 1})
    with pytest.raises(CheckpointError, match="cannot hold options or extra"):
        save(build(), tmp_path, build, {"x": float("nan")})
    with pytest.raises(CheckpointError, match="cannot hold options or extra"):
        save(build(), tmp_path, build, {"x": torch.zeros(1)})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(CheckpointError, match=r"cannot be written to .*No space left on device"):
            save(build(), tmp_path, build, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert same(bits(load(tmp_path)), bits(old))
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(build(), tmp_path / "file", build, {})
