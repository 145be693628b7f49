"""A Trainer collects garbage at the end of each run, and would go through all that was ever imported each time."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="package")
def _what_is_imported_stays() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
