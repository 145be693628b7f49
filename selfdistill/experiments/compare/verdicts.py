"""From records to verdicts: a pure function of the cells, so that it can be checked by hand."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ...errors import DataError
from ...evaluation.metrics import AUDITED, METRICS, POINTS
from ...evaluation.statistics import (
    FEWEST,
    amount_reached,
    compare_paired,
    interquartile_mean,
    interval,
    paired,
    probability_of_improvement,
    sign_flip,
    smallest_p,
    stratified_bootstrap,
)
from ...training.comparison import ABOUT, BEFORE, INDEPENDENT, PEERS, PLAIN

WORDS = {"BEATS": "BEATS", "TIES": "TIES with", "LOSES": "LOSES to"}


TOLD = {"kept": "accuracy on prior tasks", "tasks": "score on tasks of lm-eval"}  # metrics whose names say little


Cells = Mapping[str, Mapping[int, Mapping[str, Any]]]  # row -> seed -> record


def judge(
    cells: Cells,
    methods: Sequence[str],
    *,
    task: str = "classify",
    level: float = 0.05,
    plain: str = PLAIN,
    ablations: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Rows, the best control and the verdicts, from each row's record on each seed.

    Every row is compared with the plain one, which ``plain`` names; methods also with the best control, chosen by mean
    audit score, and with the model before, where it is a row beside a plain one. Per metric the p-values of the methods
    are corrected for each other (Holm), those of the controls likewise among themselves, and so those of the rows in
    ``ablations``, which are no controls: each is a method, which the mapping names, under another teacher.

    Raises:
        DataError: a row has other seeds than the plain one, or a figure is not finite.
    """
    known = METRICS[task]
    seeds = len(same_seeds(cells))
    able = smallest_p(seeds) * len(methods) <= level
    there = [m for m in known if all(m in r["metrics"] for found in cells.values() for r in found.values())]
    names = dict.fromkeys(cells, there)
    ranks = {name: place for place, name in enumerate(ABOUT)}
    ablations = ablations or {}
    others = (name for name in cells if name not in methods and name not in ablations)
    controls = sorted(others, key=lambda name: ranks.get(name, len(ranks)))
    audited = next(name for name in AUDITED if name in next(iter(cells[plain].values()))["audit"])
    higher = AUDITED[audited]
    means = {c: statistics.fmean(record["audit"][audited] for record in cells[c].values()) for c in controls}
    best = max(means, key=lambda c: means[c] if higher else -means[c])
    references = {PLAIN: plain, "best_control": best}
    if BEFORE in cells and plain != BEFORE:
        references[BEFORE] = BEFORE
    against: dict[str, dict[str, Any]] = {name: {where: {} for where in references} for name in cells}
    families = [methods, list(ablations)] if ablations else [methods]
    pairs = [(family, name, where) for where, name in references.items() for family in families]
    pairs.append(([name for name in controls if name != plain], plain, PLAIN))
    for metric in (m for m in names[plain] if known[m]["higher_is_better"] is not None):
        for family, reference, where in pairs:
            found = _compared(cells, family, reference, metric, known[metric]["higher_is_better"], level)
            for name, what in found.items():
                against[name][where][metric] = what
    rows = [_row(name, cells, plain, names[name], against[name]) for name in [*methods, *ablations, *controls]]
    for row in rows[: len(methods)]:
        row |= {"kind": "method", "expression": row["name"], "about": "the method"}
    for row in rows[len(methods) : len(methods) + len(ablations)]:
        teacher = row["name"].removeprefix(f"{ablations[row['name']]}, ")
        row |= {"kind": "ablation", "expression": ablations[row["name"]], "about": f"the method, taught by {teacher}"}
    for ensemble in {INDEPENDENT, PEERS} & set(cells):
        _retained(rows, cells, ensemble, audited)
    return {
        "metrics": {metric: known[metric] for metric in names[plain]},
        "rows": rows,
        "references": references,
        "best_control": {"name": best, "by": f"audit {audited}, mean over seeds"},
        "verdict": [
            _sentence(row, metric, called(references), level, able, BEFORE in cells)
            for row in rows[: len(methods)]
            for metric in [next(iter(row["metrics"])), *(name for name in row["metrics"] if name in TOLD)]
        ],
        "benefits": [line for row in rows[: len(methods)] if (line := benefits(row, rows, plain))],
        **({"ablation": ablation(cells, ablations, names[plain], task, level)} if ablations else {}),
    }


