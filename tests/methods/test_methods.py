"""Every recipe: a value that reads back, a method that keeps the protocol, a teacher that stays apart."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from selfdistill import methods
from selfdistill.core.objective import Method
from selfdistill.core.outputs import space_of
from selfdistill.core.parts import GenerationData, Term, value_at
from selfdistill.core.step import Batch, Rows, TrainingClock
from selfdistill.errors import RecipeError, SelfdistillError
from selfdistill.gates import SelfAdaptive
from selfdistill.io.expressions import parse_expression
from selfdistill.teachers import FrozenCopy
from selfdistill.testing.conformance import check_method, check_value, names
from selfdistill.testing.specimens import batch_for, built, maps_of, pool, same_bits, specimen, storages, tiny
from selfdistill.views import AUGMENT
from tests.test_oracles import setting

RECIPES = methods.recipes()
#: every argument changed; a recipe that is not here gets its settings from its oracle, or from `changed`
CHANGED: dict[str, dict[str, Any]] = {
    "born_again": {"generations": 3, "xi": 0.25, "temperature": 2.5, "loss": "ce", "warm": True},
    "byot": {"alpha": 0.4, "temperature": 2.0, "feature": 0.001},
    "cs_kd": {"weight": 2.0, "temperature": 3.0},
    "curriculum": {"stages": 3, "balanced": False, "hard": False, "confidence": 0.3, "augment": "weak"},
    "distil": {"teacher": "runs/large", "alpha": 0.5, "temperature": 1.0},
    "dlb": {"alpha": 0.7, "temperature": 1.5},
    "elr": {"weight": 7.0, "decay": 0.9},
    "fixmatch": {
        "confidence": 0.8,
        "weight": 0.5,
        "ratio": 2.0,
        "ramp": 0.2,
        "labelled": "strong",
        "weak": "weak",
        "strong": "crop",
        "max_error": 0.2,
        "balance": "uniform",
    },
    "label_smoothing": {"smoothing": 0.3},
    "mean_teacher": {"weight": 3.0, "decay": 0.9, "ramp": 0.5, "labelled": 0.3, "augment": "strong"},
    "mutual": {"peers": 3, "weight": 0.5},
    "noisy_student": {
        "generations": 2,
        "ratio": 3.0,
        "min_confidence": 0.1,
        "hard": True,
        "smoothing": 0.0,
        "labelled": "strong",
        "unlabelled": "weak",
    },
    "plain": {},
    "ps_kd": {"alpha": 0.6},
    "self_adaptive": {"decay": 0.8, "wait": 0.1},
    "tf_kd": {"alpha": 0.5, "temperature": 20.0},
}
SETTINGS = {name: CHANGED.get(name) or setting(name) for name in RECIPES}
#: of the recipes in the table, those whose objective has learnt something that cannot be made again
WITH_MEMORY = {"dlb", "elr", "mean_teacher", "ps_kd", "self_adaptive"}


def test_every_argument_of_the_table_is_tried():
    """A new argument enters the table above; a new recipe need not."""
    for name, options in CHANGED.items():
        assert set(options) == set(inspect.signature(RECIPES[name]).parameters), name


@pytest.mark.parametrize("name", RECIPES)
def test_the_repr_reads_back(name):
    """At the defaults and with every argument changed; each change gives another, unequal value."""
    recipe = RECIPES[name]
    default, changed = recipe(), recipe(**SETTINGS[name])
    for method in (default, changed):
        again = parse_expression(repr(method), names())
        assert again == method
        assert hash(again) == hash(method)
        check_value(method)
    assert default == recipe()
    for argument, value in SETTINGS[name].items():
        assert recipe(**{argument: value}) != default, argument


@pytest.mark.parametrize("name", RECIPES)
def test_the_expression_of_the_command_line_is_the_call(name):
    """``name(argument=value)`` means what Python means by it."""
    text = f"{name}({', '.join(f'{k}={v!r}' for k, v in SETTINGS[name].items())})"
    assert parse_expression(text, RECIPES) == RECIPES[name](**SETTINGS[name])


@pytest.mark.parametrize("name", RECIPES)
def test_the_docstring_has_what_explain_prints(name):
    """A summary line, the equation, the source, and an example that runs."""
    text = inspect.getdoc(RECIPES[name]) or ""
    assert text.splitlines()[0].endswith(".")
    for part in ("Equation::", "Source:", ">>> "):
        assert part in text, part


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("other", [False, True])
def test_the_recipe_keeps_the_protocol(name, other):
    """Spaces, gradients, reduction (each row twice is the same loss), aliasing and exact resume."""
    options = SETTINGS[name] if other else {}
    check_method(RECIPES[name](**options))


# teachers stay apart --------------------------------------------------------------------------------------------------


def started(method: Method, generation: int) -> tuple[nn.Module, Any, Any]:
    torch.manual_seed(generation)
    model, previous = built(method, 3), built(method, 3) if generation else None
    clock = TrainingClock(generation, method.generations, epochs=3, per_epoch=2)
    objective = method.bind(model, previous=previous, external=specimen(method, 8, 2), clock=clock)
    objective.prepare(pool(clock, maps_of(method)))
    return model, objective, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def train(model: nn.Module, objective: Any, optimizer: Any, steps: range) -> list[Tensor]:
    found = []
    for k in steps:
        torch.manual_seed(k)
        loss = objective(batch_for(objective.method, k))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        objective.update()
        found.append(loss.detach())
    return found


@pytest.mark.parametrize(("name", "generation"), [("mean_teacher", 0), ("born_again", 1), ("tf_kd", 1), ("distil", 0)])
def test_the_teacher_is_another_module(name, generation):
    """Another object, no gradient, eval mode, and bit for bit the same after the student's step."""
    model, objective, optimizer = started(RECIPES[name](), generation)
    held = [m for m in objective.modules() if isinstance(m, FrozenCopy)]
    assert len(held) == 1
    teacher = held[0].module
    assert teacher is not model
    assert not storages(teacher) & storages(model)
    assert len(storages(teacher)) > 10
    objective.train()
    objective(batch_for(objective.method, 0)).backward()
    before, student = copy.deepcopy(teacher.state_dict()), copy.deepcopy(model.state_dict())
    optimizer.step()
    assert same_bits(teacher.state_dict(), before)
    assert not same_bits(model.state_dict(), student)
    assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
    assert not any(m.training for m in teacher.modules())


