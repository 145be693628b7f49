"""The reservoir that a finished run keeps: a uniform sample of the rows that taught, with the logits of its model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from .. import rng
from ..data.dataset import Data
from ..errors import CheckpointError
from ..evaluation.predict import predict
from ..io.files import share
from ..losses.distributions import UNKNOWN
from ..models.store import read_weights
from ..teachers.replay import FIELDS, Reservoir

FILE = "reservoir.safetensors"  # in a run folder
ROWS = 200  # that a run keeps


def sample_rows(
    data: Data, model: nn.Module, room: int, seed: int, base: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """A uniform sample of the labelled rows that taught and of those that ``base`` is a sample of, as tensors to save.

    Args:
        data: their ``labelled`` rows alone are offered; validation and test rows are not.
        model: what is asked for the logits of all rows.
        room: the most rows.
        seed: of the draws.
        base: an earlier sample.
    """
    ids = data.labelled[rng.permutation((seed, "reservoir order"), len(data.labelled))]
    picks = Reservoir(room)
    picks.seed = seed
    if base:  # its rows have negative numbers here
        marks = -1 - torch.tensor(rng.sample((seed, "reservoir base"), len(base["x"]), min(room, len(base["x"]))))
        picks.inherit({**dict.fromkeys(FIELDS, marks), "seen": base["seen"]})
    picks.add(ids, ids, ids, ids)
    new = picks.id >= 0
    own, old = picks.id[new], -1 - picks.id[~new]
    x = data.rows(own)
    x = x.new_empty(len(picks), *x.shape[1:]).masked_scatter_(new.reshape(-1, *[1] * (x.dim() - 1)), x)
    y, numbers = torch.full((len(picks),), -1).masked_scatter_(new, data.y[own]), picks.id.clone()
    if base:
        x[~new], y[~new], numbers[~new] = base["x"][old], base["y"][old], base["id"][old]
    return {"x": x, "y": y, "logits": predict(model, x), "id": numbers, "seen": picks.seen}


def save_sample(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write a sample of rows into a run folder."""
    path, unfinished = folder / FILE, folder / f".{FILE}.{os.getpid()}.tmp"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, unfinished)
    unfinished.replace(path)
    share(folder, "run.json")


def read_sample(folder: Path, shape: Sequence[int], classes: int) -> dict[str, Tensor] | None:
    """The sample of rows that a run has kept; None where it kept none.

    Raises:
        CheckpointError: the file is damaged, or does not fit the model of the run.
    """
    path = folder / FILE
    if not path.exists():
        return None
    tensors = read_weights(path)
    x, y, logits = (tensors.get(name, torch.zeros(())) for name in ("x", "y", "logits"))
    rows = len(x) if x.dim() else 0
    fits = tensors.keys() == {*FIELDS, "seen"} and rows and all(tensors[name].shape == (rows,) for name in ("y", "id"))
    fits = fits and tuple(x.shape[1:]) == tuple(shape) and logits.shape == (rows, classes)
    fits = fits and tensors["seen"].shape == () and int(tensors["seen"]) >= rows and not y.is_floating_point()
    if (
        not fits
        or int(y.min()) < 0
        or int(y.max()) >= classes
        or not bool(x.isfinite().all() & logits.isfinite().all())
    ):
        raise CheckpointError(f"{path} is damaged or foreign: no rows of this run's model; train the run again")
    return tensors


def padded(rows: Mapping[str, Tensor], classes: int, room: int, seed: int) -> dict[str, Tensor]:
    """At most ``room`` of the rows of a sample, with the logit `UNKNOWN` for further classes."""
    picks = torch.tensor(rng.sample((seed, "reservoir room"), len(rows["x"]), min(room, len(rows["x"]))))
    chosen = {name: rows[name][picks] for name in FIELDS}
    chosen["logits"] = F.pad(chosen["logits"], (0, classes - chosen["logits"].shape[-1]), value=UNKNOWN)
    return {**chosen, "seen": rows["seen"]}
