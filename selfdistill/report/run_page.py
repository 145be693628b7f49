"""The report of one run, finished or not."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.copies import notices
from ..errors import SelfdistillError
from ..evaluation.label_errors import summary_lines
from ..io.run_record import Lines, changed_logs, read_lines, read_record
from ..training.drift import Drift, accumulated, alarm, describe, expected, replaced
from ..training.task_type import GenerationCurve, TaskType
from . import data_sections as rows
from .figures import Mark, Series, bars, curves, lineage, reliability, scatter
from .layout import code, details, figure, listed, page, paragraph, picture, section, steps, table
from .summary import budget_lines, score_place, score_rows, sentence, together, trials
from .summary import table as summary_table

FIGURES = {"distance": "distance of two peers", "disagreement": "another class by two peers"}


def peers(lines: Lines, result: dict[str, Any] | None) -> list[str]:
    """The diversity of a group of peers by epoch, and the gain of their mean."""
    paragraphs = [paragraph(line.removeprefix("- ")) for line in together(result or {})]
    epochs = [(i, line["diversity"]) for i, line in enumerate(lines, 1) if line.get("diversity")]
    series = [Series(label, [(i, curve[key]) for i, curve in epochs if key in curve]) for key, label in FIGURES.items()]
    series = [curve for curve in series if curve.points]
    if not series:
        return paragraphs
    caption = "Means over pairs of peers and rows of the audit split; peers that are equal teach nothing."
    return [*paragraphs, figure(curves(series, "diversity of the peers", "epoch", "diversity", height=240), caption)]


VITALS = {
    "gradient_share": "share of the gradient",
    "disagreement": "teacher and student disagree by",
    "entropy": "entropy of the targets (1 is uniform)",
    "kept": "share kept by the gate",
    "accuracy": "targets that agree with the labels",
    "weight_distance": "distance of the weights",
    "spread": "spread of the directions of features",
}


def render(folder: Path, task: TaskType) -> str:
    """The page of the folder of a run of a task type.

    Raises:
        CheckpointError: its run.json is damaged or foreign.
    """
    record, _ = read_record(folder / "run.json")
    lines, control = read_lines(folder / "metrics.jsonl"), read_lines(folder / "control" / "metrics.jsonl")
    result = record.get("result")
    control_name = f"{task.control}, the baseline"
    method = record["method"]
    parts, cards = [_outcome(record, folder, task)], rows.cards_of(folder)
    further = [*filter(None, [trials(result)]), *task.tables(result)] if result else []
    names, lines_of = summary_table(result, task) if result else ([], [])
    if names:
        place = score_place(result or {}, task.unit)
        figures = table((place, *names), [(name, *cells) for name, cells in lines_of])
        adjusted = summary_lines(result["label_errors"])[1:] if result and result.get("label_errors") else []
        parts.append(
            section(f"{place[0].upper()}{place[1:]}", figures, *(paragraph(line, "soft") for line in adjusted))
        )
    drift = _drift(result)
    warned = any(line.get("warnings") for line in lines) or any(
        (generation.get("drift") or {}).get("alarm") for generation in (result or {}).get("generations", [])
    )
    parts += [
        section("Labels that look wrong", *rows.doubtful_labels(result or {}, folder, cards)),
        section("Annotators", *rows.annotators(result or {})),
        section("Classes", *rows.classes(result or {})),
        section("Worst errors", *rows.worst_errors(result or {}, cards)),
        section("Predictions", _predicted(result), *rows.errors_of_values(result or {})),
        section("Columns that matter", *rows.importance(result or {})),
        section("Calibration", _calibration(result)),
        section("An episode", *_frames(folder, result)),
        section(
            "Learning",
            *map(paragraph, changed_logs(folder, record)),
            *_learning(folder, lines, control, result, control_name, task),
            paragraph(rows.noisy_validation(result or {})),
        ),
        *(section(one.title, table(one.head, one.rows), paragraph(one.caption, "soft")) for one in further),
        section("Audit", *(_audit(result, lines) if task.audited else ())),
        section(
            "Cost",
            *_cost(result, control_name, task),
            *(paragraph(line.removeprefix("- ")) for line in budget_lines(result or {})),
        ),
        details(
            "Health of the method",
            *_warnings(lines),
            section("Drift", *drift, level=3),
            section("Peers", *peers(lines, result), level=3),
            section("The signal of each term", *vitals(lines), level=3),
            unfolded=warned,
        ),
        section("The method", *equation(method, task)),
        section("Data", *data(record["data"])),
        section("How it was made", code(typed(record["command"])), *_provenance(record)),
    ]
    return page(f"{method} on {record['data']['name']}", parts)


def _outcome(record: dict[str, Any], folder: Path, task: TaskType) -> str:
    """The first screen: what was asked, what was measured, what to do next."""
    result = record.get("result")
    what = [
        section("What was asked", paragraph(rows.asked(record)), code(typed(record["command"]))),
        section("What was measured", _verdict(record, folder, task), listed(rows.measured(result) if result else [])),
        section("What to do next", steps(rows.next_steps(record, result, folder) if result else [])),
    ]
    return f'<div class="outcome">{"".join(what)}</div>'


def _warnings(lines: Lines) -> list[str]:
    """The warnings of the vitals, each once."""
    return [
        paragraph(words, "verdict") for words in dict.fromkeys(w for line in lines for w in line.get("warnings", []))
    ]


def _verdict(record: dict[str, Any], folder: Path, task: TaskType) -> str:
    result = record.get("result")
    verdict = sentence(result, task) if result else task.unfinished(record, folder)
    return paragraph(verdict, "verdict")


def _learning(
    folder: Path, lines: Lines, control: Lines, result: dict[str, Any] | None, control_name: str, task: TaskType
) -> list[str]:
    logs = {name: read_lines(folder / log) for name, log in (task.logs(result) if result else {}).items()}
    if returns := _returns(logs or {"this run": lines}, task):
        return returns
    by_generation = task.curves(result) if result else None
    if by_generation is not None:
        return [_by_generation(curve) for curve in by_generation]
    starts = _first_steps(lines)
    series = []
    for g in sorted({line["generation"] for line in lines}):
        points = [(starts[g] + line["step"], _audit_score(line)) for line in lines if line["generation"] == g]
        series.append(Series(task.part(g), points))
    if control:
        series.append(Series(control_name, [(line["step"], _audit_score(line)) for line in control], apart=True))
    marks = [
        Mark(starts[g["generation"] + 1], "accepted" if g["decision"]["accepted"] else "rolled back", _accepted(g))
        for g in (result or {}).get("generations", [])
        if task.audited and g["generation"] and g["generation"] + 1 in starts
    ]
    metric = "RMSE" if any("rmse" in line.get("audit", {}) for line in lines) else "accuracy"
    share, name = metric == "accuracy", f"{metric[0].upper()}{metric[1:]}"
    decided = "; a line marks each decision" if task.audited else ""
    caption = f"{name} on the audit split, which never teaches, after each epoch{decided}."
    losses = [Series("loss", [(starts[line["generation"]] + line["step"], line["loss"]) for line in lines])]
    audit_figures = [
        figure(
            curves(series, f"audit {metric} by step", "step", f"audit {metric}", marks=marks, proportion=share), caption
        ),
    ]
    return [
        *(audit_figures if any(line.get("audit") for line in lines) else []),
        figure(curves(losses, "training loss by step", "step", "loss", height=220), "The loss that was trained on."),
    ]


def _returns(logs: Mapping[str, Lines], task: TaskType) -> list[str]:
    """The learning curves of policies."""
    series = [Series(name, task.returns(lines)) for name, lines in logs.items()]
    series = [curve for curve in series if curve.points]
    caption = "Mean return of the episodes that ended in a rollout: for the eye, since short episodes end first."
    drawing = curves(series, "training return by environment step", "environment steps", "return") if series else ""
    return [figure(drawing, caption)] if series else []


def _frames(folder: Path, result: dict[str, Any] | None) -> list[str]:
    """Pictures of one test episode, or why there are none."""
    if not result or "control" not in result:
        return []
    if why := result["control"]["frames"]:
        return [paragraph(f"No pictures were drawn: {why}.")]
    return [picture(folder / "frames.png", "A test episode, from its start to its end.")]


def _by_generation(curve: GenerationCurve) -> str:
    """A metric by generation."""
    series = [Series("left out", curve.points, marked=True)]
    title, share = f"{curve.metric} by generation", curve.metric == "accuracy"
    return figure(curves(series, title, "generation", curve.metric, counts=True, proportion=share), curve.caption)


def _audit_score(line: dict[str, Any]) -> float:
    audit = line.get("audit", {})
    return float(audit.get("accuracy", audit.get("rmse", "nan")))


def _accepted(generation: dict[str, Any]) -> bool:
    return bool(generation["decision"]["accepted"])


def _first_steps(lines: Lines) -> dict[int, int]:
    """The first step of each generation, counted over all of them, and the number of all steps at last."""
    starts, total = {0: 0}, 0
    for g in sorted({line["generation"] for line in lines}):
        total += max(line["step"] for line in lines if line["generation"] == g)
        starts[g + 1] = total
    return starts


def _audit(result: dict[str, Any] | None, lines: Lines) -> list[str]:
    checks = [line["decision"]["why"] for line in lines if line.get("decision")]
    reasons = [paragraph(why) for why in checks]
    if not result or len(result["generations"]) < 2:
        return reasons
    nodes, teacher = [], None
    for g in result["generations"]:
        number, plain_chosen = g["generation"], result.get("chosen") == "plain"
        word = "accepted" if _accepted(g) else "rolled back"
        nodes.append(
            (
                number,
                teacher,
                _accepted(g),
                "final model" if number == result["final_generation"] and not plain_chosen else word,
            )
        )
        teacher = number if _accepted(g) else teacher
    drawing = figure(lineage(nodes, "which generation taught which"), "An arrow leads from the teacher.", "long")
    return [drawing, *(paragraph(g["decision"]["why"]) for g in result["generations"]), *reasons]


def _drift(result: dict[str, Any] | None) -> list[str]:
    """The drift of the generations beside the two curves of the linear model, after the first alarm."""
    drifts = [Drift(**g["drift"]) for g in (result or {}).get("generations", []) if g.get("drift")]
    if not drifts:
        return []
    series = [Series("this run", [(d.generation, d.growth) for d in drifts if d.growth is not None])]
    for name, curve in (("if data are replaced", replaced), ("if data accumulate", accumulated)):
        series.append(Series(name, [(d.generation, expected(curve, d.generation)) for d in drifts]))
    caption = "Squared share of unlabelled rows classified otherwise than by generation 0, relative to generation 1."
    drawing = figure(curves(series, "drift by generation", "generation", "squared drift"), caption)
    alarms = [paragraph(alarm(d), "verdict") for d in drifts if d.alarm][:1]
    return [*alarms, drawing, *(paragraph(describe(d)) for d in drifts)]


def _predicted(result: dict[str, Any] | None) -> str:
    points = (result or {}).get("predicted")
    if not points:
        return ""
    return figure(
        scatter(list(points.items()), "values by prediction"),
        f"{score_place(result or {})[0].upper()}{score_place(result or {})[1:]}; the line is y = x.",
        "small",
    )


def _calibration(result: dict[str, Any] | None) -> str:
    bins = (result or {}).get("reliability")
    if not result or not bins:
        return ""
    drawing = reliability(list(bins.items()), score_rows(result))
    caption = "Rows that did not teach by how sure the model is: the bar is the share that is right, the mark how sure."
    return figure(drawing, caption)


def vitals(lines: Lines) -> list[str]:
    """Small figures by epoch: the loss of each term, the share its gate keeps, and its vitals."""
    names = list(lines[0]["terms"]) if lines else []
    drawings = []
    for key, label in {"loss": "loss", **VITALS}.items():
        series = []
        for name in names:
            source = [line["terms"][name] if key == "loss" else line.get("vitals", {}).get(name, {}) for line in lines]
            values = [(i, reading.get(key)) for i, reading in enumerate(source, 1)]
            series.append(Series(name, [(i, float(v)) for i, v in values if v is not None]))
        if any(curve.points for curve in series):
            short = key.replace("_", " ")  # the whole label would not fit along the axis
            drawings.append(figure(curves(series, f"{label}, by term", "epoch", short, height=240), label.capitalize()))
    return ['<div class="grid2">' + "".join(drawings) + "</div>"] if drawings else []


def _cost(result: dict[str, Any] | None, control_name: str, task: TaskType) -> list[str]:
    if not result:
        return []
    if cost := task.cost(result):
        return [figure(bars(cost.bars, cost.unit), cost.caption)]
    outcomes = [(result["method"], result)]
    if result.get("plain") and result["plain"]["from"] == "control":
        outcomes.append((control_name, result["plain"]))
    if result.get("folds"):
        outcomes.append(("the folds of the audit", result["folds"]))
    costs = []
    for name, outcome in outcomes:
        p = outcome["passes"]
        total = p["forward"] + 2 * p["backward"] + p["teacher"]
        words = f"{total:,} passes, {outcome['steps']:,} steps, {outcome['seconds']} s"
        if saved := p.get("saved"):  # older runs have not counted it
            words += f"; {saved:,} passes of a teacher saved, whose answers were kept"
        costs.append((name, total, words))
    note = "Sample passes: forward 1, backward 2, a teacher's forward 1; passes over the audit split are not in them."
    return [figure(bars(costs, "sample passes"), note)]


def equation(expression: str, task: TaskType) -> list[str]:
    """A recipe's summary, equation and source; the expression alone for other methods."""
    try:
        card = task.explain(expression)
    except SelfdistillError:
        return [code(expression)]
    return [paragraph(card["summary"]), code(card["equation"]), paragraph(f"Source: {card['source']}", "soft")]


def data(description: dict[str, Any]) -> list[str]:
    """Splits and label noise."""
    counts = [(kind, f"{n:,}") for kind, n in description["rows"].items()]
    noise = f"{100 * description['noise']:.0f} % of the training and audit labels are wrong on purpose."
    copies = [paragraph(line) for line in notices(description["name"], description)]
    return [table(("rows", "number"), counts), paragraph(noise if description["noise"] else ""), *copies]


def typed(command: Sequence[str]) -> str:
    """The command line, with the program's name in place of its path."""
    program, *rest = command
    path = Path(program)
    name = f"python -m {path.parent.name}" if path.name == "__main__.py" else path.name
    return f"{name} {shlex.join(rest)}"


def _provenance(record: dict[str, Any]) -> list[str]:
    facts = [*record["versions"].items(), ("threads", str(record.get("threads", "")))]
    facts += [("model", record["model"]), ("seed", str(record["settings"].get("seed", 0)))]
    if targets := record.get("request", {}).get("targets"):
        facts.append(("the teacher's answers lie in", targets))
    return [table(("", ""), [(str(a), str(b)) for a, b in facts], "words")]