@pytest.mark.parametrize("name", RECIPES)
def test_state_dict_holds_no_student_and_is_all_there_is(name):
    """Saved after four steps and loaded into a fresh objective, two more steps are bit for bit the same.

    The control: left unloaded, a method with a memory goes on differently.
    """
    method = RECIPES[name]()
    model, objective, optimizer = started(method, 0)
    train(model, objective, optimizer, range(4))
    assert not {v.data_ptr() for v in objective.state_dict().values() if v.numel()} & storages(model)
    states = copy.deepcopy([part.state_dict() for part in (model, optimizer, objective)])
    uncut = train(model, objective, optimizer, range(4, 6))
    for loaded in (True, False):
        twin, fresh, other = started(method, 0)
        twin.load_state_dict(copy.deepcopy(states[0]))
        other.load_state_dict(copy.deepcopy(states[1]))
        fresh.clock = fresh.clock.at(4)
        fresh_state = copy.deepcopy(fresh.state_dict())
        if loaded:
            fresh.load_state_dict(copy.deepcopy(states[2]))
        again = train(twin, fresh, other, range(4, 6))
        same = all(a.equal(b) for a, b in zip(uncut, again, strict=True))
        if loaded:
            assert same
        elif name in CHANGED:
            assert same == (name not in WITH_MEMORY)
        else:
            assert same or not same_bits(fresh_state, states[2]), "what it learnt is not in its state"


