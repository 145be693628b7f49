"""The run folder: one training run with its control, its figures and its model, and the way back into it.

::

    run.json          what was asked for, with what versions, and (when done) the result
    run.toml          the options, for people and for `selfdistill run --config`
    metrics.jsonl     one line an epoch
    checkpoints/      the newest two, exact
    generations/      final and best weights of every generation
    control/          the plain model trained for as many steps
    model/            safetensors and a small config; loads without the training code
    reservoir.safetensors  a sample of the rows that taught, for `update`
    label_errors.csv  how probably each label is wrong; probabilities.npz has the model's probabilities
    cards.json        what a person sees of the rows that report.html shows
    README.md         the same facts for people; report.html draws them
"""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..core import distributed
from ..core.step import TrainingClock
from ..data import decisions, row_cards
from ..errors import CheckpointError, DataError, NotFiniteError, RecipeError
from ..evaluation import label_next
from ..evaluation.cross_scores import CROSS_FIT
from ..evaluation.label_noise import LIKELY
from ..evaluation.predict import Predictions
from ..io import checkpoint, trust
from ..io.files import FORMAT, refuse_links, sweep, writable, write
from ..io.run_config import FILE as CONFIG
from ..io.run_config import request_options, write_run_config
from ..io.run_record import Request, changed_logs, differences, log_digests, read_record, versions, write_record
from ..models.peers import final_model
from ..models.store import load_model, model_card, model_folder
from ..report import PAGE, surviving
from ..report import write as write_report
from ..report.data_sections import retraining, shown_rows
from ..report.review import Review, ReviewRow
from ..report.summary import exploration, model_card_text, readme
from ..training import budget, threads
from ..training.cross_prediction import FOLDER as CROSS_FOLDER
from ..training.cross_prediction import cross_predict, refuse_cross_fit
from ..training.fit import choose_device, join
from ..training.task_type import Listeners, Predictor, PreparedRun, TaskType, require_same_data
from .folder import Folder, locked
from .request_trust import require_request_trust
from .search import check_search, first_request, refuse_explore, refuse_folds, search
from .task_types import TASK_TYPES

__all__ = ["Run", "final_model", "load", "load_model", "model_card"]

Progress = Callable[[TrainingClock, dict[str, float]], None]

FOLDS = 5  # of an examination of values
BUSY = "another process is training this run; wait for it or end it, or give another --out"


