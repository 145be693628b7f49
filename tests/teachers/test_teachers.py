"""Teachers against plain loops, dictionaries and explicit sums: none of it shares their code."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfdistill.core.objective import Method
from selfdistill.core.parts import FunctionLoss, PerRow, Teacher, Term
from selfdistill.core.step import Batch, Rows
from selfdistill.errors import RecipeError, SpaceError
from selfdistill.losses import KL, CrossEntropy
from selfdistill.teachers import CurrentStudent, Ema, External, Frozen, Generation, Labels, OtherPeers
from selfdistill.testing.specimens import CLASSES, WIDTH, batch_of, inputs, tiny
from tests.teaching import IDS, Net, bound, learn, rows, said, state_of, still

# labels and the model itself ------------------------------------------------------------------------------------------


def test_labels_are_the_labels_and_missing_ones_are_masked():
    """Classes with -1 for none; values with nan for none, one column or more."""
    model = tiny(0)
    for head, y, valid in (
        ("logits", [2, -1, 0], [True, False, True]),
        ("values", [[1.0, 2], [float("nan"), 2], [3, float("nan")]], [True, False, False]),
        ("gaussian", [0.5, float("nan"), -1.0], [True, False, True]),
    ):
        objective = Method({"t": Term(Labels(), _any, head=head)}).bind(model)
        value, found = said(objective, Batch({"x": rows([0, 1, 2], y)}))
        assert found.tolist() == valid
        expected = torch.tensor(y)[found]
        assert value[found].squeeze(-1).equal(expected)
        assert value.isfinite().all()


@FunctionLoss
def _any(student: Tensor, target: Any) -> Tensor:
    return student.square().sum(-1)


def test_labels_say_nothing_about_features():
    """A term that grades a feature by a label is refused."""
    with pytest.raises(SpaceError, match="'feature'"):
        Labels().space("feature")


@pytest.mark.parametrize(("view", "head"), [(None, None), ("weak", None), (None, "exits"), ("weak", "feature")])
def test_itself_is_the_students_own_output_detached(view, head):
    """On another view, of another head, or both; the same numbers, and no way back for the gradient."""
    model = still(tiny(0))
    teacher = CurrentStudent(view, head)
    objective = Method({"t": Term(teacher, _any)}).bind(model)
    batch = Batch({"x": rows([0, 1]), "weak": rows([5, 6])})
    value, _ = said(objective, batch)
    expected = model(batch[view or "x"].x)[head or "logits"]
    torch.testing.assert_close(value, expected.detach())
    assert not value.requires_grad


# moving averages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("decay", "warm_up"), [(0.9, True), (0.9, False), (0.3, True), (0.0, True)])
def test_ema_equals_a_plain_loop(decay, warm_up):
    """Weights and floating buffers are averaged, integer ones copied; d = min(1 - 1 / (step + 1), decay)."""
    model = Net()
    objective = bound(Ema(decay, warm_up=warm_up), model)
    reference = {k: v.double() if v.is_floating_point() else v.clone() for k, v in model.state_dict().items()}
    for step in range(1, 8):
        learn(objective, model, Batch({"x": rows(IDS[step : step + 9])}))
        d = min(1 - 1 / (step + 1), decay) if warm_up else decay
        for name, value in model.state_dict().items():
            floating = value.is_floating_point()
            reference[name] = d * reference[name] + (1 - d) * value.double() if floating else value.clone()
    found = {k.split(".module.")[1]: v for k, v in objective.state_dict().items() if ".module." in k}
    assert found.keys() == reference.keys()
    assert {"norm.running_mean", "norm.num_batches_tracked", "drift"} <= found.keys()
    for name, value in reference.items():
        torch.testing.assert_close(found[name], value.to(found[name].dtype), rtol=1e-5, atol=1e-6)
    assert found["norm.num_batches_tracked"].dtype == torch.int64
    moved = (found["last.weight"] - model.last.weight).abs().max()
    assert moved > 1e-3 or decay == 0.0


def test_ema_starts_from_the_student_that_was_passed():
    """At step 0 teacher and student say the same of the same rows, as other objects."""
    model = still(Net())
    objective = bound(Ema(0.9), model)
    batch = Batch({"x": rows(IDS)})
    torch.testing.assert_close(said(objective, batch)[0], model(batch["x"].x))


def test_ema_of_a_bfloat16_student_is_kept_in_float32():
    """Updates too small for bfloat16 add up: after 200 steps the average has gone its whole way."""
    model = Net(torch.bfloat16).requires_grad_(False)
    objective = bound(Ema(0.999, warm_up=False), model)
    teacher = state_of(objective).module
    assert {p.dtype for p in teacher.parameters()} == {torch.float32}
    start = teacher.last.weight.clone()
    model.last.weight += 0.5
    distance = model.last.weight.float() - start
    batch = Batch({"x": Rows(inputs(IDS).bfloat16(), IDS % CLASSES, IDS)})
    for _ in range(200):
        objective(batch)
        objective.update()
    torch.testing.assert_close(teacher.last.weight - start, (1 - 0.999**200) * distance, rtol=1e-3, atol=1e-5)
    assert said(objective, batch)[0].dtype == torch.float32


@pytest.mark.parametrize("train", [False, True])
def test_a_held_teacher_keeps_its_mode_and_takes_no_gradient(train):
    """Neither train() nor eval() of the objective, nor of anything around it, reaches the teacher."""
    objective = bound(Ema(0.9, train=train), Net())
    around = nn.Sequential(objective)
    for change in (objective.train, objective.eval, around.train, around.eval):
        change()
        held = state_of(objective)
        assert {m.training for m in held.modules()} == {train}
        assert not any(p.requires_grad for p in held.parameters())


def test_a_teachers_pass_moves_no_statistics_of_the_student():
    """Asking an average, in train or eval mode, leaves the student's buffers to the student."""
    model = still(Net())
    objective = bound(Ema(0.9, train=True), model)
    before = copy.deepcopy(model.state_dict())
    said(objective, Batch({"x": rows(IDS)}))
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


