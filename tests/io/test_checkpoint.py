"""Checkpoints come back exactly, and their folder is kept in order."""

from __future__ import annotations

import collections
import fcntl
import hashlib
import json
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from selfdistill.core import memory
from selfdistill.errors import CheckpointError
from selfdistill.io import checkpoint, tensors
from tests.checkpoints import FILES, same, saved

DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.uint16,
        torch.uint32,
        torch.uint64,
    ),
    *(torch.bool, torch.complex64),
]


def arrays() -> st.SearchStrategy[torch.Tensor]:
    shapes = st.lists(st.integers(0, 3), max_size=3)

    def filled(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
        if dtype == torch.bool:
            return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
        size = math.prod(shape) * dtype.itemsize
        data = bytearray(np.random.default_rng(seed).bytes(size)) or bytearray(8)  # any bits, NaNs too
        return torch.frombuffer(data, dtype=dtype)[: math.prod(shape)].reshape(shape)

    return st.builds(filled, st.sampled_from(DTYPES), shapes, st.integers(0, 2**32 - 1))


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.characters(categories=["Cs"])
KEYS = st.text() | st.integers() | st.sampled_from(["__metadata__", "a/b", "", "0", "a'", "\ud800", True, None])
TREES = st.recursive(
    SCALARS | arrays(),
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(KEYS, inner, max_size=5)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_any_tree_comes_back_in_every_type_and_bit(tmp_path: Path, tree: object) -> None:
    path = checkpoint.write(tmp_path, {"tree": tree})
    assert same(checkpoint.read(path), {"tree": tree})
    assert checkpoint.newest(tmp_path, warn=pytest.fail) == path


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (5,), (2, 3)], ids=str)
def test_a_dtype_in_any_shape_survives(tmp_path: Path, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    values = (torch.arange(math.prod(shape)) % 2 + 1).to(dtype).reshape(shape)
    tensors.write_tensors(tmp_path / "t.safetensors", {"a": values, "b": torch.ones(3)})
    assert same(tensors.read_tensors(tmp_path / "t.safetensors"), {"a": values, "b": torch.ones(3)})


def test_views_of_one_storage_come_back_whole_separate_and_writable(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tied = nn.Parameter(base)
    views = {"t": base.T, "every": base[:, ::2], "wide": base[:1].expand(3, 4), "tied": tied, "again": tied}
    back = checkpoint.read(checkpoint.write(tmp_path, {"x": {**views, "conj": torch.tensor([1 + 2j]).conj()}}))["x"]
    assert all(torch.equal(back[name], view) for name, view in views.items())
    assert back["conj"].tolist() == [1 - 2j]
    back["tied"].fill_(-1.0)
    assert torch.equal(back["again"], base)


def test_the_order_of_mapping_kinds_is_kept_but_not_the_kind(tmp_path: Path) -> None:
    state = nn.BatchNorm1d(2).state_dict()
    back = checkpoint.read(checkpoint.write(tmp_path, {"model": state}))["model"]
    assert type(back) is dict
    assert same(back, dict(state))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_an_optimizer_survives_and_goes_on_as_if_never_stopped(tmp_path: Path, kind: str) -> None:
    def made() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
        if kind == "adamw":
            return model, torch.optim.AdamW(model.parameters(), lr=0.1, amsgrad=True)
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)

    def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

    model, optimizer = made()
    train(model, optimizer, range(3))
    path = checkpoint.write(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    back = checkpoint.read(path)
    assert same(back["optimizer"], optimizer.state_dict())
    other, resumed = made()
    other.load_state_dict(back["model"])
    resumed.load_state_dict(back["optimizer"])
    train(model, optimizer, range(3, 6))
    train(other, resumed, range(3, 6))
    assert same(dict(other.state_dict()), dict(model.state_dict()))
    assert same(resumed.state_dict(), optimizer.state_dict())


def test_files_are_the_public_format_in_both_directions(tmp_path: Path) -> None:
    """The library of the format reads what is written here, and what it writes is read here."""
    mixed = {
        "é": torch.arange(3),
        "b": torch.tensor([True]),
        "h": torch.rand(3).half(),
        "d": torch.rand(2, 2).double(),
    }
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    tensors.write_tensors(ours, mixed, {"made by": "test"})
    safetensors.torch.save_file(mixed, theirs, {"made by": "test"})
    expected = dict(sorted(mixed.items()))
    assert same(dict(sorted(safetensors.torch.load_file(ours).items())), expected)
    assert same(tensors.read_tensors(theirs), expected)
    with safetensors.safe_open(ours, framework="pt") as file:
        assert file.metadata() == {"made by": "test"}


def test_each_tensor_lies_aligned_in_its_file(tmp_path: Path) -> None:
    mixed = {"a": torch.ones(3, dtype=torch.bool), "b": torch.ones(3).half(), "c": torch.ones(3).double()}
    tensors.write_tensors(tmp_path / "t", mixed)
    data = (tmp_path / "t").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    for name, tensor in mixed.items():
        assert (8 + length + header[name]["data_offsets"][0]) % tensor.dtype.itemsize == 0


def test_keys_that_share_a_path_do_not_share_a_tensor(tmp_path: Path) -> None:
    one, two, three, four = (torch.full((2,), float(i)) for i in range(4))
    tree = {
        0: one,
        "0": two,
        "a/b": three,
        "a": {"b": four},
        "__metadata__": one,
        "": two,
        "/a/b": one,
        "\ud800": two,
    }
    assert same(checkpoint.read(checkpoint.write(tmp_path, {"x": tree})), {"x": tree})


def test_nan_and_infinity_keep_their_bits_in_strict_json(tmp_path: Path) -> None:
    nans = [struct.unpack(">d", bytes.fromhex(bits))[0] for bits in ("7ff8000000000000", "fff80000000000ab")]
    path = checkpoint.write(tmp_path, {"x": [*nans, math.inf, -math.inf, -0.0, 5e-324, 0.1]})
    assert same(checkpoint.read(path)["x"], [*nans, math.inf, -math.inf, -0.0, 5e-324, 0.1])
    json.loads((path / "x.json").read_text(), parse_constant=pytest.fail)


Pair = collections.namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    "leaf",
    [
        *({1}, b"x", Pair(1, 2), np.float64(1.0), np.zeros(2), {1.5: 0}, {(0, 1): 0}, 1j, torch.float32),
        *(torch.eye(2).to_sparse(), torch.ones(2, device="meta"), torch.zeros(1, dtype=torch.complex128)),
    ],
    ids=lambda leaf: type(leaf).__name__,
)
def test_what_would_not_come_back_equal_is_an_error_that_says_where(tmp_path: Path, leaf: object) -> None:
    with pytest.raises(TypeError, match=r"^deep/1: .*convert|^deep/1: .*keys"):
        checkpoint.write(tmp_path / "run", {"state": {"deep": [0, leaf]}})
    assert not (tmp_path / "run").exists()


def test_a_sharded_or_wrapped_tensor_is_refused_rather_than_cut(tmp_path: Path) -> None:
    class Sharded(torch.Tensor):
        pass

    with pytest.raises(TypeError, match=r"^w: .*not Sharded; gather it first"):
        checkpoint.write(tmp_path, {"student": {"w": torch.ones(2).as_subclass(Sharded)}})


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "manifest", "a b"])
def test_a_component_name_that_is_no_file_name_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot name a component"):
        checkpoint.write(tmp_path, {name: 1})


