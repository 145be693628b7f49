"""Every identity of the theory, measured against a reference that shares no code with its closed form.

A reference is brute force (rounds solved one by one), a search, a quadrature or a simulation. `run_checks`
measures them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from . import identities, mixing_weight, repetition, ridge
from .identity import Identity

__all__ = ["IDENTITIES", "Identity", "run_checks"]

IDENTITIES: tuple[Identity, ...] = tuple(
    sorted(
        (*ridge.IDENTITIES, *mixing_weight.IDENTITIES, *repetition.IDENTITIES, *identities.IDENTITIES),
        key=lambda one: int(one.name[1:].split()[0]) if one.name[1].isdigit() else 1000,
    )
)


def run_checks(seed: int = 0) -> Iterator[dict[str, Any]]:
    """The outcome of each identity in turn: name, statement, source, kind, deviation, tolerance, unit, ok.

    >>> first = next(run_checks())
    >>> first["name"], first["ok"]
    ('T1 power law', True)
    """
    for identity in IDENTITIES:
        yield identity.outcome(seed)
