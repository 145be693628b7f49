"""Teachers that correct labels, against dictionaries and explicit sums."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfdistill.core.objective import Method, Objective
from selfdistill.core.parts import GenerationData, Teacher, Term
from selfdistill.core.step import Batch, Rows, TrainingClock
from selfdistill.core.targets import Target
from selfdistill.errors import RecipeError, SpaceError
from selfdistill.gates import Bagged, LabelledShare, PeerShard
from selfdistill.losses import ClassPrior, CrossEntropy, Entropy, Squared
from selfdistill.teachers import Ensembled, Labels, Refurbished, Relabelled
from selfdistill.training.state import collect_pseudo_labels, inherit_pseudo_labels


class Says(nn.Module):
    """Whatever it is given, as logits; one weight, so that a gradient has somewhere to go."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.0 * self.bias


def bound(teacher: Teacher, generation: int = 0, loss: Any = None) -> Objective:
    method = Method({"t": Term(teacher, loss or CrossEntropy())}, generations=2)
    previous = Says() if generation else None
    return method.bind(
        Says(), previous=previous, clock=TrainingClock(generation, 2, epochs=4, per_epoch=1), vitals=False
    )


def visit(objective: Objective, logits: list[list[float]], y: list[int], ids: list[int] | None = None) -> Target:
    """One epoch of one batch; what the teacher said before the update."""
    ids = ids or list(range(len(y)))
    batch = Batch({"x": Rows(torch.tensor(logits), torch.tensor(y), torch.tensor(ids))})
    objective(batch)
    term: Any = objective.method.terms["t"]
    target: Target = term.teacher.target(
        objective.states["t_" + type(term.teacher).__name__.lower()], objective._steps[-1], term
    )
    objective.update()
    return target


def test_the_ensembled_target_is_the_bias_corrected_average() -> None:
    objective = bound(Ensembled(0.75), loss=Squared())
    said = [[[3.0, 0.0]], [[0.0, 1.0]], [[0.0, 2.0]]]
    assert visit(objective, said[0], [0]).valid.tolist() == [False]  # type: ignore[union-attr]
    z = torch.zeros(2)
    for number, (before, now) in enumerate(itertools.pairwise(said), 1):
        z = 0.75 * z + 0.25 * torch.tensor(before[0]).softmax(0)
        target = visit(objective, now, [0])
        torch.testing.assert_close(target.value[0], z / (1 - 0.75**number))


def test_a_label_is_refurbished_when_the_votes_agree_and_stays_so() -> None:
    """Three votes; two to one has an entropy of .918 log 2, of which log 3 makes .579."""
    objective = bound(Refurbished(noise=0.5, history=3, threshold=0.6, wait=0.0))
    votes = [2, 1, 2, 0, 0, 0]
    labels = []
    for vote in votes:
        logits = [[0.0] * 3]
        logits[0][vote] = 4.0
        labels.append(int(visit(objective, logits, [0]).value[0]))
    # before visit 4 the votes are 2 1 2: agreed on 2; then 1 2 0 agree on nothing, and 2 stays; then 2 0 0: agreed on 0
    assert labels == [0, 0, 0, 2, 2, 0]


def test_of_the_others_only_the_easy_rows_teach() -> None:
    objective = bound(Refurbished(noise=0.5, history=9, wait=0.0))
    target = visit(objective, [[5.0, 0.0], [0.0, 5.0], [1.0, 0.0], [0.0, 1.0]], [0, 0, 0, -1])
    assert target.valid is not None
    assert target.valid.tolist() == [True, False, True, False]  # ceil(.5 x 3) of the three with a label


def test_refurbished_labels_pass_to_the_next_generation_and_votes_do_not() -> None:
    objective = bound(Refurbished(history=1, threshold=0.1, wait=0.0))
    for _ in range(2):
        visit(objective, [[0.0, 4.0]], [0], [3])
    fresh = bound(Refurbished(history=1, threshold=0.1, wait=0.0), generation=1)
    inherit_pseudo_labels(collect_pseudo_labels(objective), fresh)
    target = visit(fresh, [[4.0, 0.0]], [0], [3])
    assert target.value.tolist() == [1]
    assert target.valid is not None
    assert target.valid.tolist() == [True]


