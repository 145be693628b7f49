"""Terms of their own kind: the direction of largest change, and fairness over a batch."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.core.objective import Method
from selfdistill.core.parts import Always, Term
from selfdistill.core.step import Batch, Forward, ForwardPlan, Rows, TrainingClock
from selfdistill.core.vitals import TermTrace
from selfdistill.errors import RecipeError, SpaceError
from selfdistill.gates import SelfAdaptive
from selfdistill.losses import KL, CrossEntropy, Squared
from selfdistill.teachers import CurrentStudent, Ema, Labels
from selfdistill.terms import Fairness, Perturbed
from selfdistill.testing.specimens import tiny

ROWS, WIDTH, CLASSES = 5, 6, 3
X = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))


def a_step(model: nn.Module, x: Tensor = X, view: str = "x") -> Forward:
    batch = Batch({view: Rows(x, torch.arange(len(x)) % CLASSES, torch.arange(len(x)))})
    return Forward(model, batch, TrainingClock(), ForwardPlan((view,))).run()


def smooth() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(WIDTH, 9), nn.Tanh(), nn.Linear(9, CLASSES))


def curvature(model: nn.Module, x: Tensor) -> Tensor:
    """The Hessian of KL(p(x) || p(x + r)) in r at 0, by torch, (rows, width, width)."""
    found = []
    for row in x:
        p = model(row).softmax(0).detach()
        found.append(
            torch.autograd.functional.hessian(
                lambda r, row=row, p=p: -(p * model(row + r).log_softmax(0)).sum(), 0 * row
            )
        )
    return torch.stack(found)


def test_many_iterations_find_the_largest_eigenvector() -> None:
    """Of the Hessian of each row, up to its sign."""
    model = smooth()
    vectors = torch.linalg.eigh(curvature(model, X)).eigenvectors[:, :, -1]
    found = Perturbed(iterations=60).direction(a_step(model), X)
    torch.testing.assert_close((found * vectors).sum(1).abs(), torch.ones(ROWS), atol=1e-3, rtol=0)


def test_one_iteration_is_one_product_with_the_hessian() -> None:
    """From the same start, which two iterations reveal."""
    model, step = smooth(), a_step(smooth())
    torch.manual_seed(5)
    once, twice = (Perturbed(iterations=k).direction(step, X) for k in (1, 2))
    wanted = F.normalize(torch.einsum("nij,nj->ni", curvature(model, X), once), dim=1)
    torch.testing.assert_close(twice, wanted, atol=1e-4, rtol=1e-4)


def test_the_direction_changes_the_answer_more_than_chance_does() -> None:
    """KL at x + r, against the mean of 50 random directions of the same length."""
    model = smooth()
    p = model(X).log_softmax(1).detach()

    def change(r: Tensor) -> Tensor:
        apart: Tensor = (p.exp() * (p - model(X + 0.3 * r).log_softmax(1))).sum(1)
        return apart

    r = Perturbed().direction(a_step(model), X)
    torch.manual_seed(0)
    chance = torch.stack([change(F.normalize(torch.randn_like(X), dim=1)) for _ in range(50)]).detach().mean(0)
    assert float(change(r).detach().mean()) > 2 * float(chance.mean())
    torch.testing.assert_close(r.norm(dim=1), torch.ones(ROWS))


def test_the_direction_belongs_to_the_sample_and_the_step() -> None:
    """Whatever else is in the batch; another step, and another seed, draw another one."""
    model = smooth()
    torch.manual_seed(1)
    whole, part = Perturbed().direction(a_step(model), X), Perturbed().direction(a_step(model, X[:2]), X[:2])
    torch.testing.assert_close(whole[:2], part)
    later = a_step(model)
    later.clock = TrainingClock(step=1, epochs=5)
    assert not torch.allclose(Perturbed().direction(later, X), whole, atol=1e-2)
    torch.manual_seed(2)
    assert not torch.allclose(Perturbed().direction(a_step(model), X), whole, atol=1e-2)


def test_no_weight_learns_from_the_search_and_no_statistic_moves() -> None:
    """Gradients come from the term's loss alone; batch norm's running figures stay, forward passes are counted."""
    model = tiny(0).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    step = a_step(model)
    moved = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any(not moved[name].equal(before[name]) for name in before)  # the step's own forward has moved them
    Perturbed(iterations=2).direction(step, X)
    assert all(p.grad is None for p in model.parameters())
    assert all(moved[name].equal(buffer) for name, buffer in model.named_buffers())
    assert step.passes.forward == 3 * ROWS
    assert Perturbed().student_output(step).requires_grad


@pytest.mark.parametrize("teacher", [CurrentStudent(), Ema(), Labels()], ids=str)
def test_any_teacher_can_stay_where_it_was(teacher: Any) -> None:
    """Its target is that of the plain term; the student's side alone is moved."""
    batch = {"x": X, "y": torch.arange(ROWS) % CLASSES, "id": torch.arange(ROWS)}
    plain, moved = (said(kind(teacher, CrossEntropy()), batch) for kind in (Term, Perturbed))
    assert torch.equal(plain.target.value, moved.target.value)
    assert not torch.allclose(plain.student, moved.student, atol=1e-3)


