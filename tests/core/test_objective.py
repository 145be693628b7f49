"""The objective in anybody's loop: its clock, its memories, what it saves and what it lets go of."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.core.objective import Method, Objective
from selfdistill.core.parts import Term
from selfdistill.core.step import Batch, Rows, TrainingClock
from selfdistill.errors import DataError, RecipeError, SpaceError
from selfdistill.losses import KL
from selfdistill.methods import elr, fixmatch, plain, ps_kd
from selfdistill.teachers import Ema, Frozen
from selfdistill.testing.specimens import CLASSES, WIDTH, inputs


def test_it_works_in_a_plain_loop_of_five_lines():
    """Anybody's loop, optimizer and model; the model learns, the teacher follows, the clock moves."""
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, CLASSES)
    ids = torch.arange(24)
    loader = [{"x": inputs(i), "y": i % CLASSES, "id": i} for i in ids.split(8)] * 20
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    objective = ps_kd(alpha=0.5).bind(model, clock=TrainingClock(epochs=20, per_epoch=3))
    before = F.cross_entropy(model(inputs(ids)), ids % CLASSES).item()
    for batch in loader:
        loss = objective(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.update()
    assert F.cross_entropy(model(inputs(ids)), ids % CLASSES).item() < 0.8 * before
    assert objective.clock.step == 60
    assert objective.clock.epoch == 19
    assert objective.figures["past"].weight == pytest.approx(0.5)
    assert {"label", "past"} == set(objective.figures)


def test_the_student_is_no_part_of_the_objective():
    """Its state_dict and parameters hold teachers only; moving or freezing it leaves the student alone."""
    model = nn.Linear(WIDTH, CLASSES)
    assert list(plain().bind(model).parameters()) == []
    assert set(plain().bind(model).state_dict()) == {"_extra_state"}
    objective = Method({"t": Term(Ema(0.9), KL())}).bind(model)
    own = {t.data_ptr() for t in model.parameters()}
    assert not own & {t.data_ptr() for t in objective.parameters()}
    objective.double().requires_grad_(False).eval()
    assert model.weight.dtype == torch.float32
    assert model.weight.requires_grad
    assert model.training


def test_the_clock_is_saved():
    """Generation, epoch and step come back with the state."""
    clock = TrainingClock(2, 5, 1, 7, 13, 9, 60)
    objective = plain().bind(nn.Linear(2, 2), clock=clock)
    fresh = plain().bind(nn.Linear(2, 2))
    fresh.load_state_dict(copy.deepcopy(objective.state_dict()))
    assert fresh.clock == clock


def test_update_without_a_step_is_refused():
    """No loss was asked for, or only without gradient, or update() was called twice."""
    objective: Objective = ps_kd().bind(nn.Linear(WIDTH, CLASSES))
    batch = {"x": inputs(torch.arange(4)), "y": torch.arange(4), "id": torch.arange(4)}
    with pytest.raises(RecipeError, match="before it"):
        objective.update()
    with torch.no_grad():
        objective(batch)
    with pytest.raises(RecipeError, match="before it"):
        objective.update()
    objective(batch)
    objective.update()
    with pytest.raises(RecipeError, match="before it"):
        objective.update()


def test_looking_without_gradient_teaches_no_memory():
    """An evaluation under no_grad leaves every state as it was."""
    objective = ps_kd().bind(nn.Linear(WIDTH, CLASSES))
    batch = {"x": inputs(torch.arange(4)), "y": torch.arange(4), "id": torch.arange(4)}
    with torch.no_grad():
        objective(batch)
    keys = [value for name, value in objective.state_dict().items() if name.endswith("keys")]
    assert keys
    assert not any(len(value) for value in keys)


def test_the_outputs_are_let_go_of_after_the_step():
    """What the states keep for their update holds no graph, and nothing is kept after it."""
    objective = ps_kd().bind(nn.Linear(WIDTH, CLASSES))
    loss = objective({"x": inputs(torch.arange(4)), "y": torch.arange(4), "id": torch.arange(4)})
    step = objective._steps[0]
    assert not step.student("x").requires_grad
    loss.backward()
    objective.update()
    assert objective._steps == []


def test_micro_batches_are_remembered_together():
    """Two measures before one update: both halves enter the memory, and the clock moves by one."""
    model = nn.Linear(WIDTH, CLASSES)
    objective = ps_kd().bind(model)
    for ids in (torch.tensor([0, 1]), torch.tensor([7, 3, 2])):
        objective.measure({"x": inputs(ids), "y": ids % CLASSES, "id": ids})
    objective.update()
    state: Any = next(s for s in objective.states.values() if hasattr(s, "stored"))
    assert state.keys.tolist() == [0, 1, 2, 3, 7]
    torch.testing.assert_close(state.stored[4], model(inputs(torch.tensor([7])))[0].softmax(-1).detach())
    assert objective.clock.step == 1


def test_blame_names_the_term_and_the_samples():
    """The first term that is not finite, and the ids of the rows whose output is not."""
    model = nn.Linear(WIDTH, CLASSES)
    objective = ps_kd().bind(model)
    x = inputs(torch.arange(10, 16))
    x[2] = float("nan")
    x[5] = float("inf")
    found = objective.measure({"x": x, "y": torch.zeros(6, dtype=torch.int64), "id": torch.arange(10, 16)})
    assert objective.blame(found) == ("label", [12, 15])


def test_a_batch_is_read_from_its_flat_form():
    """Views share 'y' and 'id' unless they bring their own rows."""
    own = Rows(torch.zeros(5, 1), torch.ones(5), torch.arange(5))
    batch: Any = Batch.of({"x": torch.zeros(2, 1), "weak": own, "y": torch.tensor([1, 2]), "id": torch.tensor([8, 9])})
    assert set(batch) == {"x", "weak"}
    assert batch["x"].id.tolist() == [8, 9]
    assert batch["weak"] is own
    assert Batch.of(batch) is batch
    assert batch.fixed == frozenset()


def test_a_wrapper_is_called_in_place_of_the_model():
    """DDP or a compiled model: the objective calls it and still owns and averages the model inside."""
    model = nn.Linear(WIDTH, CLASSES)
    objective = Method({"t": Term(Ema(0.0, warm_up=False), KL())}).bind(model)
    calls: list[int] = []

    def wrapper(x: Tensor) -> Tensor:
        calls.append(len(x))
        return model(x)  # type: ignore[no-any-return]

    objective.call_through(wrapper)
    objective({"x": inputs(torch.arange(3))})
    with torch.no_grad():
        model.weight += 1
    objective.update()
    assert calls == [3]
    average: Any = next(s for s in objective.states.values() if hasattr(s, "module"))
    assert average.module.weight.equal(model.weight)


@pytest.mark.parametrize("batch", [{"X": torch.ones(2, WIDTH)}, {}])
def test_a_batch_without_any_view_of_the_method_is_refused(batch: Any):
    with pytest.raises(SpaceError, match="looks at 'x', and the batch has none of it"):
        plain().bind(nn.Linear(WIDTH, CLASSES))(batch)


def test_views_may_have_labels_and_ids_of_their_own():
    model, x, y = nn.Linear(WIDTH, CLASSES), inputs(torch.arange(4)), torch.arange(4) % CLASSES
    unlabelled = {"x": inputs(torch.arange(4, 10)), "id": torch.arange(4, 10)}
    batch = {"labelled": {"x": x, "y": y, "id": torch.arange(4)}, "weak": unlabelled, "strong": unlabelled}
    objective = fixmatch(confidence=0.0).bind(model)
    pseudo = F.cross_entropy(model(unlabelled["x"]), model(unlabelled["x"]).argmax(-1))
    assert torch.allclose(objective(batch), F.cross_entropy(model(x), y) + pseudo)


# ---- what loops of other people give -------------------------------------------------------------------


def one_loss(method: Any, batch: Any) -> float:
    torch.manual_seed(0)
    return float(method.bind(nn.Linear(WIDTH, CLASSES))(batch).detach())


@pytest.mark.parametrize("form", [list, tuple])
def test_a_pair_and_a_triple_of_a_loader_are_a_batch(form):
    x, y = inputs(torch.arange(4)), torch.arange(4) % CLASSES
    expected = one_loss(plain(), {"x": x, "y": y})
    assert one_loss(plain(), form([x, y])) == expected
    assert one_loss(elr(), form([x, y, torch.arange(4)])) == one_loss(elr(), {"x": x, "y": y, "id": torch.arange(4)})
    with pytest.raises(SpaceError, match="give the batch its 'id'"):
        one_loss(elr(), form([x, y]))


@pytest.mark.parametrize(
    "change",
    [
        lambda y: y.to(torch.int32), lambda y: y.to(torch.uint8), lambda y: y.to(torch.int16), lambda y: y.numpy(),
        lambda y: y.numpy().astype("uint16"), lambda y: y.tolist(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", [plain(), elr(), ps_kd()])
def test_whole_numbers_of_any_kind_are_labels_and_ids(change, method):
    x, y, ids = inputs(torch.arange(4)), torch.arange(4) % CLASSES, torch.arange(4)
    expected = one_loss(method, {"x": x, "y": y, "id": ids})
    assert one_loss(method, {"x": x, "y": change(y), "id": change(ids)}) == expected
    assert one_loss(method, {"x": x.numpy(), "y": change(y), "id": change(ids)}) == expected


@pytest.mark.parametrize("method", [plain(), ps_kd(), elr()])
def test_labels_from_one_are_named(method):
    y = torch.arange(4) % CLASSES + 1
    with pytest.raises(DataError, match=rf"has the label {CLASSES}, .* they seem to be counted from 1") as caught:
        one_loss(method, {"x": inputs(torch.arange(4)), "y": y, "id": torch.arange(4)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (3, "a batch is a int; give"),
        ({"x": inputs(torch.arange(2)), "y": ["cat", "dog"]}, "the labels of a batch are no numbers"),
        ({"x": {"y": torch.arange(2)}}, "give it its 'x'"),
    ],
)
def test_what_is_no_batch_is_named(batch, message):
    with pytest.raises(DataError, match=message):
        one_loss(plain(), batch)


def freeze() -> Method:
    return Method({"t": Term(Frozen(), KL())})


class Locked(nn.Linear):
    def __init__(self) -> None:
        super().__init__(WIDTH, CLASSES)
        self.lock = threading.Lock()


def test_a_model_that_cannot_be_copied_is_named():
    with pytest.raises(RecipeError, match=r"Locked cannot be copied .*lock") as caught:
        freeze().bind(Locked())
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_teacher_follows_a_model_whose_weights_a_hook_computes():
    layer: Any = nn.utils.weight_norm(nn.Linear(WIDTH, CLASSES))
    model = nn.Sequential(layer)
    model(inputs(torch.arange(4))).sum().backward()
    model.zero_grad()
    objective = freeze().bind(model)
    batch = {"x": inputs(torch.arange(4)), "y": torch.arange(4) % CLASSES}
    objective(batch).backward()
    with torch.no_grad():
        layer.weight_g += 1
    objective.update()
    state: Any = next(state for state in objective.states.values() if hasattr(state, "module"))
    assert not torch.allclose(state.module(batch["x"]), model(batch["x"]))


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_a_wrapped_model_has_the_state_of_a_bare_one(wrap):
    bare, wrapped = freeze().bind(nn.Linear(WIDTH, CLASSES)), freeze().bind(wrap(nn.Linear(WIDTH, CLASSES)))
    assert bare.state_dict().keys() == wrapped.state_dict().keys()
    bare.load_state_dict(wrapped.state_dict())
    prefixed = {name.replace(".module.", ".module._orig_mod."): value for name, value in bare.state_dict().items()}
    bare.load_state_dict(prefixed)


def test_predictions_are_remembered_in_half_precision():
    objective = ps_kd().bind(nn.Linear(WIDTH, CLASSES), memory_dtype=torch.float16, memory_top=1)
    objective({"x": inputs(torch.arange(4)), "y": torch.arange(4) % CLASSES, "id": torch.arange(4) + (1 << 61)})
    objective.update()
    saved = {name.rpartition(".")[2]: value for name, value in objective.state_dict().items()}
    assert saved["values"].dtype == torch.float16
    assert saved["columns"].shape == (4, 1)
    assert saved["keys"].tolist() == [(1 << 61) + i for i in range(4)]
