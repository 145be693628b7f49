"""Memories and pseudo-labels against dictionaries, sorting and plain loops: none of it shares their code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from selfdistill.core.objective import Method, Objective
from selfdistill.core.parts import GenerationData, Teacher, Term
from selfdistill.core.step import Batch, Rows, TrainingClock
from selfdistill.errors import RecipeError, SpaceError
from selfdistill.losses import KL, CrossEntropy
from selfdistill.teachers import Ema, Frozen, History, Labels, LastBatch, LastEpoch, PseudoLabels
from selfdistill.testing.specimens import CLASSES, inputs, tiny
from tests.teaching import IDS, Net, bound, learn, rows, said, still

# memories -------------------------------------------------------------------------------------------------------------


def epochs(count: int, size: int = 7) -> list[tuple[int, list[int]]]:
    """(epoch, ids) of every step, each epoch in an order of its own."""
    steps = []
    for epoch in range(count):
        order = torch.randperm(24, generator=torch.Generator().manual_seed(epoch))
        steps += [(epoch, ids.tolist()) for ids in order.split(size)]
    return steps


def softmax(z: list[float]) -> list[float]:
    weights = [2.718281828459045**v for v in z]
    return [w / sum(weights) for w in weights]


def run_memory(teacher: Teacher, follow: Callable[[int, list[int], list[list[float]]], Any], labels: Any) -> None:
    """Train over shuffled epochs; ``follow`` gets (epoch, ids, student's logits) and returns what must be said."""
    model = still(Net())
    clock = TrainingClock(epochs=4, per_epoch=4)
    objective = bound(teacher, model, clock)
    for epoch, ids in epochs(4):
        assert objective.clock.epoch == epoch
        batch = Batch({"x": rows(ids, labels[ids])})
        expected, valid = follow(epoch, ids, model(batch["x"].x).tolist())
        value, found = said(objective, batch)
        assert found.tolist() == valid
        torch.testing.assert_close(value[found], torch.tensor(expected)[found], rtol=1e-4, atol=1e-5)
        learn(objective, model, batch)


LABELS = torch.where(IDS % 5 == 0, -1, IDS % CLASSES)


def one_hot(label: int) -> list[float]:
    return [float(c == max(label, 0)) for c in range(CLASSES)]


def test_last_epoch_equals_a_dictionary():
    """The student's word of the epoch before; the label before that; nothing for an unlabelled row never seen."""
    memory: dict[int, list[float]] = {}

    def follow(epoch, ids, logits):
        expected = [memory.get(i, one_hot(int(LABELS[i]))) for i in ids]
        valid = [i in memory or int(LABELS[i]) >= 0 for i in ids]
        memory.update({i: softmax(z) for i, z in zip(ids, logits, strict=True)})
        return expected, valid

    run_memory(LastEpoch(), follow, LABELS)


@pytest.mark.parametrize("clamp", [0.0, 0.2])
def test_history_from_zero_equals_a_dictionary(clamp):
    """ELR: t <- d t + (1 - d) p before use, from zero, without bias correction."""
    memory = {i: [0.0] * CLASSES for i in range(24)}

    def follow(epoch, ids, logits):
        for i, z in zip(ids, logits, strict=True):
            p = [min(max(v, clamp), 1 - clamp) for v in softmax(z)] if clamp else softmax(z)
            memory[i] = [0.7 * t + 0.3 * v / sum(p) for t, v in zip(memory[i], p, strict=True)]
        return [memory[i] for i in ids], [True] * len(ids)

    run_memory(History(0.7, clamp=clamp), follow, LABELS)


@pytest.mark.parametrize("wait", [0.0, 0.5])
def test_history_from_labels_equals_a_dictionary(wait):
    """Self-adaptive training: the label for the first share of epochs, then its average with the predictions."""
    memory: dict[int, list[float]] = {}

    def follow(epoch, ids, logits):
        valid = [i in memory or int(LABELS[i]) >= 0 for i in ids]
        expected = []
        for i, z in zip(ids, logits, strict=True):
            past = memory.get(i, one_hot(int(LABELS[i])))
            if epoch >= 4 * wait:
                past = memory[i] = [0.9 * t + 0.1 * v for t, v in zip(past, softmax(z), strict=True)]
            expected.append(past)
        return expected, valid

    run_memory(History(0.9, start_from="labels", wait=wait), follow, LABELS)


def test_a_history_starts_from_zero_or_labels():
    """A misspelt start is refused, not taken for zero."""
    with pytest.raises(RecipeError, match="'zeros'"):
        History(start_from="zeros")


def test_last_batch_equals_a_dictionary_of_one_batch():
    """Logits of a step ago with the weights of then, for the samples that were in it; nothing for the others."""
    model = still(Net())
    objective = bound(LastBatch(), model)
    last: dict[int, list[float]] = {}
    for ids in ([0, 1, 2], [2, 5, 0, 7], [9, 10], [10, 9, 3], [4]):
        batch = Batch({"x": rows(ids)})
        value, valid = said(objective, batch)
        assert valid.tolist() == [i in last for i in ids]
        expected = torch.tensor([last.get(i, [0.0] * CLASSES) for i in ids])
        torch.testing.assert_close(value[valid], expected[valid])
        last = dict(zip(ids, model(batch["x"].x).tolist(), strict=True))
        learn(objective, model, batch)


def test_last_batch_remembers_every_peer_of_a_sample():
    """A head with inner elements is remembered whole, and its mask holds for all of them."""
    model = still(tiny(0))
    objective = Method({"t": Term(LastBatch(), KL(), head="peers")}).bind(model)
    first = Batch({"x": rows([0, 1])})
    objective(first)
    objective.update()
    loss = objective.measure(Batch({"x": rows([1, 7])}))["t"]
    assert float(loss.tally.count) == 2  # the two peers of sample 1
    assert abs(float(loss.tally.total.detach())) < 1e-5  # eval mode, same weights


@pytest.mark.parametrize("teacher", [LastEpoch(), History(), LastBatch(), Frozen()])
def test_memories_need_ids(teacher):
    """A batch without sample ids is refused by name; so is one whose ids would mix samples up."""
    batch = Batch({"x": Rows(inputs(IDS), IDS % CLASSES)})
    batch.fixed = frozenset({"x"})
    with pytest.raises(SpaceError, match="'id'"):
        learn(bound(teacher, Net()), Net(), batch)


@pytest.mark.parametrize("teacher", [LastEpoch(), History(), PseudoLabels()])
@pytest.mark.parametrize("head", ["exits", "peers", "feature", "peer_values"])
def test_memories_hold_one_distribution_a_sample(teacher, head):
    """Heads that say several things, or no distribution, are refused before step 0."""
    with pytest.raises(SpaceError, match=repr(head)):
        teacher.space(head)


def test_memories_of_values_hold_one_value_a_sample():
    """Pseudo-labels are chosen class by class, so they have none."""
    assert [teacher.space("values") for teacher in (LastEpoch(), History())] == ["values"] * 2
    with pytest.raises(SpaceError, match="'values'"):
        PseudoLabels().space("values")


@pytest.mark.parametrize("teacher", [LastEpoch(), History(), LastBatch(), Frozen(), Ema(), PseudoLabels()])
def test_a_micro_batch_without_rows_of_the_view_changes_no_memory(teacher):
    """Where a view has no rows (or is missing) there is nothing to remember, and no error."""
    model = Net()
    method = Method({"a": Term(Labels(), CrossEntropy()), "t": Term(teacher, CrossEntropy(), view="extra")})
    objective = method.bind(model)
    for extra in ({}, {"extra": rows(IDS[:0])}):
        batch = Batch({"x": rows(IDS), **extra})
        batch.fixed = frozenset(batch)
        loss = objective(batch)
        assert float(objective.figures["t"].valid) == 0
        loss.backward()
        objective.update()


# pseudo-labels --------------------------------------------------------------------------------------------------------


def eligible_ids(objective: Objective) -> list[int]:
    ids = objective.eligible_ids()
    assert ids is not None
    return ids.tolist()


def brute_force(p: list[list[float]], share: float, least: float, fill: bool) -> list[int]:
    """Of each class the most confident rows, in order; lists and sorting only."""
    each = -(-int(share * len(p) * 1000) // (CLASSES * 1000))
    chosen: list[int] = []
    for c in range(CLASSES):
        mine = [i for i, row in enumerate(p) if row.index(max(row)) == c and row[c] >= least]
        mine = sorted(mine, key=lambda i: (-p[i][c], i))[:each]
        if fill and mine:
            mine = (mine * each)[:each] if len(mine) < each else mine
        chosen += mine
    return chosen


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("least", [0.0, 0.45])
@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("hard", [False, True])
def test_pseudo_labels_equal_brute_force(share, least, fill, hard):
    """Which rows, how often, and what is said of them; labelled rows keep their own label."""
    unlabelled = torch.arange(40, 80)
    logits = 2 * torch.randn(40, CLASSES, generator=torch.Generator().manual_seed(1))
    teacher = PseudoLabels(hard, (0.9, share), least, fill)
    objective = bound(teacher, Net(), previous=Net())
    objective.prepare(GenerationData(unlabelled, lambda module, ids: logits[ids - 40], TrainingClock(2, 4)))
    p = logits.softmax(-1)
    picked = brute_force(p.tolist(), share, least, fill)
    assert [i - 40 for i in eligible_ids(objective)] == picked
    ids = torch.tensor([*unlabelled[:6].tolist(), 3, 47])
    y = torch.tensor([-1] * 6 + [3, 2])
    value, valid = said(objective, Batch({"x": rows(ids, y)}))
    assert valid.all()
    expected = torch.stack([torch.tensor(one_hot(int(row.argmax()))) if hard else row for row in p[:6]])
    torch.testing.assert_close(value[:6], expected)
    assert value[6:].tolist() == [one_hot(3), one_hot(2)]  # a row's own label comes first


def test_pseudo_labels_of_the_first_generation_admit_nothing():
    """Without a generation before there is nobody to label the pool; unlabelled rows have no target."""
    objective = bound(PseudoLabels(), Net())
    objective.prepare(
        GenerationData(torch.arange(40, 80), lambda *_: pytest.fail("nobody to ask"), TrainingClock(0, 4))
    )
    assert eligible_ids(objective) == []
    _, valid = said(objective, Batch({"x": rows([1, 50], [1, -1])}))
    assert valid.tolist() == [True, False]


def test_every_stage_has_its_share():
    """The first share belongs to generation 1; the last one holds for all generations after it."""
    logits = 5 * torch.eye(CLASSES).repeat(4, 1)
    for generation, count in ((1, 1), (2, 2), (3, 4), (7, 4)):
        objective = bound(PseudoLabels(shares=(0.25, 0.5, 1.0)), Net(), previous=Net())
        objective.prepare(
            GenerationData(torch.arange(40, 56), lambda _, ids: logits[ids - 40], TrainingClock(generation, 9))
        )
        assert len(eligible_ids(objective)) == count * CLASSES
