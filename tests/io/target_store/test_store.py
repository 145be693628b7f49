"""The store: what is written is read, whatever the order, the process and the crash; and nothing else is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.errors import CheckpointError, DataError
from selfdistill.io.target_store import Dense, Store, Top, marks
from selfdistill.io.target_store import store as store_module
from selfdistill.io.tensors import read_tensors
from tests.io.target_store.writer import LENGTH, ROUNDS, WIDTH, K, fill, target, total_of

BOUND = {"teacher": "a", "data": "b", "view": "x"}


def process(what: str, folder: Path, number: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.io.target_store.writer", what, str(folder), str(number)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.safetensors"))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-(2**62), 2**62), st.integers(0, 5), st.booleans()), min_size=1, max_size=25),
    st.integers(0, 10**6),
)
def test_records_of_any_length_come_back_in_any_order(records, seed):
    """Flushed or not, repeated or not: the first target of a key stays."""
    rng = np.random.default_rng(seed)
    wanted: dict[int, np.ndarray[Any, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, Dense(3), BOUND)
        for key, length, flush in records:
            values = rng.normal(size=(length, 3)).astype(np.float32)
            store.write([key], {"values": values}, [length], [key // 3])
            wanted.setdefault(key, values)
            if flush:
                store.flush()
        for opened in (store, None):
            if opened is None:
                store.flush()
            again = opened or Store(folder, bound=BOUND)
            assert len(again) == len(wanted)
            keys = rng.choice(list(wanted), size=10)
            columns, bounds = again.read(keys)
            assert np.array_equal(columns["values"], np.concatenate([wanted[key] for key in keys.tolist()]))
            assert np.diff(bounds).tolist() == [len(wanted[key]) for key in keys.tolist()]
            assert again.marks(keys).tolist() == [key // 3 for key in keys.tolist()]
            assert again.contains([*wanted, 2**62 + 1]).tolist() == [True] * len(wanted) + [False]


def test_a_batch_of_new_and_known_records_adds_the_new_ones(tmp_path):
    store = Store(tmp_path, Dense(1))
    store.write([4, 5], {"values": np.array([[1], [2], [2]], np.float32)}, [1, 2])
    store.write([5, 6, 6, 4], {"values": np.array([[9], [3], [3], [8], [9]], np.float32)}, [1, 2, 1, 1])
    columns, _ = store.read([6, 5, 4])
    assert columns["values"].ravel().tolist() == [3, 3, 2, 2, 1]


def test_rows_of_one_element_are_read_from_many_shards_at_once(tmp_path):
    store = Store(tmp_path, Dense(2, "float16"))
    values = np.arange(20, dtype=np.float16).reshape(10, 2)
    for i in range(0, 10, 3):
        store.write(range(i, min(10, i + 3)), {"values": values[i : i + 3]})
        store.flush()
    assert len(files(tmp_path)) == 4
    order = [9, 0, 4, 4, 7]
    assert np.array_equal(Store(tmp_path).read(order)[0]["values"], values[order])
    assert Store(tmp_path).read([])[0]["values"].shape == (0, 2)


def test_a_full_shard_goes_to_the_disk_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "SHARD_BYTES", 100)
    store = Store(tmp_path, Dense(5))
    for key in range(12):
        store.write([key], {"values": np.full((1, 5), key, np.float32)})
    assert [len(read_tensors(path)["keys"]) for path in files(tmp_path)] == [5, 5]
    assert store.read(range(12))[0]["values"][:, 0].tolist() == list(range(12))


def test_shards_are_safetensors_that_anyone_can_read(tmp_path):
    fill(str(tmp_path), range(3), 3)
    (path,) = files(tmp_path)
    found = read_tensors(path)
    assert found["keys"].tolist() == [0, 1, 2]
    assert found["starts"].tolist() == [0, LENGTH, 2 * LENGTH, 3 * LENGTH]
    assert (found["words"].dtype, found["words"].shape) == (torch.uint32, (3 * LENGTH, K))


@pytest.mark.parametrize("after", [0, 3])
def test_a_process_killed_in_mid_writing_loses_one_shard_and_the_next_goes_on(after, tmp_path):
    """``after`` counts files: the card, then shards."""
    dying = process("killed", tmp_path, after)
    dying.communicate()
    assert dying.returncode == -signal.SIGKILL
    assert len(files(tmp_path)) == max(0, after - 1)
    assert len(list(tmp_path.glob(".tmp-*"))) == 1
    fill(str(tmp_path), range(40), 8)
    store = Store(tmp_path, bound=BOUND)
    assert len(store) == 40
    assert len(files(tmp_path)) == 5
    for key in range(40):
        expected = store.layout.sparse(store.layout.encode(target(key)))  # type: ignore[union-attr]
        for part, wanted in zip(store.sparse([key])[0], expected, strict=True):
            assert torch.equal(part, wanted)


def test_what_a_dead_process_left_is_removed_when_it_is_old(tmp_path):
    fill(str(tmp_path), range(2), 2)
    young, old = tmp_path / ".tmp-1-a.safetensors", tmp_path / ".tmp-2-b.safetensors"
    for path in (young, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert len(Store(tmp_path)) == 2
    assert young.exists()
    assert not old.exists()


def test_two_processes_read_at_once_while_a_third_writes(tmp_path):
    fill(str(tmp_path), range(40), 8)
    readers = [process("read", tmp_path, seed) for seed in (1, 2)]
    fill(str(tmp_path), range(40, 60), 2)
    said = [reader.communicate() for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0], said
    total = sum(total_of(Store(tmp_path), key) for key in range(40)) * ROUNDS
    assert [float(out) for out, _ in said] == pytest.approx([total, total], rel=1e-9)
    assert len(Store(tmp_path)) == 60


def test_two_writers_at_once_leave_one_target_a_key(tmp_path):
    """Each knows only its own; afterwards the first shard that has a key answers for everybody."""
    two = [Store(tmp_path, Dense(1)) for _ in range(2)]
    for i, store in enumerate(two):
        store.write(range(5 * i, 5 * i + 10), {"values": np.full((10, 1), i, np.float32)})
    for store in two:
        store.flush()
    again = Store(tmp_path)
    assert len(again) == 15
    assert again.read(range(15))[0]["values"].ravel().tolist() == [0] * 10 + [1] * 5
    two[0].refresh()
    assert len(two[0]) == 15


@pytest.mark.parametrize("name", ["teacher", "data", "view", "tokenizer"])
def test_targets_of_another_teacher_data_or_view_are_refused_in_one_line(name, tmp_path):
    fill(str(tmp_path), range(2), 2)
    with pytest.raises(CheckpointError, match=f"another {name}") as caught:
        Store(tmp_path, Top(WIDTH, K), {**BOUND, name: "other"})
    assert "\n" not in str(caught.value)
    assert "give another folder" in str(caught.value)
    Store(tmp_path, bound={"teacher": "a"})


def test_another_layout_a_missing_store_and_a_missing_key_are_refused(tmp_path):
    fill(str(tmp_path / "here"), range(2), 2)
    with pytest.raises(CheckpointError, match=r"Top\(width=200, k=4\), asked for is Dense"):
        Store(tmp_path / "here", Dense(WIDTH))
    with pytest.raises(CheckpointError, match="holds no targets"):
        Store(tmp_path)
    with pytest.raises(DataError, match="no target for key 9"):
        Store(tmp_path / "here").read([0, 9])
    with pytest.raises(DataError, match="all outputs"):
        Store(tmp_path / "dense", Dense(2)).sparse([])


def flipped(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << (at % 8)
    path.write_bytes(data)


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path):
    """In the header, the records or the targets; the shard is named, and without it the rest is read."""
    fill(str(tmp_path), range(8), 4)
    victim, whole = files(tmp_path)[1], files(tmp_path)[1].read_bytes()
    for at in {0, 3, 9, *range(0, len(whole), 97), len(whole) - 1}:
        flipped(victim, at)
        with pytest.raises(CheckpointError, match=f"{victim.name} is damaged") as caught:
            Store(tmp_path).read([5])
        assert "\n" not in str(caught.value)
        assert "delete it" in str(caught.value)
        victim.write_bytes(whole)
    assert len(Store(tmp_path)) == 8
    victim.unlink()
    fill(str(tmp_path), range(8), 4)
    assert len(Store(tmp_path)) == 8


def test_only_the_shard_that_is_read_is_checked_to_the_end(tmp_path):
    fill(str(tmp_path), range(8), 4)
    first, second = files(tmp_path)
    flipped(second, second.stat().st_size - 1)
    store = Store(tmp_path)
    store.read([0])
    with pytest.raises(CheckpointError, match=second.name):
        store.read([0, 5])
    assert first.exists()


@pytest.mark.parametrize("size", [0, 7, 100, -1])
def test_a_shard_cut_short_or_empty_is_named(size, tmp_path):
    fill(str(tmp_path), range(4), 4)
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match=path.name):
        Store(tmp_path)


def test_a_shard_under_another_name_is_not_believed(tmp_path):
    fill(str(tmp_path), range(4), 4)
    (path,) = files(tmp_path)
    path.rename(path.with_name("000001-00000000000000000000000000000000.safetensors"))
    with pytest.raises(CheckpointError, match="records differ"):
        Store(tmp_path)


@pytest.mark.parametrize("change", ["teacher", "width", "text", "version"])
def test_a_changed_card_is_not_believed(change, tmp_path):
    fill(str(tmp_path), range(1), 1)
    card = tmp_path / "store.json"
    body = json.loads(card.read_text())
    if change == "teacher":
        body["bound"]["teacher"] = "c"
    elif change == "width":
        body["layout"]["width"] = 201
    elif change == "version":
        body["version"] = 3
    card.write_text("{" if change == "text" else json.dumps(body))
    with pytest.raises(CheckpointError, match=r"store\.json is damaged"):
        Store(tmp_path)


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path, monkeypatch):
    store = Store(tmp_path, Dense(1))
    store.write([1], {"values": np.ones((1, 1), np.float32)})

    def full(path, pieces):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "write_stream", full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        store.flush()
    monkeypatch.undo()
    assert store.contains([1]).all()
    store.flush()
    assert Store(tmp_path).contains([1]).all()


def test_what_does_not_belong_together_is_refused(tmp_path):
    store = Store(tmp_path, Dense(2))
    good: Any = {"values": np.zeros((2, 2), np.float32)}
    wrong: list[Any] = [
        ([1], good, None), ([1, 2], good, [1]), ([1, 2], {"values": np.zeros((2, 2))}, None), ([1, 2], {}, None),
        ([1, 2], good, [3, -1]), ([1, np.iinfo(np.int64).max], good, None),
    ]  # fmt: skip
    for keys, columns, lengths in wrong:
        with pytest.raises(DataError):
            store.write(keys, columns, lengths)
    assert len(store) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64, torch.bool])
def test_marks_see_every_bit_of_a_row_and_only_of_that_row(dtype):
    x = (torch.rand(6, 3, 4, generator=torch.Generator().manual_seed(0)) * 2).to(dtype)
    before = marks(x)
    assert before.equal(torch.cat([marks(x[:2]), marks(x[2:])]))
    assert before.dtype == torch.int64
    for row in range(6):
        raw = x.clone()
        bits = raw[row].view(torch.uint8)
        bits.view(-1)[row] ^= 1
        assert (marks(raw) != before).tolist() == [i == row for i in range(6)]
    swapped = x.clone()
    swapped[0, 0, :2] = x[0, 0, :2].flip(0)
    assert bool(marks(swapped)[0] == before[0]) == torch.equal(swapped[0], x[0])
