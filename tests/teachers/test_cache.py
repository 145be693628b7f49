"""What a frozen teacher said is kept by itself: the run is the same, the passes are counted, and it can be refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfdistill.core.objective import Method
from selfdistill.core.parts import Term
from selfdistill.core.step import Batch, Passes, Rows, TrainingClock
from selfdistill.errors import CheckpointError, DataError, RecipeError
from selfdistill.experiments.run import Run
from selfdistill.experiments.task_types import TASK_TYPES
from selfdistill.io.run_record import Request, write_record
from selfdistill.language.run import prepare
from selfdistill.losses import KL, CrossEntropy
from selfdistill.methods import recipes
from selfdistill.methods.cards import cached_cost, explain
from selfdistill.methods.registry import read_method
from selfdistill.report import write as write_report
from selfdistill.teachers import CachedTeacher, ClassAligned, Ema, External, Frozen, Labels, Members
from selfdistill.testing.specimens import inputs, same_bits, tiny
from selfdistill.training.comparison import cost as spent
from selfdistill.training.fit import Result, fit
from selfdistill.views import View, Views
from tests.harness import DECAY, LR, TinyNet, build, build_values, external_teacher, of_values, tiny_data, value_data

PLAIN, RANDOM = (Views((View("x", augment=how),)) for how in ("none", "weak"))
EPOCHS, ROWS = 4, 66


class Counted(nn.Module):
    """A teacher that counts its rows by itself; rounded, so that its bits do not depend on the rest of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.rows = external_teacher(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        said: Tensor = self.inner(x)
        return (said * 16).round() / 16


def run(method: Method, out: Path | None = None, cut: int = 0, **more: Any) -> Result | None:
    steps = 0

    def watch(clock: TrainingClock, micro: list[Batch], loss: float) -> None:
        nonlocal steps
        steps += 1
        if steps == cut:
            raise KeyboardInterrupt

    settings = {
        "epochs": EPOCHS, "batch_size": 16, "audit": "off", "save_steps": 3, "optimizer": "sgd", "lr": LR,
        "weight_decay": DECAY, "schedule": "constant", "external": external_teacher(), **more,
    }  # fmt: skip
    try:
        made = settings.pop("build", build)
        return fit(made, tiny_data(0), method, watch=watch, out=out, warn=lambda line: None, **settings)
    except KeyboardInterrupt:
        return None


def trained(method: Method, **more: Any) -> Result:
    result = run(method, **more)
    assert result is not None
    return result


def state(result: Result) -> dict[str, Tensor]:
    return result.model.state_dict()


def of(name: str, views: Views = PLAIN) -> Method:
    return replace(recipes()[name](), views=views)


@pytest.mark.parametrize("name", ["born_again", "distil", "tf_kd"])
def test_a_run_is_the_same_whether_its_teacher_is_asked_once_or_every_time(name: str) -> None:
    """To 5e-5: of a row in another batch, convolutions may have other last bits (1.6e-5 on one kind of processor)."""
    ours, live = trained(of(name)), trained(of(name), cache=False)
    for key, value in state(live).items():
        torch.testing.assert_close(state(ours)[key], value, rtol=1e-5, atol=5e-5)
    assert ours.passes.teacher == ROWS
    assert ours.passes.saved == (EPOCHS - 1) * ROWS
    assert live.passes.teacher == EPOCHS * ROWS
    assert live.passes.saved == 0
    assert ours.passes.cost() == live.passes.cost() - ours.passes.saved


def test_it_is_the_same_bit_for_bit_where_the_teacher_says_the_same_bits_in_any_batch() -> None:
    """And the passes are those that the teacher counted itself; the dry run asks it about one batch more."""
    found = {}
    for cache in (True, False):
        teacher = Counted().eval()
        found[cache] = trained(of("distil"), external=teacher, cache=cache)
        dry = teacher.rows - found[cache].passes.teacher
        assert 13 <= dry <= 16
    assert same_bits(state(found[True]), state(found[False]))
    assert found[False].passes.teacher == found[True].passes.teacher + found[True].passes.saved


@pytest.mark.parametrize("cut", [4, 8])
def test_a_run_that_was_cut_keeps_answers_and_counts(cut: int, tmp_path: Path) -> None:
    """Within the first epoch, of five steps, and after it: the answers lie in the checkpoint."""
    whole = trained(of("distil"))
    run(of("distil"), tmp_path, cut=cut)
    resumed = trained(of("distil"), out=tmp_path, resume=True)
    assert same_bits(state(resumed), state(whole))
    assert resumed.passes == whole.passes


def test_a_run_goes_on_as_it_was_begun(tmp_path: Path) -> None:
    """Whether a frozen teacher's answers are kept belongs to a run: it cannot change when the run is resumed."""
    run(of("distil"), tmp_path, cut=8)
    with pytest.raises(CheckpointError, match="cache True, now False"):
        run(of("distil"), tmp_path, resume=True, cache=False)
    resumed = trained(of("distil"), out=tmp_path, resume=True)
    assert same_bits(state(resumed), state(trained(of("distil"))))


def test_of_views_that_look_anew_nothing_is_kept() -> None:
    found = trained(of("distil", RANDOM))
    assert (found.passes.teacher, found.passes.saved) == (EPOCHS * ROWS, 0)
    assert same_bits(state(found), state(trained(of("distil", RANDOM), cache=False)))


def test_of_several_fixed_views_it_is_asked_once_each() -> None:
    found = trained(of("distil", Views((View("x", augment="weak", fixed=3),))))
    assert (found.passes.teacher, found.passes.saved) == (3 * ROWS, (EPOCHS - 3) * ROWS)


def dropping() -> nn.Module:
    return TinyNet(dropout=0.3)


@pytest.mark.parametrize("teacher", [Ema(1.0, train=True), Ema()], ids=str)
def test_an_average_is_asked_every_time(teacher: Any) -> None:
    """It moves, and in train mode it drops too."""
    found = trained(Method({"t": Term(teacher, KL())}, views=PLAIN), build=dropping, vitals=False)
    assert (found.passes.teacher, found.passes.saved) == (EPOCHS * ROWS, 0)


def test_a_frozen_teacher_drops_nothing_and_is_kept() -> None:
    """Its dropout and batch norm are in eval mode, so it says the same of a row each time."""
    method = Method({"label": Term(Labels(), CrossEntropy()), "t": Term(Frozen(), KL())}, views=PLAIN)
    ours, live = (trained(method, build=dropping, cache=cache) for cache in (True, False))
    assert ours.passes.saved == (EPOCHS - 1) * ROWS
    for key, value in state(live).items():
        torch.testing.assert_close(state(ours)[key], value, rtol=1e-5, atol=1e-5)


# counts ---------------------------------------------------------------------------------------------------------------


def steps_of(method: Method, epochs: int, external: nn.Module | None = None) -> list[Passes]:
    """A loop of one's own: the same eight rows each time."""
    objective = method.bind(tiny(0).train(), external=external, clock=TrainingClock(epochs=epochs))
    found = []
    for _ in range(epochs):
        batch = Batch({"x": Rows(inputs(torch.arange(8)), torch.arange(8) % 4, torch.arange(8))})
        batch.fixed = frozenset({"x"})
        objective(batch).backward()
        found.append(objective.passes())
        objective.update()
    return found


def test_two_terms_of_one_teacher_save_its_pass_once() -> None:
    both = Method({"a": Term(External(), KL()), "b": Term(External("x"), KL(4.0))})
    first, then = steps_of(both, 2, tiny(1))
    assert (first.teacher, first.saved, then.teacher, then.saved) == (8, 0, 0, 8)


@pytest.mark.parametrize("order", [1, -1])
def test_a_teacher_that_another_term_asks_has_saved_nothing(order: int) -> None:
    """Three exits a row are not kept, and the same forward says both."""
    terms = {"a": Term(External(), KL()), "b": Term(External(), KL(), head="exits")}
    first, then = steps_of(Method(dict(list(terms.items())[::order])), 2, tiny(1))
    assert (first.teacher, first.saved, then.teacher, then.saved) == (8, 0, 8, 0)


def test_what_was_saved_is_no_cost_and_no_budget() -> None:
    """A budget of passes is what was computed."""
    passes = {"forward": 10, "backward": 10, "teacher": 2, "evaluation": 3, "saved": 18}
    total = Passes(**passes).cost()
    assert total == 32.0
    assert spent({"rows": {"it": {"passes": {**passes, "total": total}, "steps": 5}}}, 1.0, "passes") == 32.0


# what is said ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expression", ["born_again()", "distil()", "tf_kd()", "beyond()"])
def test_explain_says_what_a_step_costs_once_the_answers_are_kept(expression: str) -> None:
    """As a real run counts it: the last generation alone, by epochs."""
    method, seen = replace(read_method(expression), views=PLAIN), dict[tuple[int, int], list[int]]()
    teacher = external_teacher()

    def watch(clock: TrainingClock, micro: list[Batch], loss: float) -> None:
        seen.setdefault((clock.generation, clock.epoch), []).append(len(micro[0]["x"].x))

    result = fit(
        build, tiny_data(0), method, epochs=3, batch_size=16, audit="off", external=teacher, watch=watch,
        warn=lambda line: None,
    )  # fmt: skip
    rows = sum(sum(sizes) for (generation, _), sizes in seen.items() if generation == method.generations - 1)
    then = cached_cost(method)
    assert then == {"of_plain": 1.0, "epoch": 2, "by_data": False}
    assert result.passes.teacher == rows / 3
    note = explain(expression, read_method(expression))["cost_note"]
    assert "1 x from epoch 2 on, where the data are not augmented: a frozen teacher's answers are kept" in note


KEPT = [name for name, recipe in recipes().items() if cached_cost(recipe())]


def test_recipes_with_a_frozen_teacher_and_no_augmentation_of_their_own_are_those_that_keep() -> None:
    assert KEPT == [
        "beyond", "born_again", "born_again_ensemble", "distil", "ensemble_distil", "gaussian_born_again",
        "heteroscedastic", "lwf", "mixed", "tf_kd",
    ]  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_of_three_epochs_two_ask_no_teacher(name: str) -> None:
    """On data that are not augmented, for all recipes of which explain says so."""
    method = recipes()[name]()
    unlabelled = 24 if method.views.need_unlabelled() else 0
    data = replace((value_data if of_values(method) else tiny_data)(unlabelled), augment="none")

    def made(outputs: int = 1) -> nn.Module:
        return build_values(outputs) if of_values(method) else build()

    ours, live = (
        fit(
            made, data, method, epochs=3, batch_size=12, audit="off", external=external_teacher(), cache=cache,
            warn=lambda line: None,
        ).passes for cache in (True, False)
    )  # fmt: skip
    assert ours.teacher + ours.saved == live.teacher
    comes = 2 if method.views.need_unlabelled() else 1  # 24 unlabelled rows in 4 batches of 12
    assert live.teacher == 3 * comes * ours.teacher > 0


@pytest.mark.parametrize(
    ("term", "views"),
    [
        (Term(Labels(), CrossEntropy()), PLAIN),
        (Term(Ema(), KL()), PLAIN),
        (Term(External(), KL()), RANDOM),
        (Term(External(), KL(), head="exits"), PLAIN),
        (Term(Members(), KL()), PLAIN),
    ],
    ids=["labels", "average", "random", "exits", "members"],
)
def test_where_nothing_is_kept_explain_says_so(term: Term, views: Views) -> None:
    assert cached_cost(Method({"it": term}, views)) is None


def test_fixed_views_are_kept_once_all_were_shown() -> None:
    method = Method({"it": Term(ClassAligned(CachedTeacher(External(), views=4)), KL())}, RANDOM)
    assert cached_cost(Method({"it": Term(CachedTeacher(External(), views=4), KL())}, RANDOM)) == {
        "of_plain": 1.0, "epoch": 5, "by_data": False,
    }  # fmt: skip
    assert cached_cost(replace(method, views=PLAIN)) == {"of_plain": 1.0, "epoch": 2, "by_data": False}


@pytest.mark.parametrize("teacher", [CachedTeacher(External()), ClassAligned(CachedTeacher(External()))], ids=str)
def test_what_asks_for_both_is_refused_in_one_line(teacher: Any) -> None:
    with pytest.raises(RecipeError, match="leave it or --no-cache out") as refused:
        run(Method({"it": Term(teacher, KL())}, PLAIN), cache=False)
    assert "\n" not in str(refused.value)


def test_prompts_have_no_such_teacher() -> None:
    with pytest.raises(DataError, match="no meaning for prompts"):
        prepare(Request("prompts.jsonl", training=(("cache", False),)))


def test_a_run_and_its_report_count_what_was_saved(tmp_path: Path) -> None:
    """And `--no-cache` does not."""
    usual = Request(
        "digits", labels=40, steps=8, batch_size=20, augment="none", control=False, method="born_again(generations=2)"
    )
    for name, request in (("kept", usual), ("live", replace(usual, training=(("cache", False),)))):
        result = Run.create(request, tmp_path / name).execute(warn=lambda line: None)
        passes = json.loads((tmp_path / name / "run.json").read_text())["result"]["passes"]
        assert passes == result["passes"]
        assert passes["teacher"] + passes["saved"] == 8 * 20
        assert passes["saved"] == (6 * 20 if name == "kept" else 0)
        write_report(tmp_path / name, TASK_TYPES)
        text = (tmp_path / name / "report.html").read_text()
        assert ("120 passes of a teacher saved, whose answers were kept" in text) == (name == "kept")


def test_a_report_of_a_run_that_did_not_count_is_written(tmp_path: Path) -> None:
    request = Request("digits", labels=40, steps=2, batch_size=20, control=False, method="plain()")
    Run.create(request, tmp_path / "r").execute(warn=lambda line: None)
    path = tmp_path / "r" / "run.json"
    record = json.loads(path.read_text())
    before = copy.deepcopy(record)
    del record["result"]["passes"]["saved"]
    assert record != before
    write_record(path, record)
    write_report(tmp_path / "r", TASK_TYPES)
    assert "whose answers were kept" not in (tmp_path / "r" / "report.html").read_text()
