"""The run folder: one training run with its control, its figures and its model, and the way back into it.

::

    run.json          what was asked for, with what versions, and (when done) the result
    metrics.jsonl     one line an epoch
    checkpoints/      the newest two, exact
    generations/      final and best weights of every generation
    control/          the plain model trained for as many steps
    model/            safetensors and a small config; loads without the training code
    doubts.csv        how far the model doubts each label that taught
    README.md         the same facts for people; report.html draws them
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import __version__
from ..core import distributed
from ..core.objective import untaught
from ..core.step import Clock
from ..data.dataset import write_card
from ..errors import CheckpointError, DataError, NotFiniteError, RecipeError
from ..estimators.task import Choice, choose, for_learners
from ..evaluation import label_errors
from ..evaluation.linear_probe import by_neighbours
from ..evaluation.metrics import reliability
from ..evaluation.predict import COVERAGE, Predicted, answers, final_score, points
from ..io import checkpoint
from ..io.expressions import one_line
from ..io.run_record import FORMAT, Request, differences, read_record
from ..io.tensors import write_json
from ..language import task
from ..language.task import Spoken
from ..methods.controls import plain
from ..models import store
from ..models.peers import product
from ..models.store import load_model, model_card
from ..report import write as write_report
from ..training import threads
from ..training.cross_fitting import all_labels, crossfit
from ..training.fit import Result, choose_device, fit, join
from ..training.generations import Trained
from . import network_task
from .network_task import Prepared, batch_size_for, prepare, suitable_threads
from .predict import says

__all__ = ["Run", "load_model", "model_card", "product"]

Progress = Callable[[Clock, dict[str, float]], None]


def _better(control: Result, trained: Result) -> bool:
    """Is the plain model's loss on the audit split smaller than the best generation's?"""
    plainly, ours = control.generations[-1].losses, trained.generations[trained.product].losses
    return math.fsum(plainly) < math.fsum(ours)  # of equals the method, which was asked for


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the run's lock, which the system releases when a process dies: two writers would mix their logs."""
    if distributed.rank():
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                busy = "another process is training this run; wait for it or end it, or give another --out"
                raise CheckpointError(f"{folder}: {busy}") from None
        yield
    finally:
        os.close(handle)


def _ready(request: Request) -> Prepared | Choice | Spoken:
    """The request with every choice made, by the door that its data ask for."""
    if task.for_language(request):
        return task.choose(request)
    return choose(request) if for_learners(request) else prepare(request)


def _threads(ready: Prepared | Choice | Spoken) -> int:
    """How many threads suit what is trained."""
    if isinstance(ready, Choice):
        return ready.threads()
    return suitable_threads(ready) if isinstance(ready, Prepared) else threads.asked()