def ablation(
    cells: Cells, ablations: Mapping[str, str], metrics: Sequence[str], task: str, level: float
) -> list[dict[str, Any]]:
    """What each method loses or gains where its own predictions teach in place of its peers', or beside them.

    Returns:
        For each method its ``rows``, each with its differences ``against`` the method by metric, whose p-values are
        corrected within the method (Holm), and a ``verdict`` in words.
    """
    found = list[dict[str, Any]]()
    for method in dict.fromkeys(ablations.values()):
        family = [name for name, of in ablations.items() if of == method]
        against: dict[str, dict[str, Any]] = {name: {} for name in family}
        for metric in (m for m in metrics if METRICS[task][m]["higher_is_better"] is not None):
            higher = METRICS[task][metric]["higher_is_better"]
            for name, what in _compared(cells, family, method, metric, higher, level).items():
                against[name][metric] = what
        said = [
            f"{name.removeprefix(f'{method}, ')} {_difference(against[name][metrics[0]], metrics[0])}"
            for name in family
        ]
        verdict = (
            f"{method}: in {TOLD.get(metrics[0], metrics[0])} against its peers' teaching, {'; '.join(said)} (Holm)."
        )
        rows = [{"name": name, "against": against[name]} for name in family]
        found.append({"method": method, "rows": rows, "verdict": verdict})
    return found


def called(references: Mapping[str, str]) -> dict[str, str]:
    """What methods are judged against, in words: of language models each once, and the model before first.

    >>> called({"plain": "plain", "best_control": "weight decay"})
    {'plain': 'plain', 'best_control': 'the best control (weight decay)'}
    >>> called({"plain": "sft()", "best_control": "before", "before": "before"})
    {'before': 'the model before', 'plain': 'sft()'}
    """
    plain, best = references[PLAIN], references["best_control"]
    words = {PLAIN: plain, "best_control": f"the best control ({best})"}
    if BEFORE not in (plain, *references):
        return words if best != plain else {PLAIN: plain}
    if best in (plain, BEFORE):
        del words["best_control"]
    before = "the model before"
    return {**words, PLAIN: before} if plain == BEFORE else {BEFORE: before, **words}


def values(cells: Mapping[int, Mapping[str, Any]], metric: str) -> dict[int, float]:
    return {seed: float(record["metrics"][metric]) for seed, record in sorted(cells.items())}


def _compared(
    cells: Cells, family: Sequence[str], reference: str, metric: str, higher: bool, level: float
) -> dict[str, dict[str, Any]]:
    theirs = values(cells[reference], metric)
    differences = {name: paired(values(cells[name], metric), theirs) for name in family}
    comparisons = compare_paired(differences, sign_flip, higher, level)
    return {
        name: {
            "difference": c.difference,
            "interval": [c.difference - c.half, c.difference + c.half],
            "p": c.p,
            "holm": c.holm,
            "verdict": c.verdict,
        }
        for name, c in comparisons.items()
    }


def _row(name: str, cells: Cells, plain: str, metrics: Sequence[str], against: dict[str, Any]) -> dict[str, Any]:
    records = [record for _, record in sorted(cells[name].items())]
    row: dict[str, Any] = {
        "name": name,
        "kind": "control",
        "expression": None,
        "about": records[0].get("about", ABOUT.get(name, "")),
        "steps": round(statistics.median(r["steps"] for r in records)),
        "generations": max(r["generations"] for r in records),
        "metrics": {metric: _spread(list(values(cells[name], metric).values())) for metric in metrics},
        "audit": {key: statistics.fmean(r["audit"][key] for r in records) for key in records[0]["audit"]},
        "against": {where: found or None for where, found in against.items()},
        "passes": {k: statistics.fmean(r["passes"].get(k, 0) for r in records) for k in records[0]["passes"]},
        "ensemble_gain_retained": None,
        "steps_to_plain": converged(cells, name, plain),
        "convergence": convergence(cells, name, plain),
        "curve": _curve(records),
        "decisions": [r["decisions"] for r in records] if records[0]["decisions"] else None,
        "final_generations": [r["final_generation"] for r in records] if "final_generation" in records[0] else None,
        "reliability": pooled([r["reliability"] for r in records]) if "reliability" in records[0] else None,
    }
    if "return" in metrics:
        row["robust"] = _robust(name, cells, plain)
    if "drawn" in records[0]:
        row["drawn"] = statistics.fmean(r["drawn"] for r in records)
    if "tokens" in records[0]:
        row["tokens"] = {key: statistics.fmean(r["tokens"][key] for r in records) for key in records[0]["tokens"]}
    paid = [r["with_teacher_training"] for r in records]
    row["passes"]["with_teacher_training"] = statistics.fmean(paid) if None not in paid else None
    return row


