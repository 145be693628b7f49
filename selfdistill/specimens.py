"""Small models and batches to try parts on: a stand-in for data where only the protocol matters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import draws
from .core import Batch, Clock, Method, Pool, Rows
from .heads import space_of

CLASSES, WIDTH, ROWS = 4, 6, 12


class Tiny(nn.Module):
    """Every head there is, on six inputs; batch norm and dropout, so that modes and buffers matter.

    The head ``values`` has a width of two, or of as many ``outputs`` as are asked for.
    """

    def __init__(self, dropout: float = 0.0, outputs: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout))
        self.logits, self.values, self.gaussian = nn.Linear(8, CLASSES), nn.Linear(8, outputs), nn.Linear(8, 2)
        self.exits, self.peers = nn.Linear(8, 3 * CLASSES), nn.Linear(8, 2 * CLASSES)
        self.features = nn.Linear(8, 3 * 8)
        self.gated, self.mean, self.attended = (nn.Linear(8, width * CLASSES) for width in (1, 1, 2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.body(x)
        return {
            "logits": self.logits(h),
            "values": self.values(h),
            "gaussian": self.gaussian(h),
            "feature": h,
            "features": self.features(h).unflatten(1, (3, 8)),
            "exits": self.exits(h).unflatten(1, (3, CLASSES)),
            "peers": self.peers(h).unflatten(1, (2, CLASSES)),
            "peer_values": self.gaussian(h).unflatten(1, (2, 1)),
            "peer_gaussians": self.peers(h)[:, :4].unflatten(1, (2, 2)),
            "ranks": self.logits(h)[:, :2],
            "gated": self.gated(h),
            "mean": self.mean(h),
            "attended": self.attended(h).unflatten(1, (2, CLASSES)),
        }


def tiny(seed: int, dropout: float = 0.0, outputs: int = 2) -> nn.Module:
    """The same model for the same seed; the global generator stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tiny(dropout, outputs)


def inputs(ids: Tensor) -> Tensor:
    """What a sample looks like: a function of its id alone, so that every view is fixed."""
    return draws.normal(("testing",), ids, WIDTH)


def batch_of(rows_of: Mapping[str, str], step: int, values: int = 0, fixed: bool = False) -> Batch:
    """Twelve of 24 labelled samples (ids below 24) or of 24 unlabelled ones for each view, drawn by the step.

    Labels are classes or, with ``values``, so many numbers. ``fixed`` declares what is true of all views here.
    """
    batch = Batch()
    for view, kind in rows_of.items():
        labelled = draws.permutation(("testing", "labelled", step), 24)[:ROWS]
        unlabelled = 24 + draws.permutation(("testing", "unlabelled", step), 24)[:ROWS]
        mixed = torch.cat([labelled[: ROWS // 2], unlabelled[: ROWS // 2]])
        ids = {
            "unlabelled": unlabelled,
            "all": mixed,
            "union": mixed,
            "chosen": mixed,
            "pair": (labelled + CLASSES) % 24,
        }.get(kind, labelled)
        y: Tensor = torch.where(ids < 24, ids % CLASSES, -1)
        if values:
            y = torch.where(ids[:, None] < 24, inputs(ids)[:, :values], torch.nan)
        batch[view] = Rows(inputs(ids), y, ids)
    batch.fixed = frozenset(batch) if fixed else frozenset()
    return batch


def views_of(method: Method) -> dict[str, str]:
    """The rows of each view that the method looks at."""
    rows_of = {look.name: look.rows for look in method.views.looks}
    seen = [term.view for term in method.terms.values()]
    seen += [view for term in method.terms.values() for part in term.parts() if (view := getattr(part, "view", None))]
    seen += [view for group in method.seen() for view in group]
    return {view: rows_of.get(view, "labelled") for view in dict.fromkeys(seen)}


def numbers_of(method: Method) -> int:
    """How many numbers a label of the method is: 1 where it learns values, 0 where it learns classes."""
    return int(any(space_of(term.head) in ("values", "gaussian", "ranks") for term in method.terms.values()))


def pool(clock: Clock) -> Pool:
    """The 24 unlabelled samples, for teachers that label them."""

    def look(module: nn.Module, ids: Tensor) -> Tensor:
        output = module.eval()(inputs(ids))
        return output["logits"] if isinstance(output, dict) else output  # type: ignore[no-any-return]

    return Pool(torch.arange(24, 48), look, clock, torch.arange(24), targets=inputs(torch.arange(24))[:, 0])


def sample(space: str, shape: tuple[int, ...], seed: int, width: int | None = None) -> Tensor:
    """Something of a space, for elements of this shape."""
    generator = torch.Generator().manual_seed(seed)
    if space == "classes":
        return torch.randint(CLASSES, shape, generator=generator)
    width = width or {"gaussian": 2, "ranks": 2, "values": 3}.get(space, CLASSES)
    raw = torch.randn(*shape, width, generator=generator)
    return F.softmax(raw, dim=-1) if space == "probabilities" else raw


def storages(module: nn.Module) -> set[int]:
    """Where a module's tensors lie in memory."""
    return {t.data_ptr() for t in (*module.parameters(), *module.buffers()) if t.numel()}


def same_bits(a: Any, b: Any) -> bool:
    """Bit for bit, whatever is nested in what."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same_bits(value, b[key]) for key, value in a.items())
    return bool(a == b)
