"""What does not fit is refused before step 0, by name; `test_combinations` tries the product of all parts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from selfdistill.core.objective import Method
from selfdistill.core.parts import BaseTerm, Term
from selfdistill.core.regression import of_values
from selfdistill.core.step import Batch, Rows
from selfdistill.data.dataset import Data, from_tensors
from selfdistill.errors import DataError, SpaceError
from selfdistill.gates import Confident
from selfdistill.losses import KL, CrossEntropy, LogOneMinusInner, Squared
from selfdistill.methods import byot, curriculum, fixmatch, mean_teacher, plain
from selfdistill.methods.validate import check_method
from selfdistill.teachers import CurrentStudent, Ema, Frozen, Labels, OtherPeers
from selfdistill.testing.specimens import CLASSES, Tiny, inputs, tiny
from selfdistill.training.preflight import dry_run
from selfdistill.views import View, Views, pairs, two, weak_strong
from tests.parts import SPACE


def a_batch(head: str) -> Batch:
    ids = torch.arange(6)
    y = ids % CLASSES if SPACE[head] in ("logits", "features") else inputs(ids)[:, 0]
    return Batch({"x": Rows(inputs(ids), y, ids)})


def test_the_refusal_names_what_is_there_and_what_was_wanted():
    """Labels into features, features into a divergence, values into a confidence."""
    cases = {
        "labels say nothing about the head 'feature'": Term(Labels(), Squared(), head="feature"),
        "KL compares a student of logits, not of features": Term(Ema(), KL(), head="feature"),
        "Confident judges a target of classes or logits or probabilities, not of values": Term(
            Labels(), Squared(), head="values", gate=Confident()
        ),
        "LogOneMinusInner compares a target of probabilities, not of logits": Term(Ema(), LogOneMinusInner()),
        "OtherPeers needs the head 'peers', 'peer_values' or 'peer_gaussians', not 'logits'": Term(OtherPeers(), KL()),
    }
    for message, term in cases.items():
        with pytest.raises(SpaceError) as caught:
            check_method(Method({"odd": term}))
        assert str(caught.value).startswith("term 'odd': ")
        assert message in str(caught.value)


@pytest.mark.parametrize(
    ("term", "views"),
    [
        (Term(Labels(), CrossEntropy(), view="strong"), Views()),
        (Term(CurrentStudent(view="weak"), KL()), Views()),
        (Term(Ema(view="weak"), KL()), Views()),
        (Term(Frozen(view="weak"), KL()), two()),
    ],
)
def test_a_view_that_nobody_makes_is_refused(term, views):
    """Of the student or of any teacher; the message lists the views there are."""
    with pytest.raises(SpaceError, match=r"'(strong|weak)' is not among the method's views \((other, )?x\)"):
        check_method(Method({"t": term}, views=views))


@pytest.mark.parametrize(
    ("term", "views"),
    [
        (Term(CurrentStudent(view="labelled"), KL(), view="strong"), weak_strong(1.0)),
        (Term(Ema(view="weak"), KL(), view="labelled"), weak_strong(1.0)),
    ],
)
def test_a_teacher_that_looks_at_other_rows_is_refused(term, views):
    """As many rows, but of other samples: that would run and teach nonsense."""
    with pytest.raises(SpaceError, match="different rows"):
        check_method(Method({"t": term}, views=views))


def test_a_partner_of_the_same_class_is_no_other_row():
    """The pairs of CS-KD are what they are for."""
    check_method(Method({"t": Term(CurrentStudent(view="pair"), KL())}, views=pairs()))


def test_a_term_of_its_own_kind_is_not_judged():
    """It checks itself; its view must exist all the same."""

    class Own(BaseTerm):
        view = "x"

    own = Own()
    check_method(Method({"own": own}))
    own.view = "y"
    with pytest.raises(SpaceError, match="'y'"):
        check_method(Method({"own": own}))


def some_data(classes: int = CLASSES, unlabelled: int = 0, values: bool = False) -> Data:
    ids = torch.arange(70)
    y = torch.where(ids < 70 - unlabelled, ids % classes, -1)
    return from_tensors(inputs(ids), inputs(ids)[:, 0] if values else y, name="few")


@pytest.mark.parametrize("method", [fixmatch(), curriculum()])
def test_a_method_that_needs_unlabelled_rows_says_so(method):
    """And is content where there are some."""
    with pytest.raises(DataError, match=r"--labels N or --unlabelled PATH"):
        check_method(method, some_data())
    check_method(method, some_data(unlabelled=20))


def test_a_method_that_can_do_without_unlabelled_rows_does():
    """Mean Teacher takes what there is."""
    check_method(mean_teacher(), some_data())


def test_numbers_as_labels_are_refused_by_methods_that_classify():
    """The message names the data and the way out; the other way round too."""
    with pytest.raises(DataError, match=r"few is a number of many values .*of_values"):
        check_method(plain(), some_data(values=True))
    check_method(of_values(plain()), some_data(values=True))
    with pytest.raises(DataError, match=r"term 'label' predicts a value .*few is one of 4 classes"):
        check_method(of_values(plain()), some_data())


# the dry run ----------------------------------------------------------------------------------------------------------


def dry(method: Method, model: nn.Module, batch: Batch, classes: int = CLASSES) -> None:
    objective = method.bind(model)
    dry_run(objective, batch, some_data(classes).shape, classes)
    assert objective.clock.step == 0
    assert not objective._steps


def test_a_model_of_another_width_is_refused():
    """Its width, the number of classes, and what to do."""
    with pytest.raises(SpaceError, match=r"width 4 .*have 7 classes; build the model with 7 outputs"):
        dry(plain(), tiny(0), a_batch("logits"), classes=7)


def test_a_model_without_the_head_is_refused():
    """The head that is missing and those there."""
    with pytest.raises(SpaceError, match=r"no output 'exits' \(it returns: one unnamed tensor\)"):
        dry(byot(), nn.Linear(6, CLASSES), a_batch("logits"))


def test_a_dry_run_changes_nothing():
    """No buffer of the model, no memory, no clock."""
    model = tiny(0)
    before = copy.deepcopy(model.state_dict())
    dry(byot(), model, a_batch("logits"))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_a_dry_run_takes_a_view_without_rows():
    """Before anything is admitted the unlabelled views are empty."""
    ids = torch.arange(6)
    full, none = Rows(inputs(ids), ids % CLASSES, ids), Rows(inputs(ids[:0]), ids[:0], ids[:0])
    dry(fixmatch(), Tiny(), Batch({"labelled": full, "weak": none, "strong": none}))


def test_all_rows_beside_unlabelled_ones_are_different_rows():
    """Views of one name and another's rows are told apart by what they show."""
    views = Views((View("x", "all"), View("u", "unlabelled")))
    with pytest.raises(SpaceError, match="different rows"):
        check_method(Method({"t": Term(CurrentStudent(view="u"), KL())}, views=views))
