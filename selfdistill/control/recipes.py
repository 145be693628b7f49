"""The recipes for policies, and their controls: what teaches, whose states it teaches on, and when it lets go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, ParamSpec

from torch import nn

from ..core.objective import Method, Objective
from ..core.parts import BaseTerm, Loss, PerRow, Schedule, Term
from ..core.step import TrainingClock
from ..errors import RecipeError, SpaceError
from ..io.expressions import Count, Extras, NonNegative, Positive, Share, checked, expression_name, parse_expression
from ..losses import KL, CrossEntropy, GaussianKL, GaussianNLL, Sharpened, Squared
from ..methods.cards import argument_lines, describe
from ..teachers import External, Generation
from .actors import Actor, ModuleActor
from .parts import (
    ActionsTaken,
    GaussianMeanNLL,
    Release,
    Returns,
    SharpenedGaussianKL,
    SquaredMeans,
    SquaredShortfall,
    Surpassed,
)

RESTARTED, MATCHED, CONTINUED = "restarted()", "restarted(matched=True)", "continued()"  # the controls of a run
VISITED, EPISODES, TEACHER_VIEW = "x", "episodes", "teacher"


@dataclass(frozen=True)
class PolicyTraining:
    """What happens beside the terms while an engine trains a policy.

    Args:
        steps: extra distillation steps after each update of the engine, at the full weight of the terms.
        rows: rows of such a step.
        rollouts: how many of the last rollouts these rows are drawn from; 0 for as many as ``capacity`` steps hold.
        learning_rate: of the Adam that takes these steps, which is theirs alone.
        reward: whether the reward teaches the actor too; if not, it teaches the critic alone.
        teacher_acts: probability that the teacher acts in the place of the student, a number or a schedule.
        warm_up: first rollouts in which the reward teaches the critic alone.
        start: ``"fresh"`` weights, or those of the ``"teacher"``.
        matched: whether the engine gets the gradient steps that a method's extra steps would take.
        members: policies that are trained apart before the product, which their mean teaches; 0 for none.
        parallel: whether a fresh student is trained on the rollouts of its teacher, which acts and learns on.
        first: share of the environment steps that the first of several trainings has; 0 for an equal one.
        capacity: environment steps that are kept: of finished episodes, or of rollouts where ``rollouts`` is 0.
    """

    steps: int = 0
    rows: int = 256
    rollouts: int = 8
    learning_rate: float = 1e-3
    reward: bool = True
    teacher_acts: float | Schedule = 0.0
    warm_up: int = 0
    start: str = "fresh"
    matched: bool = False
    members: int = 0
    parallel: bool = False
    first: float = 0.0
    capacity: int = 50_000

    def __post_init__(self) -> None:
        if self.reward and (callable(self.teacher_acts) or self.teacher_acts):
            raise RecipeError("the reward teaches the policy that acts; where the teacher acts, set reward=False")


@dataclass(frozen=True)
class PolicyMethod:
    """A recipe for policies: terms (none for a control), how they are trained, and what their teacher sees.

    Args:
        method: the terms; None for a control, which the reward alone teaches.
        training: what happens beside them.
        teacher: where the teacher comes from, as it was given.
        sees: the keys of a Dict observation that the teacher alone sees, or a `gymnasium.ObservationWrapper` through
            which it looks.
        name: of the recipe that made it, in reports.
    """

    method: Method | None = None
    training: PolicyTraining = PolicyTraining()
    teacher: Any = field(default=None, compare=False)
    sees: Any = None
    name: str = field(default="", compare=False)

    @property
    def terms(self) -> Mapping[str, BaseTerm]:
        """The terms by name."""
        return {} if self.method is None else self.method.terms

    @property
    def generations(self) -> int:
        """Trainings one after another."""
        return 1 if self.method is None else self.method.generations

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher from outside teaches it or starts it."""
        external = any(isinstance(term.teacher, External) for term in self.terms.values())
        return external or self.training.start == "teacher"

    def strength(self, clock: TrainingClock) -> float:
        """How large the weights of the terms are, as a share of those at the start; 0 without terms."""
        begin, terms = clock.at(0), self.terms.values()
        return max((t.weight_at(clock) / t.weight_at(begin) for t in terms if t.weight_at(begin)), default=0.0)

    def extra_steps(self, clock: TrainingClock) -> int:
        """The distillation steps after the update that has ended at this place of the training."""
        return round(self.training.steps * self.strength(clock))

    def bind(self, actor: nn.Module, **options: Any) -> Objective:
        """An `Objective` for a training loop of one's own: ``loss = ppo_loss + objective({"x": rows})``.

        Args:
            actor: an `Actor` or any module from rows to ``logits``, or to ``gaussian`` where actions are continuous.
            options: as of `Objective`; ``external`` is the teacher.

        Raises:
            RecipeError: it is a control, which has no term.
            SpaceError: a loss has no form for continuous actions.
        """
        if self.method is None:
            raise RecipeError("a control has no term: the reward alone teaches it")
        method = self.method
        if isinstance(actor, Actor | ModuleActor) and actor.continuous:
            method = for_gaussian(method)
        return method.bind(actor, **options)


