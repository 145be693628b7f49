"""The three kinds of comparison: what the runner asks of each, and which one a request is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ...io.run_record import Request
from .plan import PLAIN, Ask, Job, undrawn


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
