"""Tables: how the time to read one grows with its columns, and the memory that a run on a long one takes.

The exponent is the slope of log time over log columns; 1 is proportional. Memory is the peak of a process of its own
that runs `self_distilled()`, less what its imports take, as a multiple of the table as numbers in float64.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CHILD = """
import resource, sys
import pyarrow, sklearn.ensemble, sklearn.linear_model, skops.io, torch
import selfdistill.estimators, selfdistill.estimators.run
from selfdistill.experiments.run import Run
from selfdistill.io.run_record import Request

imports = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
Run.create(Request(sys.argv[1], target="y", method="self_distilled()"), sys.argv[2]).execute()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - imports)
"""


def _write(path: Path, rows: int, columns: int) -> None:
    import pandas as pd

    random = np.random.default_rng(0)
    table = pd.DataFrame(random.normal(size=(rows, columns)).round(4), columns=[f"c{i}" for i in range(columns)])
    table["y"] = np.where(table["c0"] + random.normal(size=rows) > 0, "yes", "no")
    table.to_csv(path, index=False)


def run(quick: bool = False, progress: Callable[[str], None] = print) -> dict[str, Any]:
    """Measure both; ``quick`` with small tables."""
    from selfdistill.data import frames

    widths, seconds = ((10, 30, 100) if quick else (100, 300, 1000)), list[float]()
    rows, columns = (5_000, 5) if quick else (500_000, 30)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.csv")
        for number, width in enumerate((widths[0], *widths)):  # the first reading imports
            _write(path, 100 if quick else 1000, width)
            begun = time.process_time()
            frames.load(str(path), target="y")
            if number:
                seconds.append(time.process_time() - begun)
                progress(f"{width} columns: {seconds[-1]:.2f} s of CPU")
        _write(path, rows, columns)
        progress(f"self_distilled() on {rows} rows x {columns}")
        command = [sys.executable, "-c", CHILD, str(path), str(Path(folder, "run"))]
        child = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ})
        peak = int(child.stdout.split()[-1])
    exponent = float(np.polyfit(np.log(widths), np.log(seconds), 1)[0])
    return {
        "columns": dict(zip(map(str, widths), seconds, strict=True)),
        "exponent": exponent,
        "rows": rows,
        "memory": peak / (rows * columns * 8),
    }


def render(result: dict[str, Any]) -> str:
    """The result in words."""
    times = ", ".join(f"{width} columns {seconds:.2f} s" for width, seconds in result["columns"].items())
    return (
        f"read for learners: {times}; exponent {result['exponent']:.2f}\n"
        f"{result['rows']} rows, self_distilled(): peak memory {result['memory']:.2f} times the table"
    )
