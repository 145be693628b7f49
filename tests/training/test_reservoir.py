"""The rows that a run keeps: which they are, how they go on, and files that are none."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from selfdistill.data.dataset import Data, from_tensors
from selfdistill.errors import CheckpointError
from selfdistill.losses.distributions import UNKNOWN
from selfdistill.training.reservoir import FILE, padded, read_sample, sample_rows, save_sample


def rows(number: int = 60, first: float = 0.0) -> Data:
    x = torch.arange(number)[:, None] + torch.tensor([first, 0.5])
    return from_tensors(x, torch.arange(number) % 3, audit=torch.arange(0, 10), test=torch.arange(10, 20))


MODEL = nn.Linear(2, 3)


def test_only_rows_that_taught_are_kept_with_label_and_logits() -> None:
    data = rows()
    kept = sample_rows(data, MODEL, 15, 0)
    assert len(set(kept["id"].tolist())) == 15
    assert set(kept["id"].tolist()) <= set(data.labelled.tolist())
    assert int(kept["seen"]) == len(data.labelled)
    assert torch.equal(kept["x"], data.rows(kept["id"]))
    assert torch.equal(kept["y"], data.y[kept["id"]])
    assert torch.allclose(kept["logits"], MODEL(kept["x"]))


def test_all_rows_are_kept_where_they_fit() -> None:
    data = rows()
    assert sorted(sample_rows(data, MODEL, 100, 0)["id"].tolist()) == data.labelled.tolist()


def test_a_sample_that_goes_on_stays_uniform_over_old_and_new_rows() -> None:
    """Of 40 old and 40 new rows the new ones have half of the places, and each row its share: by a chi-square test."""
    counts, draws = Counter[float](), 200
    for seed in range(draws):
        base = sample_rows(rows(), MODEL, 20, seed)
        counts.update(sample_rows(rows(first=1000.0), MODEL, 20, seed + 1, base)["x"][:, 0].tolist())
    assert len(counts) == 80
    expected = draws * 20 / 80
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 125  # 99.9 % of 79 degrees of freedom


def test_a_sample_that_goes_on_cannot_grow_but_shrink() -> None:
    base = sample_rows(rows(), MODEL, 20, 0)
    assert len(sample_rows(rows(first=1000.0), MODEL, 50, 0, base)["x"]) == 20
    assert len(sample_rows(rows(first=1000.0), MODEL, 5, 0, base)["x"]) == 5
    wide = padded(base, 5, 8, 0)
    assert wide["logits"].shape == (8, 5)
    assert (wide["logits"][:, 3:] == UNKNOWN).all()


def test_what_is_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{}")
    kept = sample_rows(rows(), MODEL, 15, 0)
    save_sample(kept, tmp_path)
    again = read_sample(tmp_path, (2,), 3)
    assert again is not None
    assert all(torch.equal(again[name], kept[name]) for name in kept)
    assert read_sample(tmp_path / "other", (2,), 3) is None
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize(
    "change",
    [
        {"y": torch.full((15,), 3)},
        {"x": torch.full((15, 2), torch.nan)},
        {"x": torch.zeros(15, 4)},
        {"logits": torch.zeros(15, 9)},
        {"id": torch.zeros(3, dtype=torch.int64)},
        {"seen": torch.tensor(2)},
        {"more": torch.zeros(1)},
    ],
)
def test_a_file_that_does_not_fit_is_refused(change: dict[str, Tensor], tmp_path: Path) -> None:
    save_file({**sample_rows(rows(), MODEL, 15, 0), **change}, tmp_path / FILE)
    with pytest.raises(CheckpointError, match=r"reservoir\.safetensors is damaged"):
        read_sample(tmp_path, (2,), 3)