def said(term: Term, batch: dict[str, Tensor]) -> TermTrace:
    """What a term compared."""
    objective = Method({"t": term}).bind(tiny(0))
    seen = term.tally(partial(objective.state_of, "t"), objective.forward_views(batch)).seen
    assert seen is not None
    return seen


def test_values_are_perturbed_too() -> None:
    """A squared error has a direction of largest change as well: J'J."""
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, 1)
    term = Perturbed(loss=Squared(), head="values", iterations=3)
    r = term.direction(a_step(model), X)
    line = F.normalize(model.weight.detach(), dim=1)
    torch.testing.assert_close((r @ line.T).abs().squeeze(1), torch.ones(ROWS))


def test_what_cannot_be_perturbed_is_refused() -> None:
    with pytest.raises(RecipeError, match="size is above 0"):
        Perturbed(size=0.0)
    with pytest.raises(RecipeError, match="iterations at least 1"):
        Perturbed(iterations=0)
    step = a_step(nn.Embedding(9, CLASSES), torch.arange(4))
    with pytest.raises(SpaceError, match="real numbers"):
        Perturbed().student_output(step)


# fairness -------------------------------------------------------------------------------------------------------------


def fair(z: Tensor, decay: float = 0.0) -> Tensor:
    """The figure for student logits that are their own target; every row is kept at decay 0 that is sure enough."""
    term = Fairness(gate=SelfAdaptive(decay))
    objective = Method({"fair": term}).bind(nn.Identity())
    measured = term.tally(
        partial(objective.state_of, "fair"), objective.forward_views({"x": z, "id": torch.arange(len(z))})
    )
    return measured.tally.total / measured.tally.count


def test_fairness_is_least_where_all_classes_are_said_alike() -> None:
    """Minus the cross-entropy of even shares is -log C, and a batch that says one class is above it."""
    even = 6 * torch.eye(3).repeat(4, 1)
    assert float(fair(even)) == pytest.approx(-torch.tensor(3.0).log().item(), abs=1e-4)


def test_fairness_teaches_towards_the_other_classes() -> None:
    """Where one class has more probability than its count, the gradient lowers it."""
    z = torch.tensor([[2.0, 1.5, 0.0], [2.0, 1.5, 0.0], [0.0, 3.0, 0.0]], requires_grad=True)
    loss = fair(z, 0.5)
    (gradient,) = torch.autograd.grad(loss, z)
    assert bool(gradient.isfinite().all())
    assert float(gradient.abs().max()) > 0


def test_fairness_of_nothing_kept_is_zero() -> None:
    """Without a row there is nothing to compare, and without one that is kept nothing either."""
    term = Fairness()
    objective = Method({"fair": term}).bind(nn.Identity())
    z = torch.zeros(0, 3)
    forward = Forward(
        nn.Identity(),
        Batch({"x": Rows(z, None, torch.arange(0)), "y": Rows(torch.zeros(2, 3))}),
        TrainingClock(),
        ForwardPlan(("x", "y")),
    ).run()
    measured = term.tally(partial(objective.state_of, "fair"), forward)
    assert [float(part) for part in measured.tally] == [0.0, 0.0]


def test_fairness_asks_the_gate_that_knows() -> None:
    with pytest.raises(RecipeError, match="SelfAdaptive"):
        Fairness(gate=Always())  # type: ignore[arg-type]


def test_the_means_are_shared_with_the_term_that_has_the_same_gate() -> None:
    """FreeMatch: one state for both, moved once a step."""
    gate = SelfAdaptive(0.5)
    terms = {"pseudo": Term(CurrentStudent(), KL(), gate=gate), "fair": Fairness(gate=gate)}
    model = tiny(0)
    objective = Method(terms).bind(model)
    assert sum("selfadaptive" in name for name in objective.states) == 1
    z = objective.forward_views({"x": X, "id": torch.arange(ROWS)}).student("x")
    objective({"x": X, "id": torch.arange(ROWS)}).backward()
    objective.update()
    state = next(state for name, state in objective.states.items() if "selfadaptive" in name)
    torch.testing.assert_close(state.get_buffer("marginal"), 0.5 / 4 + 0.5 * z.softmax(1).mean(0).detach())
