"""`CachedTeacher` against the live teacher: the same targets, computed once and stored for later runs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill import rng
from selfdistill.core.objective import Method
from selfdistill.core.parts import Term
from selfdistill.core.step import Batch, Rows, TrainingClock
from selfdistill.data.sampler import Sampler
from selfdistill.errors import CheckpointError, DataError, RecipeError, SelfdistillError, SpaceError
from selfdistill.io.target_store import Store
from selfdistill.losses import KL, CrossEntropy
from selfdistill.teachers import CachedTeacher, Ema, External, Frozen, Generation, Labels
from selfdistill.teachers.cached import fixed_views
from selfdistill.testing.specimens import CLASSES, inputs, same_bits, tiny
from selfdistill.training.fit import fit
from selfdistill.views import View, Views
from tests.harness import DECAY, LR, MOMENTUM, build, external_teacher, tiny_data

PLAIN = Views((View("x", augment="none"),))


def method(teacher: Any, views: Views = PLAIN, head: str = "logits", temperature: float = 2.0, **more: Any) -> Method:
    label = Term(Labels(), CrossEntropy(), weight=0.5)
    return Method({"label": label, "taught": Term(teacher, KL(temperature), head=head)}, views=views, **more)


def run(teacher: Any, out: Path | None = None, views: Views = PLAIN, **more: Any) -> tuple[Any, list[float], list[Any]]:
    """Four epochs on 66 small images; every loss and every batch."""
    losses, batches = list[float](), list[Any]()

    def watch(clock: TrainingClock, micro: list[Batch], loss: float) -> None:
        losses.append(loss)
        batches.append(micro[0])
        if len(losses) == more.get("cut"):
            raise KeyboardInterrupt

    settings = {
        "epochs": 4, "batch_size": 16, "audit": "off", "external": external_teacher(), "save_steps": 3,
        "optimizer": "sgd", "lr": LR, "weight_decay": DECAY, "schedule": "constant", **more,
    }  # fmt: skip
    settings.pop("cut", None)
    data = settings.pop("data", None) or tiny_data(0)
    try:
        return fit(build, data, method(teacher, views), watch=watch, out=out, **settings), losses, batches
    except KeyboardInterrupt:
        return None, losses, batches


def weights(result: Any) -> dict[str, Tensor]:
    found: dict[str, Tensor] = result.model.state_dict()
    return found


def test_float32_is_the_live_teacher_bit_by_bit_and_is_asked_once(tmp_path):
    live, wanted, _ = run(External())
    kept, losses, _ = run(CachedTeacher(External(), str(tmp_path / "t")))
    assert losses == wanted
    assert same_bits(weights(kept), weights(live))
    assert kept.passes.teacher == live.passes.teacher == 66
    again, losses, _ = run(CachedTeacher(External(), str(tmp_path / "t")))
    assert losses == wanted
    assert again.passes.teacher == 0
    store = Store(tmp_path / "t")
    assert len(store) == 66
    assert set(store.bound) == {"teacher", "looks", "view", "head"}


@pytest.mark.parametrize("options", [{"dtype": "float16"}, {"top": 1}, {"top": 2}], ids=str)
def test_what_is_learnt_from_is_what_was_kept_as_straight_lines_have_it(options, tmp_path):
    """The teacher's logits by sample, rounded or cut by hand, in a loop of one's own."""
    result, losses, batches = run(CachedTeacher(External(), str(tmp_path), **options))
    data, teacher = tiny_data(0), external_teacher()
    with torch.no_grad():
        said = teacher(data.rows(torch.arange(90)))  # by sample id
    if "top" in options:
        p = F.softmax(said, -1)
        best, ids = p.topk(options["top"], -1)
        rest = (1 - best.sum(-1, keepdim=True)) / (CLASSES - options["top"])
        said = rest.expand(-1, CLASSES).scatter(-1, ids, best).log()
    else:
        said = said.half().float()
    torch.manual_seed(rng.seed(0, "init", 0))
    model = build().train()
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)
    for step, batch in enumerate(batches):
        x, y, ids = batch["x"][:3]
        z = model(x)
        target = F.softmax(said[ids] / 2, -1)
        divergence = (torch.xlogy(target, target) - target * F.log_softmax(z / 2, -1)).sum(-1).mean()
        loss = 0.5 * F.cross_entropy(z, y) + 4 * divergence
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert losses[step] == pytest.approx(loss.item(), rel=1e-3 if "top" in options else 1e-5)
    assert result.passes.teacher == 66


def test_the_first_epoch_learns_from_what_is_kept_too(tmp_path):
    """So that a run that finds targets and one that makes them are the same run."""
    made, first, _ = run(CachedTeacher(External(), str(tmp_path), top=2))
    found, again, _ = run(CachedTeacher(External(), str(tmp_path), top=2))
    assert first == again
    assert same_bits(weights(made), weights(found))
    _, live, _ = run(External())
    assert live[0] != first[0]


@pytest.mark.parametrize("folder", [True, False], ids=["disk", "memory"])
def test_four_fixed_views_come_round_every_fourth_epoch_and_in_every_run(folder, tmp_path):
    """A sample is asked about four times in all; another seed sees the same four looks."""
    views = Views((View("x", augment="weak"),))
    teacher = CachedTeacher(External(), str(tmp_path) if folder else None, views=4)
    result, _, batches = run(teacher, views=views, epochs=6)
    seen: dict[int, list[bytes]] = {}
    for batch in batches:
        for i, x in zip(batch["x"].id.tolist(), batch["x"].x, strict=True):
            seen.setdefault(i, []).append(x.numpy().tobytes())
    assert all(len(looks) == 6 and looks[4:] == looks[:2] for looks in seen.values())
    assert sum(len(set(looks[:4])) for looks in seen.values()) > 3 * len(seen)  # of nine shifts
    assert result.passes.teacher == 4 * 66
    other, _, batches = run(teacher, views=views, epochs=4, seed=1)
    for batch in batches:
        for i, x in zip(batch["x"].id.tolist(), batch["x"].x, strict=True):
            assert x.numpy().tobytes() in seen[i][:4]
    assert other.passes.teacher == (0 if folder else 4 * 66)
    live, _, _ = run(External(), views=fixed_views(method(teacher, views)), epochs=6)
    assert live.passes.teacher == 4 * 66  # what looks do not change needs no CachedTeacher in memory


def test_with_fixed_views_it_is_the_live_teacher(tmp_path):
    """The live one is asked of the same inputs in another batch, which may move last bits."""
    views = Views((View("x", augment="weak"),))
    result, _, batches = run(CachedTeacher(External(), str(tmp_path), views=2), views=views)
    teacher, store = external_teacher(), Store(tmp_path)
    with torch.no_grad():
        for batch in batches:
            found = torch.from_numpy(store.read(batch.addresses["x"].numpy())[0]["values"])
            torch.testing.assert_close(found, teacher(batch["x"].x), rtol=1e-5, atol=1e-6)
    assert len(store) == 2 * 66
    assert result.passes.teacher == 2 * 66


@pytest.mark.parametrize("options", [{}, {"top": 2}, {"views": 2}], ids=str)
@pytest.mark.parametrize("cut", [4, 8])
def test_cut_and_resumed_it_ends_as_if_it_had_not_been(options, cut, tmp_path):
    """In the first epoch, where targets are made, and in the second; what was made after the checkpoint stays."""
    views = Views((View("x", augment="weak" if options.get("views") else "none"),))
    whole, wanted, _ = run(CachedTeacher(External(), str(tmp_path / "a"), **options), views=views)
    teacher = CachedTeacher(External(), str(tmp_path / "b"), **options)
    run(teacher, tmp_path / "run", views, cut=cut)
    resumed, losses, _ = run(teacher, tmp_path / "run", views, resume=True)
    assert losses == wanted[len(wanted) - len(losses) :]
    assert same_bits(weights(resumed), weights(whole))


def test_what_is_gone_when_a_run_goes_on_is_asked_for_again(tmp_path):
    """In other batches, so to the last bits."""
    teacher = CachedTeacher(External(), str(tmp_path / "t"))
    _, wanted, _ = run(teacher, tmp_path / "run")
    run(CachedTeacher(External(), str(tmp_path / "u")), tmp_path / "cut", cut=8)
    for path in (tmp_path / "u").glob("[0-9]*"):
        path.unlink()
    _, losses, _ = run(CachedTeacher(External(), str(tmp_path / "u")), tmp_path / "cut", resume=True)
    assert losses == pytest.approx(wanted[-len(losses) :], rel=1e-5)
    assert len(Store(tmp_path / "u")) == 66


def refused(error: type[SelfdistillError], words: str, teacher: Any, **more: Any) -> None:
    with pytest.raises(error, match=words) as caught:
        run(teacher, **more)
    assert "\n" not in str(caught.value)


def test_another_teacher_other_data_other_views_and_another_layout_are_refused_in_one_line(tmp_path):
    there = str(tmp_path)
    run(CachedTeacher(External(), there), epochs=1)
    refused(CheckpointError, "another teacher", CachedTeacher(Frozen(), there))
    refused(
        CheckpointError,
        "another looks",
        CachedTeacher(External(), there, views=2),
        views=Views((View("x", augment="weak"),)),
    )
    refused(CheckpointError, "asked for is Top", CachedTeacher(External(), there, top=2))
    data = tiny_data(0)
    data.tensor[40] += 0.25
    refused(DataError, "key 40 of view 'x' was computed for another input", CachedTeacher(External(), there), data=data)
    refused(
        SpaceError,
        "other augmentations in every epoch",
        CachedTeacher(External(), there),
        views=Views((View("x", augment="weak"),)),
    )
    other = Views((View("x", augment="none"), View("y", augment="none")))
    refused(CheckpointError, "another view", CachedTeacher(External("y"), there), views=other)


def test_a_damaged_shard_is_named_and_without_it_its_targets_are_asked_for_again(tmp_path):
    teacher = CachedTeacher(External(), str(tmp_path))
    _, wanted, _ = run(teacher)
    shard = max(tmp_path.glob("[0-9]*"))
    data = bytearray(shard.read_bytes())
    data[-3] ^= 4
    shard.write_bytes(data)
    refused(CheckpointError, f"{shard.name} is damaged", teacher)
    shard.unlink()
    result, losses, _ = run(teacher)
    assert losses == pytest.approx(wanted, rel=1e-5)
    assert 0 < result.passes.teacher <= 66


def test_each_generation_of_a_chain_has_a_folder_of_its_own(tmp_path):
    """The first has no teacher; the others are taught by different weights."""
    chain = method(CachedTeacher(Generation(), str(tmp_path)), generations=3)
    result = fit(build, tiny_data(0), chain, epochs=2, batch_size=16, audit="off")
    folders = sorted(tmp_path.iterdir())
    assert len(folders) == 2
    assert [len(Store(folder)) for folder in folders] == [66, 66]
    again = fit(build, tiny_data(0), chain, epochs=2, batch_size=16, audit="off")
    assert again.passes.teacher == 0 < result.passes.teacher
    assert same_bits(weights(again), weights(result))


def test_in_a_loop_of_ones_own_the_epochs_end_brings_targets_to_the_disk(tmp_path):
    """And a view that is not named as fixed is refused."""
    model = tiny(0).train()
    objective = Method({"t": Term(CachedTeacher(Frozen(), str(tmp_path)), KL())}).bind(
        model, clock=TrainingClock(epochs=2, per_epoch=3)
    )
    for step in range(6):
        ids = torch.arange(8) + 8 * (step % 3)
        batch = Batch({"x": Rows(inputs(ids), None, ids)})
        with pytest.raises(SpaceError, match=r"batch\.fixed"):
            objective(batch)
        batch.fixed = frozenset({"x"})
        objective(batch).backward()
        assert objective.passes().teacher == (8 if step < 3 else 0)
        objective.update()
        assert len(list(tmp_path.glob("[0-9]*"))) == int(step >= 2)
    assert len(Store(tmp_path)) == 24
    with torch.no_grad():
        wanted = copy.deepcopy(tiny(0)).eval()(inputs(torch.arange(24)))["logits"]
    assert torch.from_numpy(Store(tmp_path).read(range(24))[0]["values"]).allclose(wanted, atol=1e-6)


def test_saving_the_state_brings_targets_to_the_disk(tmp_path):
    model = tiny(0).train()
    objective = Method({"t": Term(CachedTeacher(Frozen(), str(tmp_path)), KL())}).bind(
        model, clock=TrainingClock(per_epoch=9)
    )
    batch = Batch({"x": Rows(inputs(torch.arange(5)), None, torch.arange(5))})
    batch.fixed = frozenset({"x"})
    objective(batch).backward()
    objective.update()
    assert not list(tmp_path.glob("[0-9]*"))
    state = objective.state_dict()
    assert len(Store(tmp_path)) == 5
    assert [int(v) for k, v in state.items() if k.endswith("cache._extra_state")] == [5]


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (lambda: CachedTeacher(Ema()), RecipeError, "whose weights change"),  # type: ignore[arg-type]
        (lambda: CachedTeacher(CachedTeacher()), RecipeError, "whose weights change"),
        (lambda: CachedTeacher(views=0), RecipeError, "from 1 on"),
        (lambda: CachedTeacher(top=3), RecipeError, "give CachedTeacher a folder"),
        (lambda: CachedTeacher(dtype="float16"), RecipeError, "give CachedTeacher a folder"),
        (lambda: CachedTeacher(folder="t", top=3).space("feature"), SpaceError, "those of logits"),
        (lambda: View("x", fixed=-1), RecipeError, "from 0|0 for ever"),
        (
            lambda: fixed_views(Method({n: Term(CachedTeacher(views=v), KL()) for n, v in (("a", 2), ("b", 3))})),
            RecipeError,
            "one n",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_line(wrong, error, words):
    with pytest.raises(error, match=words) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_heads_with_several_rows_a_sample_and_negative_ids_are_refused(tmp_path):
    for head, ids, error in (("exits", torch.arange(4), SpaceError), ("logits", torch.arange(4) - 1, DataError)):
        folder = str(tmp_path / head)
        objective = Method({"t": Term(CachedTeacher(Frozen(), folder), KL(), head=head)}).bind(tiny(0).train())
        batch = Batch({"x": Rows(inputs(ids.abs()), None, ids)})
        batch.fixed = frozenset({"x"})
        with pytest.raises(error):
            objective(batch)


def test_the_sampler_says_which_way_each_row_is_shown():
    data = tiny_data(0)
    sampler = Sampler(data, Views((View("x", augment="weak", fixed=3),)), 16, seed=0)
    for epoch in range(4):
        batch = sampler.batch(sampler.sample(epoch, 0), epoch)
        assert batch.fixed == {"x"}
        ids = batch["x"].id
        assert ids is not None
        assert (batch.addresses["x"] - 3 * ids).unique().tolist() == [epoch % 3]


class _Module(nn.Module):
    """Only so that a teacher with weights of half precision is kept in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, CLASSES).half()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(x)
        return found


def test_what_a_teacher_in_half_precision_says_is_kept(tmp_path):
    teacher = _Module()
    objective = Method({"t": Term(CachedTeacher(External(), str(tmp_path)), KL())}).bind(
        tiny(0).train(), external=teacher
    )
    batch = Batch({"x": Rows(inputs(torch.arange(4)), None, torch.arange(4))})
    batch.fixed = frozenset({"x"})
    objective(batch).backward()
    objective.update()
    objective.state_dict()
    found = torch.from_numpy(Store(tmp_path).read(range(4))[0]["values"])
    assert found.equal(teacher(inputs(torch.arange(4)).half()).float())
