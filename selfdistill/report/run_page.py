"""The page of one run, finished or not."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import SelfdistillError
from ..evaluation.label_errors import FILE, read_label_errors
from ..io.run_record import Lines, read_lines, read_record
from ..training.drift import Drift, accumulated, alarm, describe, expected, replaced
from ..training.task_type import GenerationCurve, TaskType
from .figures import Mark, Series, bars, curves, lineage, reliability, scatter
from .layout import code, figure, page, paragraph, section, table
from .summary import sentence, together
from .summary import table as summary_table

SHOWN = 12  # doubted labels


FIGURES = {"distance": "distance of two peers", "disagreement": "another class by two peers"}


def peers(lines: Lines, result: dict[str, Any] | None) -> list[str]:
    """How far a group's members differ, by epoch, and what their mean gains."""
    said = [paragraph(line.removeprefix("- ")) for line in together(result or {})]
    found = [(i, line["diversity"]) for i, line in enumerate(lines, 1) if line.get("diversity")]
    series = [Series(label, [(i, one[key]) for i, one in found if key in one]) for key, label in FIGURES.items()]
    series = [one for one in series if one.points]
    if not series:
        return said
    caption = "Means over pairs of peers and rows of the audit split; peers that are equal teach nothing."
    return [*said, figure(curves(series, "diversity of the peers", "epoch", "diversity", height=240), caption)]


def doubted(result: dict[str, Any] | None, folder: Path) -> list[str]:
    """The labels that the model doubts most."""
    if not result or not result.get("doubts"):
        return []
    try:
        found = read_label_errors(folder, SHOWN)
    except SelfdistillError:
        return []
    rows = [
        (one["name"] or str(one["row"]), one["label"], one["believed"], f"{one['doubt']:.3f}")
        for one in found["labels"]
        if one["label"] != one["believed"]
    ]
    said = f"{found['doubted']} of {found['rows']} labels are doubted; all are in {FILE}."
    head = "file" if any(one["name"] for one in found["labels"]) else "row (from 1)"
    return [paragraph(said), *([table((head, "label", "believed", "doubt"), rows)] if rows else [])]


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
    control_name = f"{task.control}, the control"
    method = record["method"]
    parts = [_verdict(record, folder, task)]
    names, lines_of = summary_table(result, task) if result else ([], [])
    if names:
        figures = table(("on the test split", *names), [(name, *cells) for name, cells in lines_of])
        parts.append(section("On the test split", figures))
    parts += [
        section("Learning", *_learning(lines, control, result, control_name, task)),
        section("Audit", *_audit(result, lines)),
        section("Drift", *_drift(result)),
        section("Peers", *peers(lines, result)),
        section("Doubts", *doubted(result, folder)),
        section("Calibration", _calibration(result)),
        section("Predictions", _predicted(result)),
        section("Vitals", *vitals(lines)),
        section("Cost", *_cost(result, control_name, task)),
        section("The method", *equation(method, task)),
        section("Data", *data(record["data"])),
        section("How it was made", code(typed(record["command"])), *_made(record)),
    ]
    return page(f"{method} on {record['data']['name']}", parts)


def _verdict(record: dict[str, Any], folder: Path, task: TaskType) -> str:
    result = record.get("result")
    said = sentence(result, task) if result else f"Not finished: go on by `selfdistill resume {folder.name}`."
    return paragraph(said, "verdict")


def _learning(
    lines: Lines, control: Lines, result: dict[str, Any] | None, control_name: str, task: TaskType
) -> list[str]:
    by_generation = task.curves(result) if result else None
    if by_generation is not None:
        return [_by_generation(curve) for curve in by_generation]
    ends = _ends(lines)
    series = []
    for g in sorted({line["generation"] for line in lines}):
        own = [(ends[g] + line["step"], _audited(line)) for line in lines if line["generation"] == g]
        series.append(Series(f"generation {g}", own))
    if control:
        series.append(Series(control_name, [(line["step"], _audited(line)) for line in control], apart=True))
    marks = [
        Mark(ends[g["generation"] + 1], "accepted" if g["decision"]["accepted"] else "rolled back", _taken(g))
        for g in (result or {}).get("generations", [])
        if g["generation"] and g["generation"] + 1 in ends
    ]
    metric = "RMSE" if any("rmse" in line.get("audit", {}) for line in lines) else "accuracy"
    share = metric == "accuracy"
    by_step = (
        f"{metric[0].upper()}{metric[1:]} on the audit split, which never teaches, after each epoch; a line marks "
    )
    by_step += "each decision."
    losses = [Series("loss", [(ends[line["generation"]] + line["step"], line["loss"]) for line in lines])]
    audited = [
        figure(curves(series, f"audit {metric} by step", "step", f"audit {metric}", marks=marks, share=share), by_step),
    ]
    return [
        *(audited if any(line.get("audit") for line in lines) else []),
        figure(curves(losses, "training loss by step", "step", "loss", height=220), "The loss that was trained on."),
    ]


def _by_generation(curve: GenerationCurve) -> str:
    """A metric by generation."""
    series = [Series("left out", curve.points, marked=True)]
    title, share = f"{curve.metric} by generation", curve.metric == "accuracy"
    return figure(curves(series, title, "generation", curve.metric, whole=True, share=share), curve.caption)


def _audited(line: dict[str, Any]) -> float:
    audit = line.get("audit", {})
    return float(audit.get("accuracy", audit.get("rmse", "nan")))


def _taken(generation: dict[str, Any]) -> bool:
    return bool(generation["decision"]["accepted"])


def _ends(lines: Lines) -> dict[int, int]:
    """The step, counted over all generations, at which each one begins; also of the one after the last."""
    found, total = {0: 0}, 0
    for g in sorted({line["generation"] for line in lines}):
        total += max(line["step"] for line in lines if line["generation"] == g)
        found[g + 1] = total
    return found