class Run:
    """A run folder. `create` makes or finds it, `open` goes back to it, `execute` trains what is not trained yet."""

    def __init__(self, folder: Path, request: Request, trust_code: bool = False) -> None:
        self.folder, self.request, self.trust_code = folder, request, trust_code
        self._folder = Folder(folder, "run.json", "run")
        self._source: Path | None = None  # the file that the request was read from, if it was not made here

    @classmethod
    def create(
        cls,
        request: Request,
        out: str | Path | None = None,
        trust_code: bool = False,
        source: Path | None = None,
    ) -> Run:
        """The folder for a request; an existing one is taken up again if it was made for the same request.

        Args:
            request: what to train; its model is the caller's own code.
            out: the folder; by default one below ``runs``.
            trust_code: whether functions that other folders and files name, such as a teacher's, may be run.
            source: the file that the request was read from, if any: functions that it names need trust.

        Raises:
            DataError: the folder holds another run, or something that is no run.
        """
        if request.budget is not None:
            budget.parse_budget(request.budget)
        if source is not None:  # before data or model are looked at, which may import them
            with trust.trust_code(trust_code):
                require_request_trust(request, source)
        if out is None:
            usual = TASK_TYPES.of_request(first_request(request)).usual_recipe(request)
            out = Path("runs") / request.name(usual)
        run = cls(Path(out), request, trust_code)
        run._source = source
        if run._folder.begun():
            run._folder.refuse(differences(cls.open(run.folder).request, request))
        return run

    @classmethod
    def open(cls, folder: str | Path, trust_code: bool = False) -> Run:
        """Go back to a run.

        Args:
            folder: the run folder.
            trust_code: whether functions that its files name, such as its model, may be run.

        Raises:
            CheckpointError: the folder is no run, or its run.json cannot be read.
        """
        path = Path(folder)
        if (path / "plan.json").exists():
            raise CheckpointError(f"{folder} is a comparison; give the same compare command again to resume it")
        if not (path / "run.json").exists():
            raise CheckpointError(f"{folder} is no run folder (it has no run.json); give the folder that `run` printed")
        run = cls(path, read_record(path / "run.json")[1], trust_code)
        run._source = path / "run.json"
        return run

    @property
    def task(self) -> TaskType:
        """The task type that trains it.

        Raises:
            RecipeError, DataError: data, model and method are of different task types.
        """
        record = self._record()
        return TASK_TYPES.of_record(record) if record else TASK_TYPES.of_request(first_request(self.request))

    def _record(self) -> dict[str, Any]:
        path = self._folder.record
        return read_record(path)[0] if path.exists() else {}

    def result(self) -> dict[str, Any] | None:
        """The figures of a finished run; None if it is not finished."""
        result = self._record().get("result")
        return {**result, "run": str(self.folder)} if result else None  # it may have been moved since

    def execute(
        self,
        progress: Callable[[str], Progress | None] | None = None,
        warn: Callable[[str], None] = print,
        tell: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        """Train the method and its control, from wherever they were cut; then read the test split, once.

        Args:
            progress: makes a reporter for each of the trainings, from its name.
            warn: hears of trouble that a training survives.
            tell: hears what the audit decides.

        Returns:
            The result, as run.json holds it.
        """
        done = self.result()
        if done is not None:
            for line in changed_logs(self.folder, self._record()):
                warn(line)
            if not (self.folder / PAGE).exists():  # the run was killed between its result and its page
                self._draw(warn)
            return done
        with trust.trust_code(self.trust_code):
            return self._train(Listeners(progress or (lambda name: None), warn, tell or (lambda line: None)))

    def _train(self, listeners: Listeners) -> dict[str, Any]:
        """Train what is not trained yet, and return the result."""
        if self._source is not None:
            require_request_trust(self.request, self._source)
        refuse_links(self.folder)
        join(choose_device(self.request.device))  # now, so that one process alone takes the folder's lock
        task = self.task
        check_search(self.request, task)
        crossed = None
        if self.request.test == CROSS_FIT:
            refuse_cross_fit(self.request)
            crossed = task.cross_fitted(self.request)
        prepared = crossed or task.prepare(first_request(self.request))
        refuse_explore(self.request, prepared.expression)
        refuse_folds(self.request, task)
        if prepared.note:
            listeners.tell(prepared.note)
        quick = task.quick if self.request.effort else None
        with (
            budget.limited(self.request.budget or quick, self.folder, listeners.warn) as meter,
            threads.limited_to(self._record().get("threads") or prepared.threads()),
        ):
            self._claim(task, prepared, listeners.warn)
            first = distributed.rank() == 0
            try:
                with locked(self.folder, BUSY) if first else contextlib.nullcontext():
                    if first:
                        sweep(self.folder)
                    found: dict[str, Any] = {}
                    if self.request.search is not None:
                        prepared, found = search(self.request, task, self.folder, listeners)
                    if crossed is not None:
                        prepared = crossed.scored_by(
                            cross_predict(crossed, self.folder, listeners, self.request.folds, quick)
                        )
                    result = {**prepared.train(self.folder, listeners), **found}
                    if explored := result.get("exploration") or exploration(result):
                        result["exploration"] = explored
                    if meter is not None:
                        result["budget"] = meter.summary()
                    if first:
                        self._finish(task, prepared, result, listeners.warn)
                    return result
            except (DataError, RecipeError, NotFiniteError):
                if first:
                    self._withdraw()
                raise

    def _claim(self, task: TaskType, prepared: PreparedRun, warn: Callable[[str], None]) -> None:
        """Write run.json before training; refuse to go on with other data."""
        described = prepared.data.describe()
        before = self._record()
        if before and before["data"]["fingerprint"] != described["fingerprint"]:
            raise DataError(f"{self.request.data} has changed since {self.folder} was begun; give another --out")
        if distributed.rank():
            return
        self._folder.create()
        if before and before["versions"] != versions():
            warn(f"{self.folder} was begun with {before['versions']}; bits are the same within one version only")
        write_record(
            self._folder.record,
            {
                "format": FORMAT,
                "request": self.request.to_json(),
                "kind": task.name,
                "method": prepared.expression,
                "model": str(prepared.build),
                "settings": prepared.settings,
                "data": described,
                "command": before.get("command", sys.argv),
                "versions": before.get("versions", versions()),
                "threads": torch.get_num_threads(),
            },
        )
        command = next((name for name in ("update", "adapt") if request_options(self.request).get(name)), "run")
        chosen = {"method": prepared.expression, "model": str(prepared.build), **prepared.settings}
        write_run_config(self.folder, command, request_options(self.request), chosen)

    def _withdraw(self) -> None:
        """Leave nothing of a run that was refused before anything was saved."""
        if checkpoint.newest(self.folder / "folds" / "0" / "checkpoints") is None:
            shutil.rmtree(self.folder / "folds", ignore_errors=True)
        if not any(self.folder.glob("search/*/*/checkpoints")):
            shutil.rmtree(self.folder / "search", ignore_errors=True)
        if not any(self.folder.glob(f"{CROSS_FOLDER}/*.json")):
            shutil.rmtree(self.folder / CROSS_FOLDER, ignore_errors=True)
        if not any(self.folder.glob("fits/*")):
            shutil.rmtree(self.folder / "fits", ignore_errors=True)
        rest = {path.name for path in self.folder.iterdir()} - {"run.json", "checkpoints", budget.FILE, CONFIG}
        if not rest and checkpoint.newest(self.folder / "checkpoints") is None:
            for name in (budget.FILE, CONFIG):
                (self.folder / name).unlink(missing_ok=True)
            self._folder.withdraw("checkpoints")

    def _finish(
        self, task: TaskType, prepared: PreparedRun, result: dict[str, Any], warn: Callable[[str], None]
    ) -> None:
        """Write what people read and the result, which makes the run a finished one."""
        record = {**self._record(), "method": prepared.expression}
        with surviving(f"{self.folder / row_cards.FILE} was not written", "the report shows no rows", warn):
            if cards := task.row_cards(self.request, prepared.data, shown_rows(self.folder, result)):
                row_cards.write_cards(self.folder, cards)
        for place, text in (("README.md", readme), ("model/README.md", model_card_text)):
            with surviving(f"{self.folder / place} was not written", "nothing else is missing", warn):
                write(self.folder / place, text(result, record, task))
        shutil.rmtree(self.folder / CROSS_FOLDER, ignore_errors=True)
        write_record(self._folder.record, {**record, "logs": log_digests(self.folder), "result": result})
        self._draw(warn)

    def _draw(self, warn: Callable[[str], None]) -> None:
        remedy = f"the run is finished, and `selfdistill report {self.folder}` draws it again"
        with surviving(f"{self.folder / PAGE} was not drawn", remedy, warn):
            write_report(self.folder, TASK_TYPES)

    def label_next(
        self,
        n: int = 50,
        out: str | Path | None = None,
        *,
        strategy: str = "best",
        max_error: float = label_next.MAX_ERROR,
        raw_csv: bool = False,
    ) -> dict[str, Any]:
        """Propose which unlabelled rows a person should label, and which ones the model may label itself.

        Args:
            n: Rows for a person.
            out: The file of decisions [decisions.csv in the run folder]. Decisions in it stay; open ones are renewed.
            strategy: ``best``, ``margin`` or ``random``; see `evaluation.label_next`.
            max_error: The error rate that is allowed for the labels that the model gives; 0 for none of them.
            raw_csv: Leave cells as they are that a spreadsheet takes for formulas.

        Returns:
            The proposal, as ``--json`` prints it.

        Raises:
            CheckpointError: the run is not finished.
            DataError: no row is unlabelled, the data have changed, or the file cannot be read or written.
        """
        path = Path(out) if out is not None else self.folder / decisions.FILE
        writable(path, "--out")
        label_next.check(n, strategy, max_error)
        before = list(decisions.read_decisions(path, raw_csv).values()) if path.exists() else []
        with trust.trust_code(self.trust_code):
            committee = self.task.committee(self.folder, self.request)
            made, summary = label_next.propose(committee, n, strategy, self.request.seed, max_error)
        decisions.write_decisions(path, label_next.merge(before, made), raw_csv)
        return {"run": str(self.folder), "file": str(path), "kept": sum(bool(d.decision) for d in before), **summary}

    def review(
        self, out: str | Path | None = None, *, top: int | None = None, test: bool = False, raw_csv: bool = False
    ) -> Review:
        """The labels that a person should look at, and the file that the decisions go into; see `report.review.serve`.

        These are the training and validation labels that look wrong, and rows that `label_next` proposed.

        Args:
            out: The file of decisions [decisions.csv in the run folder]. Decisions in it stay.
            top: The number of most doubtful rows, whether or not they look wrong.
            test: Test rows too, which decisions do not change in a run, but in a copy of the data.
            raw_csv: Leave cells as they are that a spreadsheet takes for formulas.

        Raises:
            CheckpointError: the run is not finished, or has no scores of labels.
            DataError: the data cannot be read or have changed, or the file cannot be read or written.
        """
        path, task = Path(out) if out is not None else self.folder / decisions.FILE, self.task
        writable(path, "--out")
        labels = [row for row in task.label_errors(self.folder)["labels"] if test or row["split"] != "test"]
        doubtful = labels[:top] if top is not None else [row for row in labels if row["score"] > LIKELY]
        with trust.trust_code(self.trust_code):
            data: Any = task.prepare(first_request(self.request)).data
        require_same_data(self.folder, data.fingerprint)
        rows = [
            ReviewRow(
                row["row"] - 1, row["name"] or str(row["row"]), row["split"], row["given"], row["suggested"],
                row.get("p_given"), row["p_suggested"],
            )
            for row in doubtful
        ]  # fmt: skip
        before = decisions.read_decisions(path, raw_csv).values() if path.exists() else []
        names = {row.name for row in rows}
        for made in before:
            place = data.row_names.find(made.row) if made.by == decisions.PERSON and not made.given else None
            if place is not None and made.row not in names:
                rows.append(ReviewRow(place, made.row, "unlabelled", "", made.suggested))
        request = self.request

        def cards(ids: Sequence[int]) -> dict[int, row_cards.RowCard]:
            return task.row_cards(request, data, ids, row_cards.LARGE)

        command = retraining(self._record(), path)
        return Review(rows, self._record()["data"]["classes"], path, cards, command, raw_csv)

    def predict(self, source: str, exit_number: int | None = None) -> Predictions:
        """The final model's predictions for new data.

        Args:
            source: images, a table or texts, as for `run`.
            exit_number: an early exit, from 1, the shallowest; by default the deepest one answers.

        Raises:
            CheckpointError: the run has no model yet.
            DataError: the data do not fit the model, it has no such exit, or it is a language model.
        """
        with trust.trust_code(self.trust_code):
            answers = self.task.predictor(self.folder).predict(source, exit_number)
        if not isinstance(answers, Predictions):
            raise DataError(f"the model of {self.folder} writes texts; use `selfdistill predict`")
        return answers


def load(folder: str | Path, trust_code: bool = False) -> Predictor:
    """The final model of a run, kept in memory to predict new rows with the numbers of `selfdistill predict`.

    Args:
        folder: the run folder or its model folder.
        trust_code: whether functions that its files name, such as its model, may be run; code in the folder never is.

    Returns:
        The predictor; see `training.task_type.Predictor.predict` for what it takes.

    Raises:
        CheckpointError: there is no model yet, or it is damaged or names code that is not trusted.
        DataError: the model predicts no rows, as a policy.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     done = Run.create(Request("digits", method="plain()", steps=2), f"{folder}/run").execute(warn=len)
    ...     load(f"{folder}/run").predict(torch.zeros(3, 1, 8, 8)).numbers.shape
    torch.Size([3, 10])
    """
    with trust.trust_code(trust_code):
        if any(Path(folder, name).exists() for name in ("run.json", "plan.json")):
            return Run.open(folder, trust_code).task.predictor(Path(folder))
        return TASK_TYPES.of_model(model_folder(folder)).predictor(Path(folder))


def examining_request(source: str, options: Mapping[str, Any], config: Path | None = None) -> Request:
    """The request of a run that examines the labels of data: `elr` for networks that classify, without a baseline.

    Values have no recipe of that kind: they are examined by folds.

    Args:
        source: The data.
        options: Further fields of the request.
        config: The file that they were read from, if any: functions that it names need trust.

    Raises:
        CheckpointError: such a function is not trusted.
        DataError, RecipeError: the data cannot be read, or the recipe is of another task type.
    """
    request = Request(data=source, control=False, **options)
    if config is not None:
        require_request_trust(request, config)
    task = TASK_TYPES.of_request(request)
    if request.method is not None or not task.remembers:
        return request
    data: Any = task.prepare(replace(request, method="plain()")).data
    if data.task == "regress":
        return replace(request, method="plain()", folds=request.folds or FOLDS)
    # weaker than as published in full trainings: on letters the published weight made some networks confuse classes
    return replace(request, method="elr()" if request.effort else "elr(weight=1.0)")