def for_gaussian(method: Method) -> Method:
    """The same method for continuous actions, which are normal distributions (before a tanh, where there is one).

    Raises:
        SpaceError: a loss has no form for them.

    >>> kickstart().method.terms["teacher"].loss, for_gaussian(kickstart().method).terms["teacher"].loss
    (KL(temperature=1.0), GaussianKL())
    """
    return replace(method, terms={name: _gaussian_term(name, term) for name, term in method.terms.items()})


def _gaussian_term(name: str, term: BaseTerm) -> BaseTerm:
    if not isinstance(term, Term) or term.head != "logits":
        return term
    loss: Loss | None = None
    if isinstance(term.teacher, ActionsTaken):
        loss = GaussianNLL()
    elif isinstance(term.loss, KL):
        loss = GaussianKL()
    elif isinstance(term.loss, Sharpened):
        loss = SharpenedGaussianKL(term.loss.temperature)
    elif isinstance(term.loss, CrossEntropy):
        loss = GaussianMeanNLL()
    elif isinstance(term.loss, Squared):
        loss = SquaredMeans()
    if loss is None:
        raise SpaceError(f"term {name!r}: {term.loss} has no form for continuous actions; give KL() or Squared()")
    return replace(term, head="gaussian", loss=loss)


P = ParamSpec("P")


def _recipe(function: Callable[P, PolicyMethod]) -> Callable[P, PolicyMethod]:
    """A recipe that checks its arguments, and whose methods know its name."""
    careful = checked(function)

    @wraps(function)
    def make(*args: P.args, **options: P.kwargs) -> PolicyMethod:
        return replace(careful(*args, **options), name=f"{function.__name__}()")

    return make


LOSSES = ("kl", "nll", "mse")


def _imitation(loss: str, temperature: float) -> Loss:
    """The loss between teacher and student by its name.

    Raises:
        RecipeError: there is none of this name, or it has no temperature.
    """
    if loss not in LOSSES:
        raise RecipeError(f"loss is one of {', '.join(LOSSES)}; not {loss!r}")
    if loss != "kl" and temperature != 1.0:
        raise RecipeError(f"a temperature belongs to loss='kl', not to {loss!r}; leave it at 1")
    kl: Loss = KL() if temperature == 1.0 else Sharpened(KL(), temperature)
    return {"kl": kl, "nll": CrossEntropy(hard=True), "mse": Squared()}[loss]


def _term(teacher: External | Generation, loss: Loss, weight: float | Schedule) -> Term:
    return Term(teacher, loss, VISITED, weight=weight, reduction=PerRow())


def _values(teacher: External | Generation, weight: float, share: float) -> dict[str, BaseTerm]:
    """The term that distils the teacher's values, where it has a weight."""
    if not weight:
        return {}
    return {"value": Term(teacher, Squared(), VISITED, "values", weight=Release(weight, share))}


def _named(teacher: Any) -> str | None:
    return teacher if isinstance(teacher, str) else None


@_recipe
def kickstart(
    teacher: Any = None,
    weight: Positive = 1.0,
    release: Share = 0.25,
    steps: Extras = 100,
    temperature: Positive = 1.0,
    value: NonNegative = 0.0,
    warm_up: Extras = 0,
) -> PolicyMethod:
    """Kickstarting: a fresh policy learns from reward and, at first, from a teacher on the states that it visits.

    Equation::

        L = L_engine + w(t) KL(pi_T(.|s) || pi_S(.|s)) + v(t) (V_T(s) - V_S(s))^2
        w(t) = w max(0, 1 - t / release),  v(t) likewise
        after each update of the engine round(steps w(t) / w) steps on these terms alone, by an Adam of their own

    Args:
        teacher: An SB3 zip, a run folder, an SB3 model or a module.
        weight: Weight w of the teacher's term at the start.
        release: Share of the training after which the teacher is let go, in [0, 1].
        steps: Extra distillation steps after an update, at full weight, on the last 8 rollouts.
        temperature: Temperature of the teacher alone; below 1 it is sharpened.
        value: Weight v of the squared distance of the values, for a teacher with a critic of the same reward.
        warm_up: First rollouts in which the reward teaches the critic alone.

    Returns:
        The recipe.

    Needs: a trained policy.

    Departs: The extra steps are this package's: without them the number of gradient steps is the bottleneck.

    Source: Schmitt et al., Kickstarting Deep Reinforcement Learning, 2018 (arXiv 1803.03835).

    >>> kickstart("teacher.zip").terms["teacher"].weight
    Release(weight=1.0, share=0.25)
    """
    source = External(source=_named(teacher))
    terms: dict[str, BaseTerm] = {"teacher": _term(source, _imitation("kl", temperature), Release(weight, release))}
    method = Method(terms | _values(source, value, release))
    return PolicyMethod(method, PolicyTraining(steps, warm_up=warm_up), teacher)


