"""A table of a million rows with kinds and gaps, and what a fit of it takes; called by ``tables.py million``."""

from __future__ import annotations

import argparse
import json
import time
from multiprocessing import Process
from pathlib import Path
from typing import Any

import numpy as np

WHAT = {
    "regressor": "SelfDistilledRegressor()",
    "peers": "SelfDistilledRegressor(peers=usual_peers(frame=True))",
    "taught": "PeerTaughtRegressor(), 200,000 rows of it labelled",
    "classifier": "SelfDistilledClassifier()",
    "plain": "the default learner alone, once",
    "command": "selfdistill run FILE.parquet --target value",
}


def table(rows: int, seed: int = 0) -> tuple[Any, Any]:
    """Twenty columns: 10 of numbers (two in ten missing in four), 4 whole, 3 categories, 2 texts, 1 time; values."""
    import pandas as pd

    random = np.random.default_rng(seed)
    columns: dict[str, Any] = {f"x{i}": random.normal(size=rows) for i in range(10)}
    columns |= {f"n{i}": random.integers(0, 1000, rows) for i in range(4)}
    columns |= {f"c{i}": pd.Categorical.from_codes(random.integers(0, k, rows), [f"kind {j}" for j in range(k)])
                for i, k in enumerate((3, 40, 300))}  # fmt: skip
    origin, tail = random.integers(0, 3, rows), random.integers(0, 4000, rows)
    columns["origin"] = np.array(["EWR", "JFK", "LGA"])[origin]
    columns["tail"] = np.char.add("N", np.arange(10_000, 14_000).astype(str))[tail]
    columns["at"] = np.datetime64("2013-01-01", "s") + random.integers(0, 365 * 86_400, rows).astype("timedelta64[s]")
    value = 2 * np.sin(2 * columns["x0"]) + columns["x1"] + np.abs(columns["x2"]) + 3 * (origin == 1) + (tail % 7) / 3
    value += 2 * np.isin(columns["c1"].codes, (3, 17, 29)) + random.normal(size=rows)
    for i in range(4):
        columns[f"x{i + 6}"][random.random(rows) < 0.2] = np.nan
    return pd.DataFrame(columns), value


def resident(what: str) -> float:
    """MB of this process: VmRSS now, or VmHWM at most so far."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(what))


def fitted(kind: str, X: Any, y: Any, progress: Any) -> Any:
    from selfdistill.estimators import (
        PeerTaughtRegressor,
        SelfDistilledClassifier,
        SelfDistilledRegressor,
        keeping,
        usual_learner,
        usual_peers,
    )

    known = 200_000 * len(X) // 1_000_000
    with keeping(None, progress):
        if kind == "regressor":
            return SelfDistilledRegressor(random_state=0).fit(X, y)
        if kind == "peers":
            return SelfDistilledRegressor(peers=usual_peers(frame=True), random_state=0).fit(X, y)
        if kind == "taught":
            return PeerTaughtRegressor(random_state=0).fit(X[:known], y[:known], X_unlabeled=X[known:])
        if kind == "classifier":
            return SelfDistilledClassifier(random_state=0).fit(X, np.digitize(y, [1.0, 3.0]))
        return usual_learner(False, X).fit(X, y)


def command(rows: int) -> None:
    """What the command does with a file of the table, in this process: reading, audit, product, control, files."""
    from tempfile import TemporaryDirectory

    import selfdistill.estimators.base_learners
    import selfdistill.estimators.run  # noqa: F401
    from selfdistill.experiments.run import Run
    from selfdistill.io.run_record import Request

    with TemporaryDirectory() as folder:
        file = Path(folder) / "table.parquet"
        making = Process(target=_write, args=(file, rows))
        making.start()
        making.join()
        before, begin = resident("VmRSS"), time.time()
        with open("/proc/self/clear_refs", "w") as refs:
            refs.write("5")
        result = Run.create(Request(str(file), target="value"), Path(folder) / "run").execute(tell=print)
        seconds, peak = time.time() - begin, resident("VmHWM")
        X, _ = table(rows)
        frame = float(X.memory_usage(deep=True).sum()) / 2**20
    row = {"part": "million", "about": WHAT["command"], "rows": rows, "frame MB": round(frame)}
    row |= {"peak over frame": round((peak - before) / frame, 2), "whole process over frame": round(peak / frame, 2)}
    row |= {"seconds": round(seconds), "trainings": [result["steps"]], "score": round(result["test"]["r2"], 4)}
    print(json.dumps(row), flush=True)


def _write(file: Path, rows: int) -> None:
    X, y = table(rows)
    X["value"] = y
    X.to_parquet(file)


def measure(kind: str, rows: int) -> None:
    """One fit in this process, and a line of JSON."""
    import selfdistill.estimators.base_learners  # noqa: F401 - what is imported is no part of the fit

    X, y = table(rows)
    test, value = table(50_000, seed=1)
    before, begin, told = resident("VmRSS"), time.time(), list[str]()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak so far, of making the table, is forgotten
    model = fitted(kind, X, y, lambda done, planned, what: told.append(f"{done}/{planned} {what}"))
    seconds, peak = time.time() - begin, resident("VmHWM")
    frame = float(X.memory_usage(deep=True).sum()) / 2**20
    row = {"part": "million", "about": WHAT[kind], "rows": rows, "frame MB": round(frame)}
    row |= {
        "peak over frame": round((frame + peak - before) / frame, 2),
        "whole process over frame": round(peak / frame, 2),
    }
    goal = np.digitize(value, [1.0, 3.0]) if kind == "classifier" else value
    row |= {"seconds": round(seconds), "trainings": told[-1:], "score": round(float(model.score(test, goal)), 4)}
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=WHAT)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    command(options.rows) if options.kind == "command" else measure(options.kind, options.rows)
