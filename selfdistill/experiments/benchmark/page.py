"""From records to rows and verdicts: a pure function of the cells, paired over the seeds that both sides have.

P-values are those of Student's paired t-test, which the intervals belong to, corrected over the methods of a setting
(Holm). The exact sign-flip test of `compare` cannot fall below 2^(1 - seeds), so that with ten seeds and thirty methods
no difference whatever would pass it.

``docs/benchmark.md``: rules, tables, drawings, what was found by hand, and what is missing.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import DataError
from ...evaluation.statistics import SAME_ROWS, TIED, PairedComparison, compare_paired, paired, two_sided_t
from ...io.display import plural
from ...io.expressions import one_line
from ...io.files import write as write_file
from ...io.schema import read_json
from ...report.figures import forest, standalone
from .cells import Records, Tell, plan, records_of, spans
from .settings import (
    ABOUT,
    HALF,
    PLAIN,
    SELF_TRAINING,
    STOPPED,
    UNTRAINED,
    Cell,
    Setting,
    controls_of,
    is_control,
    sorted_out,
)

LEVEL = 0.05


@dataclass(frozen=True)
class Row:
    """A method's or control's figures over its finished seeds, against `plain()` and against the best control."""

    name: str
    control: bool
    seeds: tuple[int, ...]
    accuracy: float
    stopped: float  # at the epoch that the audit split likes best
    nll: float
    ece: float
    passes: float | None
    budget: float | None
    plain: PairedComparison | None = None
    best: PairedComparison | None = None


def scores(
    records: Mapping[int, Mapping[str, Any]], use: str = "last", split: str = "test"
) -> dict[int, dict[str, float]]:
    """Metrics of the finished seeds on a split: of the last weights, or of those ``stopped`` early."""
    return {seed: r[split][use] for seed, r in sorted(records.items()) if r["status"] == "finished"}


def tables(records: Records, split: str = "test") -> dict[str, dict[int, dict[str, float]]]:
    """Metrics by row and seed; early stopping is a row of its own, of the same trainings."""
    found = {name: scores(of, split=split) for name, of in records.items()}
    found[STOPPED] = scores(records.get(PLAIN, {}), "stopped", split)
    return {name: of for name, of in found.items() if of}


def best_control(records: Records) -> str | None:
    """The control that the audit split likes best, of those with every seed of `plain()`; None without any. Where no
    label teaches it is the untrained network: `plain()`, which sees them all, is what could be had with them."""
    if UNTRAINED in records:
        return UNTRAINED
    audits = tables(records, "audit")
    whole = {
        name: statistics.fmean(found[seed]["accuracy"] for seed in audits[PLAIN])
        for name, found in audits.items()
        if is_control(name) and audits.get(PLAIN, {}).keys() <= found.keys()
    }
    return max(whole, key=lambda name: whole[name], default=None) if PLAIN in audits else None


def judge(records: Records) -> list[Row]:
    """A row for each method with a finished seed, the best first.

    Methods are compared with `plain()` and with the best control, controls with `plain()`; p-values are corrected over
    the rows that are compared with the same one.
    """
    found = tables(records)
    ours = [name for name in found if not is_control(name)]
    controls = [name for name in found if is_control(name) and name != PLAIN]
    plainly = {**compared(found, ours, PLAIN), **compared(found, controls, PLAIN)}
    best = best_control(records)
    against = compared(found, ours, best) if best is not None else {}
    rows = [_row(name, found[name], records, plainly.get(name), against.get(name)) for name in found]
    return sorted(rows, key=lambda row: (row.plain is None, -(row.plain.difference if row.plain else 0.0), row.name))


def compared(
    found: Mapping[str, Mapping[int, Mapping[str, float]]], family: Sequence[str], reference: str
) -> dict[str, PairedComparison]:
    """Each of a family against the reference, in accuracy, on the seeds that both have."""
    differences: dict[str, list[float]] = {}
    for name in family:
        both = found[name].keys() & found.get(reference, {}).keys()
        if both:
            one, other = ({seed: found[side][seed]["accuracy"] for seed in both} for side in (name, reference))
            differences[name] = paired(one, other)
    return compare_paired(differences, two_sided_t, level=LEVEL)


def _row(
    name: str,
    table: Mapping[int, Mapping[str, float]],
    records: Records,
    plain: PairedComparison | None,
    best: PairedComparison | None,
) -> Row:
    of = records[PLAIN if name == STOPPED else name]
    done, stopped = [of[seed] for seed in table], scores(of, "stopped")
    passes = [r["passes"]["total"] for r in done if r["passes"]]

    def mean(metric: str, of: Mapping[int, Mapping[str, float]]) -> float:
        return statistics.fmean(found[metric] for found in of.values())

    return Row(
        name, is_control(name), tuple(table), mean("accuracy", table), mean("accuracy", stopped), mean("nll", table),
        mean("ece", table), statistics.fmean(passes) if passes else None, done[0]["budget"], plain, best,
    )  # fmt: skip


FINDINGS = "findings.json"


_KIND = re.compile(r"\d+|called '[^']*'")


HEAD = f"""# Benchmark