@_recipe
def privileged(
    teacher: Any = None,
    sees: Any = "state",
    weight: Positive = 1.0,
    release: Share = 0.5,
    steps: Extras = 100,
    temperature: Positive = 0.5,
    warm_up: Extras = 0,
) -> PolicyMethod:
    """Privileged teacher: a policy that sees more of the state teaches one that sees less, on the student's states.

    Equation::

        L = L_engine + w(t) KL(pi_T(.|s, o) || pi_S(.|o)),  w(t) = w max(0, 1 - t / release)
        after each update of the engine round(steps w(t) / w) steps on KL alone, by an Adam of their own

    Args:
        teacher: As of `kickstart`; without one a run trains it first, on everything that the environment shows.
        sees: Keys of the Dict observation that the teacher alone sees, parted by commas; or an ObservationWrapper
            through which it looks at an environment that has one kind of observation.
        weight: Weight w of the teacher's term at the start.
        release: Share of the training after which the teacher is let go, in [0, 1].
        steps: Extra distillation steps after an update, at full weight, on the last 8 rollouts.
        temperature: Temperature of the teacher alone; below 1 it is sharpened.
        warm_up: First rollouts in which the reward teaches the critic alone.

    Returns:
        The recipe.

    Needs: observations of which the student is to do without a part.

    Departs: The teacher is sharpened and let go later than in `kickstart`; both were chosen on two seeds of a CartPole
    without velocities.

    Source: Chen et al., Learning by Cheating, CoRL 2019; with reward beside it, as Schmitt et al., 2018.

    >>> privileged(sees="state").terms["teacher"].teacher
    External(view='teacher', source=None)
    """
    source = External(view=TEACHER_VIEW, source=_named(teacher))
    method = Method({"teacher": _term(source, _imitation("kl", temperature), Release(weight, release))})
    return PolicyMethod(method, PolicyTraining(steps, warm_up=warm_up), teacher, sees)


STATES = {"student": 0.0, "mixed": 0.5, "teacher": 1.0}


@_recipe
def policy_distillation(
    teacher: Any = None, states: str = "student", loss: str = "kl", temperature: Positive = 1.0, steps: Extras = 100
) -> PolicyMethod:
    """Policy distillation: a policy, mostly smaller, imitates a teacher; reward teaches its critic alone.

    Equation::

        L = KL(pi_T || pi_S)  or  -log pi_S(argmax pi_T)  or  |pi_T - pi_S|^2,  on states of teacher, student or both

    Args:
        teacher: As of `kickstart`.
        states: Who acts: ``student``, ``teacher``, or ``mixed``, each with probability 1/2 at every step.
        loss: ``kl``; ``nll`` of the action that the teacher prefers; or ``mse`` of probabilities, or of the means of
            continuous actions, which leaves the teacher's noise out.
        temperature: Temperature of the teacher alone, for ``kl``; below 1 it is sharpened.
        steps: Extra distillation steps after each rollout, on the last 8.

    Returns:
        The recipe.

    Needs: a trained policy.

    Departs: The paper distils Q-values, whose squared distance is of the values; here it is of probabilities or means.

    Source: Rusu et al., Policy Distillation, ICLR 2016; whose states: Czarnecki et al., Distilling Policy
    Distillation, AISTATS 2019.

    >>> policy_distillation(states="teacher").training.teacher_acts
    1.0
    """
    if states not in STATES:
        raise RecipeError(f"states is one of {', '.join(STATES)}; not {states!r}")
    method = Method({"teacher": _term(External(source=_named(teacher)), _imitation(loss, temperature), 1.0)})
    return PolicyMethod(method, PolicyTraining(steps, reward=False, teacher_acts=STATES[states]), teacher)


