"""The recipes for policies: their choices and arguments, continuous actions, and loops of one's own."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.distributions import kl_divergence

from selfdistill import control
from selfdistill.control import Actor, ObservationLayout, PolicyMethod, PolicyTraining, kickstart, read_recipe
from selfdistill.control.parts import (
    ActionsTaken,
    GaussianMeanNLL,
    Release,
    SharpenedGaussianKL,
    SquaredMeans,
    Surpassed,
)
from selfdistill.control.recipes import RECIPES, card, explain, for_gaussian, text
from selfdistill.core.parts import PerRow, Term
from selfdistill.core.step import TrainingClock
from selfdistill.errors import RecipeError, SpaceError
from selfdistill.losses import KL, CrossEntropy, Entropy, GaussianKL, GaussianNLL, Sharpened
from selfdistill.teachers import External, Generation
from tests.control.common import PLAIN, environments, make, sharp

TAUGHT = {"dagger", "kickstart", "policy_distillation", "privileged"}


def part(recipe: PolicyMethod, name: str) -> Term:
    term = recipe.terms[name]
    assert isinstance(term, Term)
    return term


@pytest.mark.parametrize("name", RECIPES)
def test_an_expression_is_the_call(name: str) -> None:
    recipe = vars(control)[name]
    assert read_recipe(f"{name}()") == recipe()
    assert hash(read_recipe(f"{name}()").method) == hash(recipe().method)
    assert recipe().needs_teacher == (name in TAUGHT | {"continued"})


def test_the_choices_of_the_recipes() -> None:
    made = {name: read_recipe(f"{name}()") for name in RECIPES}
    training = {name: recipe.training for name, recipe in made.items()}
    assert training["kickstart"] == PolicyTraining(steps=100, rows=256, rollouts=8, learning_rate=1e-3)
    assert training["policy_distillation"] == PolicyTraining(100, reward=False)
    assert training["dagger"] == PolicyTraining(100, rollouts=0, reward=False, teacher_acts=Release(1.0, 0.25))
    assert training["iter_policy"] == PolicyTraining(parallel=True, first=0.5)
    assert training["self_imitation"] == PolicyTraining(10, 512)
    assert training["policy_peers"].members == 3
    assert training["continued"] == PolicyTraining(start="teacher")
    names = {"kickstart": "teacher", "privileged": "teacher", "born_again_policy": "past", "policy_peers": "peers"}
    weights = {name: part(made[name], term).weight for name, term in names.items()}
    assert weights == {
        "kickstart": Release(1.0, 0.25), "privileged": Release(1.0, 0.5),
        "born_again_policy": Release(1.0, 0.25), "policy_peers": Release(1.0, 0.25),
    }  # fmt: skip
    assert part(made["privileged"], "teacher").loss == Sharpened(KL(), 0.5)
    assert part(made["iter_policy"], "past").weight == Release(1.0, 1.0)
    assert part(made["iter_policy"], "value").weight == Release(0.5, 1.0)
    actions, value = part(made["self_imitation"], "actions"), part(made["self_imitation"], "value")
    assert (actions.teacher, actions.loss, actions.gate) == (ActionsTaken(), CrossEntropy(), Surpassed(1.0))
    assert actions.weight == 0.1
    assert value.weight == pytest.approx(0.001)
    every = [term for recipe in made.values() for term in recipe.terms.values()]
    assert all(isinstance(term, Term) and term.reduction == PerRow() for term in every if term.head == "logits")


def test_a_weight_of_values_scales_and_leaves_with_the_other() -> None:
    recipe = kickstart(weight=2.0, value=0.5, release=0.5)
    assert (part(recipe, "teacher").weight, part(recipe, "value").weight) == (Release(2.0, 0.5), Release(0.5, 0.5))
    assert set(kickstart().terms) == {"teacher"}


BAD = [
    ("kickstart(weight=0)", "weight is above 0, not 0"),
    ("kickstart(release=1.1)", "release is at least 0 and at most 1"),
    ("kickstart(steps=-1)", "steps is at least 0"),
    ("kickstart(steps=0.5)", "steps is a whole number"),
    ("kickstart(temperature=0)", "temperature is above 0"),
    ("kickstart(teachr='t.zip')", "teachr"),
    ("kickstart(1, 2, 3, 4, 5, 6, 7, 8)", "kickstart"),
    ("policy_distillation(states='both')", "states is one of student, mixed, teacher; not 'both'"),
    ("policy_distillation(loss='js')", "loss is one of kl, nll, mse; not 'js'"),
    ("policy_distillation(loss='nll', temperature=2.0)", "a temperature belongs to loss='kl', not to 'nll'"),
    ("dagger(share=2)", "share is at least 0 and at most 1"),
    ("iter_policy(generations=1)", "2 generations or more, not 1"),
    ("policy_peers(members=1)", "peers are 2 or more, not 1"),
    ("self_imitation(rows=0)", "rows is at least 1"),
    ("self_imitation(weight='much')", "weight is a number, not 'much'"),
    ("kickstarts()", "nearest: kickstart"),
    ("__import__('os')", "unknown method"),
    ("kickstart(open('x'))", "unknown method 'open'"),
]


@pytest.mark.parametrize(("expression", "message"), BAD, ids=[expression for expression, _ in BAD])
def test_a_bad_expression_is_refused_in_one_line(expression: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as refused:
        read_recipe(expression)
    assert "\n" not in str(refused.value)


def test_a_bad_argument_of_a_call_is_refused_as_that_of_an_expression() -> None:
    for call, message in (
        (lambda: kickstart(weight=-1.0), "weight is above 0, not -1.0"),
        (lambda: kickstart(steps=2.5), "steps is a whole number"),  # type: ignore[arg-type]
        (lambda: control.dagger(share=3.0), "share is at least 0 and at most 1"),
        (lambda: PolicyTraining(teacher_acts=0.5), "where the teacher acts, set reward=False"),
    ):
        with pytest.raises(RecipeError, match=message):
            call()


def test_continuous_actions_have_losses_of_their_own() -> None:
    def loss_of(recipe: PolicyMethod, name: str = "teacher") -> Any:
        assert recipe.method is not None
        term = for_gaussian(recipe.method).terms[name]
        assert term.head == "gaussian"
        return term.loss

    distil = control.policy_distillation
    assert loss_of(kickstart()) == GaussianKL()
    assert loss_of(kickstart(temperature=0.3)) == SharpenedGaussianKL(0.3)
    assert loss_of(distil(loss="nll")) == GaussianMeanNLL()
    assert loss_of(distil(loss="mse")) == SquaredMeans()
    assert loss_of(control.self_imitation(), "actions") == GaussianNLL()
    odd = kickstart()
    assert odd.method is not None
    term = replace(part(odd, "teacher"), loss=Entropy())
    with pytest.raises(SpaceError, match=r"term 'teacher': Entropy\(\) has no form for continuous actions; give KL"):
        for_gaussian(replace(odd.method, terms={"teacher": term}))


@pytest.mark.parametrize(
    "action", [spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,)), spaces.MultiDiscrete([2, 3])], ids=str
)
def test_a_recipe_binds_to_an_actor_in_a_loop_of_ones_own(action: Any) -> None:
    student, teacher = make(environments(action=action)), sharp(environments(action=action))
    layout = ObservationLayout.of(PLAIN)
    rows = torch.rand(7, 3)
    student.policy.set_training_mode(True)
    objective = kickstart(weight=0.5).bind(
        Actor(student.policy, layout),
        external=Actor(teacher.policy, layout),
        clock=TrainingClock(epochs=8),
        vitals=False,
    )
    loss = objective({"x": rows})
    both = [model.policy.get_distribution(rows).distribution for model in (teacher, student)]
    pairs = list(zip(*both, strict=True)) if isinstance(both[0], list) else [tuple(both)]
    expected = torch.stack([d if d.dim() == 1 else d.sum(1) for d in (kl_divergence(*pair) for pair in pairs)]).sum(0)
    torch.testing.assert_close(loss, 0.5 * expected.mean())
    loss.backward()
    objective.update()
    torch.testing.assert_close(objective({"x": rows}), 0.25 * expected.mean())  # half of the way to the release
    assert all(weight.grad is None for weight in teacher.policy.parameters())


def test_a_module_of_ones_own_binds_too_and_a_control_does_not() -> None:
    net = nn.Linear(3, 2)
    loss = kickstart().bind(net, external=nn.Linear(3, 2), vitals=False)({"x": torch.rand(4, 3)})
    loss.backward()
    assert net.weight.grad is not None
    with pytest.raises(RecipeError, match="a control has no term: the reward alone teaches it"):
        control.restarted().bind(net)


def test_the_card_has_every_section_and_argument() -> None:
    for name, recipe in RECIPES.items():
        page = card(name)
        assert page["summary"].endswith(".")
        assert page["equation"]
        assert page["source"]
        assert set(page["arguments"]) == set(inspect.signature(recipe).parameters)
        assert set(page["terms"]) == set(recipe().terms)
    lines = text(explain("kickstart(steps=7)"))
    assert "kickstart(steps=7)" in lines
    assert "steps=7" in lines.partition("training:")[2]


def test_teachers_from_outside_and_before_are_told_apart() -> None:
    kinds = {name: {type(t.teacher) for t in recipe().terms.values()} for name, recipe in RECIPES.items()}
    assert {name for name, kind in kinds.items() if External in kind} == TAUGHT
    assert {name for name, kind in kinds.items() if Generation in kind} == {
        "born_again_policy",
        "iter_policy",
        "policy_peers",
    }
