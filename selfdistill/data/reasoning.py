"""Tasks of reasoning-gym: they are generated on the spot, with verifiers of their own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from ..errors import DataError, RecipeError
from ..io.expressions import expression_name, nearest, one_line, parse_expression
from .examples import Example

PREFIX = "reasoning-gym:"


ROWS, SEED = 600, 0  # of a data set whose size and seed are not given


SAMPLE = 2  # rows of the data set that only scores: scoring needs its settings, not its rows


def tasks() -> Mapping[str, Any]:
    """The tasks by name; none where reasoning-gym is not installed."""
    try:
        from reasoning_gym.factory import DATASETS
    except ImportError:
        return {}
    return dict(DATASETS)


def is_task(spec: str) -> bool:
    """Is this ``reasoning-gym:TASK``?"""
    return spec.strip().startswith(PREFIX)


def make_examples(spec: str, size: int = ROWS) -> list[Example]:
    """The rows of ``reasoning-gym:TASK`` or ``reasoning-gym:TASK(key=value, ...)``: the same ones at every call.

    ``size`` is how many, if the text does not say.

    Raises:
        DataError: reasoning-gym is missing, has no such task, or the task refuses its settings.

    >>> examples = make_examples("reasoning-gym:chain_sum(size=2, max_terms=2, max_digits=1)")
    >>> [(example.prompt[-7:], example.answer) for example in examples]
    [('0 - 4 =', '-4'), ('4 - 1 =', '3')]
    """
    dataset = _dataset(spec, size=size, seed=SEED)
    try:
        entries = [dataset[i] for i in range(len(dataset))]
    except Exception as error:  # tasks refuse in many ways
        raise _task_error(spec, error) from error
    return [
        Example(
            (("user", str(entry["question"])),),
            answer=None if entry["answer"] is None else str(entry["answer"]),
            checker=spec.strip(),
            entry=entry,
            line=number,
        )
        for number, entry in enumerate(entries, 1)
    ]


@lru_cache(maxsize=64)
def scorer(spec: str) -> Callable[[str, Mapping[str, Any]], float]:
    """The task's ``score_answer(answer, entry)``, in [0, 1].

    Raises:
        DataError: as `make_examples`.
    """
    dataset = _dataset(spec, size=SAMPLE, seed=SEED)

    def score(completion: str, entry: Mapping[str, Any]) -> float:
        return dataset.score_answer(final(completion), dict(entry))  # type: ignore[no-any-return]

    return score


def final(completion: str) -> str:
    """The text between the last pair of answer tags, or the whole text where there is none.

    >>> final("4 - 1 is <answer> 3 </answer>"), final(" 3 ")
    ('3', '3')
    """
    _, opening, tail = completion.rpartition("<answer>")
    content, closing, _ = tail.partition("</answer>")
    return content.strip() if opening and closing else completion.strip()


def entry_of(example: Example) -> Mapping[str, Any]:
    """reasoning-gym's record of an example; of one that came from a file, as much as the file knows."""
    if example.entry is not None:
        return example.entry
    return {"question": example.prompt, "answer": example.answer, "metadata": {}}


def _dataset(spec: str, **defaults: int) -> Any:
    text = spec.strip().removeprefix(PREFIX)
    available = tasks()
    if not available:
        raise DataError(f"{one_line(spec, 80)}: reasoning-gym is missing; pip install reasoning-gym")
    name = expression_name(text)
    if name not in available:
        matches = nearest(name, dict.fromkeys(available))
        hint = f"nearest: {matches}" if matches else "https://github.com/open-thought/reasoning-gym lists them"
        raise DataError(f"reasoning-gym has no task {one_line(name, 60)!r}; {hint}")
    try:
        return parse_expression(text, {name: _maker(name, available[name][1], defaults)}, "task")
    except RecipeError as error:
        raise DataError(f"{PREFIX}{name}: {error}") from None
    except Exception as error:
        raise _task_error(spec, error) from error


def _maker(name: str, config: type, defaults: Mapping[str, int]) -> Callable[..., Any]:
    """Makes the task's data set from its settings; its signature is theirs, so that misspelt ones are named."""
    from reasoning_gym import create_dataset

    def create(**options: Any) -> Any:
        return create_dataset(name, **{**defaults, **options})

    create.__signature__ = inspect.signature(config)  # type: ignore[attr-defined]
    return create


def _task_error(spec: str, error: Exception) -> DataError:
    reason = one_line(error, 160) or type(error).__name__
    return DataError(f"{one_line(spec, 80)}: the task refuses its settings ({reason}); change them, or leave them out")
