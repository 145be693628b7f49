"""The task type of tables by learners of scikit-learn. scikit-learn is imported when a table is learnt, not before."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import sources
from ..data.frames import Frame
from ..data.row_cards import SIDE, RowCard, table_cards
from ..data.table_files import SHOWN, is_table
from ..errors import CheckpointError, DataError, RecipeError
from ..evaluation.label_errors import read_conflicts
from ..evaluation.label_next import Committee
from ..io.expressions import expression_name, nearest
from ..io.run_record import Request, read_record
from ..methods import recipes as network_recipes
from ..methods.registry import AUTO
from ..models.store import ESTIMATOR
from ..training.comparison import ComparisonDesign
from ..training.task_type import (
    Cost,
    FigureTable,
    FoldTrial,
    GenerationCurve,
    Listeners,
    Predictor,
    Rows,
    TaskType,
    generation_name,
    refuse_example,
)
from . import base_learners, recipes
from .base_learners import NETWORKS

if TYPE_CHECKING:
    from .run import TableRun


class TableTaskType(TaskType):
    """Tables learnt by learners of scikit-learn, which teach themselves or each other."""

    name, learner, title = "learner", "learners", "For learners on tables"
    about = "Gradient boosting, forests and any other estimator of scikit-learn."
    equal_steps, searched, cross_examined, quick = False, True, True, "1min"
    model_file = ESTIMATOR

    def recipes(self) -> Mapping[str, Callable[..., recipes.EstimatorRecipe]]:
        return recipes.recipes()

    def serves(self, request: Request) -> bool:
        """Tables, unless a network or its recipe is named.

        Raises:
            RecipeError, DataError: both are asked for, or a learner on images.
        """
        if request.text is not None:  # read by an encoder
            return False
        table = (
            is_table(request.data, request.target is not None or request.annotators is not None)
            or request.data in sources.TABLES
        )
        model, method = request.model, None if request.method is None else expression_name(request.method)
        learner = model is not None and (
            base_learners.is_named(model) or base_learners.from_function(model) is not None
        )
        known = method is not None and method in self.recipes()
        networks = {*network_recipes(), AUTO}
        ours = known and method not in networks  # plain() and auto() are both
        if table and method is not None and not known and method not in networks:
            close = nearest(method, [*self.recipes(), *networks])
            raise RecipeError(
                f"unknown method {method!r}; {f'nearest: {close}. ' if close else ''}`selfdistill methods` lists them"
            )
        if not table:
            if learner or ours:
                raise DataError(
                    f"{request.data}: {model if learner else request.method} learns tables, and this is none; give "
                    f"one ({SHOWN}), or leave it out"
                )
            return False
        if learner and method is not None and not known:
            raise RecipeError(
                f"{method}() trains networks and {model} is a learner of scikit-learn; give one of "
                f"{', '.join(f'{name}()' for name in self.recipes())}, or --model {NETWORKS}"
            )
        if ours and model is not None and not learner:
            raise RecipeError(
                f"{method}() is for learners of scikit-learn and {model} is a network; give one of "
                f"{', '.join(base_learners.LEARNERS)} as --model, or a recipe for networks"
            )
        return learner or (model is None and (method in (None, AUTO) or ours))

    def design(self) -> type[ComparisonDesign]:
        from .comparison import TableDesign

        return TableDesign

    def prepare(self, request: Request) -> TableRun:
        from .run import prepare

        return prepare(request)

    def usual_recipe(self, request: Request) -> str:
        return AUTO

    def cross_fitted(self, request: Request) -> TableRun:
        from .run import prepare

        return prepare(request)

    def trial(self, request: Request, folds: int, folder: Path, listeners: Listeners) -> FoldTrial:
        from .run import prepare

        ready = prepare(request)
        return lambda fold: ready.held_out(fold, folds, folder / str(fold))

    def card(self, name: str) -> dict[str, Any]:
        return recipes.card(name)

    def explain(self, expression: str, example: str | None = None) -> dict[str, Any]:
        refuse_example(expression, example)
        return recipes.explain(expression)

    def text(self, card: dict[str, Any]) -> str:
        return recipes.text(card)

    def predictor(self, folder: Path) -> Predictor:
        from .run import TablePredictor

        return TablePredictor(folder)

    def label_errors(self, folder: Path, top: int | None = None) -> dict[str, Any]:
        """As of any task type; of too few or too many rows only equal ones with different labels are listed."""
        result = read_record(folder / "run.json")[0].get("result", {})
        if result and result.get("label_errors", {}) is None:
            if conflicts := read_conflicts(folder, top):
                return conflicts
            raise CheckpointError(
                f"{folder} has too few labelled rows, or too many, to leave some out; give --model mlp"
            )
        return super().label_errors(folder, top)

    def row_cards(self, request: Request, data: Frame, ids: Sequence[int], side: int = SIDE) -> dict[int, RowCard]:
        """The cells of rows."""
        return table_cards(request.data, data.row_names.counts, ids, target=request.target)

    def committee(self, folder: Path, request: Request) -> Committee:
        from .run import committee

        return committee(folder, request)

    def vitals(self, folder: Path) -> dict[str, Any]:
        """Refused: a learner takes no steps."""
        raise CheckpointError(
            f"{folder} trained a learner of scikit-learn, which has no steps to look at; its audit is in "
            f"`selfdistill report {folder}`"
        )

    def rows(self, result: dict[str, Any]) -> Rows:
        """The learner alone, and the final model where it is another one."""
        plain = result["plain"]
        table = [(self.baseline(result), plain["end"])]
        if plain["from"] == "method":
            return table
        auto = result.get("auto")
        name = generation_name(result, {"generation": result["final_generation"]})
        if auto is not None:
            name = next(trial["method"] for trial in auto["tried"] if trial["chosen"])
        return [*table, (f"{result['method']}, {name}", result["test"])]

    def baseline(self, result: dict[str, Any]) -> str:
        return f"{result['model']} alone"

    def size(self, result: dict[str, Any], record: dict[str, Any], time: str) -> list[str]:
        return [f"- model: {result['model']}", f"- trainings: {result['steps']}{time}, seed {result['seed']}"]

    def loading(self, folder: str) -> list[str]:
        return [
            "Load the model without the training code:",
            "",
            "```python",
            "from selfdistill.estimators import load",
            f'model = load("{folder}/{ESTIMATOR}")',
            "model.predict(frame)  # the columns without the target, in their order; classes by name",
            "```",
            "",
        ]

    def curves(self, result: dict[str, Any]) -> Sequence[GenerationCurve]:
        """The metric of generations on labelled rows that they had not learnt from, where the audit asked them."""
        audited = [g for g in result["generations"] if g.get("loss") is not None]
        if not audited or "auto" in result:
            return []
        classify = audited[0]["measure"] == "accuracy"
        metric = "accuracy" if classify else "RMSE"
        points = [(g["generation"], 1 - g["loss"] if classify else g["loss"] ** 0.5) for g in audited]
        caption = f"{metric[0].upper()}{metric[1:]} of each generation on labelled rows that it had not learnt from."
        return [GenerationCurve(metric, points, caption)]

    def tables(self, result: dict[str, Any]) -> Sequence[FigureTable]:
        """How much of the stack's gain one student keeps, and its size and speed, where there is one."""
        auto = result.get("auto", {})
        if "kept" not in auto:
            return []
        form, scale = (".1f", 100.0) if auto["measure"] == "accuracy" else (".4g", 1.0)
        scores = [f"{scale * auto['test'][name]:{form}}" for name in ("stack", "student")]
        kept = "-" if auto["kept"] is None else f"{100 * auto['kept']:.0f} %"
        row = [*scores, kept, f"{auto['prediction_time']:.1f} x", f"{auto['file_size']:.1f} x"]
        head = ("the stack", "its student", "share of the stack's gain kept", "prediction time", "file size")
        caption = "On the test split; time and size of the student beside those of the learner alone."
        return [FigureTable("One student in place of the stack", head, [row], caption)]

    def cost(self, result: dict[str, Any]) -> Cost:
        """Trainings."""
        time = f"{result['steps']} trainings, {result['seconds']} s"
        bars = [(result["method"], result["steps"], time), (self.baseline(result), 1, "1 training")]
        return Cost(bars, "trainings", "Trainings of all learners: peers and the folds of the audit too.")
