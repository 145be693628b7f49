"""Memories are keyed by sample id: no order of writing and reading mixes samples up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.core import memory
from selfdistill.core.memory import Buffers, SampleMemory
from selfdistill.errors import DataError
from selfdistill.methods import elr, plain
from selfdistill.training import preflight
from selfdistill.training.fit import fit
from tests.harness import build, tiny_data

IDS = st.lists(st.integers(0, 400) | st.integers(0, 1 << 62), max_size=6, unique=True)
ACTIONS = st.lists(st.tuples(st.sampled_from(["write", "write_new", "read", "save"]), IDS), max_size=25)


@settings(deadline=None)
@given(ACTIONS, st.sampled_from([64, 1 << 26]))
def test_any_sequence_of_writes_and_reads_equals_a_dictionary(actions, block):
    """Growth, first words that stay, and saving and loading in between change nothing."""
    memory.BLOCK, whole = block, memory.BLOCK  # rows in many blocks too
    try:
        _compare_with_dictionary(actions)
    finally:
        memory.BLOCK = whole


def _compare_with_dictionary(actions):
    table = SampleMemory()
    reference: dict[int, list[float]] = {}
    for number, (action, ids) in enumerate(actions):
        values = [[float(number), float(i % 1009)] for i in ids]
        keys, rows = torch.tensor(ids, dtype=torch.int64), torch.tensor(values).reshape(-1, 2)
        if action == "write":
            table.write(keys, rows)
            reference.update(zip(ids, values, strict=True))
        elif action == "write_new":
            table.write_new(keys, rows)
            reference = {**dict(zip(ids, values, strict=True)), **reference}
        elif action == "save":
            fresh = SampleMemory()
            fresh.load_state_dict(table.state_dict())
            table = fresh
        found, seen = table.read(keys, 2)
        assert seen.tolist() == [i in reference for i in ids]
        assert [row for row, there in zip(found.tolist(), seen.tolist(), strict=True) if there] == [
            reference[i] for i in ids if i in reference
        ]


def test_a_row_never_written_is_not_seen():
    """Reading makes room but invents nothing; zeros come with seen = False."""
    values, seen = SampleMemory().read(torch.tensor([5, 0]), 3)
    assert values.shape == (2, 3)
    assert not seen.any()


def test_values_are_kept_in_float32():
    """What a half-precision student said is kept in float32."""
    table = SampleMemory()
    table.write(torch.tensor([1]), torch.tensor([[0.1, 0.9]], dtype=torch.bfloat16))
    assert table.stored.dtype == torch.float32
    assert table.stored[0].tolist() == torch.tensor([0.1, 0.9], dtype=torch.bfloat16).float().tolist()


def test_growing_is_rare():
    """A thousand ids one after another make room some ten times, not a thousand."""
    table, sizes = SampleMemory(), set()
    for i in range(1000):
        table.write(torch.tensor([i]), torch.tensor([[float(i)]]))
        sizes.add(len(table.blocks[0].blocks[0]))
    assert len(sizes) < 15
    assert table.stored[:, 0].tolist() == [float(i) for i in range(1000)]


def test_negative_ids_are_refused():
    """-1 would read the last row's memory."""
    table = SampleMemory()
    table.write(torch.tensor([0, 1]), torch.ones(2, 2))
    with pytest.raises(DataError, match="count from 0"):
        table.read(torch.tensor([1, -1]), 2)


def test_loading_takes_the_saved_size_and_copies():
    """A loaded memory has the saved rows, and is not the saved tensor itself."""
    table = SampleMemory()
    table.write(torch.tensor([9]), torch.ones(1, 4))
    state = table.state_dict()
    fresh = SampleMemory()
    fresh.load_state_dict(state)
    fresh.write(torch.tensor([9]), torch.zeros(1, 4))
    assert table.stored.tolist() == [[1, 1, 1, 1]]
    assert fresh.stored.shape == table.stored.shape


