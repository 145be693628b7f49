"""Why are some methods of the benchmark far below plain()? Their cells once more, each with one thing changed.

    python -m benchmarks.far_below --groups thresholds views

Seeds are from 100 on, which no cell has, and it is the audit split that is scored, as far as its labels are right: the
test split is not read. Steps are those of the cells unless a row says otherwise. Each row: accuracy by seed, its mean,
and the mean share of audit rows that have the commonest answer.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from selfdistill.core.objective import Method
from selfdistill.core.parts import Always, PerElement, Term
from selfdistill.core.step import TrainingClock
from selfdistill.evaluation.predict import predict_rows
from selfdistill.experiments.benchmark.cells import read
from selfdistill.experiments.benchmark.settings import SETTINGS, Cell, build_for, data_of
from selfdistill.experiments.network_run import batch_size_for
from selfdistill.methods.registry import read_method
from selfdistill.schedules import After
from selfdistill.training.fit import fit

Change = Callable[[Method], Method]
CELLS = Path(__file__).parent / "cells"


def seen(augment: str, *views: str) -> Change:
    """Some views, or all, augmented in another way."""

    def change(method: Method) -> Method:
        looks = (replace(one, augment=augment) if one.name in views or not views else one for one in method.views.views)
        return replace(method, views=replace(method.views, views=tuple(looks)))

    return change


def _but_labels(method: Method, change: Callable[[Term], Term]) -> Method:
    """The method with every term but that of the labels changed."""
    terms = {
        name: change(term) if isinstance(term, Term) and name != "label" else term
        for name, term in method.terms.items()
    }
    return replace(method, terms=terms)


def late(method: Method) -> Method:
    """All terms but the labels' wait for half of the training."""
    return _but_labels(method, lambda term: replace(term, weight=After(term.weight_at(TrainingClock()), 0.5)))


def over_all(method: Method) -> Method:
    """Pseudo-labels' losses are means over all unlabelled rows, not over those that are kept."""
    return _but_labels(method, lambda term: replace(term, reduction=PerElement()))


def ungated(method: Method) -> Method:
    """Every term trusts every target."""
    terms = {name: replace(t, gate=Always()) if isinstance(t, Term) else t for name, t in method.terms.items()}
    return replace(method, terms=terms)


class Row(NamedTuple):
    """A method in a setting for so many steps a generation (0: as in its cells), and what is changed about it."""

    setting: str
    method: str
    steps: int
    about: str = "as in its cell"
    change: Change = lambda method: method


