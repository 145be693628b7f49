"""The reservoir is a uniform sample, addressed and saved; refreshed logits of weight 0 are experience replay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from selfdistill.core.step import TrainingClock
from selfdistill.core.targets import Target
from selfdistill.errors import RecipeError
from selfdistill.losses import KL, KnownKL
from selfdistill.losses.distributions import UNKNOWN
from selfdistill.methods import der_pp, er, lwf
from selfdistill.teachers import Stored
from selfdistill.teachers.replay import Reservoir


def filled(seed: int, room: int = 5, rows: int = 20, step: int = 4) -> Reservoir:
    reservoir = Reservoir(room)
    reservoir.seed = seed
    for part in torch.arange(rows).split(step):
        reservoir.add(part[:, None].float(), part, part[:, None].float(), part)
    return reservoir


def test_every_row_is_kept_equally_often() -> None:
    """Chi-square over 2,000 streams of 20 rows, 19 degrees of freedom: above 43.8 once in a thousand."""
    counts = torch.zeros(20)
    for seed in range(2000):
        counts[filled(seed).id] += 1
    expected = 2000 * 5 / 20
    # rows of one stream exclude each other, which shrinks the variance by 1 - room / rows
    assert float(((counts - expected) ** 2 / expected).sum()) / (1 - 5 / 20) < 43.8


@pytest.mark.parametrize("step", [1, 3, 20])
def test_what_is_kept_does_not_depend_on_the_batches(step: int) -> None:
    assert torch.equal(filled(3, step=step).id, filled(3).id)


def test_fields_of_a_row_stay_together_and_are_saved() -> None:
    reservoir = filled(1)
    assert torch.equal(reservoir.x[:, 0], reservoir.id.float())
    assert torch.equal(reservoir.logits[:, 0], reservoir.y.float())
    loaded, heir = Reservoir(5), Reservoir(5)
    loaded.load_state_dict(reservoir.state_dict())
    heir.inherit(reservoir.carry())
    for other in (loaded, heir):
        assert torch.equal(other.id, reservoir.id)
        assert int(other.seen) == 20


@pytest.mark.parametrize("field", ["memory", "count"])
def test_no_rows_are_refused(field: str) -> None:
    options: dict[str, Any] = {field: 0}
    with pytest.raises(RecipeError, match=f"{field} counts rows"):
        Stored(**options)


def weights(method: Any, steps: int = 8) -> torch.Tensor:
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    objective = method.bind(model, clock=TrainingClock(epochs=1, per_epoch=steps), vitals=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(steps):
        ids = torch.arange(4) + 4 * step
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        loss = objective({"x": x, "y": ids % 4, "id": ids})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        objective.update()
    return copy.deepcopy(model.weight.detach())


def test_refreshed_logits_of_weight_0_are_experience_replay() -> None:
    assert torch.equal(weights(der_pp(8, 4, alpha=0.0)), weights(er(8, 4)))
    assert not torch.equal(weights(der_pp(8, 4)), weights(er(8, 4)))


def test_both_terms_draw_their_own_rows_from_one_reservoir() -> None:
    objective = der_pp(50, 5).bind(nn.Linear(3, 4), vitals=False)
    assert sum(isinstance(state, Reservoir) for state in objective.states.values()) == 1
    objective({"x": torch.randn(40, 3), "y": torch.arange(40) % 4, "id": torch.arange(40)})
    objective.update()
    batch = objective.forward_views({"x": torch.randn(2, 3), "y": torch.zeros(2).long(), "id": torch.arange(2)}).batch
    assert len(batch["stored"].x) == len(batch["replay"].x) == 5
    assert not torch.equal(batch["stored"].x, batch["replay"].x)


def test_classes_that_a_task_has_not_seen_are_left_out() -> None:
    """KL over the known classes alone is the KL of the cut logits, with no gradient for the rest."""
    student, teacher = torch.randn(6, 5, requires_grad=True), torch.randn(6, 5)
    masked = torch.cat([teacher[:, :3], torch.full((6, 2), UNKNOWN)], 1)
    loss = KnownKL(2.0)(student, Target(masked, "logits"))
    assert torch.allclose(loss, KL(2.0)(student[:, :3], Target(teacher[:, :3], "logits")), atol=1e-6)
    loss.sum().backward()
    assert student.grad is not None
    assert float(student.grad[:, 3:].abs().max()) == 0.0


def test_the_classes_of_earlier_tasks_are_those_whose_labels_came() -> None:
    previous = nn.Linear(3, 4)
    objective = lwf().bind(nn.Linear(3, 4), previous=previous, clock=TrainingClock(1, 2), vitals=False)
    state: Any = objective.states["earlier_earliertasks"]
    state.inherit({"seen": torch.tensor([True, False, True, False])})
    batch = {"x": torch.randn(2, 3), "y": torch.tensor([1, 1]), "id": torch.arange(2)}
    forward = objective.forward_views(batch)
    term = objective.method.terms["earlier"]
    assert term.teacher is not None
    value = term.teacher.target(state, forward, term).value
    assert torch.equal(value[:, [0, 2]], previous(batch["x"])[:, [0, 2]])
    assert float(value[:, [1, 3]].max()) == UNKNOWN
    objective(batch)
    objective.update()
    assert state.seen.tolist() == [True, True, True, False]
    assert state.known.tolist() == [True, False, True, False]
