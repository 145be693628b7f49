"""What `explain` says of a recipe is true: schedules by hand, and costs counted in a real run."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from torch import Tensor, nn

from selfdistill.cli import main
from selfdistill.core.objective import Method, untaught
from selfdistill.core.step import Batch, TrainingClock
from selfdistill.methods import recipes
from selfdistill.methods.cards import card, code, code_text, cost, explain, text
from selfdistill.methods.registry import read_method
from selfdistill.models.feature_taps import last_linear
from selfdistill.teachers.generations import ensemble_teacher
from selfdistill.training.fit import fit
from tests.harness import build_values, building_for, external_teacher, of_values, tiny_data, value_data

ORACLES = Path(__file__).parents[1] / "oracles"


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_explained(name: str) -> None:
    found = card(name)
    assert found["summary"].endswith(".")
    assert "L = " in found["equation"] or "generation 0:  L = " in found["equation"]
    assert re.search(r"(19|20)\d\d", found["source"]) or name == "plain", "a source has a year"
    assert found["source"]
    assert found["needs"]
    assert read_method(found["signature"]) == recipes()[name](), "the signature reads back"


@pytest.mark.parametrize("name", recipes())
def test_the_explanation_for_people_has_every_part(name: str) -> None:
    method = recipes()[name]()
    found = explain(name, method)
    shown = text(found)
    parts = [found["summary"], found["source"], found["needs"], f"{method.forward} forward"]
    parts += [line.strip() for line in found["equation"].splitlines()] + found["views"] + found["heads"]
    for term in method.terms.values():
        parts += [repr(term.teacher), repr(term.loss), f"on view {term.view!r}, head {term.head!r}"]
    for part in parts:
        assert part in shown
    assert ("in the last generation" in shown) == (method.generations > 1)


def test_what_a_view_hides_is_said() -> None:
    """Of which view, how much, and in how many rows; a recipe whose temperature moves says so too."""
    shown = text(explain("ibot()", recipes()["ibot"]()))
    assert "x_hidden: what x shows, less 10 to 50 % of its patches in half of the rows" in shown
    assert "sharp=0.07) whose sharp goes from 0.04 to its own in the first 10 %" in shown
    plainly = recipes()["ibot"](hidden=0.25, spread=0.0, unmasked=0.0)
    assert "other_hidden: what other shows, less 25 % of its patches" in explain("ibot()", plainly)["views"]
    seldom = recipes()["ibot"](unmasked=0.9)
    assert explain("ibot()", seldom)["views"][-1].endswith("less 10 to 50 % of its patches in 10 % of the rows")


def weights(expression: str) -> dict[str, list[float]]:
    return {term["term"]: term["weight"] for term in explain(expression, read_method(expression))["terms"]}


def test_schedule_of_ps_kd() -> None:
    """a_t = alpha (t + 1) / epochs for epochs 0, 50 and 99 of 100; the label has the rest."""
    found = weights("ps_kd(alpha=0.8)")
    assert found["past"] == pytest.approx([0.8 * 1 / 100, 0.8 * 51 / 100, 0.8])
    assert found["label"] == pytest.approx([0.992, 0.592, 0.2])


def test_schedule_of_mean_teacher() -> None:
    """100 exp(-5 (1 - t)^2): e^-5 at first, all after the ramp; half way up a ramp of nearly all steps, e^-1.25."""
    assert weights("mean_teacher")["consistency"] == pytest.approx([100 * math.exp(-5), 100, 100], abs=1e-4)
    assert weights("mean_teacher(weight=2, ramp=1.0)")["consistency"] == pytest.approx(
        [2 * math.exp(-5), 2 * math.exp(-1.25), 2], abs=0.03
    )
    assert weights("mean_teacher")["label"] == [1, 1, 1]


def test_schedule_of_born_again() -> None:
    """Constant within a generation; the later ones are shown."""
    assert weights("born_again(xi=0.3)") == {"label": [0.7] * 3, "past": [0.3] * 3}
    assert weights("born_again()") == {"label": [0.0] * 3, "past": [1.0] * 3}


#: Forward and backward passes of a sample, per row of the batch, by hand.
PASSES = {
    "plain()": (1, 1),
    "label_smoothing()": (1, 1),
    "ps_kd()": (1, 1),  # the memory costs no pass
    "elr()": (1, 1),
    "self_adaptive()": (1, 1),
    "dlb()": (1, 1),  # half of the rows again, which an epoch pays for with twice the steps
    "byot()": (1, 1),  # the teacher is the deepest exit of the same forward
    "curriculum()": (1, 1),  # labels the pool between trainings
    "self_training()": (1, 1),  # labels new rows between trainings
    "born_again()": (2, 1),  # student and frozen teacher
    "tf_kd()": (2, 1),
    "distil()": (2, 1),
    "mean_teacher()": (3, 2),  # student on both views, of which labels are learnt on one; average on that
    "cs_kd()": (2, 1),  # the partner has a forward of its own, without a graph
    "mutual()": (2, 2),  # every peer learns
    "mutual(peers=3)": (3, 3),
    "fixmatch(ratio=7)": (15, 15),  # 1 labelled row, 7 weak and 7 strong ones in one batch with one graph
    "fixmatch(ratio=2)": (5, 5),
    "vat(ratio=4)": (
        13,
        17,
    ),  # 1 labelled row, 4 others; for each of those one pass moved, one to find where, differentiated twice
    "vat(iterations=3, ratio=1)": (6, 9),
    "uda(ratio=7)": (15, 15),
    # two networks on 1 labelled and 7 strong rows, and on 7 weak ones without a graph; the student alone once more on
    # the strong and the labelled rows, back through both, and once more back through its step
    "meta_pseudo_labels(ratio=7)": (38, 31),
    "meta_pseudo_labels(meta=0, ratio=7)": (30, 16),
    "meta_pseudo_labels(ratio=2)": (13, 11),
    "pi_model()": (2, 2),  # both passes learn
    "pseudo_label(ratio=8)": (9, 9),
    "noisy_student()": (2, 2),  # a labelled and an unlabelled row; the labels were made before
    "noisy_student(ratio=3)": (4, 4),
}


KNOWN = {expression.split("(")[0] for expression in PASSES}
#: a recipe that nobody has counted by hand is counted in a real run all the same
RATIO = {name: "ratio=2" for name in recipes() if "ratio" in inspect.signature(recipes()[name]).parameters}
RUN = [*PASSES, *(f"{name}({RATIO.get(name, '')})" for name in recipes() if name not in KNOWN)]


@pytest.mark.parametrize("expression", PASSES)
def test_cost_by_hand(expression: str) -> None:
    forward, backward = PASSES[expression]
    plain = round((forward + 2 * backward) / 3, 3)
    assert cost(read_method(expression)) == {"forward": forward, "backward": backward, "of_plain": plain}


def test_the_cost_of_self_training_says_what_is_labelled_between_trainings() -> None:
    note = explain("self_training", read_method("self_training(generations=3, fresh=50)"))["cost_note"]
    assert "3 trainings one after another" in note
    assert "one forward pass over 50 unlabelled rows before each but the first" in note


def test_the_cost_of_dlb_says_that_an_epoch_is_twice_as_long() -> None:
    assert "each row comes twice an epoch" in explain("dlb", recipes()["dlb"]())["cost_note"]
    assert "twice" not in explain("plain", recipes()["plain"]())["cost_note"]


@dataclass
class Counter:
    """Rows that passed through any watched model or a copy of it, forward and backward."""

    forward: int = 0
    backward: int = 0
    steps: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    features: bool = False  # does nothing go backward through the classifier?

    def watched(self, model: nn.Module) -> nn.Module:
        model.register_forward_hook(self._count)
        if self.features:
            last_linear(model).register_forward_pre_hook(lambda module, args: self._graded(args[0], len(args[0])))
        return model

    def _graded(self, said: Tensor, rows: int) -> None:
        """Count each pass back through an output; one that is differentiated again may end before it gets there."""
        again = list[bool]()

        def back(gradient: Tensor) -> None:
            self._back(0 if again else rows)
            again.clear()
            if gradient.requires_grad:
                gradient.register_hook(back_again)

        def back_again(curve: Tensor) -> None:
            again.append(True)
            self._back(rows)

        if said.requires_grad:
            said.register_hook(back)

    def __deepcopy__(self, memo: dict[int, Any]) -> Counter:
        return self  # a copy of the model counts here too

    def _count(self, module: nn.Module, args: tuple[Tensor], output: Any) -> None:
        rows = len(args[0])
        self.forward += rows
        logits = output["logits"] if isinstance(output, dict) else output
        if not self.features:
            self._graded(logits, rows)

    def _back(self, rows: int) -> None:
        self.backward += rows

    def note(self, method: Method, clock: TrainingClock, batch: Batch) -> None:
        """Passes per row of this step. Before the first step of an epoch come dry run, labelling and scoring."""
        if clock.step % clock.per_epoch:
            rows = len(batch[method.views.views[0].name].x)
            self.steps.setdefault(clock.generation, []).append((self.forward / rows, self.backward / rows))
        self.forward = self.backward = 0


@pytest.mark.parametrize("expression", RUN)
def test_cost_is_what_a_real_run_takes(expression: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # a look calls the hooks on outputs, too
    monkeypatch.setattr("selfdistill.core.step.TrainingClock.observed", False)
    if expression.startswith("noisy_student"):
        expression = expression.replace("(", "(min_confidence=0.0, generations=2, ", 1)
    method = read_method(expression)
    if "stored" in method.rows_of().values():
        method = read_method(expression.replace("(", "(count=6, ", 1))  # as many rows as the batch has
    counter = Counter(features=untaught(method))
    assert copy.deepcopy(counter) is counter

    values = of_values(method)

    def counted(exits: bool = False, outputs: int = 1) -> nn.Module:
        return counter.watched(
            build_values(outputs) if values else building_for(method)(**({"exits": True} if exits else {}))
        )

    def note(clock: TrainingClock, batches: list[Batch], loss: float) -> None:
        counter.note(method, clock, batches[0])

    data = (value_data if values else tiny_data)(24 if method.views.need_unlabelled() else 0)
    external = counter.watched(external_teacher())
    fit(counted, data, method, epochs=2, batch_size=6, save_steps=1000, external=external, watch=note)
    claimed = cost(method)
    assert sorted(counter.steps) == list(range(method.generations))
    for generation, steps in counter.steps.items():
        wanted = (claimed["forward"], claimed["backward"])
        if generation == 0 and method.generations > 1:
            rows = claimed["backward"] if expression.startswith("heteroscedastic") else 1.0  # drawn, and unlabelled yet
            wanted = (rows, rows)  # there is no teacher yet
        elif every := ensemble_teacher(method):
            taught = not every.at_last or generation == method.generations - 1
            wanted = (1.0 + generation * taught, 1.0)  # all earlier generations teach
        assert len(steps) >= 10
        first = {(1.0, 1.0)} if expression.startswith("snapshot") else set()  # a cycle without a teacher
        assert set(steps) == {wanted} | first


def documented(name: str) -> str:
    return inspect.getdoc(recipes()[name]) or ""


@pytest.mark.parametrize("name", recipes())
def test_every_argument_of_a_recipe_is_described(name: str) -> None:
    arguments = card(name)["arguments"]
    assert list(arguments) == list(inspect.signature(recipes()[name]).parameters)
    assert all(about.endswith(".") and about[0].isupper() for about in arguments.values())


def stated(about: str) -> Iterator[float]:
    """The bounds that a description includes."""
    for opening, least, most, closing in re.findall(r"in ([\[(])(\d), (\d)([\])])", about):
        yield from [float(least)] * (opening == "[") + [float(most)] * (closing == "]")
    yield from (float(least) for least in re.findall(r"(\d) or more", about))
    yield from (float(most) for most in re.findall(r"at most (\d+)", about))


@pytest.mark.parametrize("name", recipes())
def test_the_bounds_that_a_description_states_are_taken(name: str) -> None:
    """A person may write them, and no part refuses them."""
    kinds = {key: type(p.default) for key, p in inspect.signature(recipes()[name]).parameters.items()}
    for argument, about in card(name)["arguments"].items():
        for bound in stated(about):
            kind = float if kinds[argument] is type(None) else kinds[argument]  # left open: it follows the run
            method = read_method(f"{name}({argument}={kind(bound)!r})")
            assert isinstance(method, Method), (argument, bound)


@pytest.mark.parametrize("name", recipes())
def test_the_docstring_names_the_terms_of_the_method(name: str) -> None:
    block = documented(name).partition("Returns:\n")[2].partition("\n\n")[0]
    terms = list(recipes()[name]().terms)
    assert re.findall(r"``(\w+)``", block) == terms


def test_a_departure_from_the_paper_is_on_the_card_and_in_the_text() -> None:
    about = card("mean_teacher")["departs"]
    assert "train mode" in about
    assert f"departs:     {about}" in text(explain("mean_teacher()", recipes()["mean_teacher"]()))
    assert card("plain")["departs"] == ""
    assert "departs:" not in text(explain("plain()", recipes()["plain"]()))


@pytest.mark.parametrize("name", recipes())
def test_the_code_of_a_recipe_is_its_source_and_its_oracle(name: str) -> None:
    page = code_text(name, recipes()[name])
    assert f"def {name}(" in page
    assert "def oracle(" in page
    assert (ORACLES / f"{name}.py").read_text().strip() in page
    assert ">>>" not in page, "docstrings are left out"


def test_the_code_has_the_functions_that_a_recipe_calls() -> None:
    page = code("flexmatch", recipes()["flexmatch"])["recipe"] or ""
    assert page.index("def matching(") < page.index("def flexmatch(")
    assert "def supervised(" in page


def test_the_code_of_other_recipes_has_their_oracles() -> None:
    others = (
        ("sdft(rate=0.1)", "sdft", "language"),
        ("self_trained()", "self_trained", "estimators"),
        ("kickstart()", "kickstart", "control"),
        ("iter_policy(generations=3)", "iter_policy", "control"),
    )
    for expression, name, module in others:
        done = CliRunner().invoke(main, ["explain", expression, "--code"])
        assert f"def {name}(" in done.output
        assert done.output.endswith((ORACLES / module / f"{name}.py").read_text())
    wrong = CliRunner().invoke(main, ["explain", "elrr()", "--code"])
    assert wrong.exit_code
    assert "nearest: elr" in wrong.output


def test_the_code_as_json_and_of_a_recipe_in_a_file_of_its_own(tmp_path: Path) -> None:
    found = json.loads(CliRunner().invoke(main, ["explain", "elr()", "--code", "--json"]).output)
    assert found == code("elr", recipes()["elr"])
    file = tmp_path / "own.py"
    file.write_text("def helper():\n    return 1\n\n\ndef own():\n    '''Mine.'''\n    return helper()\n")
    spec = importlib.util.spec_from_file_location("own", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert code("own", module.own) == {
        "recipe": "def helper():\n    return 1\n\n\ndef own():\n    return helper()\n",
        "oracle": None,
    }
