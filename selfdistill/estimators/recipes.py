"""Recipes for learners on tables, read from the command line like those of networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from ..errors import RecipeError
from ..io.expressions import Count, Range, checked, parse_expression
from ..methods.registry import AUTO

AUTO_TRAININGS = 21  # of auto() with few labelled rows: three learners by folds, two forests and a student


@dataclass(frozen=True)
class EstimatorRecipe:
    """A recipe for learners: its name, and the options of the estimator that it stands for."""

    name: str
    options: tuple[tuple[str, Any], ...] = ()

    def ablated(self, both: bool = False) -> EstimatorRecipe | None:
        """The recipe without peers, so that a learner's own predictions teach it, or with the mean of ``both``.

        Returns:
            The recipe; None where no peer teaches.

        >>> dict(peer_taught().ablated().options)
        {'generations': 2, 'peers': None}
        """
        options = dict(self.options)
        if self.name in ("plain", AUTO) or (self.name != "peer_taught" and options["peers"] is None):
            return None
        options |= {"include_self": True} if both else {"peers": None}
        return EstimatorRecipe(self.name, tuple(options.items()))

    def make(self, learner: Any, peers: Any, classify: bool, **more: Any) -> Any:
        """The estimator around a learner; ``peers`` are the usual ones for such a table.

        Raises:
            RecipeError: the recipe is not for this task.
        """
        from .. import estimators

        if self.name == "plain":
            return learner
        if self.name == AUTO:
            return self._automatic(learner, classify, **more)
        options = {**dict(self.options), **more}
        if options.get("peers") == "usual":
            options["peers"] = peers
        if self.name == "self_trained":
            if not classify:
                raise RecipeError(
                    "self_trained() chooses labels by confidence, and predicted values have none; use peer_taught()"
                )
            return estimators.SelfTrainedClassifier(learner, **options)
        if self.name == "peer_taught" and not classify and "peers" not in options:
            return estimators.PeerTaughtRegressor(learner, **{**options, "peers": peers})
        if self.name == "peer_taught":
            synthetic = {} if classify else {"synthetic": "auto"}
            options = {"xi": 0.0, "peers": peers, **synthetic, **options}
        xi = options["xi"]
        if isinstance(xi, str) and xi != "auto":
            raise RecipeError(f"xi is a number or 'auto', not {xi!r}")
        if classify and xi != "auto" and not 0 <= xi <= 1:
            raise RecipeError(
                f"xi is {xi:g}, and a cross-entropy with a target outside [0, 1] has no minimum: the loss would fall "
                "without bound; give xi from 0 to 1, or 'auto' (of values any xi has a minimum)"
            )
        kind = estimators.SelfDistilledClassifier if classify else estimators.SelfDistilledRegressor
        return kind(learner, **options)

    def _automatic(self, learner: Any, classify: bool, **more: Any) -> Any:
        from .. import estimators
        from .auto import PRODUCTS

        options = dict(self.options)
        if options["product"] not in PRODUCTS:
            raise RecipeError(f"product is one of {', '.join(PRODUCTS)}, not {options['product']!r}")
        if more.pop("audit", "safe") != "safe":
            raise RecipeError("auto() chooses by rows held out; leave --audit out, or name a recipe")
        kind = estimators.AutoClassifier if classify else estimators.AutoRegressor
        return kind(learner, **options, **more)


def auto(product: str = "best", synthetic: Annotated[int, Range(0, limit=10**6)] = 2000) -> EstimatorRecipe:
    """The choice among learners, their stack and students of it, by labelled rows held out.

    Equation::

        s = sum_j w_j f_j,  w >= 0 fitted out of fold;  student: s on unlabelled and synthetic rows, (s + y) / 2 else

    Args:
        product: "best": the stack, its student or the mean of both; "single": the student, one learner's size and
            speed; "stack": the stack, undistilled. The learner alone where nothing is better.
        synthetic: Rows made of two others' columns that the stack labels for the student.

    Returns:
        The recipe.

    Source: Breiman, Stacked Regressions, 1996; Bucila, Caruana and Niculescu-Mizil, Model Compression, KDD 2006.
    """
    return EstimatorRecipe(AUTO, (("product", product), ("synthetic", synthetic)))


def plain() -> EstimatorRecipe:
    """Supervised training of the learner on the labels: the baseline.

    Returns:
        The recipe.

    Source: the control of every paper.
    """
    return EstimatorRecipe("plain")


def self_distilled(
    generations: Count = 2, xi: float | str = "auto", peers: str | int | None = "usual"
) -> EstimatorRecipe:
    """Self-distillation: each generation learns the labels mixed with predictions of peers or of the last generation.

    Equation::

        t = xi f(x) + (1 - xi) y  on labelled rows,  t = f(u)  on unlabelled ones;  f: the mean of the others

    Args:
        generations: Number of trainings one after another; the first learns the labels alone.
        xi: Weight of the predictions; "auto" chooses it, also 0, by cross-validation.
        peers: Learners whose mean prediction f is: "usual" (extremely randomised trees and a linear model), a number of
            copies, or None, with which f is the last generation.

    Returns:
        The recipe.

    Source: Mobahi, Farajtabar and Bartlett, NeurIPS 2020; xi by Dang, Patil and Rinaldo, ICML 2026.
    """
    return EstimatorRecipe("self_distilled", (("generations", generations), ("xi", xi), ("peers", peers)))


def peer_taught(generations: Count = 2) -> EstimatorRecipe:
    """Co-training: learners of different kinds label the unlabelled rows for each other.

    Equation::

        f_m learns (x, y) on labelled rows and (u, mean of f_j(u) over j != m) on unlabelled ones

    Args:
        generations: Number of trainings one after another; the first learns the labels alone.

    Returns:
        The recipe.

    Needs: unlabelled rows.

    Source: Krogh and Vedelsby, NIPS 1994, equation 6.
    """
    return EstimatorRecipe("peer_taught", (("generations", generations),))


def self_trained(
    generations: Count = 6,
    hard: bool = True,
    balanced: bool = True,
    calibrate: bool = True,
    peers: str | int | None = None,
) -> EstimatorRecipe:
    """Curriculum labelling: self-training on the most confident pseudo-labels, more of them in each stage.

    Equation::

        f_s learns (x, y) and (u, argmax p(u)) for the most confident s / S of the rows, of each class as many

    Args:
        generations: Number S of stages after the first, which learns the labels alone.
        hard: Learn the most probable class of a row, and not its probabilities.
        balanced: Take as many rows of each class.
        calibrate: Choose rows by calibrated probabilities.
        peers: Learners that label together with this one: "usual", a number of copies, or None.

    Returns:
        The recipe.

    Needs: unlabelled rows; classes.

    Source: Cascante-Bonilla et al., Curriculum Labeling, AAAI 2021, algorithm 1.
    """
    options = {"generations": generations, "hard": hard, "balanced": balanced, "calibrate": calibrate, "peers": peers}
    return EstimatorRecipe("self_trained", tuple(options.items()))


def recipes() -> dict[str, Callable[..., EstimatorRecipe]]:
    """All of them by name.

    >>> sorted(recipes())
    ['auto', 'peer_taught', 'plain', 'self_distilled', 'self_trained']
    """
    return {recipe.__name__: checked(recipe) for recipe in (auto, peer_taught, plain, self_distilled, self_trained)}


def card(name: str) -> dict[str, Any]:
    """A recipe as `selfdistill methods` lists it; ``cost`` counts trainings of the learner without folds and peers."""
    from ..methods.cards import describe

    default = recipes()[name]()
    trainings = dict(default.options).get("generations", 1)
    return {
        **describe(name, recipes()[name]),
        "targets": "classes" if name == "self_trained" else "classes, values",
        "for": "learners",
        "cost": {"trainings": trainings if name != AUTO else AUTO_TRAININGS},
        "generations": trainings,
    }


def read_recipe(expression: str) -> EstimatorRecipe:
    """A recipe from its expression, such as ``self_distilled(xi=0.5)``, read without evaluating code.

    >>> read_recipe("peer_taught(generations=3)")
    EstimatorRecipe(name='peer_taught', options=(('generations', 3),))
    """
    recipe = parse_expression(expression, recipes())
    assert isinstance(recipe, EstimatorRecipe)
    return recipe


def explain(expression: str) -> dict[str, Any]:
    """Everything `selfdistill explain` prints of a recipe."""
    recipe = read_recipe(expression)
    return {**card(recipe.name), "expression": expression, "options": dict(recipe.options)}


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    from ..methods.cards import argument_lines
    from .auto import AUDITABLE

    options = ", ".join(f"{name} = {value}" for name, value in found["options"].items())
    cost = "each training once more for every fold that audits it, and for every peer"
    if found["name"] == AUTO:
        cost = (
            f"{AUTO_TRAININGS} trainings below {AUDITABLE} labelled rows, where forests are judged out of bag; else 36"
        )
    return "\n".join([
        found["expression"], found["summary"], "", *(f"    {line}" for line in found["equation"].splitlines()), "",
        f"options:     {options}", f"for:         {found['for']}, {found['targets']}", f"needs:       {found['needs']}",
        f"cost:        {cost}",
        f"source:      {found['source']}", *argument_lines(found["arguments"]),
    ])  # fmt: skip