Generated by `selfdistill benchmark methods` from the cells in `benchmarks/cells`; do not edit it. What is said by hand
stands in `benchmarks/{FINDINGS}`.

**Matched compute.** Every method of a setting may take as many sample passes as `plain()` in twice its usual steps: a
row forwarded is 1, a row backward 2, a row forwarded by a teacher, or to label the pool between generations, 1. Audits
and tests are not counted. A method whose steps cost more takes fewer of them, one of several generations divides its
passes among them. Steps are found with the first seed, to 3 % where that is possible, and are the same for all seeds;
the column of passes says what was spent. `distil()` and its like are taught by a model of the same size, plainly
trained with half of the budget. No generation is audited or rolled back: the last one is the final model.

**Controls.** `{PLAIN}` is {ABOUT[PLAIN]}; `{HALF}`: {ABOUT[HALF]}; `{STOPPED}`: {ABOUT[STOPPED]};
`{SELF_TRAINING}`: {ABOUT[SELF_TRAINING]}.

**No labels.** In settings without labels a linear probe (a logistic regression on standardised features) is fitted to
the features of the training rows when a method has ended, and it is the probe that is tested. `{UNTRAINED}`:
{ABOUT[UNTRAINED]}. It is the control there; `{PLAIN}` learns from all labels, as nobody else does, and is a ceiling.

**Pairs.** Seed S of every row has the same labels, wrong labels, audit split, first weights and order of rows as far as
the method leaves them alone. Differences are to `plain()` with the whole budget, in points of test accuracy, mean ±
half of the 95 % interval over the seeds both have. Verdicts are at level {LEVEL:g} by Student's paired t-test after
Holm's correction over the methods of the setting (controls among themselves); with fewer than three pairs there is
none. {TIED} {SAME_ROWS}

**Less may be more.** Where labels are wrong, a longer plain training only learns more of them by heart, and a method
may beat `{PLAIN}` by no more than taking fewer steps. So methods are compared with the best control too, whichever has
the best mean accuracy on the audit split: stopping early and half of the budget are among them.

