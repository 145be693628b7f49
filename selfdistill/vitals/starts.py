"""Does a generation start afresh?"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import VitalsError


def fresh_start(start: str, before: Sequence[tuple[str, str]]) -> str | None:
    """A warning where a generation starts as an earlier one did; None where it starts afresh.

    Equal starts are right for a factory that loads pre-trained weights, so they are no error.

    Args:
        start: digest of its initial weights.
        before: for each generation so far the digests of its initial and of its final weights.

    Raises:
        VitalsError: it starts from what an earlier one ended with.
    """
    for number, (started, ended) in enumerate(before):
        if start == ended != started:
            raise VitalsError(
                "trained-start",
                f"trained-start: generation {len(before)} starts from the final weights of generation {number}; "
                "let build() make a new model at every call, not return the one it made before",
            )
    same = [number for number, (started, _) in enumerate(before) if started == start]
    if not same:
        return None
    return (
        f"generation {len(before)} starts from the very weights that generation {same[0]} started from; "
        "unless build() loads pre-trained weights, let it draw new ones"
    )
