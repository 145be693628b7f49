"""Search of a recipe's arguments by Optuna, on the same folds for every trial; the winner is trained as any run.

::

    search/journal.log   Optuna's storage, JSON lines, unless --storage names another: a killed search goes on
    search/TRIAL/FOLD/   the trainings of the trial under way

The test split is read once, by the winner.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import re
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import rng
from ..errors import CheckpointError, DataError, NotFiniteError, RecipeError, SpaceError, VitalsError
from ..io.expressions import one_line, parse_expression
from ..io.files import writable
from ..io.run_record import Request
from ..io.schema import find_fault
from ..methods.registry import is_auto
from ..training import budget
from ..training.task_type import FoldTrial, Listeners, PreparedRun, TaskType

if TYPE_CHECKING:
    import optuna

FOLDS = 5  # on which every trial is judged, where --audit-folds names no other number
TRIALS = 20  # where none are asked for and the ranges are no lists
MOST = 10_000  # combinations of lists
PRUNED_BELOW = 0.1  # p-value of a paired Wilcoxon test over folds, below which a trial ends early
EXAMPLE = "a range is 1..10 or '0.1..10 log', and a list {1,3,5}, such as --search 'elr(weight=1..10)'"

_NOTES = {"expression": str, "passes": float, "seconds": float, "pruned": bool, "trouble": str}
AGAIN = "again"  # attribute of a trial: the number of the one that it repeats
SQLITE = "sqlite:///"  # a storage that begins so is a database; any other is a journal
_NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"(?P<low>{_NUMBER})\s*\.\.\s*(?P<high>{_NUMBER})(?P<log>\s+log\b)?|\{{(?P<list>[^{{}}]*)\}}")
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


@dataclass(frozen=True)
class Dimension:
    """One argument that is searched: a range of numbers, or a list of texts."""

    name: str
    low: float = 0.0
    high: float = 0.0
    whole: bool = False
    log: bool = False
    choices: tuple[str, ...] = ()

    def ends(self) -> tuple[str, ...]:
        """The texts of the ends of the range, or all of the list."""
        return self.choices or (self.text(self.low), self.text(self.high))

    def text(self, value: Any) -> str:
        """A value as an expression has it."""
        if self.choices:
            return str(value)
        return str(int(value)) if self.whole else repr(float(f"{float(value):.6g}"))

    def suggest(self, trial: optuna.trial.Trial) -> str:
        """The text of the value that a trial takes."""
        if self.choices:
            return self.text(trial.suggest_categorical(self.name, self.choices))
        if self.whole:
            return self.text(trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log))
        return self.text(trial.suggest_float(self.name, self.low, self.high, log=self.log))


@dataclass(frozen=True)
class Space:
    """An expression with ranges: ``parts`` of text, between which are ``dimensions``.

    >>> space = parse_space("elr(weight=1..10, lam={0.3,0.7})")
    >>> [d.name for d in space.dimensions], space.expression(("2", "0.3"))
    (['weight', 'lam'], 'elr(weight=2, lam=0.3)')
    """

    parts: tuple[str, ...]
    dimensions: tuple[Dimension, ...]

    def expression(self, values: Sequence[str]) -> str:
        """The expression with values in the place of its ranges."""
        return "".join(itertools.chain(*itertools.zip_longest(self.parts, values, fillvalue="")))

    def corners(self) -> Iterator[str]:
        """Expressions in which one argument has each of its ends and the others their first one."""
        first = [dimension.ends()[0] for dimension in self.dimensions]
        for i, dimension in enumerate(self.dimensions):
            for end in dimension.ends():
                yield self.expression([*first[:i], end, *first[i + 1 :]])

    def grid(self) -> int | None:
        """The number of combinations; None where a range has no end of values."""
        whole = [d.choices or range(int(d.low), int(d.high) + 1) for d in self.dimensions if d.choices or d.whole]
        return math.prod(map(len, whole)) if len(whole) == len(self.dimensions) else None


def parse_space(text: str) -> Space:
    """The ranges and lists of an expression.

    Raises:
        DataError: it has none, or one that nothing can be drawn from.
    """
    quoted = [match.span() for match in _QUOTED.finditer(text)]
    parts, dimensions, end = list[str](), list[Dimension](), 0
    for match in _RANGE.finditer(text):
        if any(a <= match.start() < b for a, b in quoted):
            continue
        parts.append(text[end : match.start()])
        end = match.end()
        named = re.search(r"([A-Za-z_]\w*)\s*=\s*$", parts[-1])
        name, names = named[1] if named else str(len(dimensions) + 1), [d.name for d in dimensions]
        dimensions.append(_dimension(match, name if name not in names else f"{name} {len(names) + 1}"))
    parts.append(text[end:])
    rest = _QUOTED.sub("", " ".join(parts))
    if not dimensions or ".." in rest or "{" in rest or "}" in rest:
        fault = "a range is not understood" if dimensions else "no range"
        raise DataError(f"--search {one_line(text, 80)}: {fault}; {EXAMPLE}")
    return Space(tuple(parts), tuple(dimensions))


def _dimension(match: re.Match[str], name: str) -> Dimension:
    text = one_line(match[0], 60)
    if match["list"] is not None:
        choices = tuple(part.strip() for part in match["list"].split(","))
        if len(set(choices)) < max(2, len(choices)) or "" in choices:
            raise DataError(f"--search: {name}={text} is no list of two or more different values; {EXAMPLE}")
        return Dimension(name, choices=choices)
    low, high = float(match["low"]), float(match["high"])
    whole = all(re.fullmatch(r"[-+]?\d+", match[end]) for end in ("low", "high"))
    if not low < high < math.inf:
        why = f"{match['low']} is not below {match['high']}"
        raise DataError(f"--search: {name}={text} has no values, as {why}; {EXAMPLE}")
    if match["log"] and low <= 0:
        raise DataError(f"--search: {name}={text} has a logarithm of {match['low']}; begin above 0, or leave log out")
    if whole and max(abs(low), abs(high)) > 2**31:
        raise DataError(f"--search: {name}={text} is too wide; give a smaller range")
    return Dimension(name, low, high, whole, bool(match["log"]))


def first_request(request: Request) -> Request:
    """The request with the first combination of what it searches as its method; itself where it searches nothing.

    Raises:
        DataError: a method is named too, trials are asked for without a search, or the ranges cannot be searched.
    """
    if request.search is None:
        if request.trials is not None:
            raise DataError("--trials counts the trials of a search; give --search EXPR, or leave it out")
        if request.storage is not None:
            raise DataError("--storage keeps the trials of a search; give --search EXPR, or leave it out")
        return request
    if request.method is not None:
        raise DataError(
            f"--search tries a recipe's arguments and --method {one_line(request.method, 60)} names them; "
            "give one of them"
        )
    return replace(
        request,
        method=next(parse_space(request.search).corners()),
        search=None,
        trials=None,
        explore=None,
        storage=None,
    )


def check_search(request: Request, task: TaskType) -> None:
    """Refuse, before anything is trained, what cannot be searched.

    Raises:
        DataError: the task type has no folds for it, Optuna is missing, or there are too many combinations.
        RecipeError: an end of a range is no argument of the recipe.
    """
    if request.search is None:
        return
    space = parse_space(request.search)
    if not task.searched:
        raise DataError(f"--search is for networks and for learners on tables, not for {task.learner}; give --method")
    for expression in space.corners():
        try:
            parse_expression(expression, task.recipes())
        except RecipeError as error:
            raise RecipeError(f"--search: {expression}: {error}") from None
    if (space.grid() or 0) > MOST and all(d.choices for d in space.dimensions):
        raise DataError(f"--search has {space.grid():,} combinations of lists; give at most {MOST:,}")
    _optuna()
    if request.storage is not None:
        _storage_file(request.storage)


def _storage_file(storage: str) -> Path:
    """The file of a storage that a person names.

    Raises:
        DataError: it is no file, or cannot be written.
    """
    if "://" in storage and not storage.startswith(SQLITE):
        raise DataError(f"--storage {one_line(storage, 60)} is neither a file nor {SQLITE}FILE; give one of these")
    file = Path(storage.removeprefix(SQLITE))
    writable(file, "--storage")
    return file


def refuse_folds(request: Request, task: TaskType) -> None:
    """Refuse folds for label errors where no network is trained on them.

    Raises:
        DataError: there are some, and the task type has none.
    """
    if request.folds is not None and not task.cross_examined:
        raise DataError(
            f"--folds leaves labelled rows out of trainings, and {request.data} is for {task.learner}; leave it out"
        )


def refuse_explore(request: Request, expression: str) -> None:
    """Refuse a share of trying where nothing is tried out.

    Raises:
        DataError: there is one, and neither a search nor auto().
    """
    if request.explore is not None and request.search is None and not is_auto(expression):
        raise DataError(
            f"--explore bounds what auto() and --search try out, and {expression} is one recipe; leave it out, or give "
            "--method 'auto()'"
        )


def _optuna() -> Any:
    """The module, without its chatter.

    Raises:
        DataError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise DataError("--search needs Optuna; install it by `pip install 'selfdistill[search]'`") from None
    optuna.logging.set_verbosity(logging.ERROR)
    return optuna


