"""Jobs for workers of a cluster; few imports, as each new worker has to make them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from selfdistill.errors import RecipeError


def note(path: Path, number: int, seconds: float) -> int:
    """A job: it says that it was begun, takes its time, and keeps its result."""
    with (path / f"{number}.begun").open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(seconds)
    with (path / f"{number}.done").open("a") as file:
        file.write("x")
    return number**2


def kept(path: Path, number: int) -> list[int]:
    """What an earlier worker left of a job."""
    return [number**2] if (path / f"{number}.done").exists() else []


def fail(path: Path, number: int, seconds: float) -> int:
    """A job with an error of its own."""
    raise RecipeError(f"job {number} fails")


def end(path: Path, number: int, seconds: float) -> int:
    """A job that ends its worker."""
    os._exit(1)