@_recipe
def dagger(teacher: Any = None, share: Share = 0.25, steps: Extras = 100) -> PolicyMethod:
    """DAgger: the student acts more and more, and learns the teacher's actions on the states visited so far.

    Equation::

        L = -log pi_S(argmax pi_T | s),  s from the rollouts of the last 50,000 steps
        the teacher acts with probability b(t) = max(0, 1 - t / share)

    Args:
        teacher: As of `kickstart`.
        share: Share of the training after which the student alone acts, in [0, 1].
        steps: Steps after each rollout.

    Returns:
        The recipe.

    Needs: a trained policy.

    Departs: The share falls on a line within the training, and the student is not trained anew on the aggregate.

    Source: Ross, Gordon and Bagnell, A Reduction of Imitation Learning and Structured Prediction to No-Regret Online
    Learning, AISTATS 2011, algorithm 3.1.

    >>> dagger().training.rollouts
    0
    """
    method = Method({"teacher": _term(External(source=_named(teacher)), CrossEntropy(hard=True), 1.0)})
    training = PolicyTraining(steps, rollouts=0, reward=False, teacher_acts=Release(1.0, share))
    return PolicyMethod(method, training, teacher)


@_recipe
def born_again_policy(generations: Count = 2, release: Share = 0.25, steps: Extras = 100) -> PolicyMethod:
    """Born-again policies: each generation is a fresh policy that the one before kickstarts; an audit decides.

    Equation::

        generation 0:  L = L_engine
        generation k:  L = L_engine + w(t) KL(pi_{k-1} || pi_k),  w(t) = max(0, 1 - t / release)

    Args:
        generations: Number of trainings, the first included; they share the environment steps.
        release: Share of a generation after which the one before is let go, in [0, 1].
        steps: Extra distillation steps after an update, at full weight.

    Returns:
        The recipe.

    Source: Furlanello et al., Born-Again Neural Networks, ICML 2018, for policies.

    >>> born_again_policy(3).generations
    3
    """
    method = Method({"past": _term(Generation(), KL(), Release(1.0, release))}, generations=generations)
    return PolicyMethod(method, PolicyTraining(steps))


@_recipe
def iter_policy(generations: Count = 2, first: Share = 0.5, value: NonNegative = 0.5) -> PolicyMethod:
    """ITER: a fresh policy is trained on the rollouts of its teacher, which acts and learns on; then it takes over.

    Equation::

        phase 0:  L = L_engine
        phase k:  L = L_engine(teacher) + L_engine(student) + a(t) [KL(pi_T || pi_S) + v (V_T - V_S)^2],  a = 1 - t

    The student has advantages of its own values, and its ratio is against the policy that acted.

    Args:
        generations: Number of policies, the first included, 2 or more.
        first: Share of the environment steps that the first phase has; the others share the rest.
        value: Weight v of the values.

    Returns:
        The recipe.

    Departs: Teacher and student have an Adam each, with the same settings, where the authors have one over both.

    Source: Igl et al., Transient Non-Stationarity and Generalisation in Deep Reinforcement Learning, ICLR 2021.

    >>> iter_policy().training.parallel
    True
    """
    if generations < 2:
        raise RecipeError(f"iter_policy replaces a policy, so it has 2 generations or more, not {generations}")
    terms: dict[str, BaseTerm] = {"past": _term(Generation(), KL(), Release(1.0, 1.0))}
    method = Method(terms | _values(Generation(), value, 1.0), generations=generations)
    return PolicyMethod(method, PolicyTraining(parallel=True, first=first))


@_recipe
def self_imitation(
    weight: Positive = 0.1, steps: Extras = 10, rows: Count = 512, value: NonNegative = 0.01
) -> PolicyMethod:
    """Self-imitation: actions taken in the past are labels, where the return surpassed the value.

    Equation::

        L = L_engine;  after each update steps on  w [-log pi(a|s) clip(R - V(s), 0, 1) + v max(R - V(s), 0)^2 / 2]

    Args:
        weight: Weight w.
        steps: Steps after each update of the engine, by an Adam of their own.
        rows: Rows of a step, drawn evenly from the finished episodes of the last 50,000 environment steps.
        value: Weight v of the values, which are raised alone.

    Returns:
        The recipe.

    Departs: All finished episodes are stored, where the authors' code keeps those with a positive reward, of which
    many environments have none; rows are drawn evenly, and their gate takes the place of the priorities; the sum is
    divided by all rows, where their code divides by those with R > V; -log pi is not clipped.

    Source: Oh et al., Self-Imitation Learning, ICML 2018, equations 1 to 3.

    >>> self_imitation().terms["actions"].gate
    Surpassed(most=1.0)
    """
    terms: dict[str, BaseTerm] = {
        "actions": Term(ActionsTaken(), CrossEntropy(), EPISODES, gate=Surpassed(), weight=weight, reduction=PerRow())
    }
    if value:
        terms["value"] = Term(Returns(), SquaredShortfall(), EPISODES, "values", weight=weight * value)
    return PolicyMethod(Method(terms), PolicyTraining(steps, rows))