def search(request: Request, task: TaskType, folder: Path, listeners: Listeners) -> tuple[PreparedRun, dict[str, Any]]:
    """Try combinations on the same folds, and choose the one with the smallest mean loss.

    Args:
        request: of the run; its ``search`` is the space.
        task: prepares and trains.
        folder: of the run.
        listeners: hear of trials.

    Returns:
        The run of the winner, prepared, and the search as a result holds it.

    Raises:
        CheckpointError: the storage of an earlier process is damaged.
    """
    space, base = parse_space(str(request.search)), first_request(request)
    grid, place = space.grid(), folder / "search"
    number = request.trials or min(grid or TRIALS, TRIALS if any(not d.choices for d in space.dimensions) else MOST)
    planned = min(number, grid or number)
    folds = request.audit_folds or FOLDS
    bounded = budget.most_trials(planned, request.explore, folds)
    if bounded < planned:
        listeners.warn(f"--explore {request.explore:g}: {bounded} trials in place of {planned}")
    planned = bounded
    study = _study(place, request, PRUNED_BELOW)
    meter, exhaustive = budget.active(), grid is not None and grid <= number
    if meter is not None:
        meter.trainings, meter.beside, meter.shared = planned * folds + 2, budget.Expense(), "search"
    while len(done := _finished(study)) < planned:
        if meter is not None and done and not _affords(meter, done):
            meter.cut(f"{len(done)} trials in place of {planned}: no more fit")
            break
        if exhaustive:
            _refill(study, space, done)
        study.sampler = _sampler(space, exhaustive, rng.seed(request.seed, "trial", len(done)) % 2**31, request.seed)

        def objective(trial: optuna.trial.Trial) -> float:
            expression = space.expression([dimension.suggest(trial) for dimension in space.dimensions])
            trained = task.trial(replace(base, method=expression), folds, place / _name(expression), listeners)
            try:
                loss = _try(trial, expression, trained, folds)
            except (NotFiniteError, RecipeError, SpaceError, VitalsError) as error:  # as one that is worst of all
                loss = 1.0 + max((t.value for t in done), default=0.0)
                _note(trial, expression, trouble=one_line(error, 200))
                listeners.warn(f"{expression}: {error}")
            shutil.rmtree(place / _name(expression), ignore_errors=True)
            listeners.tell(f"trial {len(done) + 1} of {planned}: {expression}, {loss:.4g} on held-out rows")
            return loss

        study.optimize(objective, n_trials=1)
    if meter is not None:
        meter.shared = ""
    trials = _finished(study)
    best = _best(trials)
    listeners.tell(f"the search chooses {best.user_attrs['expression']} of {len(trials)} trials")
    asked = {"space": request.search, "planned": planned, "folds": folds}
    winner = task.prepare(replace(base, method=best.user_attrs["expression"]))
    return winner, {"search": {**asked, **_record(trials), "sampler": "GridSampler" if exhaustive else "TPESampler"}}


