"""Does the feedback of meta pseudo-labels add anything? Digits, 100 labels: beside plain and the same without it.

    python -m benchmarks.meta_labels --times 1 10

Seeds are from 100 on, which no cell has, and it is the audit split that is scored (100 rows): the test split is not
read. Every method takes as many sample passes as the setting's budget, ``--times`` over, to 3 %; "as many steps" is the
control for which those of the whole recipe are counted in place of its passes. Each row: steps, accuracy by seed, its
mean, and the paired difference of the recipe at its defaults to it, with half of the 95 % interval (Student's t).
"""

from __future__ import annotations

import argparse
import statistics

from selfdistill.evaluation.predict import predict_rows
from selfdistill.evaluation.statistics import interval
from selfdistill.experiments.benchmark.cells import Training, train_within
from selfdistill.experiments.benchmark.settings import SETTINGS, Cell, data_of
from selfdistill.training import threads
from selfdistill.training.fit import Result

SETTING = SETTINGS["digits-100"]
OURS, WITHOUT = "meta_pseudo_labels()", "meta_pseudo_labels(meta=0.0)"
OTHERS = (WITHOUT, "meta_pseudo_labels(meta=10.0)", "plain()")
FIRST = 100


def training(method: str, seed: int) -> Training:
    """A method with a seed, to be trained for any number of steps as a cell is."""
    return Training(Cell(SETTING, method, seed), data_of(SETTING, seed))


def accuracy(found: Result, seed: int) -> float:
    """On the audit split, in per cent."""
    data = data_of(SETTING, seed)
    said = predict_rows(found.model, data, data.audit, data.head).argmax(-1)
    return 100 * float((said == data.y[data.audit]).double().mean())


def steps_for(method: str, budget: float) -> int:
    """As many as cost the budget, found with the first seed."""
    return train_within(training(method, FIRST), budget)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=float, nargs="*", default=[1.0, 10.0], help="the setting's budget")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 100 on")
    given = parser.parse_args()
    print("| passes | method | steps | accuracy | mean | the recipe less this |\n|---|---|---|---|---|---|")
    for times in given.times:
        budget, ours = times * SETTING.budget, list[float]()
        rows = [(OURS, "", steps_for(OURS, budget))]
        rows += [(WITHOUT, ", as many steps", rows[0][2]), *((name, "", steps_for(name, budget)) for name in OTHERS)]
        for name, about, steps in rows:
            seeds = range(FIRST, FIRST + given.seeds)
            found = [accuracy(training(name, seed)(steps)[0], seed) for seed in seeds]
            ours = ours or found
            mean, half = interval([a - b for a, b in zip(ours, found, strict=True)])
            each, told = " ".join(f"{one:.0f}" for one in found), f"{statistics.fmean(found):.1f}"
            less = f"{mean:+.1f} ± {half:.1f}" if found is not ours else ""
            print(f"| {budget:,.0f} | `{name}`{about} | {steps} | {each} | {told} | {less} |", flush=True)


if __name__ == "__main__":
    with threads.limited_to(1):
        main()
