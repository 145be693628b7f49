"""The conformance checks: all our parts pass."""

from __future__ import annotations

import pytest
import torch

from selfdistill import testing
from selfdistill.core.parts import PerTrust, Term
from selfdistill.gates import Confident
from selfdistill.losses import KL, ClassPrior, CrossEntropy, MeanDistance, PairCrossEntropy, SelfWeighted
from selfdistill.schedules import ByGeneration, Linear, Ramp
from selfdistill.teachers import CurrentStudent, Ema, Frozen, Labels, LastBatch, OtherPeers, Sampled
from selfdistill.testing.conformance import check_gate, check_loss, check_teacher, check_value, names
from selfdistill.testing.specimens import same_bits
from tests.parts import GATES, LOSSES, TEACHERS


@pytest.mark.parametrize(("loss", "minimum"), LOSSES, ids=str)
def test_our_losses_conform(loss, minimum):
    """Divergences have a minimum of 0 where student and target agree; pairs and priors look at other rows."""
    mixing = PairCrossEntropy | MeanDistance | SelfWeighted | ClassPrior
    check_loss(loss, minimum=minimum, mixes=isinstance(loss, mixing))


@pytest.mark.parametrize("gate", GATES, ids=str)
def test_our_gates_conform(gate):
    """For every space they judge."""
    check_gate(gate)


@pytest.mark.parametrize("teacher", [t for t in TEACHERS if t != CurrentStudent(head="exits")], ids=str)
def test_our_teachers_conform(teacher):
    """With and without fixed views."""
    check_teacher(teacher)


@pytest.mark.parametrize(
    ("teacher", "head"),
    [(Labels(), "gaussian"), (Labels(), "exits"), (CurrentStudent(head="exits"), "exits"),
     (CurrentStudent(head="feature"), "features"),
     (Ema(), "peers"), (Frozen(), "feature"), (LastBatch(), "peers"), (OtherPeers(), "peer_gaussians"),
     (Sampled(3), "peer_gaussians"), (CurrentStudent(), "ranks"), (Labels(), "ranks")],
)  # fmt: skip
def test_our_teachers_conform_on_other_heads(teacher, head):
    """Wherever their space allows it."""
    check_teacher(teacher, head=head)


@pytest.mark.parametrize(
    "part",
    [*[loss for loss, _ in LOSSES], *GATES, *TEACHERS, Linear(0, 1), Ramp(2.0), ByGeneration(1, 0),
     Term(Ema(0.9), KL(2.0), weight=Ramp(1.0)), Term(Labels(), CrossEntropy(), gate=Confident(), reduction=PerTrust())],
    ids=str,
)  # fmt: skip
def test_our_parts_are_values(part):
    """Frozen, hashable, equal to their copies, and read back from their repr."""
    check_value(part)


def test_names_are_the_parts_and_recipes():
    """Every class that a recipe's repr can name, and every recipe; no machinery."""
    found = names()
    assert {"Method", "Term", "Always", "Ema", "KL", "Linear", "View", "Views", "Group", "Exits", "elr"} <= set(found)
    assert all(callable(thing) for thing in found.values())
    assert not {"Target", "Objective", "SampleMemory", "Tensor", "FrozenCopy", "TrainingClock"} & set(found)


def test_same_bits_sees_every_difference():
    """Values, shapes, types, names; at any depth."""
    a = {"w": torch.tensor([1.0, 2.0]), "s": {"n": 1}}
    assert same_bits(a, {"w": torch.tensor([1.0, 2.0]), "s": {"n": 1}})
    for b in (
        {"w": torch.tensor([1.0, 2.0000002]), "s": {"n": 1}},
        {"w": torch.tensor([1.0, 2.0], dtype=torch.float64), "s": {"n": 1}},
        {"w": torch.tensor([[1.0, 2.0]]), "s": {"n": 1}},
        {"w": torch.tensor([1.0, 2.0]), "s": {"n": 2}},
        {"v": torch.tensor([1.0, 2.0]), "s": {"n": 1}},
    ):
        assert not same_bits(a, b)


def test_what_is_public_is_named():
    """The checks, and nothing else."""
    assert testing.__all__ == ["check_gate", "check_loss", "check_method", "check_teacher", "check_value", "names"]