def test_a_window_forgets_what_is_older_and_hands_its_mean_on() -> None:
    objective = bound(Relabelled(window=2, wait=0.0))
    said = [[2.0, 0.0], [0.0, 1.0], [0.0, 3.0]]
    assert visit(objective, [said[0]], [1]).value.tolist() == [[0.0, 1.0]]
    for last in (said[1], said[2]):
        target = visit(objective, [last], [1])
    torch.testing.assert_close(target.value[0], torch.tensor(said[:2]).softmax(1).mean(0))
    later = bound(Relabelled(window=2, wait=0.0), generation=1)
    inherit_pseudo_labels(collect_pseudo_labels(objective), later)
    for _ in range(2):  # and it stays, whatever is said now
        target = visit(later, [[9.0, 0.0]], [1])
        torch.testing.assert_close(target.value[0], torch.tensor(said[1:]).softmax(1).mean(0))
    assert collect_pseudo_labels(later).keys() == collect_pseudo_labels(objective).keys()


def test_while_it_waits_the_label_is_the_target() -> None:
    for teacher in (Refurbished(history=1, wait=0.5), Relabelled(wait=0.5)):
        objective = bound(teacher)
        for _ in range(2):
            target = visit(objective, [[0.0, 4.0]], [0])
            assert target.best().tolist() == [0]


@pytest.mark.parametrize("head", ["peers", "feature"])
def test_what_has_no_single_distribution_is_refused(head: str) -> None:
    for teacher in (Ensembled(), Refurbished(), Relabelled()):
        with pytest.raises(SpaceError, match=head):
            teacher.space(head)


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(RecipeError, match="at least 1"):
        Refurbished(history=0)
    with pytest.raises(RecipeError, match="at least 1"):
        Relabelled(window=0)
    with pytest.raises(RecipeError, match=r"in \[0, 1\)"):
        Refurbished(noise=1.0)


def test_the_labelled_share_is_that_of_the_pool() -> None:
    method = Method({"t": Term(Labels(), CrossEntropy(), gate=LabelledShare())})
    objective = method.bind(Says())
    batch = {"x": torch.tensor([[1.0, 0.0]]), "y": torch.tensor([0])}
    whole = float(objective(batch).detach())
    objective.prepare(GenerationData(torch.arange(6), lambda m, i: i, TrainingClock(), torch.arange(2)))
    assert float(objective(batch).detach()) == pytest.approx(whole / 4)


def test_shards_part_the_samples_evenly() -> None:
    ids = torch.arange(3000)
    objective = Method({"t": Term(Labels(), CrossEntropy(), gate=PeerShard())}).bind(Says())
    step = objective.forward_views({"x": torch.zeros(3000, 2), "y": torch.zeros(3000, dtype=torch.int64), "id": ids})
    student, target = torch.zeros(3000, 3, 2), Target(step.labels("x"), "classes")
    mine = PeerShard().weigh(nn.Module(), student, target, step, objective.method.terms["t"])
    assert mine.sum(1).eq(1).all()
    assert all(900 < float(n) < 1100 for n in mine.sum(0))
    again = PeerShard().weigh(nn.Module(), student, target, step, objective.method.terms["t"])
    assert again.equal(mine)


def test_what_peers_have_drawn_differs_from_peer_to_peer_and_never_from_look_to_look() -> None:
    """Of 3,000 rows a share of 0.6 each, and of any two peers 0.36 together, as independent draws have."""
    ids, gate = torch.arange(3000), Bagged(0.6)
    objective = Method({"t": Term(Labels(), CrossEntropy(), gate=gate)}).bind(Says())
    step = objective.forward_views({"x": torch.zeros(3000, 2), "y": torch.zeros(3000, dtype=torch.int64), "id": ids})
    student, labels = torch.zeros(3000, 3, 2), Target(step.labels("x"), "classes")
    drawn = gate.weigh(nn.Module(), student, labels, step, objective.method.terms["t"])
    assert drawn.mean(0).sub(0.6).abs().max() < 0.03
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert abs(float((drawn[:, one] * drawn[:, other]).mean()) - 0.36) < 0.03
    assert gate.weigh(nn.Module(), student, labels, step, objective.method.terms["t"]).equal(drawn)
    with pytest.raises(RecipeError, match="share is that of the samples of a peer"):
        Bagged(0.0)


def test_entropy_and_prior_by_explicit_sums() -> None:
    student = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    p, nothing = student.softmax(1), Target(torch.zeros(5, 3), "logits")
    for row, found in zip(p.tolist(), Entropy()(student, nothing).tolist(), strict=True):
        assert found == pytest.approx(-sum(v * torch.tensor(v).log().item() for v in row), abs=1e-6)
    mean = p.mean(0)
    wanted = sum((1 / 3) * float(torch.log((1 / 3) / m)) for m in mean)
    assert ClassPrior()(student, nothing).tolist() == pytest.approx([wanted] * 5, abs=1e-6)
    sure = torch.zeros(4, 3)
    sure[:, 0] = 300.0  # p of the others underflows
    assert torch.isfinite(ClassPrior()(sure, nothing)).all()
