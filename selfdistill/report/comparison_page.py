"""The report of a comparison."""

from __future__ import annotations

from typing import Any

from ..evaluation.metrics import POINTS, ordered
from ..evaluation.statistics import SAME_ROWS, TIED
from ..training.task_type import TaskTypes
from .figures import Series, bars, curves, forest, reliability
from .layout import code, figure, page, paragraph, section, table
from .run_page import data, equation, typed

LEARNING = ("plain", "plain, longer", "label smoothing", "sft()", "sft(), longer")  # controls whose curves are drawn


CORRECTED = "Holm's correction is over the rows of a table, methods and controls apart, and not over the metrics."


def render(result: dict[str, Any], types: TaskTypes) -> str:
    """The page of a comparison, from what its JSON holds."""
    metrics = ordered(result["metrics"], result["task"])
    metric, plain = metrics[0], _plain(result)
    methods = [row for row in result["rows"] if row["kind"] == "method"]
    parts = [
        *(paragraph(line, "verdict") for line in result["verdict"]),
        *(paragraph(line, "soft") for line in (*result["reachable"], TIED, SAME_ROWS, *result.get("trouble", []))),
        section(
            f"Differences in {metric}",
            figure(_forest(result["rows"], "plain", metric), f"Against {plain}, in {_unit(metric)}, 95 % intervals."),
            *_before(methods, metric),
            figure(
                _forest(methods, "best_control", metric),
                "Against the best control: {name}, chosen by {by}.".format_map(result["best_control"]),
            ),
        ),
        section("All metrics", *(_metrics(result, name) for name in metrics), paragraph(CORRECTED, "soft")),
        section("Learning", _curves(result)),
        section("Calibration", _calibration(result, methods)),
        section("Cost", *_cost(result)),
        section("What was compared", table(("", "", ""), [
            (row["name"], row["about"], f"{row['steps']:,} {_counted(result)}") for row in result["rows"]
        ], "words"), *_peers(methods)),
        *(section(row["name"], *equation(row["name"], types.of_recipe(row["name"]))) for row in methods),
        section("Data", *data(result["data"])),
        section("How it was made", code(typed(result["command"])), _made(result)),
    ]  # fmt: skip
    return page(f"{', '.join(row['name'] for row in methods)} on {result['data']['name']}", parts)


def _counted(result: dict[str, Any]) -> str:
    """What a row's length is told in."""
    return "trainings" if result["budget"]["unit"] == "trainings" else "steps"


def _plain(result: dict[str, Any]) -> str:
    """The row that all others are compared with; comparisons of networks and older ones have no other than plain."""
    return str(result.get("references", {}).get("plain", "plain"))


def _unit(metric: str) -> str:
    return "points" if metric in POINTS else metric


def _scale(metric: str) -> float:
    return 100.0 if metric in POINTS else 1.0


def _before(methods: list[dict[str, Any]], metric: str) -> list[str]:
    """Language models are also compared with themselves as they were; on prior tasks too, where some were asked."""
    there = methods[0]["against"]
    where = "before" if "before" in there else "plain"
    told = {metric: f"in {_unit(metric)}", "kept": "on prior tasks, in points"}
    return [
        figure(_forest(methods, where, name), f"Against the model before, {words}.")
        for name, words in told.items()
        if name in there[where] and (where == "before" or name == "kept")
    ]


def _forest(rows: list[dict[str, Any]], where: str, metric: str) -> str:
    shown = []
    for row in rows:
        found = (row["against"][where] or {}).get(metric)
        if found:
            low, high = found["interval"]
            by = _scale(metric)
            shown.append((row["name"], by * low, by * found["difference"], by * high, found["verdict"]))
    return forest(shown, f"differences in {metric}", f"difference, {_unit(metric)}")


