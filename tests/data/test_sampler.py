"""Which rows a step sees, and as what: pure functions of seed, generation, epoch, step and sample id."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from selfdistill.data.sampler import SampledRows, Sampler
from selfdistill.errors import DataError
from selfdistill.models.patch_masking import HIDDEN
from selfdistill.views import View, Views, overlapping, pairs, two, weak_strong

UNION = Views((View("x", "union"),))


@dataclass(frozen=True)
class Few:
    """Images by id; the first ``labels`` rows have one of ``classes`` labels in turn, the others none."""

    labels: int = 30
    others: int = 0
    classes: int = 3
    kind: str = "image"
    flips: bool = True
    tokens: None = None
    augment: str = "weak"
    embedding: None = None

    @property
    def y(self) -> Tensor:
        ids = torch.arange(self.labels + self.others)
        return torch.where(ids < self.labels, ids % self.classes, -1)

    @property
    def targets(self) -> Tensor:
        return self.y

    @property
    def labelled(self) -> Tensor:
        return torch.arange(self.labels)

    @property
    def unlabelled(self) -> Tensor:
        return torch.arange(self.labels, self.labels + self.others)

    @property
    def clean(self) -> Tensor:
        return torch.arange(1000, 1005)

    def rows(self, ids: Tensor) -> Tensor:
        pixels = torch.arange(64).view(1, 1, 8, 8) / 64
        return (ids.view(-1, 1, 1, 1) * 0.37 + pixels) % 1.0


def epoch_of(sampler: Sampler, epoch: int, kind: str = "labelled") -> list[Tensor]:
    return [sampler.sample(epoch, step)[kind].ids for step in range(sampler.steps_per_epoch)]


@settings(deadline=None)
@given(st.integers(1, 60), st.data(), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_is_one_pass_in_even_batches(labels, data, seed, epoch):
    """Every labelled row exactly once; batches no larger than asked and within one row of each other."""
    size = data.draw(st.integers(1, labels))
    steps = epoch_of(Sampler(Few(labels), Views(), size, seed=seed), epoch)
    assert sorted(torch.cat(steps).tolist()) == list(range(labels))
    sizes = {len(ids) for ids in steps}
    assert max(sizes) <= size
    assert max(sizes) - min(sizes) <= 1
    assert len(steps) == -(-labels // size)


def test_the_order_is_a_pure_function_of_its_address():
    """Asked in any order, by any sampler; another seed, generation or epoch is another order."""
    one, other = (Sampler(Few(), Views(), 7, seed=1) for _ in range(2))
    forward = [one.sample(e, s)["labelled"].ids for e in range(3) for s in range(5)]
    backward = [other.sample(e, s)["labelled"].ids for e in (2, 1, 0) for s in (4, 3, 2, 1, 0)][::-1]
    assert all(a.equal(b) for a, b in zip(forward, backward, strict=True))
    orders = {
        tuple(torch.cat(epoch_of(Sampler(Few(), Views(), 7, seed=s, generation=g), e)).tolist())
        for s in range(2) for g in range(2) for e in range(2)
    }  # fmt: skip
    assert len(orders) == 8


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([0.1, 0.5, 1.0, 2.3, 7.0]), st.data())
def test_the_longer_set_is_passed_once_and_the_other_cycles(labels, others, ratio, data):
    """Labelled and unlabelled rows side by side: both covered evenly, ``ratio`` to one, none left out."""
    size = data.draw(st.integers(1, labels))
    sampler = Sampler(Few(labels, others), weak_strong(ratio), size, seed=0)
    for kind, rows in (("labelled", range(labels)), ("unlabelled", range(labels, labels + others))):
        counts = Counter(torch.cat(epoch_of(sampler, 1, kind)).tolist())
        assert set(counts) == set(rows)
        assert max(counts.values()) - min(counts.values()) <= 1
    second = max(1, round(ratio * size))
    assert all(len(ids) == second for ids in epoch_of(sampler, 0, "unlabelled"))
    assert sampler.steps_per_epoch == max(-(-labels // size), -(-others // second))
    assert all(len(ids) <= size for ids in epoch_of(sampler, 0))


def test_a_repeated_row_is_another_visit():
    """Within an epoch the same sample comes with another visit number, so it is augmented afresh."""
    sampler = Sampler(Few(6, 40), weak_strong(2.0), 4, seed=0)
    drawn = [sampler.sample(0, s)["labelled"] for s in range(sampler.steps_per_epoch)]
    seen = Counter((i, v) for d in drawn for i, v in zip(d.ids.tolist(), d.visits.tolist(), strict=True))
    assert max(seen.values()) == 1
    assert max(v for _, v in seen) >= 1


@pytest.mark.parametrize("size", [2, 6, 7])
def test_overlapping_batches_are_half_old_half_new(size):
    """The old half is the new half of the step before, also across the end of an epoch; new halves are one pass."""
    sampler = Sampler(Few(22), overlapping(), size, seed=3)
    halves: list[Tensor] = []
    before = torch.zeros(0, dtype=torch.int64)
    for epoch in range(2):
        for step in range(sampler.steps_per_epoch):
            drawn = sampler.sample(epoch, step)["labelled"]
            old, new = drawn.ids[: len(before)], drawn.ids[len(before) :]
            assert old.equal(before)
            assert len(drawn.ids) <= size
            assert (drawn.visits[: len(old)] == 1).all()
            assert (drawn.visits[len(old) :] == 0).all()
            before = new
            halves.append(new)
    once = len(halves) // 2
    for half in (halves[:once], halves[once:]):
        assert sorted(torch.cat(half).tolist()) == list(range(22))


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(1, 6), st.integers(0, 3))
def test_partners_are_others_of_the_same_class(labels, classes, epoch):
    """Never the row itself, unless it is alone in its class."""
    data = Few(labels, classes=classes)
    sampler = Sampler(data, pairs(), min(8, labels), seed=0)
    alone = {c for c in range(classes) if (data.y == c).sum() == 1}
    for step in range(sampler.steps_per_epoch):
        drawn = sampler.sample(epoch, step)
        mine, partner = drawn["labelled"].ids, drawn["pair"].ids
        assert data.y[mine].equal(data.y[partner])
        for i, j in zip(mine.tolist(), partner.tolist(), strict=True):
            assert i != j or int(data.y[i]) in alone


def test_partners_change_and_cover_their_class():
    """Every other row of the class is drawn sooner or later, about equally often."""
    sampler = Sampler(Few(12), pairs(), 12, seed=0)
    partners: Counter[int] = Counter()
    for epoch in range(600):
        drawn = sampler.sample(epoch, 0)
        partners.update(
            j for i, j in zip(drawn["labelled"].ids.tolist(), drawn["pair"].ids.tolist(), strict=True) if i == 0
        )
    assert set(partners) == {3, 6, 9}
    assert all(150 < count < 250 for count in partners.values())


def test_a_row_without_label_is_its_own_partner():
    """Pairs of all rows: what has no class has no partner."""
    views = Views((View("x", "all"), View("pair", "pair")))
    sampler = Sampler(Few(6, 6), views, 12, seed=0)
    drawn = sampler.sample(0, 0)
    main = drawn["all"].ids
    assert drawn["pair"].ids[main >= 6].equal(main[main >= 6])


def test_all_rows_are_labelled_and_unlabelled_ones():
    """One pass over both."""
    ids = torch.cat(epoch_of(Sampler(Few(10, 15), two("all"), 6, seed=0), 0, "all"))
    assert sorted(ids.tolist()) == list(range(25))


@pytest.mark.parametrize("admitted", [[], [12], [11, 12, 13], [11, 11, 11, 14]])
def test_union_draws_labelled_and_admitted_rows(admitted):
    """As many steps in every generation; admitted rows as often as they are named, no others."""
    sampler = Sampler(Few(10, 15), UNION, 5, seed=0, eligible=torch.tensor(admitted, dtype=torch.int64))
    assert sampler.steps_per_epoch == 5
    counts = Counter(torch.cat(epoch_of(sampler, 0, "union")).tolist())
    assert counts.total() == 25
    members = Counter([*range(10), *admitted])
    assert set(counts) == set(members)
    cycles = -(-25 // members.total())
    assert all((cycles - 1) * n <= counts[i] <= cycles * n for i, n in members.items())


@pytest.mark.parametrize("admitted", [[12], [3, 3, 3, 14], [*range(10), 20]])
def test_chosen_rows_are_what_a_teacher_names_and_no_others(admitted):
    """Labelled or not, with multiplicity, in as many steps as all rows take; without a teacher the labelled rows."""
    views = Views((View("x", "chosen"),))
    sampler = Sampler(Few(10, 15), views, 5, seed=0, eligible=torch.tensor(admitted))
    assert sampler.steps_per_epoch == 5
    counts, members = Counter(torch.cat(epoch_of(sampler, 0, "chosen")).tolist()), Counter(admitted)
    assert counts.total() == 25
    assert set(counts) == set(members)
    cycles = -(-25 // members.total())
    assert all((cycles - 1) * n <= counts[i] <= cycles * n for i, n in members.items())
    alone = Sampler(Few(10, 15), views, 5, seed=0)
    assert set(torch.cat(epoch_of(alone, 0, "chosen")).tolist()) == set(range(10))


def test_unlabelled_rows_are_the_admitted_ones():
    """With nothing admitted yet the unlabelled views are there and empty."""
    chosen = torch.tensor([12, 17, 17])
    sampler = Sampler(Few(10, 15), weak_strong(1.0), 5, seed=0, eligible=chosen)
    assert set(torch.cat(epoch_of(sampler, 0, "unlabelled")).tolist()) == {12, 17}
    nobody = Sampler(Few(10, 15), weak_strong(1.0), 5, seed=0, eligible=chosen[:0])
    batch = nobody.batch(nobody.sample(0, 0), 0)
    assert {name: len(rows.x) for name, rows in batch.items()} == {"labelled": 5, "weak": 0, "strong": 0}
    assert nobody.steps_per_epoch == sampler.steps_per_epoch


@pytest.mark.parametrize(
    ("data", "views", "size", "message"),
    [
        (Few(30), Views(), 31, "31 does not fit 30"),
        (Few(30), Views(), 0, "0 does not fit 30"),
        (Few(30, 5), two("all"), 36, "36 does not fit 35"),
        (Few(30), weak_strong(), 8, "--unlabelled"),
        (Few(30), UNION, 8, "--unlabelled"),
    ],
)
def test_data_that_do_not_suffice_are_refused(data, views, size, message):
    """A batch larger than the data, or no unlabelled rows where they are needed."""
    with pytest.raises(DataError, match=message):
        Sampler(data, views, size, seed=0)


# what the rows are seen as --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["image", "table"])
@pytest.mark.parametrize("view", ["weak", "strong"])
def test_pixels_do_not_depend_on_batch_or_rank(kind, view):
    """A sample looks the same, bit for bit, in the whole step, in a half of it, and in another order."""
    data = Few(8, 24)
    if kind == "table":
        data = Table(8, 24, kind="table")
    sampler = Sampler(data, weak_strong(3.0), 8, seed=5)
    drawn = sampler.sample(2, 0)
    whole: Any = sampler.batch(drawn, 2)[view]
    for rows in (slice(0, 1), slice(1, 24, 2), slice(7, 20)):
        part: Any = sampler.batch({kind: d.part(rows) for kind, d in drawn.items()}, 2)[view]
        assert part.x.equal(whole.x[rows])
        assert part.id.equal(whole.id[rows])
    order = torch.arange(23, -1, -1)
    turned = {kind: SampledRows(d.ids.flip(0), d.visits.flip(0)) for kind, d in drawn.items()}
    assert sampler.batch(turned, 2)[view].x.equal(whole.x[order])


@dataclass(frozen=True)
class Table(Few):
    def rows(self, ids: Tensor) -> Tensor:
        return super().rows(ids).flatten(1)


def test_views_epochs_visits_seeds_and_generations_are_augmented_apart():
    """Nothing that should be a fresh draw repeats an old one."""
    data = Few(30)

    def seen(seed=0, generation=0, epoch=0, visit=0, view="x"):
        sampler = Sampler(data, two(), 30, seed=seed, generation=generation)
        ids = torch.arange(30)
        return sampler.batch({"labelled": SampledRows(ids, torch.full_like(ids, visit))}, epoch)[view].x

    first = seen()
    assert first.equal(seen())
    for other in (seen(1), seen(generation=1), seen(epoch=1), seen(visit=1), seen(view="other")):
        assert not first.equal(other)


def test_labels_and_ids_travel_with_their_rows():
    """Every view of a batch carries the id and the label of what it shows."""
    data = Few(20, 30)
    sampler = Sampler(data, weak_strong(2.0, "none"), 6, seed=0)
    drawn = sampler.sample(0, 1)
    batch: Any = sampler.batch(drawn, 0)
    for name, kind in (("labelled", "labelled"), ("weak", "unlabelled"), ("strong", "unlabelled")):
        assert batch[name].id.equal(drawn[kind].ids)
        assert batch[name].y.equal(data.y[drawn[kind].ids])
    assert batch["labelled"].x.equal(data.rows(drawn["labelled"].ids))


@pytest.mark.parametrize(("augment", "fixed"), [("none", {"x"}), ("weak", set())])
def test_only_views_without_randomness_are_fixed(augment, fixed):
    """The default augmentation is the data's; a fixed view lets a frozen teacher answer once."""
    sampler = Sampler(replace(Few(), augment=augment), Views(), 5, seed=0)
    assert sampler.batch(sampler.sample(0, 0), 0).fixed == fixed