**Nothing is tuned.** Every recipe runs at its defaults, most of which come from papers with larger models, data and
budgets: AdamW, rate 0.001, weight decay 0.0001, a cosine, batches of at most 64 labelled rows. A loss here is a loss of
these defaults at this budget. Where a recipe's card asks for dropout, it gets the same model with it. "Stopped early"
is the epoch of the same training that is best on the audit split, whose labels are as wrong as those that teach; with
few labels it has as many rows as teach.
"""


def findings(cells: Path) -> dict[str, str]:
    """What was found by hand: texts by ``setting``, by ``setting method``, and under "" for the whole page.

    Raises:
        DataError: the file is no such table.
    """
    path = cells.parent / FINDINGS
    if not path.exists():
        return {}
    try:
        return dict(read_json(path, {str: str}))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({one_line(error, 80)}); make it a JSON object of texts") from error


def missing_of(setting: Setting, records: Records, methods: Sequence[str] = ()) -> dict[str, list[int]]:
    """The seeds of each method that are asked for and not there."""
    left: dict[str, list[int]] = {}
    for cell in plan([setting], methods):
        if cell.seed not in records.get(cell.method, {}):
            left.setdefault(cell.method, []).append(cell.seed)
    return left


def write(
    settings: Mapping[str, Setting],
    cells: Path,
    target: Path,
    methods: Sequence[str] = (),
    tell: Tell = lambda line: None,
) -> int:
    """Write the page and its drawings; how many cells of the whole benchmark are missing.

    ``methods`` are those that the whole benchmark has, where it is not everything that fits.
    """
    said = findings(cells)
    parts, overview, missing = [], [], 0
    for setting in settings.values():
        records = records_of(setting, cells, tell)
        left = missing_of(setting, records, methods)
        missing += sum(map(len, left.values()))
        rows = judge(records)
        drawing = f"{target.stem}/{setting.name}.svg"
        drawn = draw(setting, rows)
        if drawn:
            (target.parent / target.stem).mkdir(parents=True, exist_ok=True)
            write_file(target.parent / drawing, drawn, "--page")
        parts.append(section(setting, rows, records, left, said, drawing if drawn else ""))
        overview.append(_overview(setting, rows, left))
    top = [HEAD, f"{said['']}\n"] if "" in said else [HEAD]
    head = (
        "Methods that beat / tie / lose:\n\n"
        "| setting | against plain | against the best control | the best | cells missing |\n|---|---|---|---|---|"
    )
    text = "\n".join([*top, "\n".join([head, *overview]), "", *parts])
    write_file(target, text.rstrip() + "\n", "--page")
    return missing


def _overview(setting: Setting, rows: Sequence[Row], left: Mapping[str, list[int]]) -> str:
    ours = [row for row in rows if not row.control]
    counts = [_counted([row.plain for row in ours]), _counted([row.best for row in ours])]
    best = f"`{ours[0].name}` {_difference(ours[0].plain)}" if ours and ours[0].plain else ""
    missing = sum(map(len, left.values()))
    return f"| [{setting.name}](#{setting.name}) | {' | '.join(counts)} | {best} | {missing or 'none'} |"


def _counted(found: Sequence[PairedComparison | None]) -> str:
    """How many beat, tie and lose; empty without a verdict."""
    verdicts = [one.verdict for one in found if one is not None and one.verdict]
    return " / ".join(str(verdicts.count(word)) for word in ("BEATS", "TIES", "LOSES")) if verdicts else ""


def _difference(found: PairedComparison | None) -> str:
    """In points, with half of the interval."""
    if found is None:
        return ""
    half = f" ± {100 * found.half:.2f}" if math.isfinite(found.half) else ""
    return f"{100 * found.difference:+.2f}{half}"


def draw(setting: Setting, rows: Sequence[Row]) -> str:
    """Differences with intervals, the best first, as an SVG file; empty where no row has a verdict."""
    shown: list[tuple[str, float, float, float, str]] = []
    for row in rows:
        if row.plain is not None and row.plain.verdict:
            mean, half = 100 * row.plain.difference, 100 * row.plain.half
            shown.append((row.name, mean - half, mean, mean + half, row.plain.verdict))
    title = f"{setting.name}: test accuracy against plain() at equal compute"
    return standalone(forest(shown, title, "difference in points, 95 % interval"))


def section(
    setting: Setting,
    rows: Sequence[Row],
    records: Records,
    left: Mapping[str, list[int]],
    said: Mapping[str, str],
    drawing: str,
) -> str:
    """All of one setting: what it is, its table, and the methods without a row."""
    lines = [f"## {setting.name}", "", f"{setting.about}. {_amounts(setting)}", ""]
    if setting.name in said:
        lines += [said[setting.name], ""]
    if rows:
        lines += [*table(setting, rows, said), ""]
    if best := best_control(records):
        why = "where no label teaches" if setting.probing else "by mean accuracy on the audit split"
        lines += [f"The best control, {why}, is `{best}`.", ""]
    if drawing:
        lines += [f"![differences to plain at equal compute]({drawing})", ""]
    reasons = {**sorted_out(setting)[1], **_failures(records)}
    lines += _listed("Not run here, or failed", reasons)
    lines += _listed("Warned of while they trained, with the words of the first seed that was", _warned(records))
    if left:
        count = sum(map(len, left.values()))
        lines += [
            f"**{plural(count, 'cell')} {'is' if count == 1 else 'are'} missing**; `selfdistill benchmark methods "
            f"--settings {setting.name}` makes them."
        ]
        whole = [name for name, seeds in left.items() if len(seeds) == setting.seeds]
        if whole:
            lines += ["", f"Without any cell: {', '.join(f'`{name}`' for name in whole)}."]
        some = [f"`{name}` seeds {spans(seeds)}" for name, seeds in left.items() if name not in whole]
        lines += ["", f"In part: {'; '.join(some)}."] if some else []
        lines += [""]
    elif not rows:
        lines += ["No recipe fits this setting yet.", ""]
    return "\n".join(lines)


def _failures(records: Records) -> dict[str, str]:
    """The methods that failed, with the error of the first seed that did."""
    found: dict[str, str] = {}
    for name, of in records.items():
        errors = [record["error"] for _, record in sorted(of.items()) if record["status"] == "failed"]
        if errors:
            whole = "" if len(errors) == len(of) else f"{len(errors)} of {len(of)} seeds: "
            found[name] = f"{whole}{errors[0]}"
    return found


def _warned(records: Records) -> dict[str, str]:
    """What the trainings of each method warned of; kinds of warnings, for numbers and names differ by seed."""
    found: dict[str, str] = {}
    for name, of in records.items():
        kinds: dict[str, tuple[str, list[int]]] = {}
        for seed, record in sorted(of.items()):
            for said in record.get("warnings", []):
                seeds = kinds.setdefault(_KIND.sub("#", said), (said, []))[1]
                seeds += [seed] if seed not in seeds else []
        if kinds:
            found[name] = "; ".join(f"{said} ({len(seeds)} of {len(of)} seeds)" for said, seeds in kinds.values())
    return found


def _amounts(setting: Setting) -> str:
    steps = f"`plain()` {2 * setting.steps:,} steps"
    if HALF in controls_of(setting):
        steps += f", `{HALF}` {setting.steps:,}"
    return f"Model `{setting.model}`; budget {setting.budget:,} passes: {steps}; {setting.seeds} seeds."


def table(setting: Setting, rows: Sequence[Row], said: Mapping[str, str]) -> list[str]:
    """One line a row, the best first."""
    noted = any(f"{setting.name} {row.name}" in said for row in rows)
    head = [
        "", "accuracy", "to plain, points", "verdict", "p", "to the best control", "verdict", "p", "stopped early",
        "NLL", "passes", "seeds", "command",
    ]  # fmt: skip
    lines = [head + ["found"] * noted]
    for row in rows:
        cells = [
            f"`{row.name}`{' (control)' if row.control else ''}", f"{100 * row.accuracy:.2f}", *_compared(row.plain),
            *_compared(row.best), f"{100 * row.stopped:.2f}", f"{row.nll:.3f}", _passes(row),
            f"{len(row.seeds)} of {setting.seeds}",
            f"`{Cell(setting, PLAIN if row.name == STOPPED else row.name, 0).command()}`",
        ]  # fmt: skip
        lines.append(cells + [said.get(f"{setting.name} {row.name}", "")] * noted)
    rule = ["---"] * len(lines[0])
    return [f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:])]


def _compared(found: PairedComparison | None) -> list[str]:
    if found is None:
        return ["", "", ""]
    p = "" if found.holm is None else "< 0.001" if found.holm < 0.001 else f"{found.holm:.3f}"
    return [_difference(found), found.verdict or "", p]


def _passes(row: Row) -> str:
    if row.passes is None:
        return ""
    share = f" ({100 * row.passes / row.budget:.0f} %)" if row.budget else ""
    return f"{row.passes / 1000:.0f}k{share}"


def _listed(title: str, reasons: Mapping[str, str]) -> list[str]:
    """Reasons, each with all the methods it holds for."""
    by_reason: dict[str, list[str]] = {}
    for name, why in sorted(reasons.items()):
        by_reason.setdefault(why, []).append(f"`{name}`")
    if not by_reason:
        return []
    return [f"{title}:", "", *(f"- {', '.join(names)}: {why}" for why, names in by_reason.items()), ""]
