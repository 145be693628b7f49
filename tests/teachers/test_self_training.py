"""Pseudo-labels that pass from generation to generation: which rows, whose labels, and what a roll-back drops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.core.objective import Objective
from selfdistill.core.parts import GenerationData
from selfdistill.core.step import TrainingClock
from selfdistill.errors import CheckpointError, RecipeError
from selfdistill.evaluation.audit import Decision
from selfdistill.io import tensors
from selfdistill.methods.generations import self_training
from selfdistill.methods.registry import read_method
from selfdistill.teachers.self_training import InheritedPseudoLabels, fresh_rows, real_share
from selfdistill.testing.specimens import CLASSES
from selfdistill.training.fit import fit
from selfdistill.training.state import collect_pseudo_labels, inherit_pseudo_labels
from selfdistill.training.trainer import Trainer
from tests.harness import build, record, tiny_data
from tests.teaching import Net, bound, state_of
from tests.test_oracles import agree, find
from tests.workers.runs import bits, differences

LABELLED, UNLABELLED = torch.arange(8), torch.arange(40, 60)


def prepared(
    teacher: InheritedPseudoLabels, generation: int, before: Objective | None = None, says: int = 0
) -> Objective:
    """A generation whose teacher says class ``says`` of every row."""
    objective = bound(teacher, Net(), TrainingClock(generation, 9), previous=Net() if generation else None)
    if before is not None:
        inherit_pseudo_labels(collect_pseudo_labels(before), objective)
    logits = torch.nn.functional.one_hot(torch.tensor(says), CLASSES).float()
    look: Any = lambda module, ids: logits.expand(len(ids), CLASSES)
    objective.prepare(GenerationData(UNLABELLED, look, TrainingClock(generation, 9), LABELLED, seed=3))
    return objective


def drawn(objective: Objective) -> list[int]:
    ids = objective.eligible_ids()
    assert ids is not None
    return sorted(ids.tolist())


def pseudo(objective: Objective) -> dict[int, int]:
    """The class that each pseudo-labelled row has."""
    values, seen = state_of(objective).read(UNLABELLED, CLASSES)
    return {int(i): int(v.argmax()) for i, v, s in zip(UNLABELLED, values, seen, strict=True) if s}


# which rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_generations_label_rows_of_their_own_until_the_pool_is_exhausted(seed: int) -> None:
    def sets(*generations: int) -> list[list[int]]:
        return [
            fresh_rows(GenerationData(UNLABELLED, lambda _, i: i, TrainingClock(k, 99), seed=seed), 6).tolist()
            for k in generations
        ]

    first = sets(1, 2, 3)
    assert len({i for rows in first for i in rows}) == 18
    assert sets(3, 1, 2) == [first[2], first[0], first[1]], "what was drawn before does not matter"
    fourth = sets(4)[0]
    assert set(fourth[:2]).isdisjoint(i for rows in first for i in rows)
    assert fourth[2:] == first[0][:4], "then the same order again"


def test_a_pool_smaller_than_a_set_is_labelled_whole() -> None:
    for generation in (1, 2, 7):
        rows = fresh_rows(GenerationData(UNLABELLED, lambda _, i: i, TrainingClock(generation, 9)), 50)
        assert sorted(rows.tolist()) == UNLABELLED.tolist()


@pytest.mark.parametrize("keep", ["accumulate", "replace", "anchor"])
def test_generation_0_draws_the_labelled_rows_alone(keep: str) -> None:
    assert drawn(prepared(InheritedPseudoLabels(keep), 0)) == LABELLED.tolist()


def test_accumulating_keeps_real_rows_and_every_label_as_it_was_first_given() -> None:
    teacher = InheritedPseudoLabels("accumulate", hard=True, fresh=12)
    first = prepared(teacher, 1, says=1)
    second = prepared(teacher, 2, first, says=2)  # 8 new rows, and 4 that have a label already
    third = prepared(teacher, 3, second, says=3)
    assert [list(pseudo(o).values()).count(c) for o in (first, second) for c in (1, 2)] == [12, 0, 12, 8]
    assert pseudo(third) == pseudo(second), "the pool is exhausted: nothing new"
    assert drawn(second) == sorted([*LABELLED.tolist(), *pseudo(second)])


def test_replacing_draws_the_newest_set_only_and_hands_nothing_on() -> None:
    teacher = InheritedPseudoLabels("replace", hard=True, fresh=5)
    first = prepared(teacher, 1, says=1)
    second = prepared(teacher, 2, first, says=2)
    assert collect_pseudo_labels(first) == {}
    assert drawn(second) == sorted(pseudo(second))
    assert set(pseudo(second).values()) == {2}
    assert len(pseudo(second)) == 5


@pytest.mark.parametrize(("fresh", "copies"), [(8, 13), (16, 16), (20, 17), (2, 10)])
def test_an_anchor_repeats_the_real_rows_to_their_weight(fresh: int, copies: int) -> None:
    """8 real rows: as many new ones give 13 / 21 (the golden ratio)."""
    rows = drawn(prepared(InheritedPseudoLabels("anchor", fresh=fresh), 1))
    real = [i for i in rows if i < 8]
    assert len(real) == copies
    assert len(rows) == copies + fresh
    counts = [real.count(i) for i in range(8)]
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0, 3.0])
def test_the_weight_of_real_data_has_the_smallest_variance(ratio: float) -> None:
    """A mean estimated from n new values and m drawn around the last estimate, for ever: V = w^2 / n + (1 - w)^2
    (V + 1 / m), solved for V and searched over a grid."""
    w = torch.linspace(0.001, 1, 100_000, dtype=torch.float64)
    variance = (w**2 + ratio * (1 - w) ** 2) / (1 - (1 - w) ** 2)
    assert float(w[variance.argmin()]) == pytest.approx(real_share(ratio), abs=1e-4)


@pytest.mark.parametrize(("keep", "again"), [("accumulate", "with the labels they have"), ("anchor", "labelled anew")])
def test_an_exhausted_pool_is_said_once_before_training(keep: str, again: str) -> None:
    said: list[str] = []
    for generations, fresh in ((5, 7), (4, 8)):  # 24 unlabelled rows
        method = self_training(generations=generations, keep=keep, fresh=fresh)
        fit(build, tiny_data(), method, steps=1, batch_size=12, tell=said.append)
    (line,) = [line for line in said if "exhausted" in line]
    assert line == f"the pool of 24 unlabelled rows is exhausted in generation 4 of 4: rows come again, {again}"


# the whole method -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("keep", ["accumulate", "replace", "anchor"])
def test_each_way_of_keeping_equals_the_oracle(keep: str, hard: bool, tmp_path: Path) -> None:
    given: dict[str, Any] = {"generations": 5, "keep": keep, "hard": hard, "fresh": 7, "weight": 0.7}
    run = record(self_training(**given), tmp_path / "run")
    agree("self_training", run, *find("self_training")(run, **given))


def refusing(monkeypatch: pytest.MonkeyPatch, *rejected: int) -> None:
    """An audit that rolls these generations back and accepts the others."""

    def decide(self: Trainer, done: Any) -> Decision:
        generation = len(self.state.generations)
        return Decision(generation, generation not in rejected, f"generation {generation} decided by the test")

    monkeypatch.setattr(Trainer, "decide", decide)


def train(out: Path | None = None, **options: Any) -> Any:
    method = self_training(generations=4, fresh=6)
    return fit(build, tiny_data(), method, out=out, epochs=2, batch_size=12, seed=2, **options)


def rows_of(seed: int, *generations: int) -> set[int]:
    data = tiny_data()
    pools = [GenerationData(data.unlabelled, lambda _, i: i, TrainingClock(k, 4), seed=seed) for k in generations]
    return {i for pool in pools for i in fresh_rows(pool, 6).tolist()}


def carried(trained: Any) -> set[int]:
    return set(trained.pseudo_labels.get("pseudo_inheritedpseudolabels.ids", torch.zeros(0)).tolist())


def test_labels_of_a_rejected_generation_teach_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [carried(t) for t in train().generations] == [set(), rows_of(2, 1), rows_of(2, 1, 2), rows_of(2, 1, 2, 3)]
    refusing(monkeypatch, 1, 2)
    seen: list[set[int]] = [set() for _ in range(4)]

    def watch(clock: TrainingClock, batches: list[Any], loss: float) -> None:
        seen[clock.generation].update(batches[0]["x"].id[batches[0]["x"].y < 0].tolist())

    result = train(watch=watch)
    assert seen == [set(), rows_of(2, 1), rows_of(2, 2), rows_of(2, 3)]
    assert [carried(t) for t in result.generations] == seen


class _EnoughError(Exception):
    pass


def cut_and_resumed(folder: Path, generation: int, step: int, between: Any = lambda: None) -> Any:
    def stop(clock: TrainingClock, batches: list[Any], loss: float) -> None:
        if (clock.generation, clock.step) == (generation, step):
            raise _EnoughError

    with pytest.raises(_EnoughError):
        train(folder, watch=stop, save_steps=4)
    between()
    return train(folder, resume=True, save_steps=10**6)


@pytest.mark.parametrize(("generation", "step"), [(1, 0), (2, 7), (3, 0), (3, 9)])
def test_a_run_that_was_cut_ends_with_the_same_bits(
    generation: int, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a generation before the cut had been rolled back."""
    refusing(monkeypatch, 1)
    whole = train(tmp_path / "whole", save_steps=10**6)
    cut = cut_and_resumed(tmp_path / "cut", generation, step)
    assert differences(bits(tmp_path / "whole"), bits(tmp_path / "cut")) == []
    assert cut.history == whole.history
    names = {path.name for path in (tmp_path / "cut" / "generations").iterdir()}
    assert {name for name in names if "pseudo" in name} == {f"{k}-pseudo-labels.safetensors" for k in (1, 2, 3)}


