"""Task types (networks, tables by scikit-learn, language models) behind one protocol.

`run`, `compare`, `benchmark`, `explain` and the reports ask a `TaskType`, and none of them asks which one it is. A new
task type is a module with a class of this protocol, and its place in `experiments.task_types.TASK_TYPES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ..data.row_cards import SIDE, RowCard
from ..errors import CheckpointError, DataError, RecipeError
from ..evaluation import label_errors
from ..evaluation.cross_scores import CROSS_FIT, CrossScores
from ..evaluation.label_next import Committee
from ..io.expressions import expression_name, foreign_arguments
from ..io.run_record import Lines, Request, read_record
from ..models.store import CONFIG
from . import callbacks
from .comparison import ComparisonDesign

WORDS = {"labelled": "training", "audit": "validation"}  # of splits, for people
Rows = list[tuple[str, dict[str, float]]]  # names, and metrics on the test split


@dataclass(frozen=True)
class Listeners:
    """The listeners of a training: ``progress`` makes a reporter from a training's name (None: no reporter)."""

    progress: Callable[[str], Any]
    warn: Callable[[str], None]
    tell: Callable[[str], None]

    def warn_of(self, name: str) -> Callable[[str], None]:
        """``warn`` with the name of a training before each line."""
        return lambda line: self.warn(f"{name}: {line}")


class HeldOut(NamedTuple):
    """The mean loss on rows that a training left out, and what the training took."""

    loss: float
    passes: float
    seconds: float


FoldTrial = Callable[[int], HeldOut | None]  # trains without a fold of this number; None where there is none


class Described(Protocol):
    """Data with a description."""

    def describe(self) -> dict[str, Any]:
        """Name, task, classes, rows of each split, label noise and fingerprint, as run.json holds them."""


class PreparedRun(Protocol):
    """A run with every choice made: data loaded, recipe read, model and settings chosen."""

    request: Request
    expression: str
    settings: dict[str, Any]

    @property
    def data(self) -> Described:
        """The data with their splits."""

    @property
    def build(self) -> object:
        """The factory of the model; its text names it."""

    @property
    def note(self) -> str:
        """A notice about the data to print before training; mostly empty."""

    def threads(self) -> int:
        """The number of threads that suits model and data."""

    def train(self, folder: Path, listeners: Listeners) -> dict[str, Any]:
        """Train the method and its control, from wherever they were cut; then read the test split, once.

        Writes the final model into ``folder / "model"``.

        Returns:
            The result, as run.json holds it.
        """


class LabelledRows(NamedTuple):
    """Labelled rows of data: sample ids (rows,), labels (rows,), the classes, and groups (rows,) that share a fold."""

    ids: Tensor
    y: Tensor
    classes: Sequence[str]
    groups: Tensor | None


class CrossFittable(PreparedRun, Protocol):
    """A run that can be trained without some of its labelled rows, and scored by their predictions."""

    def labelled_rows(self) -> LabelledRows:
        """All labelled rows."""

    def without(self, held: Tensor) -> CrossFittable:
        """The run on the other rows, with these (rows,) as its test split."""

    def answers(self, folder: Path) -> Tensor:
        """What the final model in a folder predicts for the test rows: logits (rows, classes), or values (rows,)."""

    def scored_by(self, scores: CrossScores) -> PreparedRun:
        """The run whose final model learns from all labelled rows, with these scores in place of a test split."""


class Answers(Protocol):
    """The predictions of a finished run for new data; ``note`` tells what was left out of them."""

    @property
    def note(self) -> str: ...

    def text(self, raw: bool = False) -> str:
        """The answers as `selfdistill predict` writes them; ``raw`` cells of CSV may be formulas of a spreadsheet."""

    def records(self) -> list[dict[str, Any]]:
        """The answers as one mapping a row, of values that JSON has: what a service sends."""