def test_names_with_dots_stay_apart(tmp_path: Path) -> None:
    both = {"teacher": 1, "teacher.ema": torch.ones(1), "teacher.ema.json": 2}
    assert same(checkpoint.read(checkpoint.write(tmp_path, both)), both)


def test_single_files_reject_what_they_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reserved"):
        tensors.write_tensors(tmp_path / "a", {"__metadata__": torch.ones(1)})
    with pytest.raises(TypeError, match="strings"):
        tensors.write_tensors(tmp_path / "a", {}, {"epochs": 3})  # type: ignore[dict-item]
    for value in (math.nan, math.inf, {"loss": [-math.inf]}):
        with pytest.raises(ValueError, match="not JSON compliant"):
            tensors.write_json(tmp_path / "a", value)
    assert list(tmp_path.iterdir()) == []


# --- the folder -----------------------------------------------------------------------------------


def test_no_folder_or_an_empty_one_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "none") is None


def test_checkpoints_are_numbered_and_only_the_newest_kept(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    (folder / "ckpt-00000000").mkdir(parents=True)
    (folder / ".tmp-ckpt-00000009").mkdir()
    (folder / ".tmp-ckpt-00000009" / "half").write_text("of a process that was killed")
    names = [path.name for path in saved(folder, 1, 2, 3, keep=2)]
    assert names == ["ckpt-00000001", "ckpt-00000002", "ckpt-00000003"]
    assert sorted(path.name for path in folder.iterdir()) == names[1:]
    saved(folder, 4, keep=1)
    assert [path.name for path in folder.iterdir()] == ["ckpt-00000004"]
    with pytest.raises(ValueError, match="keep"):
        saved(folder, 5, keep=0)


def test_the_manifest_lists_size_and_hash_of_every_file(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert (manifest["version"], manifest["ordinal"]) == (2, 1)
    assert {"manifest.json", *manifest["files"]} == {entry.name for entry in path.iterdir()} == set(FILES)
    for name, listed in manifest["files"].items():
        data = (path / name).read_bytes()
        assert listed == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_two_writers_at_once_are_told_apart(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)
    with pytest.raises(CheckpointError, match="another process"):
        saved(tmp_path, 2)
    os.close(handle)
    assert saved(tmp_path, 2)[0].name == "ckpt-00000002"


# large tensors --------------------------------------------------------------------------------------------------------


def _large(*values: float) -> dict[str, object]:
    """A component of several tensors with a file each, and a small one."""
    return {"clock": {}, "memory": {"rows": [torch.full((64,), value) for value in values], "small": torch.ones(2)}}


def test_a_large_tensor_that_did_not_change_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_OWN_FILE", 256)
    first, second = (checkpoint.write(tmp_path, _large(1.0, value)) for value in (2.0, 3.0))
    assert same(checkpoint.read(first), _large(1.0, 2.0))
    assert same(checkpoint.read(second), _large(1.0, 3.0))
    links = {path.name: path.stat().st_nlink for path in second.iterdir()}
    assert {name for name, count in links.items() if count > 1} == {"memory~1.safetensors"}
    third = checkpoint.write(tmp_path, _large(1.0, 3.0))  # the first is dropped, and takes nothing with it
    assert not first.exists()
    assert same(checkpoint.read(third), _large(1.0, 3.0))


def _refuse(*paths: Path) -> None:
    raise OSError("no links")


def test_a_damaged_file_is_never_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_OWN_FILE", 256)
    first = checkpoint.write(tmp_path, _large(1.0))
    content = bytearray((first / "memory~1.safetensors").read_bytes())
    content[-1] ^= 1
    (first / "memory~1.safetensors").write_bytes(content)
    second = checkpoint.write(tmp_path, _large(1.0))
    assert same(checkpoint.read(second), _large(1.0))
    monkeypatch.setattr("os.link", _refuse)
    assert same(checkpoint.read(checkpoint.write(tmp_path, _large(1.0))), _large(1.0))
    (second / "memory~1.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"memory~1\.safetensors is missing"):
        checkpoint.read(second)


def test_a_memory_is_written_where_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_OWN_FILE", 1 << 11)
    monkeypatch.setattr(memory, "BLOCK", 1 << 12)
    table, ids = memory.SampleMemory(), torch.arange(2000) * 7 + (1 << 60)
    table.write(ids, torch.rand(2000, 4))
    checkpoint.write(tmp_path, {"objective": table.state_dict()})
    table.write(ids[:3], torch.rand(3, 4))
    path = checkpoint.write(tmp_path, {"objective": table.state_dict()})
    large = [file.stat().st_nlink for file in path.glob("objective~*")]
    assert len(large) > 8
    assert large.count(1) == 1
    fresh = memory.SampleMemory()
    fresh.load_state_dict(checkpoint.read(path)["objective"])
    assert fresh.read(ids, 4)[0].equal(table.read(ids, 4)[0])


def test_a_single_number_of_any_stride_is_written(tmp_path: Path) -> None:
    one = torch.arange(6.0).reshape(3, 2)[:1, :1]  # contiguous, with a stride of 2
    tensors.write_tensors(tmp_path / "t.safetensors", {"one": one})
    assert tensors.read_tensors(tmp_path / "t.safetensors")["one"].tolist() == [[0.0]]