@_recipe
def policy_peers(members: Count = 3, release: Share = 0.25, steps: Extras = 100) -> PolicyMethod:
    """Peers: several policies learn apart, and their mean kickstarts one product.

    Equation::

        policies 1 to M:  L = L_engine, each from its own start
        the product:      L = L_engine + w(t) KL(mean_m pi_m || pi),  w(t) = max(0, 1 - t / release)

    Args:
        members: Number M of policies beside the product, 2 or more; all M + 1 share the environment steps.
        release: Share of the product's training after which the peers are let go, in [0, 1].
        steps: Extra distillation steps after an update, at full weight.

    Returns:
        The recipe.

    Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, section 2, for policies.

    >>> policy_peers().training.members
    3
    """
    if members < 2:
        raise RecipeError(f"peers are 2 or more, not {members}")
    method = Method({"peers": _term(Generation(), KL(), Release(1.0, release))})
    return PolicyMethod(method, PolicyTraining(steps, members=members))


@_recipe
def continued(teacher: Any = None) -> PolicyMethod:
    """Control: the teacher itself goes on training on the reward, where observation and network are the same.

    Equation::

        L = L_engine,  from the teacher's weights

    Args:
        teacher: As of `kickstart`.

    Returns:
        The recipe.

    Needs: a trained policy.

    Source: the control that restarts are to beat; here none did.

    >>> continued("teacher.zip").training.start
    'teacher'
    """
    return PolicyMethod(training=PolicyTraining(start="teacher"), teacher=teacher)


@_recipe
def restarted(matched: bool = False) -> PolicyMethod:
    """Control: a fresh policy learns from the reward alone.

    Equation::

        L = L_engine

    Args:
        matched: Whether the engine gets more epochs, so that it takes as many gradient steps as the method with its
            extra steps.

    Returns:
        The recipe.

    Source: the control of every paper; matched gradient steps are what most of them leave out.

    >>> restarted(matched=True).training.matched
    True
    """
    return PolicyMethod(training=PolicyTraining(matched=matched))


_TAUGHT = (kickstart, privileged, policy_distillation, dagger)
_UNTAUGHT = (born_again_policy, iter_policy, self_imitation, policy_peers)
RECIPES: dict[str, Callable[..., PolicyMethod]] = {
    recipe.__name__: recipe for recipe in (*_TAUGHT, *_UNTAUGHT, continued, restarted)
}


def read_recipe(expression: str) -> PolicyMethod:
    """A recipe's expression, such as ``kickstart("teacher.zip")``, read without evaluating code.

    Args:
        expression: The call of a recipe with literals as arguments.

    Raises:
        RecipeError: It is malformed, or names an unknown recipe or argument.

    >>> read_recipe('kickstart("teacher.zip")').teacher
    'teacher.zip'
    """
    recipe = parse_expression(expression, RECIPES)
    assert isinstance(recipe, PolicyMethod)
    return recipe


def card(name: str, recipe: PolicyMethod | None = None) -> dict[str, Any]:
    """A recipe's docstring and choices as data; of a method that it made, or of what it makes by default."""
    recipe = recipe or RECIPES[name]()
    return {
        **describe(name, RECIPES[name]),
        "for": "policies",
        "targets": "actions",
        "training": repr(recipe.training),
        "terms": {name: repr(term) for name, term in recipe.terms.items()},
        "generations": recipe.generations,
        "cost": {},
    }


def explain(expression: str) -> dict[str, Any]:
    """The card of a recipe as an expression makes it.

    Raises:
        RecipeError: there is no such recipe.
    """
    return {**card(expression_name(expression), read_recipe(expression)), "expression": expression}


def text(card: dict[str, Any]) -> str:
    """The same for people."""
    lines = [
        card["expression"],
        card["summary"],
        "",
        *("    " + line for line in card["equation"].splitlines()),
        "",
        *(f"{name:<13}{term}" for name, term in card["terms"].items()),
        f"training:    {card['training']}; {card['generations']} generation(s)",
        f"needs:       {card['needs']}",
        *([f"departs:     {card['departs']}"] if card["departs"] else []),
        f"source:      {card['source']}",
        *argument_lines(card["arguments"]),
    ]
    return "\n".join(lines)
