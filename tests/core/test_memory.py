"""Memories are keyed by sample id: no order of writing and reading mixes samples up."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfdistill.core.memory import Buffers, SampleMemory
from selfdistill.errors import DataError

IDS = st.lists(st.integers(0, 400), max_size=6, unique=True)
ACTIONS = st.lists(st.tuples(st.sampled_from(["write", "write_new", "read", "save"]), IDS), max_size=25)


@settings(deadline=None)
@given(ACTIONS)
def test_any_sequence_of_writes_and_reads_equals_a_dictionary(actions):
    """Growth, first words that stay, and saving and loading in between change nothing."""
    table = SampleMemory()
    reference: dict[int, list[float]] = {}
    for number, (action, ids) in enumerate(actions):
        values = [[float(number), float(i)] for i in ids]
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
    assert table.values.dtype == torch.float32
    assert table.values[1].tolist() == torch.tensor([0.1, 0.9], dtype=torch.bfloat16).float().tolist()


def test_growing_is_rare():
    """A thousand ids one after another make room some ten times, not a thousand."""
    table, sizes = SampleMemory(), set()
    for i in range(1000):
        table.write(torch.tensor([i]), torch.tensor([[float(i)]]))
        sizes.add(len(table.seen))
    assert len(sizes) < 15
    assert table.values[:1000, 0].tolist() == [float(i) for i in range(1000)]


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
    assert table.values[9].tolist() == [1, 1, 1, 1]
    assert fresh.values.shape == table.values.shape


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