@pytest.mark.parametrize("shown", [View("x", "all", "none"), View("x", "all", "weak"), View("x", "all", "weak", 2)])
def test_a_view_that_hides_patches_is_the_other_one_less_them(shown: View) -> None:
    """Whatever the other shows; what it hides is drawn for each visit, and it is never fixed."""
    views = Views((shown, View("y", "all", shown.augment, hidden=0.3, of="x")))
    sampler = Sampler(Few(10, 8), views, 6, seed=0)
    epochs = [sampler.batch(sampler.sample(epoch, 0), epoch) for epoch in range(2)]
    for batch in epochs:
        gone = batch["y"].x == HIDDEN
        assert batch["y"].x[~gone].equal(batch["x"].x[~gone])
        assert set(gone.flatten(1).sum(1).tolist()) <= {12, 16}  # of 64 pixels, in fours
        assert "y" not in batch.fixed
        assert ("x" in batch.fixed) is (shown.augment == "none" or shown.fixed > 0)
    assert not epochs[0]["y"].x.eq(HIDDEN).equal(epochs[1]["y"].x.eq(HIDDEN))


@pytest.mark.parametrize(("labels", "share", "known"), [(4, 0.25, 4), (40, 0.25, None), (4, 0.0, None)])
def test_a_batch_of_all_rows_has_its_share_of_labelled_ones(labels, share, known):
    """Few labelled rows are repeated up to their share, beside one pass over the others; more come as they fall."""
    data, views = Few(labels, 60), two("all", labelled=share)
    sampler = Sampler(data, views, 16, seed=0)
    batches = [sampler.sample(1, step)["all"].ids for step in range(sampler.steps_per_epoch)]
    ids = torch.cat(batches)
    assert sorted(ids[ids >= labels].tolist()) == list(range(labels, labels + 60))
    if known is None:
        assert sorted(ids.tolist()) == list(range(labels + 60))
    else:
        assert [int((batch < labels).sum()) for batch in batches] == [known] * 5
    visits = sampler.sample(1, 0)["all"].visits
    assert len({*zip(batches[0].tolist(), visits.tolist(), strict=True)}) == len(batches[0])