def _audit(result: dict[str, Any] | None, lines: Lines) -> list[str]:
    checks = [line["decision"]["why"] for line in lines if line.get("decision")]
    said = [paragraph(why) for why in checks]
    if not result or len(result["generations"]) < 2:
        return said
    nodes, teacher = [], None
    for g in result["generations"]:
        number, plainly = g["generation"], result.get("chosen") == "plain"
        word = "accepted" if _taken(g) else "rolled back"
        nodes.append(
            (number, teacher, _taken(g), "the product" if number == result["product"] and not plainly else word)
        )
        teacher = number if _taken(g) else teacher
    drawn = figure(lineage(nodes, "which generation taught which"), "An arrow leads from the teacher.", "long")
    return [drawn, *(paragraph(g["decision"]["why"]) for g in result["generations"]), *said]


def _drift(result: dict[str, Any] | None) -> list[str]:
    """How far generations went from the first, beside the two curves of the linear model; the first alarm."""
    found = [Drift(**g["drift"]) for g in (result or {}).get("generations", []) if g.get("drift")]
    if not found:
        return []
    series = [Series("this run", [(d.generation, d.growth) for d in found if d.growth is not None])]
    for name, curve in (("if data are replaced", replaced), ("if data accumulate", accumulated)):
        series.append(Series(name, [(d.generation, expected(curve, d.generation)) for d in found]))
    caption = "Squared share of unlabelled rows answered otherwise than by generation 0, over that of generation 1."
    drawn = figure(curves(series, "drift by generation", "generation", "squared drift"), caption)
    alarms = [paragraph(alarm(d), "verdict") for d in found if d.alarm][:1]
    return [*alarms, drawn, *(paragraph(describe(d)) for d in found)]


def _predicted(result: dict[str, Any] | None) -> str:
    found = (result or {}).get("predicted")
    if not found:
        return ""
    return figure(
        scatter(list(found.items()), "values by prediction"), "On the test split; the line is y = x.", "small"
    )


def _calibration(result: dict[str, Any] | None) -> str:
    found = (result or {}).get("reliability")
    if not found:
        return ""
    drawn = reliability(list(found.items()), "accuracy against confidence")
    caption = "On the test split: the dashed line is perfect calibration, the size of a dot the share of rows."
    return figure(drawn, caption, "small")


def vitals(lines: Lines) -> list[str]:
    """Small drawings over the epochs: per term its loss, the share its gate kept, and what the vitals read."""
    names = list(lines[0]["terms"]) if lines else []
    drawn = []
    for key, label in {"loss": "loss", **VITALS}.items():
        series = []
        for name in names:
            source = [line["terms"][name] if key == "loss" else line.get("vitals", {}).get(name, {}) for line in lines]
            values = [(i, found.get(key)) for i, found in enumerate(source, 1)]
            series.append(Series(name, [(i, float(v)) for i, v in values if v is not None]))
        if any(one.points for one in series):
            short = key.replace("_", " ")  # the whole label would not fit along the axis
            drawn.append(figure(curves(series, f"{label}, by term", "epoch", short, height=240), label.capitalize()))
    return ['<div class="grid2">' + "".join(drawn) + "</div>"] if drawn else []


def _cost(result: dict[str, Any] | None, control_name: str, task: TaskType) -> list[str]:
    if not result:
        return []
    if cost := task.cost(result):
        return [figure(bars(cost.bars, cost.unit), cost.caption)]
    compared = [(result["method"], result)]
    if result.get("plain") and result["plain"]["from"] == "control":
        compared.append((control_name, result["plain"]))
    if result.get("folds"):
        compared.append(("the folds of the audit", result["folds"]))
    spent = []
    for name, one in compared:
        p = one["passes"]
        whole = p["forward"] + 2 * p["backward"] + p["teacher"]
        words = f"{whole:,} passes, {one['steps']:,} steps, {one['seconds']} s"
        if saved := p.get("saved"):  # older runs have not counted it
            words += f"; {saved:,} passes of a teacher saved, whose answers were kept"
        spent.append((name, whole, words))
    note = "Sample passes: forward 1, backward 2, a teacher's forward 1; passes over the audit split are not in them."
    return [figure(bars(spent, "sample passes"), note)]


def equation(expression: str, task: TaskType) -> list[str]:
    """What a recipe is, from its own description; nothing for a method that is no recipe of ours."""
    try:
        card = task.explain(expression)
    except SelfdistillError:
        return [code(expression)]
    return [paragraph(card["summary"]), code(card["equation"]), paragraph(f"Source: {card['source']}", "soft")]


def data(described: dict[str, Any]) -> list[str]:
    """Splits and label noise."""
    counts = [(kind, f"{n:,}") for kind, n in described["rows"].items()]
    noise = f"{100 * described['noise']:.0f} % of the training and audit labels are wrong on purpose."
    return [table(("rows", "number"), counts), paragraph(noise if described["noise"] else "")]


def typed(command: Sequence[str]) -> str:
    """The command as a person gives it: by its name, wherever it lies."""
    program, *rest = command
    path = Path(program)
    name = f"python -m {path.parent.name}" if path.name == "__main__.py" else path.name
    return f"{name} {shlex.join(rest)}"


def _made(record: dict[str, Any]) -> list[str]:
    facts = [*record["versions"].items(), ("threads", str(record.get("threads", "")))]
    facts += [("model", record["model"]), ("seed", str(record["settings"].get("seed", 0)))]
    if targets := record.get("request", {}).get("targets"):
        facts.append(("the teacher's answers lie in", targets))
    return [table(("", ""), [(str(a), str(b)) for a, b in facts], "words")]
