"""Small models and batches for conformance checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import rng
from ..core.objective import Method, Objective
from ..core.outputs import space_of
from ..core.parts import GenerationData
from ..core.step import Batch, Rows, TrainingClock
from ..models.networks import vit
from ..models.patch_masking import hide

CLASSES, WIDTH, ROWS = 4, 6, 12


class Tiny(nn.Module):
    """A model with every head, on six inputs; batch norm and dropout make modes and buffers matter.

    The head ``values`` has ``outputs`` components.
    """

    def __init__(self, dropout: float = 0.0, outputs: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(dropout))
        self.logits, self.values, self.gaussian = nn.Linear(8, CLASSES), nn.Linear(8, outputs), nn.Linear(8, 2)
        self.exits, self.peers = nn.Linear(8, 3 * CLASSES), nn.Linear(8, 2 * CLASSES)
        self.features = nn.Linear(8, 3 * 8)
        self.joint = nn.Linear(8, 4 * 4 * CLASSES)  # of four copies of a row, 4 classes each
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
            "joint": self.joint(h).unflatten(1, (4, 4 * CLASSES)),
            "gated": self.gated(h),
            "mean": self.mean(h),
            "attended": self.attended(h).unflatten(1, (2, CLASSES)),
        }


class Stages(nn.Module):
    """Three stages of maps on images of one channel, 8x8, and a linear classifier: for methods that read layers."""

    def __init__(self, exits: bool = False) -> None:
        super().__init__()
        pairs = [(1, 4), (4, 4), (4, 6)]
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2 if i else 1, 1), nn.BatchNorm2d(b), nn.Tanh())
            for i, (a, b) in enumerate(pairs)
        )
        self.necks = nn.ModuleList(nn.Linear(4, 6) for _ in range(2 * exits))
        self.exits = nn.ModuleList(nn.Linear(6, CLASSES) for _ in range(2 * exits))
        self.classifier = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Any:
        pooled = []
        for stage in self.stages:
            x = stage(x)
            pooled.append(x.mean((2, 3)))
        logits = self.classifier(pooled[-1])
        if not self.exits:
            return logits
        shallow = [neck(p) for neck, p in zip(self.necks, pooled, strict=False)]
        exits = torch.stack([head(f) for head, f in zip(self.exits, shallow, strict=True)], 1)
        return {"logits": logits, "feature": pooled[-1], "exits": exits, "features": torch.stack(shallow, 1)}


def specimen(method: Method, seed: int, outputs: int = 1, exits: bool = False) -> nn.Module:
    """A model that fits the method, before its ``wrap_model``."""
    if not maps_of(method):
        return tiny(seed, outputs=outputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if method.wrap_model and method.wrap_model.patches:
            return vit((1, 8, 8), CLASSES, width=8, depth=1, heads=2)
        return Stages(exits)


def factory(method: Method, seed: int) -> Callable[..., nn.Module]:
    """A factory of such models, with exits on demand."""

    def build(exits: bool = False) -> nn.Module:
        return specimen(method, seed, exits=exits)

    return build


def built(method: Method, seed: int) -> nn.Module:
    """The same model with the method's ``wrap_model``."""
    build = factory(method, seed)
    return method.wrap_model(build)() if method.wrap_model else build()


def batch_for(method: Method, step: int) -> Batch:
    """A batch with all views of the method."""
    batch = batch_of(views_of(method), step, numbers_of(method), maps=maps_of(method))
    for look in (look for look in method.views.views if look.hidden and look.name in batch):
        x, y, ids = batch[look.name][:3]
        assert ids is not None
        options: dict[str, Any] = {"kind": "image", "spread": look.spread, "unmasked": look.unmasked}
        batch[look.name] = Rows(hide(x, ids, ("testing", step), look.hidden, **options), y, ids)
    return batch


def maps_of(method: Method) -> bool:
    """Whether the method needs a model whose stages give feature maps."""
    return method.wrap_model is not None and method.wrap_model.maps