def _record(trials: Sequence[Any]) -> dict[str, Any]:
    """The trials and what they took, as a result holds them."""
    rows = [
        {name: t.user_attrs[name] for name in ("expression", "pruned", "trouble")}
        | {"loss": t.value, "folds": len(t.intermediate_values)}
        for t in trials
    ]
    return {"trials": rows, "passes": math.fsum(t.user_attrs["passes"] for t in trials)}


def _best(trials: Sequence[Any]) -> Any:
    """The trial with the smallest mean loss over all folds; of equals the earlier one.

    Raises:
        DataError: none could be trained.
    """
    whole = [t for t in trials if not t.user_attrs["pruned"] and not t.user_attrs["trouble"]]
    if not whole:
        raise DataError(f"no trial of --search could be trained; the first: {trials[0].user_attrs['trouble']}")
    return min(whole, key=lambda t: (t.value, t.number))


def _affords(meter: budget.Meter, done: Sequence[Any]) -> bool:
    """Whether one more trial fits, and after it the winner with its control, each about a fold's training."""
    longest = max(t.user_attrs["seconds"] for t in done), max(t.user_attrs["passes"] for t in done)
    folds = max(1, *(len(t.intermediate_values) for t in done))
    return meter.affords(budget.Expense(*(cost * (1 + 2 * 1.5 / folds) for cost in longest)))


def study_name(request: Request) -> str:
    """The name of the study of a request, under which Optuna's own tools find it in its storage.

    In the run folder it is the space. A storage of several runs has the digest of the request too: trials of other
    data, or of another seed, are another study.
    """
    space = str(request.search)
    return space if request.storage is None else f"{space} {replace(request, storage=None).name()}"