class Predictor(Protocol):
    """A finished model that is kept in memory and answers new rows; `selfdistill.load` makes one."""

    def predict(self, rows: object, exit_number: int | None = None) -> Answers:
        """The model's predictions.

        Args:
            rows: A source as of `selfdistill predict`: the path of a table, of an image, of a folder of images or of
                prompts. Or rows in memory: a frame of pandas or polars, a mapping of columns, a list of records, of
                texts or of paths of images; or a tensor or array of what a network reads.
            exit_number: An early exit of a network, from 1, the shallowest; by default the deepest one answers.

        Returns:
            Classes with probabilities, values with 90 % intervals, or the texts that a language model writes.

        Raises:
            DataError: the rows do not fit the model, or it has no such exit.
        """

    def export(self, form: str, path: Path, rows: object = None) -> dict[str, Any]:
        """Write the model as a graph that other programs run, and beside it a JSON file of its preprocessing.

        Args:
            form: ``onnx``, or ``torch`` for the program of `torch.export`.
            path: The file of the graph; the description has the suffix ``.json``.
            rows: Rows that the graph is checked on, as for `predict` [the data of the run].

        Returns:
            The description.

        Raises:
            DataError: the model is no network, it has no such graph, or the rows cannot be read.
        """
        raise DataError(
            "export is for networks; a learner of scikit-learn and a language model are used by `selfdistill.load`, "
            "and a table is learnt by a network with --model mlp"
        )


class GenerationCurve(NamedTuple):
    """A metric by generation, to be drawn: ``points`` are pairs of a generation and its value."""

    metric: str
    points: list[tuple[float, float]]
    caption: str