def test_buffers_of_any_name_take_their_saved_size():
    """Other states with data-sized buffers load in the same way, nested or not."""

    class Rows(Buffers):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("rows", torch.zeros(0))

    saved = torch.nn.ModuleDict({"a": Rows()})
    saved["a"].rows = torch.arange(3.0)
    fresh = torch.nn.ModuleDict({"a": Rows()})
    fresh.load_state_dict(saved.state_dict())
    assert fresh.state_dict()["a.rows"].tolist() == [0, 1, 2]


def memory_bytes(table):
    """Of all tensors that a memory holds."""
    index = [] if table.index.table is None else [table.index.table]
    index += [table.index.places, *table.index.ids.blocks]
    return sum(t.nbytes for t in [*index, *(block for part in table.blocks for block in part.blocks)])


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 60), (torch.float16, 40)])
def test_memory_follows_the_number_of_ids_not_their_size(dtype, most, monkeypatch):
    """Database keys of up to 62 bits; the last block is not full, which counts for less the more rows there are."""
    monkeypatch.setattr(memory, "BLOCK", 1 << 18)
    table, ids = SampleMemory(predictions=True), torch.randint(0, 1 << 62, (100_000,))
    table.compact(dtype)
    for part in ids.split(1000):
        table.write(part, torch.ones(len(part), 10))
    assert memory_bytes(table) / len(ids) <= most
    assert bool(table.read(ids, 10)[1].all())
    assert len(table) == len(ids)


def test_many_large_ids_take_little_and_are_saved_without_a_copy(monkeypatch):
    """In half precision too; blocks are saved as they lie in memory, so that their bytes stay the same."""
    monkeypatch.setattr(memory, "BLOCK", 1 << 18)
    table, order = SampleMemory(predictions=True), torch.randperm(300_000)
    table.compact(torch.float16)
    ids, values = order * 0x1E3779B97F4A7C1 % (1 << 62), torch.rand(300_000, 10).half()
    for rows in torch.arange(300_000).split(5000):
        table.write(ids[rows], values[rows])
    assert memory_bytes(table) / len(ids) <= 40
    state = table.state_dict()
    assert len([name for name in state if name.startswith("keys")]) > 5
    assert all(value.untyped_storage().nbytes() <= 1 << 18 for value in state.values())
    assert state["values3"].data_ptr() == table.blocks[0].blocks[3].data_ptr()
    fresh = SampleMemory(predictions=True)
    fresh.load_state_dict(state)
    for one in (table, fresh):
        found, seen = one.read(ids, 10)
        assert bool(seen.all())
        assert found.equal(values.float())
        assert not one.read(ids + 1, 10)[1].any()
    assert all(value.equal(state[name]) for name, value in fresh.state_dict().items())


def test_the_largest_probabilities_keep_the_sum_of_a_row():
    table = SampleMemory(predictions=True, distributions=True)
    table.compact(torch.float32, top=2)
    table.write(torch.tensor([7]), torch.tensor([[0.1, 0.5, 0.0, 0.3]]))
    fresh = SampleMemory(predictions=True, distributions=True)
    fresh.load_state_dict(table.state_dict())
    for one in (table, fresh):
        values, seen = one.read(torch.tensor([7, 8]), 4)
        assert torch.allclose(values[0], torch.tensor([0.05, 0.5, 0.05, 0.3]))
        assert seen.tolist() == [True, False]
        assert values[1].tolist() == [0, 0, 0, 0]


def test_only_predictions_are_compact():
    """Numbers of classes, say, are kept as they are."""
    table = SampleMemory()
    table.compact(torch.float16, top=1)
    table.write(torch.tensor([0]), torch.tensor([[2049.0, 1.0]]))
    assert table.stored.tolist() == [[2049.0, 1.0]]


def test_predictions_that_will_not_fit_are_refused_before_training(monkeypatch):
    monkeypatch.setattr(preflight, "free_memory", lambda: 1000)
    with pytest.raises(DataError, match=r"GB are free; give --memory-dtype float16 or --memory-top 10"):
        fit(build, tiny_data(0), elr(), steps=1, batch_size=8)
    fit(build, tiny_data(0), plain(), steps=1, batch_size=8)
