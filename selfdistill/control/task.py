"""The task type of policies in environments. gymnasium and stable-baselines3 are imported when one is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, DataError, RecipeError
from ..io.display import change
from ..io.expressions import expression_name, nearest
from ..io.run_record import ENVIRONMENT, SCRIPT, WRITERS, Lines, Request, read_lines
from ..methods.registry import AUTO, is_auto
from ..models.store import POLICY
from ..training.comparison import ComparisonDesign
from ..training.task_type import Answers, Cost, Predictor, Rows, TaskType, refuse_example
from . import recipes

if TYPE_CHECKING:
    from .run import ControlRun

OPTIONS = ("net", "sees", "teacher", "episodes", "engine", "deployment")
PACKAGES = ("gymnasium", "stable_baselines3", "sb3_contrib")

#: The vitals of policies, in words.
VITALS = {
    "steps": "steps",
    "return": "return",
    "entropy": "entropy",
    "kl": "KL of an update",
    "teacher_kl": "KL to the teacher",
    "value_loss": "value error",
    "explained_variance": "explained variance",
    "dormant": "dormant units",
}


def require_packages() -> None:
    """Refuse environments without the packages that serve them.

    Raises:
        DataError: one is missing.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise DataError(
            f"environments need the package {missing[0].replace('_', '-')}; install it by "
            "pip install 'selfdistill[control]'"
        )