def _study(place: Path, request: Request, p_threshold: float) -> Any:
    """The study in its storage; what a killed process left running is tried again.

    Raises:
        CheckpointError: the storage is damaged, or of another search.
    """
    optuna = _optuna()
    place.mkdir(parents=True, exist_ok=True)
    file = place / "journal.log" if request.storage is None else _storage_file(request.storage)
    if request.storage is None:  # of a killed process: the run folder has a lock of its own
        Path(f"{file}.lock").unlink(missing_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the pruner is called experimental by older versions
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=p_threshold)
        try:
            study = optuna.create_study(
                storage=_storage(file, (request.storage or "").startswith(SQLITE)),
                study_name=study_name(request),
                pruner=pruner,
                load_if_exists=True,
            )
            _try_again(study)
        except Exception as error:  # a damaged line raises all kinds
            why = one_line(error, 100)
            remedy = "start again in a new --out" if request.storage is None else "give another --storage"
            raise CheckpointError(f"{file} is damaged or foreign ({why}); {remedy}") from error
    return study


def _storage(file: Path, database: bool) -> Any:
    """Optuna's storage in a file: a database of SQLite, or a journal."""
    storages = _optuna().storages
    if database:
        return storages.RDBStorage(f"{SQLITE}{file}")
    lock = storages.journal.JournalFileOpenLock(str(file))
    return storages.JournalStorage(storages.journal.JournalFileBackend(str(file), lock))


def _try_again(study: Any) -> None:
    """Put what a killed or stopped process left of trials into the queue, each once: a kill may come here too."""
    states = _optuna().trial.TrialState
    trials = study.get_trials(deepcopy=False)
    repeated = {trial.user_attrs.get(AGAIN) for trial in trials}
    for trial in trials:
        if trial.state in (states.RUNNING, states.FAIL) and trial.params and trial.number not in repeated:
            study.enqueue_trial(trial.params, user_attrs={AGAIN: trial.number})
        if trial.state == states.RUNNING:
            study.tell(trial.number, state=states.FAIL)


def _refill(study: Any, space: Space, done: Sequence[Any]) -> None:
    """Put the first combination that is not done into the empty queue of a grid that was interrupted: its sampler
    takes a combination for tried where a trial began with it."""
    states = _optuna().trial.TrialState
    before = {trial.state for trial in study.get_trials(deepcopy=False)}
    if states.FAIL not in before or states.WAITING in before:
        return
    tried = [trial.params for trial in done]
    values = _values(space)
    combinations = (dict(zip(values, row, strict=True)) for row in itertools.product(*values.values()))
    study.enqueue_trial(next(one for one in combinations if one not in tried))


def _finished(study: Any) -> list[Any]:
    """The trials that ended, in their order."""
    state = _optuna().trial.TrialState.COMPLETE
    trials = study.get_trials(deepcopy=False, states=[state])
    return [t for t in trials if find_fault(t.user_attrs, _NOTES) is None]


def _sampler(space: Space, exhaustive: bool, seed: int, order: int) -> Any:
    """A grid where all combinations are tried, else the tree-structured Parzen estimator."""
    samplers = _optuna().samplers
    if not exhaustive:
        return samplers.TPESampler(seed=seed)
    return samplers.GridSampler(_values(space), seed=order)


def _values(space: Space) -> dict[str, list[Any]]:
    """The values of each argument of a space that has an end of them."""
    return {
        d.name: list(d.choices) if d.choices else list(range(int(d.low), int(d.high) + 1)) for d in space.dimensions
    }


def _name(expression: str) -> str:
    """The name of a trial's folder."""
    return hashlib.sha256(expression.encode()).hexdigest()[:12]


def _note(
    trial: Any, expression: str, passes: float = 0.0, seconds: float = 0.0, pruned: bool = False, trouble: str = ""
) -> None:
    """Keep what a trial was and took; ``trouble`` is why it could not be trained."""
    notes = {"expression": expression, "passes": passes, "seconds": seconds, "pruned": pruned, "trouble": trouble}
    for key, value in notes.items():
        trial.set_user_attr(key, value)


def _try(trial: Any, expression: str, held_out: FoldTrial, folds: int) -> float:
    """Train a trial without each fold in turn; the mean loss on the rows left out.

    A trial that is worse for certain than the best one ends early; its mean so far is its value.
    """
    losses, passes, seconds, pruned = list[float](), 0.0, 0.0, False
    for fold in range(folds):
        held = held_out(fold)
        if held is None:
            break
        losses.append(held.loss)
        passes, seconds = passes + held.passes, seconds + held.seconds
        trial.report(held.loss, fold)
        if fold + 1 < folds and trial.should_prune():
            pruned = True
            break
    _note(trial, expression, passes, seconds, pruned)
    return math.fsum(losses) / len(losses)