class Run:
    """A run folder. `create` makes or finds it, `open` goes back to it, `execute` trains what is not trained yet."""

    def __init__(self, folder: Path, request: Request) -> None:
        self.folder, self.request = folder, request

    @classmethod
    def create(cls, request: Request, out: str | Path | None = None) -> Run:
        """The folder for a request; an existing one is taken up again if it was made for the same request.

        Raises:
            DataError: the folder holds another run, or something that is no run.
        """
        folder = Path(out) if out is not None else Path("runs") / request.name()
        try:
            begun = (folder / "run.json").exists()
            taken = not begun and folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        except OSError as error:
            why = f"cannot be a run folder ({error.strerror})"
            raise DataError(f"{one_line(folder, 80)} {why}; give another --out") from error
        if taken:
            raise DataError(f"{folder} exists and is no run of selfdistill; give another --out")
        if begun and (other := cls.open(folder).request) != request:
            differs = differences(other, request)
            raise DataError(f"{folder} holds a run with other settings ({differs}); give another --out")
        return cls(folder, request)

    @classmethod
    def open(cls, folder: str | Path) -> Run:
        """Go back to a run.

        Raises:
            CheckpointError: the folder is no run, or its run.json cannot be read.
        """
        path = Path(folder)
        if (path / "plan.json").exists():
            raise CheckpointError(f"{folder} is a comparison; give the same compare command again, and it goes on")
        if not (path / "run.json").exists():
            raise CheckpointError(f"{folder} is no run folder (it has no run.json); give the folder that `run` printed")
        return cls(path, read_record(path / "run.json")[1])

    def _record(self) -> dict[str, Any]:
        path = self.folder / "run.json"
        return read_record(path)[0] if path.exists() else {}

    def result(self) -> dict[str, Any] | None:
        """The figures of a finished run; None if it is not finished."""
        found = self._record().get("result")
        return {**found, "run": str(self.folder)} if found else None  # it may have been moved since

    def execute(
        self,
        progress: Callable[[str], Progress] | None = None,
        warn: Callable[[str], None] = print,
        tell: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        """Train the method and its control, from wherever they were cut; then read the test split, once.

        ``progress`` makes a reporter for each of the trainings, from its name; ``tell`` hears what the audit decides.
        """
        done = self.result()
        if done is not None:
            return done
        join(choose_device(self.request.device))  # now, so that one process alone takes the folder's lock
        ready = _ready(self.request)
        if tell and (note := getattr(ready.data, "note", "")):
            tell(note)
        made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        fresh = not self._record()
        wanted = _threads(ready)
        with threads.using(self._record().get("threads") or wanted):
            self._claim(ready, warn)
            return self._alone(ready, progress or (lambda name: None), warn, tell, made if fresh else None)

    def _alone(
        self,
        ready: Prepared | Choice | Spoken,
        make: Callable[[str], Progress | None],
        warn: Callable[[str], None],
        tell: Callable[[str], None] | None,
        made: list[Path] | None,
    ) -> dict[str, Any]:
        """Train while no other process does; a fresh run that is refused leaves none of the folders it ``made``."""
        try:
            with _locked(self.folder):
                if isinstance(ready, Choice):
                    return self._teach(ready, make, tell or (lambda line: None))
                if isinstance(ready, Spoken):
                    result = task.train(ready, self.request, self.folder, make, warn, tell or (lambda line: None))
                    if distributed.rank() == 0:
                        self._close(result)
                    return result
                return self._train(ready, make, warn, tell)
        except (DataError, RecipeError, NotFiniteError):
            if made is not None and distributed.rank() == 0:
                self._withdraw(made)
            raise

    def _withdraw(self, made: list[Path]) -> None:
        """A run refused before anything was saved leaves nothing behind: the corrected command may use its folder."""
        if checkpoint.newest(self.folder / "folds" / "0" / "checkpoints") is None:
            shutil.rmtree(self.folder / "folds", ignore_errors=True)
        if not any(self.folder.glob("fits/*")):
            shutil.rmtree(self.folder / "fits", ignore_errors=True)
        kept = {path.name for path in self.folder.iterdir()} - {"run.json", "checkpoints"}
        if kept or checkpoint.newest(self.folder / "checkpoints") is not None:
            return
        (self.folder / "run.json").unlink(missing_ok=True)
        for path in (self.folder / "checkpoints", *made):
            with contextlib.suppress(OSError):  # not empty, or never made
                path.rmdir()

    def _train(
        self,
        ready: Prepared,
        make: Callable[[str], Progress | None],
        warn: Callable[[str], None],
        tell: Callable[[str], None] | None,
    ) -> dict[str, Any]:
        """The folds of the audit, if any, the method, then its control; each goes on from its own checkpoints."""
        taught = len(ready.data.labelled) > 0
        beside, folded = self.request.control and ready.method != plain() and taught, None
        if self.request.audit_folds is not None:
            folded = crossfit(
                ready.build, ready.data, ready.method, self.request.audit_folds, self.folder / "folds", control=beside,
                device=self.request.device, make=make, warn=warn, tell=tell or (lambda line: None), **ready.settings,
            )  # fmt: skip
            method = replace(ready.method, generations=folded.generations)
            settings = {**ready.settings, "audit": "off"}
            ready = replace(ready, data=all_labels(ready.data), method=method, settings=settings)
        trained = fit(
            ready.build, ready.data, ready.method, out=self.folder, resume=True, device=self.request.device,
            progress=make(ready.expression), warn=warn, tell=tell, **ready.settings,
        )  # fmt: skip
        control = None
        if beside:
            longer = {**ready.settings, "steps": trained.steps, "batch_size": batch_size_for(ready.data, plain())}
            if self.request.batch_size:
                longer["batch_size"] = min(self.request.batch_size, len(ready.data.labelled))
            control = fit(
                ready.build, ready.data, plain(), out=self.folder / "control", resume=True,
                device=self.request.device, progress=make("plain(), the control"), warn=warn, **longer,
            )  # fmt: skip
        for one in filter(None, (trained, control)):
            one.model.cpu()
        preferred = folded.plain if folded else control is not None and _better(control, trained)
        preferred = preferred and not untaught(ready.method)  # features were asked for, whoever classifies better
        result = self._judge(ready, trained, control, preferred)
        if folded:
            result["folds"] = folded.to_json()
        if distributed.rank() == 0:
            if taught:
                found, result["doubts"] = label_errors.judge(trained, ready.data)
                label_errors.save(found, self.folder)
            self._finish(ready, control if control and preferred else trained, result)
        return result

    def _teach(self, ready: Choice, make: Callable[[str], Any], tell: Callable[[str], None]) -> dict[str, Any]:
        """The same for a learner of scikit-learn."""
        from ..estimators.task import train

        result = {"run": str(self.folder), **train(ready, self.folder, make, tell)}
        self._close(result)
        return result

    def _claim(self, ready: Prepared | Choice | Spoken, warn: Callable[[str], None]) -> None:
        """Write run.json before training; refuse to go on with other data."""
        described = ready.data.describe()
        before = self._record()
        if before and before["data"]["fingerprint"] != described["fingerprint"]:
            raise DataError(f"{self.request.data} has changed since {self.folder} was begun; give another --out")
        if distributed.rank():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        versions = {"selfdistill": __version__, "torch": torch.__version__, "python": platform.python_version()}
        if before and before["versions"] != versions:
            warn(f"{self.folder} was begun with {before['versions']}; bits are the same within one version only")
        write_json(
            self.folder / "run.json",
            {
                "format": FORMAT,
                "request": self.request.to_json(),
                "kind": {Choice: "learner", Spoken: "language"}.get(type(ready), "network"),
                "method": ready.expression,
                "model": str(ready.build),
                "settings": ready.settings,
                "data": described,
                "command": before.get("command", sys.argv),
                "versions": before.get("versions", versions),
                "threads": torch.get_num_threads(),
            },
        )

    def _judge(self, ready: Prepared, trained: Result, control: Result | None, preferred: bool) -> dict[str, Any]:
        """Every generation and the control on the test split: the only place that reads it."""
        data, test = ready.data, ready.data.test
        scratch = product(trained.model)

        def tested(weights: dict[str, Tensor], model: nn.Module) -> dict[str, float]:
            model.load_state_dict(weights)
            return final_score(product(model), data)

        def judged(number: int, t: Trained) -> dict[str, Any]:
            found = {"generation": number, "start": t.start, "audit": t.audit, "best_epoch": t.best_epoch}
            return {**found, "decision": t.decision, "drift": t.drift, "test": tested(t.weights, trained.model)}

        generations = [judged(number, t) for number, t in enumerate(trained.generations)]
        against, name = (trained, "itself") if ready.method == plain() else (control, "control")
        result: dict[str, Any] = {
            "run": str(self.folder),
            "method": ready.expression,
            "model": str(ready.build),
            "parameters": sum(p.numel() for p in scratch.parameters()),
            "data": data.describe(),
            "seed": self.request.seed,
            "product": trained.product,
            "chosen": "plain" if preferred else "method",
            "test": generations[trained.product]["test"],
            "generations": generations,
            "starts_differ": len({t.start for t in trained.generations}) == len(trained.generations),
            "steps": trained.steps,
            "seconds": round(trained.seconds, 2),
            "passes": trained.passes._asdict(),
        }
        said = {
            f"generation {trained.product}, the method's best": (trained, trained.generations[trained.product].weights)
        }
        if against is not None:
            last = against.generations[-1]
            said = {"plain": (against, last.weights), **said}
            result["plain"] = {
                "steps": against.steps,
                "seconds": round(against.seconds, 2),
                "passes": against.passes._asdict(),
                "end": tested(last.weights, against.model),
                "early_stopped": {"epoch": last.best_epoch, **tested(last.best, against.model)},
                "from": name,
            }
            if preferred:
                result["test"] = result["plain"]["end"]
        shown = "reliability" if data.task == "classify" else "predicted"
        result[shown] = {}
        for name, (one, weights) in said.items() if len(test) else ():
            one.model.load_state_dict(weights)
            found = answers(product(one.model), data, test)
            result[shown][name] = reliability(found, data.y[test]) if data.classes else points(found, data.y[test])
        for one in filter(None, (trained, control)):
            one.model.load_state_dict(one.generations[one.product].weights)
        if untaught(ready.method):
            result |= {"probed": True, "nearest": by_neighbours(trained.model, data)}
        return network_task.added(result, ready, trained)

    def _finish(self, ready: Prepared, trained: Result, result: dict[str, Any]) -> None:
        model = product(trained.model)
        plainly = result["chosen"] == "plain"
        prepared = ready.method.wrap_model
        build = ready.build if plainly or prepared is None else prepared.single(ready.build)
        facts: dict[str, Any] = {"classes": list(ready.data.classes)}
        facts["method"] = "plain()" if plainly else ready.expression
        if not plainly and (together := network_task.joined(ready, trained)):
            model, build = together
        if ready.data.task == "regress":
            build = replace(build, scale=(ready.data.center, ready.data.scale))
            half = result["test"].get("width")
            facts |= {"half": half / 2, "coverage": COVERAGE} if half else {}
        store.save(model, self.folder / "model", build, facts)
        write_card(ready.data, self.folder / "model")
        self._close(result)

    def _close(self, result: dict[str, Any]) -> None:
        """What people read, and last the result, which makes the run a finished one."""
        from ..report.summary import model_card_text, readme

        (self.folder / "README.md").write_text(readme(result, self._record()))
        (self.folder / "model" / "README.md").write_text(model_card_text(result, self._record()))
        write_json(self.folder / "run.json", {**self._record(), "result": result})
        write_report(self.folder)

    def spoken(self) -> bool:
        """Is it a language model's run?"""
        return self._record().get("kind") == "language"

    def predict(self, source: str, exit_number: int | None = None) -> Predicted:
        """What the product says of new data; see `finished.says`."""
        return says(self.folder, source, exit_number)