# what recipes refuse --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("born_again(xi=1.5)", r"\[0, 1\]"),
        ("born_again(xi=-0.1)", r"\[0, 1\]"),
        ("tf_kd(alpha=2)", "alpha is at least 0 and at most 1, not 2"),
        ("born_again(loss='mse')", "loss='kl' or loss='ce'"),
        ("born_again(generations=0)", "generations is at least 1, not 0"),
        ("mutual(peers=1)", "at least two"),
        ("fixmatch(ratio=0)", "above 0"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(text, message):
    """One line from the command line, before anything is loaded."""
    with pytest.raises(RecipeError, match=message) as caught:
        parse_expression(text, RECIPES)
    assert "\n" not in str(caught.value)


def test_distil_without_a_teacher_says_how_to_give_one():
    """On the command line and in code."""
    with pytest.raises(SelfdistillError, match=r"distil\('RUN'\)"):
        RECIPES["distil"]().bind(tiny(0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: methods.byol(hidden=10**13),
        lambda: RECIPES["mutual"](peers=np.int64(10**9)),
        lambda: methods.born_again(generations=10**400),
        lambda: methods.elr(decay=float("nan")),
        lambda: RECIPES["elr"](decay="0.5"),
    ],
)
def test_arguments_in_python_have_the_same_ranges(call):
    with pytest.raises(RecipeError):
        call()
    assert RECIPES["mutual"](peers=np.int64(3)) == methods.mutual(peers=3)


def test_recipes_are_found_by_their_annotation():
    """Sorted, public, and reachable as attributes of the package."""
    assert list(RECIPES) == sorted(RECIPES)
    assert all(getattr(methods, name) is recipe for name, recipe in RECIPES.items())
    assert not any(name.startswith("_") for name in RECIPES)


def test_weights_of_generations():
    """Generation 0 learns from labels alone; later ones from (1 - xi) label + xi past."""
    method = RECIPES["born_again"](generations=3, xi=0.3)
    for g, (label, past) in enumerate([(1.0, 0.0), (0.7, 0.3), (0.7, 0.3)]):
        clock = TrainingClock(g, 3)
        assert method.terms["label"].weight_at(clock) == pytest.approx(label)
        assert method.terms["past"].weight_at(clock) == pytest.approx(past)


def test_curriculum_has_one_generation_more_than_stages():
    """The first model labels the first stage; shares grow to the whole pool."""
    method = RECIPES["curriculum"](stages=4)
    assert method.generations == 5
    teacher: Any = method.terms["label"].teacher
    assert teacher.shares == (0.25, 0.5, 0.75, 1.0)


#: recipe -> the paper's steps, and there: the weight of its unlabelled rows in the first step, decay, ratio
PAPERS: dict[str, tuple[int, str, float, float | None, float | None]] = {
    "co_training": (2**20, "other", 0.0, None, 7.0),
    "dash": (2**20, "soft", 1.0, None, 7.0),
    "fixmatch": (2**20, "pseudo", 1.0, None, 7.0),
    "flexmatch": (2**20, "pseudo", 1.0, None, 7.0),
    "freematch": (2**20, "pseudo", 1.0, 0.999, 7.0),
    "softmatch": (2**20, "pseudo", 1.0, 0.999, 7.0),
    "pseudo_label": (2**20, "pseudo", 0.0, None, 8.0),
    "uda": (500_000, "consistency", 1.0, None, 7.0),
    "vat": (48_000, "adversarial", 1.0, None, 4.0),
    "meta_pseudo_labels": (300_000, "consistency", 0.0, None, 7.0),
    "mean_teacher": (150_000, "consistency", 100 * math.exp(-5), 0.999, None),
    "rankup": (2**18, "pairs", 0.2, None, 7.0),
    "ucvme": (10_000, "mean", 10.0, None, None),
    "byol": (312_500, "from_x", 2.0, 0.996, None),
    "dino": (125_000, "x_from_other", 1 / 6, 0.996, None),
    "ibot": (125_000, "x_from_other", 1 / 6, 0.996, None),
}


def constants(name: str, steps: int) -> tuple[float, float, float | None, float]:
    """The weight of a recipe's unlabelled rows at its start and after half a run, its decay, and its ratio."""
    method, clock = methods.recipes()[name](), TrainingClock(steps=steps)
    term = method.terms[PAPERS[name][1]]
    decays = [value_at(part.decay, clock) for part in term.parts() if hasattr(part, "decay")]
    ratio = method.views.ratio_at(steps)
    return term.weight_at(clock), term.weight_at(clock.at(steps // 2)), decays[0] if decays else None, ratio


@pytest.mark.parametrize("name", PAPERS)
def test_the_constants_of_a_long_run_are_those_of_the_paper(name):
    """At the paper's length the first weight, the decay of averages and the unlabelled rows of a batch are its own."""
    steps, _, weight, decay, ratio = PAPERS[name]
    first, _, own_decay, own_ratio = constants(name, steps)
    assert first == pytest.approx(weight)
    assert own_decay == (decay and pytest.approx(decay, abs=1e-12))
    assert own_ratio == (1.0 if ratio is None else pytest.approx(ratio, abs=1e-12))


@pytest.mark.parametrize("name", [name for name, paper in PAPERS.items() if paper[2] != 2.0 and paper[2] != 1 / 6])
def test_a_short_run_begins_with_labels_and_comes_to_the_whole_weight(name):
    """Of 100 steps the first has (nearly) labels alone, the second half the whole weight, and averages span a part."""
    first, middle, decay, ratio = constants(name, 100)
    peak = {"mean_teacher": 100.0, "ucvme": 10.0, "rankup": 0.2, "pseudo_label": 3.0}.get(name, 1.0)
    least = 0.49 if name == "dash" else 0.79 if name == "pseudo_label" else 0.99
    assert first <= 0.01 * peak
    assert middle >= least * peak
    assert decay is None or 0.9 <= decay <= 0.97
    assert 1.0 <= ratio <= 2.1


def test_an_argument_is_the_same_in_every_run():
    """A decay and a ratio that are given are those of short and long runs alike."""
    for steps in (100, 2**20):
        method = methods.recipes()["freematch"](decay=0.5, ratio=3.0)
        term = method.terms["pseudo"]
        assert isinstance(term, Term)
        assert isinstance(term.gate, SelfAdaptive)
        assert (term.gate.decay, method.views.ratio_at(steps)) == (0.5, 3.0)


def predicted_classes(balance: str, seed: int) -> Tensor:
    """The classes (232,) that a model predicts which begins by calling all rows one, and learns what it says itself."""
    generator = torch.Generator().manual_seed(seed)
    y, ids = torch.arange(240) % 4, torch.arange(240)
    x = torch.randn(4, 6, generator=generator)[y] + torch.randn(240, 6, generator=generator) + 1.0
    torch.manual_seed(seed)
    model = nn.Linear(6, 4)
    model.bias.data[0] += 2.0
    method = methods.pseudo_label(weight=10.0, start=0.0, end=0.0, balance=balance)
    objective = method.bind(model, clock=TrainingClock(steps=60), vitals=False)
    objective.prepare(GenerationData(ids[8:], lambda *_: x, objective.clock, ids[:8], targets=y[:8]))
    batch = Batch({"labelled": Rows(x[:8], y[:8], ids[:8]), "unlabelled": Rows(x[8:], torch.full((232,), -1), ids[8:])})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        objective(batch).backward()
        optimizer.step()
        objective.update()
    return torch.as_tensor(model(x[8:]).argmax(1))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("balance", ["uniform", "labels"])
def test_balanced_pseudo_labels_do_not_collapse_to_one_class(balance, seed):
    """Where they do without the balance: all rows are of the class that the model began with."""
    assert predicted_classes("", seed).bincount(minlength=4)[0] > 0.97 * 232
    assert predicted_classes(balance, seed).bincount(minlength=4).max() < 0.5 * 232


def test_a_balance_that_is_none_is_refused():
    with pytest.raises(RecipeError, match="'uniform' or 'labels', not 'even'"):
        methods.fixmatch(balance="even")
    with pytest.raises(RecipeError, match="between 0 and 1"):
        methods.uda(max_error=0.0)


def reads_unlabelled(recipe: Callable[..., Method]) -> bool:
    """Whether a recipe of classes learns from unlabelled rows."""
    needed = [p for p in inspect.signature(recipe).parameters.values() if p.default is p.empty]
    if needed:
        return False
    method = recipe()
    heads = {space_of(term.head) for term in method.terms.values()}
    return method.views.need_unlabelled() and "gaussian" not in heads


@pytest.mark.parametrize("name", [n for n, r in RECIPES.items() if reads_unlabelled(r)])
def test_the_augmentation_of_each_view_of_unlabelled_rows_is_an_argument(name: str) -> None:
    recipe = RECIPES[name]
    names = [key for key, p in inspect.signature(recipe).parameters.items() if p.default in AUGMENT]
    views = recipe(**dict.fromkeys(names, "none")).views.views
    assert [view.augment for view in views] == ["none"] * len(views)