def test_the_ratio_follows_the_steps_of_the_run():
    """By steps, by epochs (whose number of steps it decides), and of a run that says neither."""
    data, views = Few(32, 4000), weak_strong()

    def beside(steps: int | None = None, epochs: int | None = None) -> int:
        return len(Sampler(data, views, 16, seed=0, steps=steps, epochs=epochs).sample(0, 0)["unlabelled"].ids)

    assert [beside(steps=n) for n in (100, 2000, 2**20)] == [31, 47, 112]
    assert beside() == beside(steps=2000)
    sampler = Sampler(data, views, 16, seed=0, epochs=10)
    assert beside(epochs=10) == beside(steps=10 * sampler.steps_per_epoch)


def test_as_many_clean_rows_as_the_batch_has_come_along() -> None:
    """They are repeated where they are few, in another order in each epoch."""
    sampler = Sampler(Few(30), Views((View("x"), View("clean", "clean")), clean=5), 8, seed=0)
    steps = [epoch_of(sampler, epoch, "clean") for epoch in (0, 1)]
    assert [len(ids) for ids in steps[0]] == [len(ids) for ids in epoch_of(sampler, 0)]
    counts = torch.cat(steps[0]).bincount()[1000:]
    assert counts.tolist() == [6] * 5
    assert not torch.equal(torch.cat(steps[0]), torch.cat(steps[1]))