class ControlTaskType(TaskType):
    """Policies that learn in an environment of gymnasium."""

    name, learner, title = "control", "policies", "For policies"
    about = "Policies in environments of gymnasium, trained by PPO or A2C of stable-baselines3."
    control = recipes.RESTARTED
    unit = "episodes"
    model_file = POLICY

    def recipes(self) -> Mapping[str, Callable[..., Any]]:
        return recipes.RECIPES

    def design(self) -> type[ComparisonDesign]:
        require_packages()
        from .comparison import PolicyDesign

        return PolicyDesign

    def serves(self, request: Request) -> bool:
        """Data that begin with ``gym:``.

        Raises:
            DataError: an option has a meaning for environments alone, and the data are none.
        """
        environment = request.data.startswith(ENVIRONMENT)
        if environment and request.engine in WRITERS:
            raise DataError(f"--engine {request.engine} has a meaning for prompts alone; leave it out")
        for name in OPTIONS:
            value = getattr(request, name)
            if not environment and value not in (None, *WRITERS):
                option = "sampled" if name == "deployment" else name
                raise DataError(f"--{option} has a meaning for environments (gym:ID) alone; leave it out")
        return environment

    def prepare(self, request: Request) -> ControlRun:
        require_packages()
        from .run import prepare

        name = None if request.method is None else expression_name(request.method)
        if name is not None and name not in (AUTO, *recipes.RECIPES):
            close = nearest(name, [AUTO, *recipes.RECIPES])
            raise RecipeError(
                f"{name}() is no recipe for policies; {f'nearest: {close}' if close else ', '.join(recipes.RECIPES)}"
            )
        return prepare(request)

    def code(self, request: Request) -> list[tuple[str, str]]:
        """What registers the environment, and the wrapper of the teacher's view."""
        require_packages()
        from .environments import Environment

        named = request.method is not None and not is_auto(request.method)
        own = recipes.read_recipe(str(request.method)).sees if named else None
        return [*Environment.of(request.data, request.sees).code(), *Environment.of(request.data, own).code()]

    def card(self, name: str) -> dict[str, Any]:
        return recipes.card(name)

    def text(self, card: dict[str, Any]) -> str:
        return recipes.text(card)

    def explain(self, expression: str, example: str | None = None) -> dict[str, Any]:
        refuse_example(expression, example)
        return recipes.explain(expression)

    def predictor(self, folder: Path) -> Predictor:
        """Refused: an environment has no data to predict."""
        raise DataError(f"{folder} trained a policy, which plays episodes; leave DATA out and give --episodes 20")

    def play(self, folder: Path, request: Request, count: int, video: Path | None) -> Answers:
        require_packages()
        from .run import play_episodes

        return play_episodes(folder, request, count, video)

    def label_errors(self, folder: Path, top: int | None = None) -> dict[str, Any]:
        """Refused: an environment has no labels."""
        raise CheckpointError(f"{folder} trained a policy, which has no labels")

    def vitals(self, folder: Path) -> dict[str, Any]:
        """Entropy, KL, value error and dormant units by rollout."""
        several = sorted(folder.glob("generations/*/metrics.jsonl"))
        lines = read_lines(several[-1] if several else folder / "metrics.jsonl")
        if not lines:
            raise CheckpointError(f"{folder} has no vitals yet; resume the run")
        return {"rollouts": [line["control"] for line in lines if "control" in line]}

    def vitals_text(self, vitals: dict[str, Any]) -> str:
        """Ten rollouts, evenly spread, and what looks like a collapse."""
        rollouts = vitals["rollouts"]
        chosen = [rollouts[i * (len(rollouts) - 1) // 9] for i in range(10)] if len(rollouts) > 10 else rollouts
        names = {key: name for key, name in VITALS.items() if any(one.get(key) is not None for one in chosen)}
        rows = [[_cell(key, one.get(key)) for key in names] for one in chosen]
        widths = [max(len(name), *(len(row[i]) for row in rows)) for i, name in enumerate(names.values())]
        lines = [[*names.values()], *rows]
        text = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        return "\n".join([*text, *_warnings(rollouts)])

    def rows(self, result: dict[str, Any]) -> Rows:
        """The arms."""
        return [(arm["name"], arm["scores"]) for arm in result["control"]["arms"]]

    def unfinished(self, record: dict[str, Any], folder: Path) -> str:
        """A training script's log has no result: its episodes are those of training."""
        if record["request"]["data"] == SCRIPT:
            return "The log of a training script: returns are those of training episodes."
        return super().unfinished(record, folder)

    def verdict(self, result: dict[str, Any]) -> str:
        """The mean return, and what stands beside it."""
        test, control = result["test"], result["control"]
        half = "" if test["half"] is None else f" ± {test['half']:.1f}"
        against = result.get("against") or {}
        text = (
            f"Mean return {test['return']:.1f}{half} on {result['data']['rows']['test']} fresh episodes with "
            f"{control['deployment']} actions, after {result['steps']:,} steps. One seed proves little."
        )
        for name in (recipes.MATCHED, recipes.RESTARTED, recipes.CONTINUED):
            if name in against:
                text += f" {_outcome(name, against[name]['test'])}"
        return f"{text} {control['note'][0].upper()}{control['note'][1:]}." if control["note"] else text

    def size(self, result: dict[str, Any], record: dict[str, Any], time: str) -> list[str]:
        settings = record["settings"]
        versions = ", ".join(f"{name} {number}" for name, number in settings["versions"].items())
        return [
            f"- policy: {result['model']}, {result['parameters']} parameters",
            f"- environment steps: {result['steps']}{time} in {settings['environments']} copies, seed {result['seed']}",
            f"- engine: {versions}",
        ]

    def data_line(self, data: dict[str, Any]) -> str:
        return f"{data['rows']['steps']} steps; {data['rows']['test']} test episodes, whose seeds training never had"

    def loading(self, folder: str) -> list[str]:
        return [
            "Make a model of stable-baselines3 of the policy:",
            "",
            "```python",
            "import gymnasium",
            "from selfdistill.control.store import to_sb3",
            f'model = to_sb3("{folder}", gymnasium.make("ID"))',
            "action, _ = model.predict(observation, deterministic=True)",
            "```",
            "",
        ]

    def cost(self, result: dict[str, Any]) -> Cost:
        """Environment steps, those of a teacher apart."""
        bars = []
        for arm in result["control"]["arms"]:
            scores = arm["scores"]
            words = f"{scores['env_steps']:,.0f} steps, {scores['updates']:,.0f} gradient steps"
            if teacher := scores.get("teacher_steps"):
                words += f"; its teacher took {teacher:,.0f}"
            bars.append((arm["name"], scores["env_steps"], words))
        return Cost(
            bars, "environment steps", "Environment steps of each training; those of its teacher are not in them."
        )

    def logs(self, result: dict[str, Any]) -> dict[str, str]:
        return {arm["name"]: arm["log"] for arm in result["control"]["arms"]}

    def returns(self, lines: Lines) -> list[tuple[float, float]]:
        """The mean return of the episodes that ended in a rollout, by environment steps."""
        rollouts = [line.get("control", {}) for line in lines]
        return [(float(one["steps"]), float(one["return"])) for one in rollouts if one.get("return") is not None]


def _outcome(name: str, figures: dict[str, Any]) -> str:
    """A paired difference of returns in words."""
    gain = change(figures["gain"], "" if figures["half"] is None else f" ± {figures['half']:.1f}")
    if figures["verdict"] is None:
        return f"Against {name}: {gain}, too few episodes for a verdict."
    word = {"LOSES": "LOSES to"}.get(figures["verdict"], figures["verdict"])
    return f"It {word} {name} ({gain} on the same episodes)."


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if key == "steps" else f"{100 * value:.0f} %" if key == "dormant" else f"{value:.4g}"


def _warnings(rollouts: list[dict[str, Any]]) -> list[str]:
    """What looks like a collapse: dormant units, or a value that explains nothing at the end."""
    warnings, last = [], rollouts[-1]
    if last.get("dormant", 0.0) > 0.5:
        warnings.append(f"warning: {100 * last['dormant']:.0f} % of the hidden units are dormant; lower --lr")
    explained = [one["explained_variance"] for one in rollouts[-5:] if one.get("explained_variance") is not None]
    if explained and max(explained) < 0:
        warnings.append("warning: the value explains nothing of the returns in the last rollouts; give more --steps")
    return warnings
