"""Sampling: which rows or prompts a step sees, and the tensors that it sees them as.

Both are pure functions of (seed, generation, epoch, step, sample id): nothing is consumed, so a resumed or a
distributed run sees what the uninterrupted single process sees.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from .. import rng
from ..core.step import Batch, Rows, TrainingClock
from ..errors import DataError
from ..models import patch_masking
from ..views import TOGETHER, USUAL_STEPS, View, Views
from . import augment
from .augment import Tokens
from .embeddings import Embedding

#: Steps whose rows are sorted together where rows of similar length share a step.
GROUPED = 16


class Order:
    """The order of rows: shuffles addressed by seed, generation and epoch.

    Args:
        rows: How many there are.
        batch_size: Rows of a step; steps differ by one row at most.
        seed: Of the run.
        generation: Number of the generation.
        lengths: (rows,) of each row. Rows of similar length then share a step: those of `GROUPED` neighbouring steps
            are sorted, cut into steps anew, and all steps of the epoch are shuffled.

    >>> order = Order(6, 2, seed=0, generation=0, lengths=torch.tensor([5, 1, 9, 5, 1, 9]))
    >>> clocks = [TrainingClock(0, 1, 0, 1, step, 3) for step in range(3)]
    >>> sorted(sorted(order.sample(clock).tolist()) for clock in clocks)
    [[0, 3], [1, 4], [2, 5]]
    """

    def __init__(self, rows: int, batch_size: int, seed: int, generation: int, lengths: Tensor | None = None) -> None:
        self.rows, self.seed, self.generation, self.lengths = rows, seed, generation, lengths
        self.steps_per_epoch = max(1, math.ceil(rows / batch_size))

    def sample(self, clock: TrainingClock) -> Tensor:
        address = (self.seed, "prompts", self.generation, clock.epoch)
        order, step = rng.permutation(address, self.rows), clock.step - clock.epoch * clock.per_epoch
        if self.lengths is not None:
            order = self._sorted(order)
            step = int(rng.permutation((*address, "steps"), self.steps_per_epoch)[step])
        return order[self._first(step) : self._first(step + 1)]

    def _first(self, step: int) -> int:
        """Where the rows of a step begin."""
        return step * self.rows // self.steps_per_epoch

    def _sorted(self, order: Tensor) -> Tensor:
        """The rows of neighbouring steps by length, those of one length as they were."""
        assert self.lengths is not None
        starts = [*range(0, self.steps_per_epoch, GROUPED), self.steps_per_epoch]
        blocks = [order[self._first(a) : self._first(b)] for a, b in pairwise(starts)]
        return torch.cat([block[self.lengths[block].argsort(stable=True)] for block in blocks])


class RowSource(Protocol):
    """The data that a sampler reads; `data.dataset.Data` is one."""

    @property
    def y(self) -> Tensor: ...
    @property
    def targets(self) -> Tensor: ...
    @property
    def labelled(self) -> Tensor: ...
    @property
    def unlabelled(self) -> Tensor: ...
    @property
    def clean(self) -> Tensor: ...
    @property
    def kind(self) -> str: ...
    @property
    def flips(self) -> bool: ...
    @property
    def augment(self) -> str: ...
    @property
    def tokens(self) -> Tokens | None: ...
    @property
    def embedding(self) -> Embedding | None: ...
    def rows(self, ids: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class SampledRows:
    """Rows of a step: sample ids and, where a sample comes again within the epoch, which visit this is."""

    ids: Tensor
    visits: Tensor

    def part(self, rows: slice) -> SampledRows:
        return SampledRows(self.ids[rows], self.visits[rows])


class Sampler:
    """The rows and views of every step of one generation.

    An epoch is one pass over the rows that the method trains on; where it mixes labelled and unlabelled rows, one
    pass over the larger set while the smaller one is repeated. Batches differ by at most one row, so that no epoch
    ends in a much smaller batch.

    Raises:
        DataError: a batch larger than the data, or no unlabelled rows for a method that needs them.
    """

    def __init__(
        self,
        data: RowSource,
        views: Views,
        batch_size: int,
        *,
        seed: int,
        generation: int = 0,
        eligible: Tensor | None = None,
        epochs: int | None = None,
        steps: int | None = None,
    ) -> None:
        self.data, self.views, self.seed, self.generation = data, views, seed, generation
        self._sets = {
            "labelled": data.labelled,
            "all": torch.cat([data.labelled, data.unlabelled]),
            "unlabelled": data.unlabelled if eligible is None else eligible,
            "union": torch.cat([data.labelled, data.unlabelled if eligible is None else eligible]),
            "chosen": data.labelled if eligible is None else eligible,
            "clean": data.clean,
        }
        kinds = {look.rows for look in views.views}
        self._main = next((kind for kind in TOGETHER if kind in kinds), "labelled")
        rows = len(data.labelled) + (0 if self._main == "labelled" else len(data.unlabelled))
        if views.need_unlabelled() and not len(data.unlabelled):
            raise DataError(
                "this method learns from unlabelled rows and the data have none; give --labels N or --unlabelled PATH"
            )
        if not 1 <= batch_size <= rows:
            raise DataError(
                f"a batch of {batch_size} does not fit {rows} training rows; use --batch-size {rows} or less"
            )
        chunk = batch_size // 2 if views.overlap and batch_size > 1 else batch_size
        per_epoch, pool = math.ceil(rows / chunk), len(data.unlabelled)
        length = USUAL_STEPS if steps is None and epochs is None else steps
        several = "unlabelled" in kinds
        self._second = _unlabelled_rows(views, pool, batch_size, per_epoch, epochs or 1, length) if several else 0
        steps = max(per_epoch, math.ceil(pool / self._second)) if several else per_epoch
        self._fixed_labelled = 0  # labelled rows of each batch, where their share is fixed
        if self._main == "all" and views.labelled * rows > len(data.labelled) > 0:
            self._fixed_labelled = max(1, round(views.labelled * batch_size))
            steps = math.ceil(len(data.unlabelled) / max(1, batch_size - self._fixed_labelled))
        self.steps_per_epoch = steps
        self._per_epoch = max(rows, steps * min(chunk, rows)) if steps > per_epoch else rows
        self._by_class = _rows_by_class(data) if "pair" in kinds or views.mates else {}
        self._pairs, self._clean = "pair" in kinds, views.need_clean()
        self._order = lru_cache(maxsize=8)(self._epoch_order)

    def __getstate__(self) -> dict[str, object]:  # of one that makes batches elsewhere; the cache stays here
        return {name: value for name, value in vars(self).items() if name != "_order"}

    def _epoch_order(self, kind: str, epoch: int, rows: int) -> SampledRows:
        """``rows`` rows of a set: as many fresh shuffles of it as that takes."""
        members = self._sets[kind]
        if not len(members):
            return SampledRows(members, members)
        cycles = math.ceil(rows / len(members))
        orders = [rng.permutation((self.seed, kind, self.generation, epoch, c), len(members)) for c in range(cycles)]
        order = torch.cat(orders)[:rows]
        repeats = _occurrences(members)
        cycle = torch.arange(cycles).repeat_interleave(len(members))[:rows]
        return SampledRows(members[order], cycle * (1 + int(repeats.max())) + repeats[order])

    def sample(self, epoch: int, step: int) -> dict[str, SampledRows]:
        """Sample ids of each set of rows in a step of an epoch (counted from 0)."""
        mixed = self._fixed_labelled > 0
        main = self._mixture(epoch, step) if mixed else self._chunk(self._main, epoch, step, self._per_epoch)
        if self.views.overlap:
            previous = (epoch, step - 1) if step else (epoch - 1, self.steps_per_epoch - 1)
            if previous[0] >= 0:
                overlap = self._chunk(self._main, *previous, self._per_epoch)
                repeated = SampledRows(overlap.ids, overlap.visits + 1)
                main = SampledRows(torch.cat([repeated.ids, main.ids]), torch.cat([repeated.visits, main.visits]))
        if self.views.mates:
            main = self._with_mates(main, epoch, step)
        sets = {self._main: main}
        if self._second:
            sets["unlabelled"] = self._chunk("unlabelled", epoch, step, self.steps_per_epoch * self._second)
        if self._pairs:
            sets["pair"] = self._partners(main, epoch)
        if self._clean:
            sets["clean"] = self._chunk("clean", epoch, step, self._per_epoch)
        return sets

    def _mixture(self, epoch: int, step: int) -> SampledRows:
        """A fixed number of labelled rows and a pass over the unlabelled ones, as rows of one set."""
        labelled = self._chunk("labelled", epoch, step, self.steps_per_epoch * self._fixed_labelled)
        rest = self._chunk("unlabelled", epoch, step, len(self.data.unlabelled))
        return SampledRows(torch.cat([labelled.ids, rest.ids]), torch.cat([labelled.visits, rest.visits]))

    def _chunk(self, kind: str, epoch: int, step: int, rows: int) -> SampledRows:
        order = self._order(kind, epoch, rows)
        total, steps = len(order.ids), self.steps_per_epoch
        part = slice(step * total // steps, (step + 1) * total // steps)
        return SampledRows(order.ids[part], order.visits[part])

    def _partners(self, main: SampledRows, epoch: int) -> SampledRows:
        """For each row another row of its class; a class of one row, or a row without a class, pairs with itself."""
        u = rng.uniform((self.seed, "pair", self.generation, epoch), main.ids + (main.visits << 40), 1)[:, 0]
        partners = []
        for i, label, number in zip(main.ids.tolist(), self.data.y[main.ids].tolist(), u.tolist(), strict=True):
            members, position = self._by_class.get(label, ([i], {i: 0}))
            candidates = max(1, len(members) - 1)
            skip = 1 + int(number * candidates) if len(members) > 1 else 0
            partners.append(members[(position[i] + skip) % len(members)])
        return SampledRows(torch.tensor(partners, dtype=torch.int64), main.visits)

    def _with_mates(self, main: SampledRows, epoch: int, step: int) -> SampledRows:
        """The first rows of a batch, each followed by others of its class in the place of the rest.

        The mates of a row differ from each other where its class has enough rows; each is augmented in its own way.
        """
        rows, mates = len(main.ids), self.views.mates
        ids, visits = list[int](), list[int]()
        firsts = main.ids[: math.ceil(rows / (mates + 1))].tolist()
        for group, (i, visit) in enumerate(zip(firsts, main.visits.tolist(), strict=False)):
            members, position = self._by_class.get(int(self.data.y[i]), ([i], {i: 0}))
            offsets = rng.sample(
                (self.seed, "mates", self.generation, epoch, step, group), max(1, len(members) - 1), mates
            )
            skip = int(len(members) > 1)
            ids += [i, *(members[(position[i] + skip + offset) % len(members)] for offset in offsets)]
            first = 1 + (step * rows + group * mates)
            visits += [visit, *(range(first, first + mates))]
        return SampledRows(torch.tensor(ids[:rows], dtype=torch.int64), torch.tensor(visits[:rows], dtype=torch.int64))

    def batch(self, sets: dict[str, SampledRows], epoch: int, device: torch.device | str = "cpu") -> Batch:
        """The tensors of every view for the rows of a step (or of a part of it)."""
        batch, fixed, addresses, inputs = Batch(), set[str](), dict[str, Tensor](), dict[str, Tensor]()
        for look in self.views.views:
            rows = sets[look.rows]
            augmentation = self.data.augment if look.augment == "default" else look.augment
            x = inputs[look.of] if look.of else self.data.rows(rows.ids)
            if look.of:
                x = self._with_hidden(look, x, rows, epoch)
            elif augmentation == "none":
                fixed.add(look.name)
            elif look.fixed:
                fixed.add(look.name)
                variant = (epoch + rows.visits) % look.fixed
                addresses[look.name] = (rows.ids * look.fixed + variant).to(device)
                x = self._fixed(augmentation, look, x, rows.ids, rows.ids + (variant << 40))
            elif len(x):
                x = self._augmented(augmentation, look, x, rows, epoch)
            inputs[look.name] = x
            batch[look.name] = Rows(x.to(device), self.data.targets[rows.ids].to(device), rows.ids.to(device))
        batch.fixed, batch.addresses = frozenset(fixed), addresses
        return batch

    def _augmented(self, augmentation: str, look: View, x: Tensor, rows: SampledRows, epoch: int) -> Tensor:
        address = (self.seed, "augment", look.name, self.generation, epoch)
        key = rows.ids + (rows.visits << 40)
        data = self.data
        if data.embedding is not None:
            return data.embedding.draw(augmentation, rows.ids, key, address)
        return augment.apply(augmentation, x, key, address, kind=data.kind, flips=data.flips, tokens=data.tokens)

    def _with_hidden(self, look: View, x: Tensor, rows: SampledRows, epoch: int) -> Tensor:
        """The rows of another view with some patches hidden, others in every epoch."""
        address = (self.seed, "augment", look.of, self.generation, epoch, "hidden")
        return patch_masking.hide(
            x,
            rows.ids + (rows.visits << 40),
            address,
            look.hidden,
            kind=self.data.kind,
            spread=look.spread,
            unmasked=look.unmasked,
        )

    def _fixed(self, augmentation: str, look: View, x: Tensor, ids: Tensor, key: Tensor) -> Tensor:
        """The fixed augmentation of each sample: a function of the sample and the variant alone."""
        address = ("fixed", look.name)
        if self.data.embedding is not None:
            return self.data.embedding.draw(augmentation, ids, key, address)
        return augment.apply(augmentation, x, key, address, kind=self.data.kind, flips=self.data.flips) if len(x) else x


def _unlabelled_rows(views: Views, rows: int, batch_size: int, least: int, epochs: int, steps: int | None) -> int:
    """How many of the unlabelled ``rows`` accompany a batch, where an epoch has ``least`` steps or more."""
    ratio = 1.0
    for _ in range(3):  # with epochs the ratio decides the steps that decide it
        length = epochs * max(least, math.ceil(rows / (ratio * batch_size)))
        ratio = views.ratio_at(length if steps is None else steps)
    return max(1, round(ratio * batch_size))


def _occurrences(ids: Tensor) -> Tensor:
    """For each entry how often its id came before: a row that is in the set twice is augmented in two ways."""
    order = ids.argsort(stable=True)
    _, counts = ids[order].unique_consecutive(return_counts=True)
    first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    counts_before = torch.empty_like(ids)
    counts_before[order] = torch.arange(len(ids)) - first
    return counts_before


def _rows_by_class(data: RowSource) -> dict[int, tuple[list[int], dict[int, int]]]:
    """For each class its labelled rows, and the place of each row among them."""
    members: dict[int, list[int]] = {}
    for i, label in zip(data.labelled.tolist(), data.y[data.labelled].tolist(), strict=True):
        members.setdefault(label, []).append(i)
    return {label: (rows, {row: position for position, row in enumerate(rows)}) for label, rows in members.items()}
