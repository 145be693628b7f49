"""Functions that a request names, where a file gave the request: they need trust before they run."""

from __future__ import annotations

from pathlib import Path

from ..data.rewards import names_function
from ..io import trust
from ..io.run_record import Request
from .search import first_request
from .task_types import TASK_TYPES


def require_request_trust(request: Request, source: Path) -> None:
    """Refuse functions that a request names, unless they are trusted.

    Args:
        request: that was read from a file.
        source: the file. If it lies in a run folder, no code in that folder is ever run.

    Raises:
        CheckpointError: one is not trusted.
    """
    folder = source.parent if (source.parent / "run.json").exists() else None
    model, checker = request.model or "", request.checker or ""
    named = [function[:2] for function in [trust.split_function(model)] if function]
    if names_function(checker):
        place, _, name = checker.strip().partition(":")
        named.append((place, name))
    for place, name in named:
        trust.require_trust(place, name, source, folder)
    for place, name in TASK_TYPES.of_request(first_request(request)).code(request):  # which may ask the model itself
        trust.require_trust(place, name, source, folder)