class FigureTable(NamedTuple):
    """A table of a result that a report shows under a title: its head, its rows and a caption."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str


class Cost(NamedTuple):
    """The costs of trainings, to be drawn: ``bars`` are names, amounts and the same in words."""

    bars: list[tuple[str, float, str]]
    unit: str
    caption: str


class TaskType(Protocol):
    """A kind of learning task; see the module. The defaults here hold unless a task type overrides them."""

    name: str  # ``kind`` in run.json
    learner: str  # what learns, in the plural, as the cards of recipes say it
    title: str  # of its recipes in the catalogue
    about: str  # the same in a sentence
    control: str = "plain"  # what stands beside the method, in the reports
    equal_steps: bool = True  # whether it takes as many steps as the method
    audited: bool = True  # whether an audit accepts generations
    unit: str = "rows"  # what the test split has
    model_file: str = CONFIG  # a file that its model folders have
    quick: str | None = None  # the budget of `--effort quick`; None where a short training of its own is planned
    searched: bool = False  # whether arguments of its recipes can be searched on folds
    cross_examined: bool = False  # whether --folds leaves each row out once to examine its label
    remembers: bool = False  # whether some of its recipes examine labels by what they remember of rows that taught

    def design(self) -> type[ComparisonDesign]:
        """How it is compared."""

    def recipes(self) -> Mapping[str, Callable[..., Any]]:
        """The recipes by name."""

    def serves(self, request: Request) -> bool:
        """Whether this task type serves the request.

        Raises:
            RecipeError, DataError: data, model and method are of different task types.
        """

    def updates(self, record: Mapping[str, Any]) -> bool:
        """Whether it serves the updates of finished runs with this run.json itself."""
        return False

    def prepare(self, request: Request) -> PreparedRun:
        """Load the data and fill in the request's defaults.

        Raises:
            DataError, RecipeError: the request cannot be met.
        """

    def trial(
        self, request: Request, folds: int, folder: Path, listeners: Listeners
    ) -> Callable[[int], HeldOut | None]:
        """The training on all labelled rows but those of a fold, as a function of the fold.

        Raises:
            DataError: the task type has no folds.
        """
        raise DataError(f"--search is for networks and for learners on tables, not for {self.learner}; give --method")

    def usual_recipe(self, request: Request) -> str:
        """The name of the recipe of a request without a method, as far as it is known before data are read."""
        return "default"

    def default_recipe(self, request: Request) -> str:
        """The expression of the recipe that a request without a method is trained with."""
        return self.prepare(replace(request, method=None)).expression

    def card(self, name: str) -> dict[str, Any]:
        """A recipe as data: signature, summary, equation, needs, source, cost."""

    def explain(self, expression: str, example: str | None = None) -> dict[str, Any]:
        """Everything that `selfdistill explain` prints of a recipe; ``example`` is a file of prompts.

        Raises:
            RecipeError: no such recipe, or it has no context that an example could show.
        """

    def text(self, card: dict[str, Any]) -> str:
        """The answer of `explain` for people."""

    def predictor(self, folder: Path) -> Predictor:
        """The predictor of a finished run, given its folder or its model folder.

        Raises:
            CheckpointError: the run has no model yet, or the model is damaged or names code that is not trusted.
            DataError: the model predicts nothing.
        """

    def play(self, folder: Path, request: Request, count: int, video: Path | None) -> Answers:
        """Episodes that the model of a finished run plays; ``video`` is a folder for their pictures.

        Raises:
            DataError: the model plays none.
        """
        raise DataError(f"{folder} trained no policy, so it plays no episodes; give DATA to predict")

    def code(self, request: Request) -> list[tuple[str, str]]:
        """Modules that the data of a request name, each with a name in it; they run where the data are loaded."""
        return []

    def cross_fitted(self, request: Request) -> CrossFittable:
        """The run of a request that keeps no test split.

        Raises:
            DataError: the task type has none.
        """
        raise DataError(f"--test {CROSS_FIT} is for networks and for learners on tables, not for {self.learner}")

    def label_errors(self, folder: Path, top: int | None = None) -> dict[str, Any]:
        """The likely label errors of a finished run, the highest score first.

        Raises:
            CheckpointError: the run is not finished, or its task type has no scores.
        """
        return label_errors.read_label_errors(folder, top)

    def row_cards(self, request: Request, data: Any, ids: Sequence[int], side: int = SIDE) -> dict[int, RowCard]:
        """What a person sees of rows of the data of a request, by their sample id; nothing of data without rows.

        ``side`` is the largest side of a picture, in pixels."""
        return {}

    def committee(self, folder: Path, request: Request) -> Committee:
        """What the models of a finished run predict for its unlabelled rows, and for labelled ones that taught nothing.

        Raises:
            DataError: it learns no labels of rows, or its data have changed.
        """
        raise DataError(
            f"{folder} has no rows to label; `label-next` is for runs of networks and of learners on tables"
        )

    def vitals(self, folder: Path) -> dict[str, Any]:
        """The vitals of a run.

        Raises:
            CheckpointError: there are none.
        """
        return callbacks.read_vitals(folder)

    def vitals_text(self, vitals: dict[str, Any]) -> str:
        """The answer of `vitals` for people."""
        return callbacks.vitals_table(vitals)

    def preflight(self, request: Request, prompts: int, tell: Callable[[str], None]) -> dict[str, Any]:
        """A trial on a few prompts before a long run: the answers of student and teacher.

        Raises:
            DataError: the data hold no prompts.
        """
        location = "give a .jsonl file with a prompt a line, or reasoning-gym:TASK"
        raise DataError(f"{request.data} holds no prompts; {location}")

    def rows(self, result: dict[str, Any]) -> Rows:
        """The rows of a run's table on the test split."""

    def baseline(self, result: dict[str, Any]) -> str:
        """The name of the model that the final model is compared with."""
        return self.control

    def unfinished(self, record: dict[str, Any], folder: Path) -> str:
        """What a report says of a folder without a result."""
        return f"Not finished: resume by `selfdistill resume {folder.name}`."

    def verdict(self, result: dict[str, Any]) -> str | None:
        """The outcome of a run in words; None leaves it to the usual sentence."""
        return None

    def size(self, result: dict[str, Any], record: dict[str, Any], time: str) -> list[str]:
        """Model, steps and seed as lines of a README; ``time`` follows the steps."""
        return [
            f"- model: {result['model']}, {result['parameters']} parameters",
            f"- steps: {result['steps']}{time}, batch {record['settings']['batch_size']}, seed {result['seed']}",
        ]

    def data_line(self, data: dict[str, Any]) -> str:
        """The data as a line of a README, without their name, which is Markdown already."""
        counts = ", ".join(f"{n} {WORDS.get(kind, kind)}" for kind, n in data["rows"].items())
        wrong = f"; {100 * data['noise']:.0f} % of the training and validation labels were made wrong"
        return counts + (wrong if data["noise"] else "")

    def card_fields(self, result: dict[str, Any], record: dict[str, Any]) -> dict[str, str]:
        """Fields of the front matter of the model card: the library that loads the model, and what it was made of."""
        return {"library_name": "selfdistill"}

    def loading(self, folder: str) -> list[str]:
        """The instructions to load the final model from a folder, as lines of Markdown."""

    def part(self, generation: int) -> str:
        """The name of a generation in the report."""
        return f"generation {generation}"

    def curves(self, result: dict[str, Any]) -> Sequence[GenerationCurve] | None:
        """Curves by generation; None where metrics.jsonl has curves by step."""
        return None

    def tables(self, result: dict[str, Any]) -> Sequence[FigureTable]:
        """Further tables of a run's report."""
        return ()

    def logs(self, result: dict[str, Any]) -> dict[str, str]:
        """The logs of all trainings by their names, where `returns` draws them."""
        return {}

    def returns(self, lines: Lines) -> list[tuple[float, float]]:
        """Environment steps and mean returns of a log, to be drawn in the place of audits; mostly none."""
        return []

    def cost(self, result: dict[str, Any]) -> Cost | None:
        """The cost of the trainings; None where sample passes were counted."""
        return None


