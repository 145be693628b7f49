"""`auto()` of networks against the controls of `compare` at its whole price, in the digits settings of the benchmark.

``python -m benchmarks.auto_networks`` trains what is missing and prints each setting's mean difference to the best
control, which the validation rows choose, with its interval of 95 % over seeds. Every row of a setting gets the sample
passes of all trainings of `auto()`: the longer ones as more steps, the tuned and the bagged one as further trainings.
``--replay`` trains nothing: it chooses among the cells of the benchmark, in which every recipe has the same budget.
Records are one JSON line a training, in ``--out``; a call that was cut goes on there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfdistill.evaluation.statistics import interval
from selfdistill.experiments.benchmark.settings import is_control
from selfdistill.experiments.network_task import planned as planned_jobs
from selfdistill.experiments.network_task import run
from selfdistill.io.files import append_line
from selfdistill.io.run_record import Request
from selfdistill.methods.prior import CLASSES, simplicity
from selfdistill.training import threads
from selfdistill.training.comparison import PLAIN, ComparisonSettings, Job

#: Steps of one training: as many as the benchmark's training of usual length, and fewer where labels are so few that
#: plain() gains nothing from more.
STEPS = {"digits-noise": 750, "digits-50": 200, "digits-100": 200, "digits-250": 400, "digits-all": 750}
AUTO = "auto()"
REQUESTS = {
    "digits-noise": Request(label_noise=0.4),
    "digits-50": Request(labels=50),
    "digits-100": Request(labels=100),
    "digits-250": Request(labels=250),
    "digits-all": Request(),
}
CELLS = Path(__file__).with_name("cells")
OUT = Path(__file__).with_name("auto_networks.jsonl")


def read_records(path: Path) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The records by setting, row and seed."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    return {(one["setting"], one["row"], one["seed"]): one for one in records}


def train_jobs(name: str, jobs: Sequence[Job], request: Request, out: Path) -> None:
    """Train the jobs whose rows are missing and append a record for each row."""
    done = read_records(out)
    for job in jobs:
        if any(
            one["job"] == job.name and (setting, seed) == (name, job.seed) for (setting, _, seed), one in done.items()
        ):
            continue
        with tempfile.TemporaryDirectory() as folder, threads.limited_to(1):
            record = run(job, request, Path(folder))
        for row, figures in record["rows"].items():
            about = {"setting": name, "row": row, "job": job.name, "seed": job.seed, "steps": job.steps}
            scores = {"audit": figures["audit"]["accuracy"], "test": figures["metrics"]["accuracy"]}
            more = {"passes": figures["passes"]["total"], "seconds": round(record["seconds"], 1)}
            line = {**about, **scores, **more, "auto": figures.get("auto")}
            append_line(out, json.dumps(line, sort_keys=True))


def measure(name: str, seeds: Sequence[int], steps: int, out: Path) -> None:
    """Train `auto()` and the controls of a setting; the first seed's `auto()` and plain() decide the budget."""
    request, first = REQUESTS[name], seeds[0]
    pilots = [Job(AUTO, "auto", steps, first, expression=AUTO), Job(PLAIN, "plain", steps, first)]
    train_jobs(name, pilots, request, out)
    records = read_records(out)
    costs = {job.name: records[name, job.name, first]["passes"] for job in pilots}
    for seed in seeds:
        _, jobs = planned_jobs(ComparisonSettings((AUTO,), (seed,)), steps, costs)
        train_jobs(name, jobs, request, out)


def differences(cells: Mapping[str, Mapping[int, Mapping[str, float]]], method: str) -> tuple[str, list[float]]:
    """The control with the best mean validation score, and the paired differences of the method's test accuracy."""
    seeds = sorted(cells[method])
    controls = [row for row in cells if row != method and set(seeds) <= set(cells[row])]
    best = max(controls, key=lambda row: statistics.fmean(cells[row][seed]["audit"] for seed in seeds))
    return best, [100 * (cells[method][seed]["test"] - cells[best][seed]["test"]) for seed in seeds]


def show(name: str, best: str, gains: Sequence[float], chosen: Sequence[str]) -> None:
    """One line of JSON."""
    mean, half = interval(gains)
    counts = {one: chosen.count(one) for one in dict.fromkeys(chosen)}
    line = {"setting": name, "seeds": len(gains), "best_control": best, "difference": round(mean, 2)}
    print(
        json.dumps({**line, "interval": [round(mean - half, 2), round(mean + half, 2)], "chosen": counts}), flush=True
    )


def report(name: str, out: Path) -> None:
    """The setting's difference as far as seeds are complete."""
    records = read_records(out)
    rows = {row for setting, row, _ in records if setting == name}
    cells = {row: {seed: one for (s, r, seed), one in records.items() if (s, r) == (name, row)} for row in rows}
    if not rows:
        return
    complete = sorted(set.intersection(*(set(found) for found in cells.values())))
    cells = {row: {seed: found[seed] for seed in complete} for row, found in cells.items()}
    best, gains = differences(cells, AUTO)
    chosen = [trial["method"] for one in cells[AUTO].values() for trial in one["auto"]["tried"] if trial["chosen"]]
    show(name, best, gains, chosen)


def replay(name: str, cells: Path = CELLS) -> None:
    """Choose among the benchmark's cells of a setting; its controls have the budget of one recipe."""
    found: dict[str, dict[int, dict[str, float]]] = {}
    for line in (cells / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        cell = json.loads(line)
        if cell["status"] != "finished" or "accuracy" not in cell["test"].get("last", {}):
            continue
        for use in ("last", "stopped") if cell["method"] == "plain()" else ("last",):
            row = cell["method"] + (", stopped early" if use == "stopped" else "")
            scores = {split: cell[split][use]["accuracy"] for split in ("audit", "test")}
            found.setdefault(row, {})[cell["seed"]] = scores
    shortlist = [one for one in CLASSES if one in found]
    seeds = sorted(set.intersection(*(set(found[row]) for row in shortlist)))
    chosen = {s: min(shortlist, key=lambda row: (-found[row][s]["audit"], simplicity(row))) for s in seeds}
    table = {row: one for row, one in found.items() if is_control(row)}
    table[AUTO] = {seed: found[row][seed] for seed, row in chosen.items()}
    show(name, *differences(table, AUTO), list(chosen.values()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="*", default=list(REQUESTS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of one training [default: by the setting]")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--replay", action="store_true")
    arguments = parser.parse_args()
    for name in arguments.settings:
        if arguments.replay:
            replay(name)
        else:
            measure(name, range(arguments.seeds), arguments.steps or STEPS[name], arguments.out)
            report(name, arguments.out)


if __name__ == "__main__":
    main()