# frozen weights -------------------------------------------------------------------------------------------------------


def counted(module: nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("kind", [Frozen, Generation, External])
def test_a_frozen_teacher_is_asked_once_a_sample_on_fixed_views(kind):
    """No teacher pass in the second epoch, whatever the order; and the same answers as without the cache."""
    model, other = Net(), Net()
    objective = bound(kind(), model, previous=other, external=other)
    held = state_of(objective).module
    reference = copy.deepcopy(held)
    passes = counted(held)
    for epoch in range(3):
        order = IDS[torch.randperm(24, generator=torch.Generator().manual_seed(epoch))]
        for ids in order.split(7):
            batch = Batch({"x": rows(ids)})
            batch.fixed = frozenset({"x"})
            torch.testing.assert_close(said(objective, batch)[0], reference(batch["x"].x), rtol=1e-5, atol=1e-6)
            learn(objective, model, batch)
        if epoch == 0:
            first = len(passes)
    assert first >= 4
    assert len(passes) == first


def test_a_partly_known_batch_keeps_what_was_said_first():
    """Known samples are read, new ones are asked about, each in its own row."""
    model = Net()
    objective = bound(Frozen(), model)
    held = state_of(objective).module
    for ids in ([0, 1, 2, 3], [3, 9, 0, 10], [10, 2, 11]):
        batch = Batch({"x": rows(ids)})
        batch.fixed = frozenset({"x"})
        torch.testing.assert_close(said(objective, batch)[0], held(batch["x"].x), rtol=1e-5, atol=1e-6)
        learn(objective, model, batch)


def test_views_with_randomness_are_never_cached():
    """What differs from visit to visit is asked about each time."""
    model = Net()
    objective = bound(Frozen(), model)
    passes = counted(state_of(objective).module)
    for epoch in range(3):
        batch = Batch({"x": Rows(inputs(IDS) + epoch, IDS % CLASSES, IDS)})
        learn(objective, model, batch)
    assert len(passes) == 3


def test_two_fixed_views_do_not_share_a_cache():
    """The same sample under two views: two answers."""
    model = Net()
    method = Method({name: Term(Frozen(), CrossEntropy(), view=name) for name in ("x", "cropped")})
    objective = method.bind(model)
    batch = Batch({"x": rows(IDS), "cropped": Rows(-inputs(IDS), IDS % CLASSES, IDS)})
    batch.fixed = frozenset(batch)
    for _ in range(2):
        objective(batch)
        objective.update()
    states: list[Any] = [state for state in objective.states.values() if hasattr(state, "cache")]
    one, other = (state.cache.stored for state in states)
    assert not torch.allclose(one, other)


def test_a_frozen_teacher_stays_what_the_model_was():
    """Later training of the student does not reach it."""
    model = still(Net())
    batch = Batch({"x": rows(IDS)})
    before = model(batch["x"].x).detach()
    objective = bound(Frozen(), model)
    for _ in range(3):
        learn(objective, model, batch)
    torch.testing.assert_close(said(objective, batch)[0], before)
    assert not torch.allclose(model(batch["x"].x), before)


def test_generation_zero_has_no_teacher():
    """Every row is left without a target, and the term counts for nothing."""
    objective = bound(Generation(), Net())
    batch = Batch({"x": rows(IDS)})
    assert not said(objective, batch)[1].any()
    assert float(objective(batch).detach()) == 0.0


def test_a_model_is_not_its_own_teacher():
    """The silent fault of teacher and student being one module is refused at once."""
    model = Net()
    cases: list[tuple[Teacher, dict[str, Any]]] = [
        (External(), {"external": model}), (Generation(), {"previous": model}),
    ]  # fmt: skip
    for teacher, given in cases:
        with pytest.raises(RecipeError, match=r"its own|before it"):
            bound(teacher, model, **given)


def test_an_external_teacher_must_be_given():
    """The message says how, on the command line and in code."""
    with pytest.raises(RecipeError, match=r"distil\('RUN'\).*bind\(external=model\)"):
        bound(External(), Net())


# peers ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peers", [2, 3, 5])
def test_peers_leave_themselves_out_and_have_the_papers_gradient(peers):
    """Target: mean probability of the others, by loops. Gradient: that of (1 / (K - 1)) sum_l KL(p_l || p_k)."""
    z = torch.randn(4, peers, CLASSES, generator=torch.Generator().manual_seed(0), requires_grad=True)

    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"peers": z}

    method = Method({"t": Term(OtherPeers(), KL(), head="peers", reduction=PerRow())})
    objective = method.bind(Fixed())
    batch = Batch({"x": rows([0, 1, 2, 3])})
    value, _ = said(objective, batch)
    p = z.softmax(-1).detach()
    for row in range(4):
        for k in range(peers):
            others = [p[row, j] for j in range(peers) if j != k]
            torch.testing.assert_close(value[row, k], torch.stack(others).mean(0))
    (found,) = torch.autograd.grad(objective(batch), z)
    pairwise = torch.zeros(())
    for k in range(peers):
        q = z[:, k].log_softmax(-1)
        for j in range(peers):
            if j != k:
                pairwise = pairwise + (p[:, j] * (p[:, j].log() - q)).sum(-1).mean() / (peers - 1)
    (expected,) = torch.autograd.grad(pairwise, z)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_peers_teach_peers_alone():
    """Another head is refused even where it has as many elements; a single peer has nobody to learn from."""
    with pytest.raises(SpaceError, match="'exits'"):
        OtherPeers().space("exits")
    one = nn.Sequential(nn.Linear(WIDTH, CLASSES), nn.Unflatten(1, (1, CLASSES)))

    class Single(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"peers": one(x)}

    with pytest.raises(SpaceError, match="at least two"):
        Method({"t": Term(OtherPeers(), KL(), head="peers")}).bind(Single())(Batch({"x": rows([0, 1])}))


def test_batches_of_the_small_world_are_what_they_say():
    """The specimens that other tests stand on: ids, labels and inputs belong together."""
    batch: Any = batch_of({"x": "labelled", "u": "unlabelled", "m": "all"}, 0)
    for view in batch.values():
        assert view.x.equal(inputs(view.id))
        assert view.y.equal(torch.where(view.id < 24, view.id % CLASSES, -1))
    assert (batch["u"].y == -1).all()
    assert 0 < int((batch["m"].y == -1).sum()) < len(batch["m"].y)
