"""The report of a comparison."""

from __future__ import annotations

from typing import Any

from ..evaluation.metrics import POINTS, ordered
from ..evaluation.statistics import SAME_ROWS, TIED
from ..io.expressions import expression_name
from ..training.task_type import TaskType, TaskTypes
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
        *_ablation(result, metric),
        *_benefits(result, methods, metrics),
        section("All metrics", *(_metrics(result, name) for name in metrics), paragraph(CORRECTED, "soft")),
        *_robust(result),
        section("Learning", _curves(result)),
        section("Calibration", _calibration(result, methods)),
        section("Cost", *_cost(result)),
        section(
            "What was compared",
            table(
                ("", "", ""),
                [(row["name"], row["about"], f"{row['steps']:,} {_length_unit(result)}") for row in result["rows"]],
                "words",
            ),
            *_peers(methods),
        ),
        *(section(row["name"], *equation(row["name"], _task(row["name"], result, types))) for row in methods),
        section("Data", *data(result["data"])),
        section("How it was made", code(typed(result["command"])), _provenance(result)),
    ]
    return page(f"{', '.join(row['name'] for row in methods)} on {result['data']['name']}", parts)


def _task(expression: str, result: dict[str, Any], types: TaskTypes) -> TaskType:
    """The task type of a recipe: that of the comparison, where it has the recipe."""
    own = types.of_record({"kind": result["type"]}) if "type" in result else None
    return own if own and expression_name(expression) in own.recipes() else types.of_recipe(expression)


def _length_unit(result: dict[str, Any]) -> str:
    """The unit of a row's length."""
    return "trainings" if result["budget"]["unit"] == "trainings" else "steps"


def _plain(result: dict[str, Any]) -> str:
    """The name of the baseline row; comparisons of networks have no other than plain."""
    return str(result.get("references", {}).get("plain", "plain"))


def render_label_curve(result: dict[str, Any]) -> str:
    """The page of a comparison at several numbers of labels, from its JSON."""
    metric, counts = result["metric"], result["labels"]
    scale, unit = _scale(metric), _unit(metric)
    series = [
        Series(row["name"], [(n, scale * mean) for n, mean in zip(counts, row["means"], strict=True)], marked=True)
        for row in result["rows"]
        if row["kind"] == "method" or row["name"] in LEARNING
    ]
    drawing = curves(series, f"{metric} by labels", "labels", f"{metric}, {unit}", counts=True)
    head = ("", *(f"{count} labels" for count in counts), "labels needed", "95 % interval")
    goal = f"The goal is what {result['plain']} reaches with {counts[-1]} labels: {scale * result['goal']:.4g} {unit}."
    lines = [[row["name"], *(f"{scale * mean:.4g}" for mean in row["means"]), *row["needed"]] for row in result["rows"]]
    parts = [
        *(paragraph(line, "verdict") for line in result["verdict"]),
        paragraph(f"{goal} Labels between the counts are interpolated on the logarithm.", "soft"),
        section("Labels needed", figure(drawing, f"{metric} on test rows, mean of the seeds."), table(head, lines)),
        section("The comparisons", *(paragraph(f"{n} labels: labels-{n}/report.html", "soft") for n in counts)),
        section("How it was made", code(typed(result["command"]))),
    ]
    return page(f"{', '.join(result['methods'])} by labels on {result['data']['name']}", parts)


def _unit(metric: str) -> str:
    return "points" if metric in POINTS else metric


def _scale(metric: str) -> float:
    return 100.0 if metric in POINTS else 1.0


def _against_before(methods: list[dict[str, Any]], metric: str) -> list[str]:
    """Figures against the initial language model, and of prior tasks if they were evaluated."""
    metrics = methods[0]["against"]
    reference = "before" if "before" in metrics else "plain"
    captions = {
        metric: f"in {_unit(metric)}",
        "kept": "on prior tasks, in points",
        "tasks": "on tasks of lm-eval, in points",
    }
    return [
        figure(_forest(methods, reference, name), f"Against the model before, {words}.")
        for name, words in captions.items()
        if name in metrics[reference] and (reference == "before" or name != metric)
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


ABLATION = (
    "The same method, with losses, gates and views as they are: in place of its peers the average of each network's "
    "own weights (decay 0.99) teaches, or both with half of the weight each; of learners on a table the learner "
    "itself, or the mean of all with it. These rows are no controls, and the verdicts above are not corrected for them."
)


def _ablation(result: dict[str, Any], metric: str) -> list[str]:
    """What peers add to a method: itself taught by its own predictions, and by both."""
    if not result.get("ablation"):
        return []
    rows, scale = {row["name"]: row for row in result["rows"]}, _scale(metric)
    lines = []
    for one in result["ablation"]:
        taught = {one["method"]: None, **{row["name"]: row["against"][metric] for row in one["rows"]}}
        for name, found in taught.items():
            row = rows[name]
            cells = ["", "", ""]
            if found:
                low, high = found["interval"]
                cells = [f"{scale * found['difference']:+.4g}", f"{scale * low:+.4g} to {scale * high:+.4g}"]
                cells.append(f"{found['holm']:.4f}")
            cost = f"{row['passes']['total']:,.0f}"
            lines.append([name, f"{scale * row['metrics'][metric]['mean']:.4g}", *cells, f"{row['steps']:,}", cost])
    head = ("", metric, "- its peers'", "95 % interval", "p (Holm)", _length_unit(result), result["budget"]["unit"])
    verdicts = [paragraph(one["verdict"]) for one in result["ablation"]]
    return [section("Ablation of the peers", *verdicts, table(head, lines), paragraph(ABLATION, "soft"))]


SPEED = (
    "Steps to the score that the baseline has on the validation split at its end: the median over the seeds, and an "
    "interval of it by order statistics. A step may cost more than one of the baseline; see the cost. The gap is the "
    "score on training rows against that on test rows; little learning has a small gap too: read it beside the scores."
)


def _benefits(result: dict[str, Any], methods: list[dict[str, Any]], metrics: list[str]) -> list[str]:
    """Convergence and over-fitting: a line for each method, and a figure of each."""
    lines = [paragraph(line) for line in result.get("benefits", [])]
    if not lines:
        return []
    gaps = [
        figure(_forest(methods, "plain", name), f"Over-fitting against {_plain(result)}: differences of the gap.")
        for name in metrics
        if name in ("gap", "rmse_gap")
    ]
    rows = [row for row in result["rows"] if row.get("convergence")]
    speed = table(("", "steps to it", "interval", "of its steps", "seeds that reach it"), [_speed(row) for row in rows])
    return [section("Convergence and over-fitting", *lines, speed, *gaps, paragraph(SPEED, "soft"))]


def _speed(row: dict[str, Any]) -> list[str]:
    """A row of the table of convergence."""
    speed = row["convergence"]
    low, high = ("never" if end is None else f"{end:,}" for end in speed["interval"])
    steps, share = ("never", "") if speed["steps"] is None else (f"{speed['steps']:,}", f"{100 * speed['share']:.0f} %")
    ends = f"{low} to {high} ({100 * speed['coverage']:.0f} %)"
    return [row["name"], steps, ends, share, f"{speed['reached']} of {speed['seeds']}"]


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
    caption = (
        "Test rows of all seeds by how sure a model is: the bar is the share that is right, the mark how sure it was."
    )
    rows = result["data"]["rows"].get("test", 0) * len(result["seeds"])
    return figure(reliability(series, rows), caption) if series else ""


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
        if tokens := row.get("tokens"):
            words += f"; {tokens['once'] + tokens['written']:,.0f} tokens written, {tokens['read']:,.0f} trained on"
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