def _metrics(result: dict[str, Any], metric: str) -> str:
    plain = _plain(result)
    head = (metric, "mean", f"- {plain}", "95 % interval", "p", "p (Holm)", f"vs {plain}", "vs best control")
    lines = []
    for row in result["rows"]:
        usual, best = ((row["against"][where] or {}).get(metric) for where in ("plain", "best_control"))
        by, mean = _scale(metric), row["metrics"][metric]["mean"]
        shown = [row["name"], f"{by * mean:.2f}" if by > 1 else f"{mean:.4f}"]
        if usual:
            low, high = usual["interval"]
            digits = 2 if by > 1 else 4
            shown += [f"{by * usual['difference']:+.{digits}f}", f"{by * low:+.{digits}f} to {by * high:+.{digits}f}"]
            shown += [f"{usual['p']:.4f}", f"{usual['holm']:.4f}", usual["verdict"]]
        else:
            shown += [""] * 5
        lines.append([*shown, best["verdict"] if best else ""])
    return table(head, lines)


def _curves(result: dict[str, Any]) -> str:
    series = [
        Series(row["name"], [(p["step"], p["score"]) for p in row["curve"]])
        for row in result["rows"]
        if row["kind"] == "method" or row["name"] in LEARNING
    ]
    metric = {"accuracy": "accuracy", "rmse": "RMSE"}.get(ordered(result["metrics"], result["task"])[0], "NLL")
    drawn = curves(series, f"audit {metric} by step", "step", f"audit {metric}", share=metric == "accuracy")
    return figure(drawn, f"Audit {metric} by step, mean over the seeds.") if drawn else ""


def _calibration(result: dict[str, Any], methods: list[dict[str, Any]]) -> str:
    plain = next(row for row in result["rows"] if row["name"] == _plain(result))
    series = [(row["name"], row["reliability"]) for row in (plain, *methods) if row["reliability"]]
    caption = "On the test split, all seeds together: the dashed line is perfect calibration."
    return figure(reliability(series, "accuracy against confidence"), caption, "small") if series else ""


def _cost(result: dict[str, Any]) -> list[str]:
    spent = []
    for row in result["rows"]:
        times = result["times"]["rows"][row["name"]]
        unit = result["budget"]["unit"]
        words = f"{row['passes']['total']:,.0f} {unit}, {times['seconds']:.1f} s, {times['peak_memory_mb']:.0f} MB"
        if saved := row["passes"].get("saved"):
            words += f"; {saved:,.0f} passes of a teacher saved, whose answers were kept"
        if drawn := row.get("drawn"):
            words += f"; {drawn:,.0f} completions drawn to learn from"
        whole = row["passes"]["with_teacher_training"]
        if whole is not None:
            words += f"; {whole:,.0f} passes with the teacher's training"
        if row["steps_to_plain"] is not None:
            words += f"; reaches plain's final audit score after {row['steps_to_plain']:,} steps"
        spent.append((row["name"], row["passes"]["total"], words))
    amount = f"The budget is {result['budget']['amount']:,.0f} {result['budget']['kind']} a seed; figures are means."
    return [figure(bars(spent, result["budget"]["unit"]), amount)]


def _peers(methods: list[dict[str, Any]]) -> list[str]:
    said = []
    for row in methods:
        kept = row["ensemble_gain_retained"]
        if kept:
            low, high = kept["interval"]
            words = f"{100 * kept['mean']:.0f} % of the undistilled ensemble's gain [{100 * low:.0f}, {100 * high:.0f}]"
            said.append(paragraph(f"{row['name']} keeps {words} in one model."))
    return said


def _made(result: dict[str, Any]) -> str:
    size = f", {result['parameters']:,} parameters" if result["parameters"] else ""
    facts = [*result["versions"].items(), ("model", f"{result['model']}{size}")]
    facts += [("threads", str(result["threads"])), ("seeds", ", ".join(map(str, result["seeds"])))]
    return table(("", ""), [(str(a), str(b)) for a, b in facts], "words")
