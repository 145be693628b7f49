"""Paired differences over seeds, from finished run folders: mean and 95 % interval (Student's t).

    python -m benchmarks.paired runs/evidence/noise-*

Every run trained its own plain control on the same split, labels and number of steps, so that each seed is a pair.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from selfdistill.evaluation.statistics import interval


def line(name: str, results: list[dict[str, Any]], against: str, metric: str) -> str:
    """One row: the method's mean, the control's mean, and their paired difference."""
    scale = 100 if metric == "accuracy" else 1
    ours = [
        scale * r["generations"][r["final_generation"]]["test"][metric] for r in results
    ]  # not the plain model's, if chosen
    theirs = [scale * r["plain"][against][metric] for r in results]
    mean, half = interval([a - b for a, b in zip(ours, theirs, strict=True)])
    digits = 1 if metric == "accuracy" else 3
    numbers = f"{statistics.fmean(ours):.{digits}f} | {statistics.fmean(theirs):.{digits}f}"
    difference = f"{mean:+.{digits}f} ± {half:.{digits}f}"
    return f"| {name} | plain, {against.replace('_', ' ')} | {metric} | {numbers} | {difference} | {len(results)} |"


def main(folders: list[str]) -> None:
    groups: dict[str, list[dict[str, Any]]] = {}
    for folder in sorted(folders):
        record = json.loads((Path(folder) / "run.json").read_text())
        if "result" not in record:
            print(f"{folder} is not finished: selfdistill resume {folder}", file=sys.stderr)
            continue
        groups.setdefault(f"`{record['method']}`", []).append(record["result"])
    print("| method | against | on test | method | control | difference | seeds |\n|---|---|---|---|---|---|---|")
    for name, results in groups.items():
        for against in ("end", "early_stopped"):
            for metric in ("accuracy", "nll", "ece"):
                print(line(name, results, against, metric))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folders", nargs="+", metavar="RUN", help="folders of finished runs")
    main(parser.parse_args().folders)