def _robust(name: str, cells: Cells, plain: str) -> dict[str, Any]:
    """The interquartile mean of the returns, its bootstrap interval, and how probably one beats one of the plain row.

    Source: Agarwal et al., Deep Reinforcement Learning at the Edge of the Statistical Precipice, NeurIPS 2021.
    """
    own, usual = (list(values(cells[row], "return").values()) for row in (name, plain))
    return {
        "iqm": interquartile_mean(own),
        "interval": list(stratified_bootstrap([own])),
        "improvement": probability_of_improvement(own, usual),
    }


def _spread(found: list[float]) -> dict[str, Any]:
    mean, half = interval(found)
    return {"values": found, "mean": mean, "interval": [mean - half, mean + half]}


def _curve(records: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Mean over seeds of the audit accuracy or RMSE, as far as every seed's curve goes."""
    points = zip(*(r["curve"] for r in records), strict=False)
    return [
        {
            "step": round(statistics.fmean(p["step"] for p in point)),
            "score": statistics.fmean(p["score"] for p in point),
            "generation": point[0]["generation"],
        }
        for point in points
    ]


def pooled(several: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """Reliability bins of several seeds as one: means weighed by the rows in each bin of ten.

    >>> one = {"confidence": 0.95, "accuracy": 1.0, "share": 1.0}
    >>> pooled([[one], [{**one, "accuracy": 0.5}]])
    [{'confidence': 0.95, 'accuracy': 0.75, 'share': 1.0}]
    """
    bins: dict[int, list[Mapping[str, float]]] = {}
    for found in several:
        for b in found:
            bins.setdefault(math.ceil(b["confidence"] * 10 - 1e-9), []).append(b)
    merged = []
    for _, group in sorted(bins.items()):
        share = math.fsum(b["share"] for b in group)
        mean = {key: math.fsum(b[key] * b["share"] for b in group) / share for key in ("confidence", "accuracy")}
        merged.append({**mean, "share": share / len(several)})
    return merged


def _retained(rows: list[dict[str, Any]], cells: Cells, ensemble: str, metric: str) -> None:
    """Where peers teach: what share of the undistilled ensemble's gain over plain does the one final model keep?"""
    usual, sign = values(cells[PLAIN], metric), 1 if metric == "accuracy" else -1
    whole = paired(values(cells[ensemble], metric), usual)
    for row in rows:
        taught_by_peers = next(iter(cells[row["name"]].values())).get("peers", False)
        if taught_by_peers and sign * statistics.fmean(whole) > 0:
            row["ensemble_gain_retained"] = ratio(paired(values(cells[row["name"]], metric), usual), whole)


def ratio(ours: Sequence[float], whole: Sequence[float]) -> dict[str, Any]:
    """Mean of ours over mean of whole, with the interval of its linearisation (the delta method).

    >>> ratio([1.0, 1.0, 1.0], [2.0, 2.0, 2.0])
    {'mean': 0.5, 'interval': [0.5, 0.5]}
    """
    share = statistics.fmean(ours) / statistics.fmean(whole)
    _, half = interval([(a - share * b) / statistics.fmean(whole) for a, b in zip(ours, whole, strict=True)])
    return {"mean": share, "interval": [share - half, share + half]}


def steps_to(curve: Sequence[Mapping[str, float]], score: float, higher: bool = True) -> float:
    """The first step at which an audit curve reaches a score; infinite where it never does.

    >>> steps_to([{"step": 10, "score": 0.5}, {"step": 20, "score": 0.9}], 0.8)
    20
    """
    sign = 1 if higher else -1
    return next((point["step"] for point in curve if sign * point["score"] >= sign * score), math.inf)


def converged(cells: Cells, name: str, plain: str = PLAIN) -> int | None:
    """Median over seeds of the steps to plain's last audit score; None where half of the seeds never reach it, or where
    nothing is trained in steps."""
    if not all(usual["curve"] for usual in cells[plain].values()):
        return None
    median = statistics.median_high(_steps_to_plain(cells, name, plain))
    return None if math.isinf(median) else round(median)


def _steps_to_plain(cells: Cells, name: str, plain: str) -> list[float]:
    """The steps to plain's last audit score on each seed; infinite where it is never reached."""
    return [
        steps_to(
            cells[name][seed]["curve"], usual["curve"][-1]["score"], bool({"accuracy", "return"} & set(usual["audit"]))
        )
        for seed, usual in cells[plain].items()
    ]


def convergence(cells: Cells, name: str, plain: str = PLAIN) -> dict[str, Any] | None:
    """How fast a row reaches plain's last audit score; None where nothing is trained in steps.

    Returns:
        ``steps``: the median over seeds, None where most never reach it; ``interval``: of the median, by order
        statistics, its end None where seeds never reach it; ``coverage`` of the interval; ``reached``: on how many
        seeds; ``share``: of the row's own steps.
    """
    if not all(usual["curve"] for usual in cells[plain].values()):
        return None
    steps = sorted(_steps_to_plain(cells, name, plain))
    depth, coverage = median_depth(len(steps))
    low, median, high = (
        None if math.isinf(value) else round(value)
        for value in (steps[depth - 1], statistics.median_high(steps), steps[-depth])
    )
    lengths = [record["curve"][-1]["step"] for record in cells[name].values() if record["curve"]]
    whole = statistics.median(lengths) if lengths else math.inf  # a model before training has no curve
    return {
        "steps": median,
        "interval": [low, high],
        "coverage": coverage,
        "seeds": len(steps),
        "reached": sum(map(math.isfinite, steps)),
        "share": None if median is None else median / whole,
    }


def median_depth(count: int, level: float = 0.95) -> tuple[int, float]:
    """Which smallest and largest value bound the median, counted from the ends, and with what probability they do.

    >>> median_depth(6), median_depth(5)
    ((1, 0.96875), (1, 0.9375))
    """
    tails = [2 * sum(math.comb(count, k) for k in range(depth)) / 2**count for depth in range(1, count // 2 + 1)]
    fitting = [depth for depth, tail in enumerate(tails, 1) if 1 - tail >= level]
    depth = max(fitting, default=1)
    return depth, 1 - tails[depth - 1]


def _sentence(
    row: Mapping[str, Any], metric: str, against: Mapping[str, str], level: float, able: bool, before: bool
) -> str:
    """A method's verdicts in words; ``able`` says whether so many seeds can give any other verdict than a tie."""
    said = []
    for where, name in against.items():
        found = row["against"][where][metric]
        said.append(f"{WORDS[found['verdict']]} {name}, {_difference(found, metric)}")
    if metric not in TOLD:  # which come later
        said[-1] += _untaught(row, before)
    caveat = "" if able else " With so few seeds every verdict is a tie, whatever the difference."
    what = TOLD.get(metric, metric)
    return f"{row['name']}: in {what}, {'; '.join(said)} (Holm over the methods, level {level:g}).{caveat}"


def _difference(found: Mapping[str, Any], metric: str) -> str:
    """A paired difference with its interval and its corrected p-value, in words."""
    scale, unit, digits = (100, " points", "+.2f") if metric in POINTS else (1, "", "+.3g")
    shown, *ends = (format(scale * value, digits) for value in (found["difference"], *found["interval"]))
    return f"{shown}{unit} [{', '.join(ends)}], p {found['holm']:.3g}"


def label_curve(parts: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """The labels that each row needs for the score that plain has with the most labels, from comparisons by labels.

    Raises:
        DataError: they have fewer than three seeds in common.
    """
    counts = sorted(parts)
    last = parts[counts[-1]]
    metric, plain = next(iter(last["metrics"])), last["references"][PLAIN]
    higher = last["metrics"][metric]["higher_is_better"]
    seeds = sorted(set.intersection(*(set(part["seeds"]) for part in parts.values())))
    if len(seeds) < FEWEST:
        raise DataError(
            f"the comparisons have {len(seeds)} seeds in common, too few for a verdict; give a larger --budget"
        )

    def scores(name: str, count: int) -> list[float] | None:
        row = next((row for row in parts[count]["rows"] if row["name"] == name), None)
        return row and [row["metrics"][metric]["values"][parts[count]["seeds"].index(seed)] for seed in seeds]

    goals, sign, rows = scores(plain, counts[-1]) or [], 1 if higher else -1, list[dict[str, Any]]()
    for row in last["rows"]:
        curves = [scores(row["name"], count) for count in counts]
        if None in curves:  # an ensemble of another size
            continue
        by_seed = [[sign * score for score in seed] for seed in zip(*(curve or [] for curve in curves), strict=True)]
        reach = amount_reached(counts, by_seed, [sign * goal for goal in goals])
        ends = [_labels(reach.low, counts), _labels(reach.high, counts)]
        rows.append(
            {
                "name": row["name"],
                "kind": row["kind"],
                "means": [statistics.fmean(curve or []) for curve in curves],
                "labels": [None if math.isinf(value) else value for value in reach],
                "needed": [_labels(reach.amount, counts), ends[0] if ends[0] == ends[1] else " to ".join(ends)],
            }
        )
    goal = statistics.fmean(goals)
    shown = f"{100 * goal:.1f} %" if metric in POINTS else f"{goal:.4g}"
    return {
        "metric": metric,
        "labels": counts,
        "plain": plain,
        "goal": goal,
        "seeds": seeds,
        "rows": rows,
        "verdict": [
            f"{row['name']}: for the {metric} of {plain} with {counts[-1]} labels ({shown}) it needs "
            f"{row['needed'][0]} labels [{row['needed'][1]}]."
            for row in rows
            if row["kind"] == "method"
        ],
    }


def _labels(amount: float, counts: Sequence[int]) -> str:
    """A number of labels in words, which the counts bound."""
    if math.isinf(amount):
        return f"more than {counts[-1]}"
    return f"at most {counts[0]}" if amount <= counts[0] else f"{amount:.0f}"


GAPS = {"gap": "training minus test accuracy", "rmse_gap": "test minus training RMSE"}


def benefits(row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], plain: str) -> str:
    """Speed and over-fitting of a method in words, beside those of plain; empty where neither was measured."""
    usual, said = next(other for other in rows if other["name"] == plain), list[str]()
    if (speed := row.get("convergence")) is not None:
        own = _speed(usual["convergence"])
        said.append(f"it reaches {plain}'s final validation score {_speed(speed)}; {plain} itself {own}")
    for metric in GAPS.keys() & row["metrics"].keys():
        scale, unit, digits = (100, " points", ".1f") if metric in POINTS else (1, "", ".3g")
        shown, other = (format(scale * one["metrics"][metric]["mean"], digits) for one in (row, usual))
        found = row["against"][PLAIN][metric]
        ends = ", ".join(format(scale * end, f"+{digits}") for end in found["interval"])
        said.append(
            f"{GAPS[metric]} is {shown}{unit}, of {plain} {other}, difference "
            f"{format(scale * found['difference'], f'+{digits}')} [{ends}]"
        )
    return f"{row['name']}: {'; '.join(said)}." if said else ""


def _speed(speed: Mapping[str, Any]) -> str:
    if speed["steps"] is None:
        return f"on {speed['reached']} of {speed['seeds']} seeds only"
    low, high = (f"{end:,}" if end is not None else "never" for end in speed["interval"])
    return f"after {speed['steps']:,} steps [{low}, {high}], {100 * speed['share']:.0f} % of its own"


def _untaught(row: Mapping[str, Any], before: bool) -> str:
    """The number of seeds in which the method did not change the final model; ``before``: it trains further."""
    finals = row["final_generations"] or []
    of = len(finals)
    if before:
        kept = finals.count(-1)
        return f"; in {kept} of {of} seeds the final model is the model before training" if kept else ""
    untaught = finals.count(0) if row["decisions"] else 0
    return f"; in {untaught} of {of} seeds the final model is generation 0, which had no teacher" if untaught else ""


def same_seeds(cells: Cells) -> list[int]:
    """The seeds that all rows have.

    Raises:
        DataError: rows have different seeds, or fewer than three.
    """
    seeds = {name: sorted(found) for name, found in cells.items()}
    first = next(iter(seeds))
    for name, found in seeds.items():
        if found != seeds[first]:
            raise DataError(
                f"{name} has the seeds {found} and {first} has {seeds[first]}; train both on the same seeds"
            )
    if len(seeds[first]) < 3:
        raise DataError(f"{len(seeds[first])} seeds allow no verdict; give --seeds 3 or more")
    return seeds[first]
