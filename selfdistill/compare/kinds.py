"""The three kinds of comparison: what the runner asks of each, and which one a request is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from ..errors import RecipeError
from ..language.door import for_language
from ..learners.choice import for_learners
from ..request import Request
from .jobs import Job
from .plan import PLAIN, Ask, undrawn


class Kind(Protocol):
    """What learns in a comparison: networks, learners on a table, or language models on prompts.

    The class answers what needs no data; an object of it has loaded the first seed's data and model. What is answered
    here is so unless a kind says otherwise.
    """

    @staticmethod
    def judged(methods: Sequence[str]) -> tuple[str, ...]:
        """The methods that get a verdict."""
        return tuple(methods)

    @staticmethod
    def plain(control: bool) -> str:
        """The row that stands for doing nothing new, with and without the control that not all data or models have."""
        return PLAIN

    @staticmethod
    def settled(request: Request, ask: Ask) -> Request:
        """The request with what all rows share.

        Raises:
            DataError: the budget is of another kind, or the rows would not share what they must.
        """
        undrawn(ask)
        return request

    @staticmethod
    def run(job: Job, request: Request, folder: Path) -> dict[str, Any]:
        """Train one job; its record."""

    @classmethod
    def begun(cls, request: Request, ask: Ask) -> Kind:
        """The kind with the first seed's data and model.

        Raises:
            DataError, RecipeError: they cannot be had so.
        """

    def check(self) -> None:
        """Refuse, before anything is trained, what cannot be compared on some seed.

        Raises:
            DataError, RecipeError: the data of a seed, or a method.
        """

    def threads(self) -> int:
        """Threads for each training."""

    def control(self, tell: Callable[[str], None]) -> bool:
        """Is there the control that not all data or models have? Where it is missed, ``tell`` says why."""

    def pilots(self, control: bool) -> list[Job]:
        """The first seed's trainings at the requested steps, whose costs decide the budget."""

    def planned(self, costs: Mapping[str, float]) -> tuple[float, list[Job]]:
        """The budget, and the first seed's jobs; ``costs`` are those of the pilots by name."""


def kind_of(request: Request, methods: Sequence[str]) -> type[Kind]:
    """What learns by these methods from these data.

    Raises:
        RecipeError, DataError: a method is for other data, or some are for learners and some for networks.
    """
    from .learners import Learners  # these are of the class above
    from .networks import Networks
    from .prompts import LanguageModels

    each = [replace(request, method=method) for method in methods]
    spoken = [for_language(one) for one in each]
    if all(spoken):
        return LanguageModels
    ours = [for_learners(one) for one in each]
    if all(ours):
        return Learners
    if any(ours):
        mine, others = methods[ours.index(True)], methods[ours.index(False)]
        raise RecipeError(f"{mine} is for learners and {others} for networks; compare one kind at a time")
    return Networks
