"""The report of a comparison."""

from __future__ import annotations

from typing import Any

from ..evaluation.metrics import POINTS, ordered
from ..evaluation.statistics import SAME_ROWS, TIED
from ..training.task_type import TaskTypes
from .figures import Series, bars, curves, forest, reliability
from .layout import code, figure, page, paragraph, section, table
from .run_page import data, equation, typed
from .summary import budget_lines

LEARNING = (
    "plain",
    "plain, longer",
    "label smoothing",
    "sft()",
    "sft(), longer",
    "restarted()",
    "continued()",
)  # controls whose curves are drawn


CORRECTED = "Holm's correction is over the rows of a table, methods and controls apart, and not over the metrics."


def render(result: dict[str, Any], types: TaskTypes) -> str:
    """The page of a comparison, from its JSON."""
    metrics = ordered(result["metrics"], result["task"])
    metric, plain = metrics[0], _plain(result)
    methods = [row for row in result["rows"] if row["kind"] == "method"]
    parts = [
        *(paragraph(line, "verdict") for line in result["verdict"]),
        *(paragraph(line, "soft") for line in (*result["reachable"], TIED, SAME_ROWS, *result.get("trouble", []))),
        section(
            f"Differences in {metric}",
            figure(_forest(result["rows"], "plain", metric), f"Against {plain}, in {_unit(metric)}, 95 % intervals."),
            *_against_before(methods, metric),
            figure(
                _forest(methods, "best_control", metric),
                "Against the best control: {name}, chosen by {by}.".format_map(result["best_control"]),
            ),
        ),
        section("All metrics", *(_metrics(result, name) for name in metrics), paragraph(CORRECTED, "soft")),
        *_robust(result),
        section("Learning", _curves(result)),
        section("Calibration", _calibration(result, methods)),
        section("Cost", *_cost(result)),
        section("What was compared", table(("", "", ""), [
            (row["name"], row["about"], f"{row['steps']:,} {_length_unit(result)}") for row in result["rows"]
        ], "words"), *_peers(methods)),
        *(section(row["name"], *equation(row["name"], types.of_recipe(row["name"]))) for row in methods),
        section("Data", *data(result["data"])),
        section("How it was made", code(typed(result["command"])), _provenance(result)),
    ]  # fmt: skip
    return page(f"{', '.join(row['name'] for row in methods)} on {result['data']['name']}", parts)


def _length_unit(result: dict[str, Any]) -> str:
    """The unit of a row's length."""
    return "trainings" if result["budget"]["unit"] == "trainings" else "steps"


def _plain(result: dict[str, Any]) -> str:
    """The name of the baseline row; comparisons of networks have no other than plain."""
    return str(result.get("references", {}).get("plain", "plain"))


def _unit(metric: str) -> str:
    return "points" if metric in POINTS else metric


def _scale(metric: str) -> float:
    return 100.0 if metric in POINTS else 1.0


def _against_before(methods: list[dict[str, Any]], metric: str) -> list[str]:
    """Figures against the initial language model, and of prior tasks if they were evaluated."""
    metrics = methods[0]["against"]
    reference = "before" if "before" in metrics else "plain"
    captions = {metric: f"in {_unit(metric)}", "kept": "on prior tasks, in points"}
    return [
        figure(_forest(methods, reference, name), f"Against the model before, {words}.")
        for name, words in captions.items()
        if name in metrics[reference] and (reference == "before" or name == "kept")
    ]


def _forest(rows: list[dict[str, Any]], reference: str, metric: str) -> str:
    intervals = []
    for row in rows:
        difference = (row["against"][reference] or {}).get(metric)
        if difference:
            low, high = difference["interval"]
            scale = _scale(metric)
            intervals.append(
                (row["name"], scale * low, scale * difference["difference"], scale * high, difference["verdict"])
            )
    return forest(intervals, f"differences in {metric}", f"difference, {_unit(metric)}")