def test_the_carried_labels_are_needed_and_vouched_for(tmp_path: Path) -> None:
    """Another label in the file is refused; were it believed, the run would end otherwise."""
    file = tmp_path / "cut" / "generations" / "2-pseudo-labels.safetensors"

    def spoil() -> None:
        state: dict[str, Tensor] = tensors.read_tensors(file)
        state["pseudo_inheritedpseudolabels.labels"] = state["pseudo_inheritedpseudolabels.labels"].roll(1, 0)
        tensors.write_tensors(file, state)

    with pytest.raises(CheckpointError, match=r"2-pseudo-labels.safetensors is not the one this run wrote"):
        cut_and_resumed(tmp_path / "cut", 3, 0, spoil)
    before, after = (tensors.read_tensors(file.with_name(f"{k}-final.safetensors")) for k in (1, 2))
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("self_training(keep='all')", "keep is 'accumulate', 'replace' or 'anchor', not 'all'"),
        ("self_training(fresh=0)", "fresh is at least 1, not 0"),
        ("self_training(fresh=1.5)", "fresh is a whole number, not 1.5"),
        ("self_training(generations=0)", "generations is at least 1, not 0"),
        ("self_training(weight=-1)", "weight is at least 0, not -1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        read_method(text)
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match="fresh is the number of rows"):
        InheritedPseudoLabels(fresh=0)