THRESHOLDS = [
    row
    for method in ("softmatch()", "flexmatch()", "freematch()")
    for row in (
        Row("digits-100", method, 78),
        Row("digits-50", method, 100),
        Row("digits-250", method, 98),
        Row("digits-100", method, 78, "weak views for strong ones", seen("weak", "strong")),
        Row("digits-100", method, 78, "labels alone for half of it", late),
        Row("digits-100", method, 312, "four times the steps"),
        Row("digits-100", method, 1560, "twenty times the steps"),
    )
]
VIEWS = [
    row
    for setting, steps in (("digits-100", 78), ("digits-50", 100), ("digits-250", 98))
    for row in (
        Row(setting, "fixmatch()", steps),
        Row(setting, "uda()", steps),
        Row(setting, "dash()", steps),
        Row(setting, "dash()", steps, "losses over all rows", over_all),
        Row(setting, "plain()", steps, "as many steps, weak views", seen("weak")),
        Row(setting, "plain()", steps, "as many steps"),
        Row(setting, "plain()", 1500),
    )
]
CHOOSING = {"digits-100": 192, "digits-50": 189, "digits-250": 270}  # steps of a generation of ups()
NOISY = [
    row
    for setting, steps in (("digits-100", 166), ("digits-50", 212), ("digits-250", 208))
    for row in (
        Row(setting, "noisy_student()", steps),
        Row(setting, "noisy_student()", steps, "weak views", seen("weak")),
        Row(setting, "noisy_student()", steps, "rows as they are", seen("none")),
        Row(setting, "ups()", CHOOSING[setting]),
        Row(setting, "ups(generations=2)", CHOOSING[setting], "two generations"),
    )
]
PAIRS = [
    row
    for setting, method, steps in (
        ("digits-100", "pi_model", 595), ("digits-50", "pi_model", 600), ("digits-all", "pi_model", 749),
        ("digits-250", "pi_model", 768),
        ("digits-50", "mean_teacher", 900),
    )
    for row in (
        Row(setting, f"{method}()", steps),
        Row(setting, f"{method}(weight=0.0)", steps, "labels alone"),
        Row(setting, f"{method}(weight=0.0)", steps, "labels alone, rows as they are", seen("none")),
    )
]  # fmt: skip
CLEAN = [
    *(
        row
        for method, steps in (("kdcl", 749), ("ddgsd", 749), ("temporal_ensembling", 1499))
        for row in (
            Row("digits-all", f"{method}()", steps),
            Row("digits-all", f"{method}()", steps, "rows as they are", seen("none")),
        )
    ),
    *(Row("digits-all", "plain()", steps, "weak views", seen("weak")) for steps in (749, 1499)),
    Row("digits-all", "co_teaching()", 749),
    Row("digits-all", "co_teaching(noise=0.0)", 749, "told that no label is wrong"),
    Row("digits-all", "selfie()", 500),
    Row("digits-all", "selfie(noise=0.0)", 500, "told that no label is wrong"),
    Row("digits-all", "selfie(noise=0.0, generations=1)", 1500, "the same, one generation"),
    Row("digits-all", "end2()", 237),
    Row("digits-all", "end2()", 1185, "five times the steps"),
    Row("digits-all", "end2(start=1.0)", 237, "at one temperature"),
    Row("digits-all", "ensemble_distil()", 294),
    Row("digits-all", "plain()", 294, "as many steps as each of its members"),
]
FEW = [
    Row(setting, *rest)
    for setting in ("digits-100", "digits-50", "digits-250")
    for rest in (
        ("plain()", 1500),
        (
            "plain()",
            {"digits-100": 108, "digits-50": 109, "digits-250": 139}[setting],
            "as many steps as a generation of self_training()",
        ),
        ("self_training()", 0),
        ("self_training(hard=True)", 0, "hard labels"),
        ("self_training(generations=3)", {"digits-250": 500}.get(setting, 400), "three generations, as many steps"),
        ("elr()", 0),
        ("elr()", 0, "labels alone for half of it", late),
        ("elr(weight=0.3)", 0, "a tenth of its weight"),
        ("elr(decay=0.9)", 0, "a slower memory"),
        *(
            row
            for method in ("mean_teacher", "temporal_ensembling")
            for row in (
                (f"{method}()", 0),
                (f"{method}()", 0, "rows as they are", seen("none")),
                (f"{method}(weight=0.0)", 0, "labels alone"),
                (f"{method}(weight=0.0)", 0, "labels alone, rows as they are", seen("none")),
            )
        ),
        ("mean_teacher(decay=0.9)", 0, "a faster average, rows as they are", seen("none")),
        *(
            row
            for method in ("kdcl()", "ddgsd()")
            for row in ((method, 0), (method, 0, "rows as they are", seen("none")))
        ),
        ("codistillation()", 0),
        ("codistillation()", 0, "all rows for each peer", ungated),
        ("codistillation(weight=0.0)", 0, "no distillation"),
        ("co_teaching()", 0),
        ("co_teaching(noise=0.0)", 0, "told that no label is wrong"),
        ("co_training()", 0),
        ("co_training(share=1.0)", 0, "all labels for each network"),
        ("co_training()", 730, "many steps"),
        ("tri_training()", 0),
        ("tri_training()", 0, "labels alone for half of it", late),
        ("tri_training(weight=0.0)", 0, "labels alone"),
        ("tri_training(weight=0.0, share=1.0)", 0, "labels alone, all of them for each network"),
        ("tri_training()", 980, "many steps"),
        ("vat()", 0),
        ("vat()", 300, "many steps"),
        ("vat(weight=0.0)", 0, "labels alone"),
        ("plain()", 270),
        ("plain()", 300),
        ("curriculum()", 0),
        ("curriculum(stages=2)", 388, "two stages, as many steps"),
        ("plain()", 194, "as many steps as a stage of curriculum()"),
        ("pseudo_label()", 0),
        ("pseudo_label()", 1300, "many steps"),
        ("pseudo_label(weight=0.0)", 0, "labels alone"),
        ("end2()", 0),
        ("end2()", 1185, "five times the steps"),
    )
]
LESS = [
    *(Row("digits-all", "plain()", steps) for steps in (375, 493, 500, 749, 1500)),
    Row("digits-all", "sla_sd()", 0),
    Row("digits-all", "sla_sd(weight=0.0)", 0, "no distillation"),
    Row("digits-all", "sla_sd()", 1500, "four times the steps"),
    Row("digits-all", "codistillation()", 0),
    Row("digits-all", "codistillation(weight=0.0)", 0, "no distillation"),
    Row("digits-all", "codistillation()", 0, "all rows for each peer", ungated),
    Row("digits-all", "joint_optimisation()", 0),
    Row("digits-all", "joint_optimisation(wait=1.0)", 0, "labels stay"),
    Row("digits-all", "joint_optimisation(prior=0.0, entropy=0.0)", 0, "relabelling alone"),
    Row("digits-all", "tf_kd()", 0),
    Row("digits-all", "tf_kd(temperature=1.0)", 0, "at one temperature"),
    Row("digits-all", "tf_kd(alpha=0.5)", 0, "half of it labels"),
    Row("digits-all", "mean_teacher()", 0),
    Row("digits-all", "mean_teacher()", 0, "rows as they are", seen("none")),
    Row("digits-all", "mean_teacher(weight=0.0)", 0, "labels alone"),
    Row("digits-all", "mean_teacher(weight=0.0)", 0, "labels alone, rows as they are", seen("none")),
    *(Row("digits-all", method, 0) for method in ("okddip()", "one()", "born_again()", "born_again_ensemble()")),
    Row("digits-all", "beyond()", 0),
]
WRONG = [
    Row("digits-noise", *rest)
    for rest in (
        ("plain()", 1500),
        ("plain()", 750),
        ("co_teaching()", 0),
        ("co_teaching(ramp=0.5)", 0, "drops rows ten times as slowly"),
        ("co_teaching(noise=0.2)", 0, "told that a fifth is wrong"),
        ("byot()", 0),
        ("byot()", 750, "half of the steps"),
        ("end2()", 0),
        ("end2()", 1185, "five times the steps"),
        ("soft_bootstrapping()", 0),
        ("soft_bootstrapping(beta=0.6)", 0, "more of its own prediction"),
    )
]
GROUPS = {
    "thresholds": THRESHOLDS,
    "views": VIEWS,
    "noisy": NOISY,
    "pairs": PAIRS,
    "clean": CLEAN,
    "few": FEW,
    "less": LESS,
    "wrong": WRONG,
}