def require_same_data(folder: Path, fingerprint: str) -> None:
    """Refuse data that are no longer those that a run was trained on.

    Raises:
        CheckpointError: the run is not finished.
        DataError: they have another fingerprint.
    """
    record = read_record(folder / "run.json")[0]
    if "result" not in record:
        raise CheckpointError(f"{folder} is not finished; finish it by `selfdistill resume {folder}`")
    if record["data"]["fingerprint"] != fingerprint:
        raise DataError(
            f"the data of {folder}, or its file of decisions, have changed since it was trained; train again by "
            "`selfdistill run`, and ask the new run"
        )


def refuse_example(expression: str, example: str | None) -> None:
    """Refuse an example for a recipe without a context.

    Raises:
        RecipeError: there is one.
    """
    if example is not None:
        raise RecipeError(
            f"{expression_name(expression)}() has no context to show; --example is for recipes for language models"
        )


def generation_name(result: dict[str, Any], generation: dict[str, Any]) -> str:
    """A generation's number, and its audit in words."""
    number = generation["generation"]
    if number == result.get("final_generation") and result.get("chosen") != "plain":
        return f"generation {number}, the final model"
    rolled_back = not generation.get("decision", {}).get("accepted", True)
    return f"generation {number}{', rolled back' if rolled_back else ''}"


@dataclass(frozen=True)
class TaskTypes:
    """The task types there are: the one place that chooses between them. The first serves what no other does."""

    types: tuple[TaskType, ...]

    def __iter__(self) -> Iterator[TaskType]:
        return iter(self.types)

    def of_request(self, request: Request) -> TaskType:
        """The task type of a request.

        Raises:
            RecipeError, DataError: data, model and method are of different task types.
        """
        path = Path(request.update or "") / "run.json"
        record = read_record(path)[0] if request.update and path.exists() else {}
        own = [task for task in self.types if record and task.updates(record)]
        task = own[0] if own else next(task for task in reversed(self.types) if task.serves(request))
        if request.method is not None:
            self._refuse_foreign_arguments(task, request.method, request.data)
        return task

    def _refuse_foreign_arguments(self, task: TaskType, expression: str, data: str) -> None:
        """Refuse arguments of a recipe of the same name that another task type has.

        Raises:
            RecipeError: there are some.
        """
        name = expression_name(expression)
        named = [(other, other.recipes()[name]) for other in self.types if name in other.recipes()]
        recipe = task.recipes().get(name, named[0][1] if named else None)  # several take those of the first
        foreign = [] if recipe is None else foreign_arguments(expression, recipe)
        owners = [other for other, theirs in named if not foreign_arguments(expression, theirs)]
        if foreign and owners:
            theirs, ours = (one.title.removeprefix("For ") for one in (owners[0], task))
            raise RecipeError(f"{foreign[0]} of {expression} is for {theirs}, and {data} is for {ours}; leave it out")

    def of_record(self, record: Mapping[str, Any]) -> TaskType:
        """The task type of a run.json, or of a result.

        Raises:
            CheckpointError: it is of none of them.
        """
        name = record.get("kind", self.types[0].name)
        for task in self.types:
            if task.name == name:
                return task
        raise CheckpointError(f"a run of kind {name!r} is unknown to this version; open it with the one that made it")

    def of_model(self, place: Path) -> TaskType:
        """The task type of a model folder without a run.

        Raises:
            CheckpointError: it holds no model.
        """
        for task in sorted(self.types, key=lambda task: task.model_file == CONFIG):  # which several have
            if (place / task.model_file).exists():
                return task
        raise CheckpointError(
            f"{place} is no run folder (it has no run.json) and holds no model; give the folder that `run` printed"
        )

    def of_recipe(self, expression: str) -> TaskType:
        """The task type that a recipe is for, by its name and arguments; of an unknown one the first."""
        name = expression_name(expression)
        named = [task for task in self.types if name in task.recipes()]
        fitting = [task for task in named if not foreign_arguments(expression, task.recipes()[name])]
        return next(iter([*fitting, *named, *self.types]))