def tiny(seed: int, dropout: float = 0.0, outputs: int = 2) -> nn.Module:
    """A `Tiny` model, a function of the seed; the global generator does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tiny(dropout, outputs)


def inputs(ids: Tensor, maps: bool = False) -> Tensor:
    """The inputs of samples: a function of the id alone, so that every view is fixed."""
    return rng.normal(("testing",), ids, 64).view(-1, 1, 8, 8) if maps else rng.normal(("testing",), ids, WIDTH)


def batch_of(rows_of: Mapping[str, str], step: int, values: int = 0, fixed: bool = False, maps: bool = False) -> Batch:
    """Twelve of 24 labelled samples (ids below 24) or of 24 unlabelled ones for each view, drawn by the step.

    Labels are classes or, with ``values``, so many numbers. ``fixed`` declares what is true of all views here; with
    ``maps`` rows are images.
    """
    batch = Batch()
    for view, kind in rows_of.items():
        labelled = rng.permutation(("testing", "labelled", step), 24)[:ROWS]
        unlabelled = 24 + rng.permutation(("testing", "unlabelled", step), 24)[:ROWS]
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
        batch[view] = Rows(inputs(ids, maps), y, ids)
    batch.fixed = frozenset(batch) if fixed else frozenset()
    return batch


def views_of(method: Method) -> dict[str, str]:
    """The rows of each view of the method."""
    rows_of = method.rows_of()
    views = [term.view for term in method.terms.values()]
    views += [view for term in method.terms.values() for part in term.parts() if (view := part.view)]
    views += [view for group in method.student_views() for view in group]
    views += [view.name for view in method.views.views if view.rows == "clean"]
    if any(rows_of.get(view) == "mixed" for view in views):  # made of x, when a step looks at it
        views = ["x", *(view for view in views if rows_of.get(view) != "mixed")]
    return {view: rows_of.get(view, "labelled") for view in dict.fromkeys(views)}


def numbers_of(method: Method) -> int:
    """The numbers of a label: 1 for a method of values, 0 for one of classes."""
    return int(any(space_of(term.head) in ("values", "gaussian", "ranks") for term in method.terms.values()))


def pool(clock: TrainingClock, maps: bool = False) -> GenerationData:
    """The 24 unlabelled samples, for teachers that label them."""

    def look(module: nn.Module, ids: Tensor) -> Tensor:
        output = module.eval()(inputs(ids, maps))
        return output["logits"] if isinstance(output, dict) else output  # type: ignore[no-any-return]

    return GenerationData(torch.arange(24, 48), look, clock, torch.arange(24), targets=inputs(torch.arange(24))[:, 0])


def sample(space: str, shape: tuple[int, ...], seed: int, width: int | None = None) -> Tensor:
    """A random tensor of a space, for elements of this shape."""
    generator = torch.Generator().manual_seed(seed)
    if space == "classes":
        return torch.randint(CLASSES, shape, generator=generator)
    width = width or {"gaussian": 2, "ranks": 2, "values": 3}.get(space, CLASSES)
    values = torch.randn(*shape, width, generator=generator)
    if space == "excluded":
        return (values > 0).to(values.dtype)
    return F.softmax(values, dim=-1) if space == "probabilities" else values


def storages(module: nn.Module) -> set[int]:
    """The memory addresses of a module's tensors."""
    return {t.data_ptr() for t in (*module.parameters(), *module.buffers()) if t.numel()}


def same_bits(a: Any, b: Any) -> bool:
    """Whether two nested values are equal bit for bit."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(same_bits(value, b[key]) for key, value in a.items())
    return bool(a == b)


def bound(method: Method, model: nn.Module, clock: TrainingClock, external: nn.Module | None = None) -> Objective:
    """The method bound to a model, with a last generation and an external model."""
    previous = None if clock.generation == 0 else built(method, 7)
    objective = method.bind(model, previous=previous, external=external or specimen(method, 8, 2), clock=clock)
    objective.prepare(pool(clock, maps_of(method)))
    return objective