def steps_of(row: Row) -> int:
    """Steps of a generation in the method's first cell, whatever numbers it is given here."""
    if row.steps:
        return row.steps
    cell = Cell(SETTINGS[row.setting], f"{row.method.partition('(')[0]}()", 0)
    record = read(cell, CELLS)
    if record is None:
        raise SystemExit(f"{cell.method} has no cell in {row.setting}; make it with: {cell.command()}")
    return int(record["steps_each"])


def trained(row: Row, seed: int) -> tuple[float, float]:
    """Accuracy on the audit split, and the share of its rows that have the commonest answer."""
    setting = SETTINGS[row.setting]
    data, method = data_of(setting, seed), row.change(read_method(row.method))
    found = fit(
        build_for(setting, row.method), data, method, device="cpu", warn=lambda line: None, steps=steps_of(row),
        seed=seed, batch_size=batch_size_for(data, method), audit="off", vitals=False,
    )  # fmt: skip
    rows = data.audit[~data.noisy[data.audit]]
    said = predict_rows(found.model, data, rows, data.head).argmax(-1)
    return float((said == data.y[rows]).double().mean()), float(said.bincount().max()) / len(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--groups", nargs="*", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 100 on")
    given = parser.parse_args()
    print("| setting | method | steps | changed | accuracy | mean | commonest answer |\n|---|---|---|---|---|---|---|")
    for row in (row for group in given.groups for row in GROUPS[group]):
        found = [trained(row, seed) for seed in range(100, 100 + given.seeds)]
        each = " ".join(f"{100 * right:.0f}" for right, _ in found)
        right, most = (statistics.fmean(part) for part in zip(*found, strict=True))
        what = f"{row.setting} | `{row.method}` | {steps_of(row)} | {row.about}"
        print(f"| {what} | {each} | {100 * right:.1f} | {most:.0%} |", flush=True)


if __name__ == "__main__":
    main()