def _metrics(result: dict[str, Any], metric: str) -> str:
    plain = _plain(result)
    head = (metric, "mean", f"- {plain}", "95 % interval", "p", "p (Holm)", f"vs {plain}", "vs best control")
    lines = []
    for row in result["rows"]:
        plain_test, control_test = (
            (row["against"][reference] or {}).get(metric) for reference in ("plain", "best_control")
        )
        scale, mean = _scale(metric), row["metrics"][metric]["mean"]
        cells = [row["name"], f"{scale * mean:.2f}" if scale > 1 else f"{mean:.4f}"]
        if plain_test:
            low, high = plain_test["interval"]
            digits = 2 if scale > 1 else 4
            cells += [
                f"{scale * plain_test['difference']:+.{digits}f}",
                f"{scale * low:+.{digits}f} to {scale * high:+.{digits}f}",
            ]
            cells += [f"{plain_test['p']:.4f}", f"{plain_test['holm']:.4f}", plain_test["verdict"]]
        else:
            cells += [""] * 5
        lines.append([*cells, control_test["verdict"] if control_test else ""])
    return table(head, lines)


def _robust(result: dict[str, Any]) -> list[str]:
    """Interquartile means of returns, for policies."""
    rows = [(row["name"], row["robust"]) for row in result["rows"] if row.get("robust")]
    if not rows:
        return []
    plain = _plain(result)
    head = ("", "IQM of the return", "95 % interval", f"P(better than {plain})")
    lines = [
        [name, f"{one['iqm']:.1f}", "{:.1f} to {:.1f}".format(*one["interval"]), f"{one['improvement']:.2f}"]
        for name, one in rows
    ]
    caption = "IQM: the mean of the middle half of the seeds; its interval by a stratified bootstrap."
    return [section("Interquartile means", table(head, lines), paragraph(caption, "soft"))]


def _curves(result: dict[str, Any]) -> str:
    series = [
        Series(row["name"], [(p["step"], p["score"]) for p in row["curve"]])
        for row in result["rows"]
        if row["kind"] == "method" or row["name"] in LEARNING
    ]
    metric = {"accuracy": "accuracy", "rmse": "RMSE", "return": "return"}.get(
        ordered(result["metrics"], result["task"])[0], "NLL"
    )
    drawing = curves(series, f"audit {metric} by step", "step", f"audit {metric}", proportion=metric == "accuracy")
    return figure(drawing, f"Audit {metric} by step, mean over the seeds.") if drawing else ""


def _calibration(result: dict[str, Any], methods: list[dict[str, Any]]) -> str:
    plain = next(row for row in result["rows"] if row["name"] == _plain(result))
    series = [(row["name"], row["reliability"]) for row in (plain, *methods) if row["reliability"]]
    caption = "On the test split, all seeds together: the dashed line is perfect calibration."
    return figure(reliability(series, "accuracy against confidence"), caption, "small") if series else ""


def _cost(result: dict[str, Any]) -> list[str]:
    costs = []
    for row in result["rows"]:
        times = result["times"]["rows"][row["name"]]
        unit = result["budget"]["unit"]
        words = f"{row['passes']['total']:,.0f} {unit}, {times['seconds']:.1f} s, {times['peak_memory_mb']:.0f} MB"
        if saved := row["passes"].get("saved"):
            words += f"; {saved:,.0f} passes of a teacher saved, whose answers were kept"
        if completions := row.get("drawn"):
            words += f"; {completions:,.0f} completions drawn to learn from"
        total = row["passes"]["with_teacher_training"]
        if total is not None:
            words += f"; {total:,.0f} passes with the teacher's training"
        if row["steps_to_plain"] is not None:
            words += f"; reaches plain's final audit score after {row['steps_to_plain']:,} steps"
        costs.append((row["name"], row["passes"]["total"], words))
    amount = f"The budget is {result['budget']['amount']:,.0f} {result['budget']['kind']} a seed; figures are means."
    bounds = [paragraph(line.removeprefix("- ")) for line in budget_lines({"budget": result.get("bound")})]
    return [figure(bars(costs, result["budget"]["unit"]), amount), *bounds]


def _peers(methods: list[dict[str, Any]]) -> list[str]:
    paragraphs = []
    for row in methods:
        gain = row["ensemble_gain_retained"]
        if gain:
            low, high = gain["interval"]
            words = f"{100 * gain['mean']:.0f} % of the undistilled ensemble's gain [{100 * low:.0f}, {100 * high:.0f}]"
            paragraphs.append(paragraph(f"{row['name']} keeps {words} in one model."))
    return paragraphs


def _provenance(result: dict[str, Any]) -> str:
    size = f", {result['parameters']:,} parameters" if result["parameters"] else ""
    facts = [*result["versions"].items(), ("model", f"{result['model']}{size}")]
    facts += [("threads", str(result["threads"])), ("seeds", ", ".join(map(str, result["seeds"])))]
    return table(("", ""), [(str(a), str(b)) for a, b in facts], "words")
