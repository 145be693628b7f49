"""Tasks of EleutherAI's Language Model Evaluation Harness, given by local YAML files, on a model in memory.

A document counts by the first metric of its task, which must be one number a document of which more is better, such as
``acc`` or ``exact_match``. So models are compared document by document, as on prompts. A file of a task is code: the
harness runs its templates, and the functions that it names.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..core import distributed
from ..errors import DataError
from ..io.expressions import one_line
from ..io.trust import is_trusted
from ..models.causal_lm import Causal

OPTION = "--eval-tasks"
NEEDS_HARNESS = f"{OPTION} needs lm-eval: pip install 'selfdistill[lm-eval]', or leave it out"
BATCH = 8  # requests that are read at once
FEW_SHOTS = 1234  # the seed by which the harness draws examples, its own default


@dataclass(frozen=True)
class TaskScores:
    """What a model scored on the documents of a task.

    Args:
        task: The name of the task, as its file gives it.
        metric: Its first metric.
        scores: The metric by document.

    >>> TaskScores("facts", "acc", [1.0, 0.0]).mean
    0.5
    """

    task: str
    metric: str
    scores: list[float]

    @property
    def mean(self) -> float:
        """The mean over the documents."""
        return math.fsum(self.scores) / len(self.scores)


class HarnessTasks:
    """Tasks of the harness, loaded from YAML files.

    Args:
        paths: The files.

    Raises:
        DataError: lm-eval is not installed, code is not trusted (`io.trust`), a file is no task that it can load, or of
            the first metric of a task less is better.

    Source: Gao et al., The Language Model Evaluation Harness, 2024, version 0.4.13.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        if importlib.util.find_spec("lm_eval") is None:
            raise DataError(NEEDS_HARNESS)
        if not is_trusted():
            raise DataError(
                f"{OPTION} {paths[0]} is code: its templates and functions could do anything; if you trust it, allow "
                "it by --trust-code (in Python, trust_code=True)"
            )
        self.paths, self.tasks = tuple(paths), dict[str, Any]()
        for path in paths:
            for name, task in _load(path).items():
                if name in self.tasks:
                    raise DataError(f"{OPTION} {path}: a task {name!r} was given before; give each task once")
                self.tasks[name] = task
        self.metrics = {name: _first_metric(name, task) for name, task in self.tasks.items()}

    def scores(self, model: Causal) -> list[TaskScores]:
        """The scores of a model, a task each; the prompts are written by its chat template, where it has one.

        Args:
            model: The language model, in whose place nothing is loaded. Only the first of several processes asks it.

        Returns:
            The scores in the order of the tasks; none on other processes than the first.

        Raises:
            DataError: The harness cannot evaluate a task, or a document's metric is no number.
        """
        if distributed.rank():
            return []
        with _quiet(), model.inference():
            from lm_eval import evaluate
            from lm_eval.models.huggingface import HFLM

            template = bool(model.tokenizer.chat_template)
            try:
                asked = HFLM(pretrained=model.lm, tokenizer=model.tokenizer, batch_size=BATCH)
                found = evaluate(
                    lm=asked,
                    task_dict={"tasks": self.tasks, "groups": {}, "group_map": {}},
                    apply_chat_template=template,
                    fewshot_as_multiturn=template,
                    bootstrap_iters=0,
                )
            except Exception as error:  # of the harness, its metrics, templates and data: of any kind
                names = ", ".join(self.tasks)
                raise DataError(f"lm-eval cannot evaluate {names} ({one_line(error, 160)}); mend the task") from error
        return [self._of(name, found["samples"][name]) for name in self.tasks]

    def _of(self, name: str, samples: Sequence[Mapping[str, Any]]) -> TaskScores:
        """The scores on the documents of a task, by the first of its filters."""
        metric = self.metrics[name]
        rows = sorted((s for s in samples if s["filter"] == samples[0]["filter"]), key=lambda s: int(s["doc_id"]))
        values = [row.get(metric) for row in rows]
        numbers = [float(v) for v in values if isinstance(v, (int, float)) and math.isfinite(v)]
        if len(numbers) < len(values):
            raise DataError(
                f"task {name} of {OPTION}: its metric {metric} is not one number a document; put a metric first that "
                "is, such as acc or exact_match"
            )
        return TaskScores(name, metric, numbers)


def _load(path: str) -> dict[str, Any]:
    """The tasks of a file by name, each of whose requests can be made."""
    with _quiet():
        from lm_eval.tasks import TaskManager

        try:
            found: dict[str, Any] = TaskManager(include_defaults=False).load([path])["tasks"]
            for task in found.values():
                task.set_fewshot_seed(seed=FEW_SHOTS)
                task.build_all_requests(limit=1)
        except Exception as error:  # YAML, data, templates: of any kind
            why = one_line(error, 200)
            raise DataError(
                f"{OPTION} {path}: lm-eval cannot load it ({why}); give the YAML file of a task whose "
                "data are local files"
            ) from error
    return found


def _first_metric(name: str, task: Any) -> str:
    """The metric that counts.

    Raises:
        DataError: Less of it is better.
    """
    better: dict[str, bool] = task.higher_is_better()
    metric = next(iter(better))
    if not better[metric]:
        raise DataError(
            f"task {name} of {OPTION}: of its first metric {metric} less is better; put a metric first of which more "
            "is better, such as acc or exact_match"
        )
    return metric


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's messages and bars."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
