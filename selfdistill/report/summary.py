"""What a run says at its end: a table for the terminal, and the README of its folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..training.task_type import Rows, TaskType

#: The metrics that are shown, by task, and their names.
COLUMNS = {
    "classify": {"accuracy": "accuracy", "nll": "NLL", "ece": "ECE", "brier": "Brier"},
    "generate": {"accuracy": "right", "nll": "NLL", "kept": "prior tasks right", "length": "tokens"},
    "regress": {"rmse": "RMSE", "mae": "MAE", "r2": "R2", "coverage": "coverage of 90 %"},
    "features": {},
}


def rows(result: dict[str, Any], task: TaskType) -> Rows:
    """What was compared, on the test split: (name, metrics); nothing where no row has a label."""
    return task.rows(result) if COLUMNS[result["data"]["task"]] else []


def ensemble_name(whole: dict[str, Any]) -> str:
    """What an ensemble is the mean of."""
    return f"mean of {whole['peers']} peers" if "peers" in whole else f"mean of {len(whole['generations'])} generations"


def columns(table: Rows, kind: str) -> dict[str, str]:
    """The metrics that any row of a table has, and their names: a column without a figure says nothing."""
    known = {key for _, metrics in table for key, value in metrics.items() if value is not None}
    return {key: name for key, name in COLUMNS[kind].items() if key in known}


def table(result: dict[str, Any], task: TaskType) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """The table of a run: the names of its metrics, and the rows with their figures as text."""
    lines = rows(result, task)
    names = columns(lines, result["data"]["task"])
    return list(names.values()), [(name, cells(metrics, list(names))) for name, metrics in lines]


def cells(metrics: dict[str, float], columns: Sequence[str] | None = None) -> list[str]:
    """Accuracy and coverage in per cent, errors of values in four digits, the rest in three after the point; of
    `columns` (by default all of the metrics' task)."""
    kind = "generate" if "length" in metrics else "classify" if "accuracy" in metrics else "regress"
    return [_cell(key, metrics.get(key)) for key in (COLUMNS[kind] if columns is None else columns)]


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return "-"
    if name == "length":
        return f"{value:.0f}"
    if name in ("accuracy", "coverage", "kept"):
        return f"{100 * value:.1f} %"
    if name in ("rmse", "mae"):
        return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:#.4g}".rstrip(".")
    return f"{value:.3f}"


def sentence(result: dict[str, Any], task: TaskType) -> str:
    """One run's outcome in words. One seed is an anecdote and is called one."""
    if verdict := task.verdict(result):
        return verdict
    if not COLUMNS[result["data"]["task"]]:
        return (
            f"No row of {result['data']['name']} has a label, so nothing was scored or validated, and the last weights "
            "are the final model: `selfdistill run LABELLED --init RUN` trains on labels from them."
        )
    plain, first = result.get("plain"), next(iter(COLUMNS[result["data"]["task"]].values()))
    near = result.get("nearest")
    near = f" A nearest-neighbour classifier on the features scores {100 * near:.1f} %." if near is not None else ""
    if not plain or plain["from"] == "itself":
        return f"{first[0].upper()}{first[1:]} on the test split: {cells(result['test'])[0]}.{near}"
    plainly = result.get("chosen") == "plain"
    ours = result["generations"][result["product"]]["test"] if plainly else result["test"]
    gains = [_gain(ours, plain[k]) for k in ("end", "early_stopped") if plain.get(k)]
    kept = " The final model is the baseline, which has the lower validation loss." if plainly else ""
    several = len(result["generations"]) > 1 or bool((result.get("folds") or {}).get("decisions"))
    first_kept = several and result.get("product") == 0
    what = "Generation 0 (no later one was accepted)" if first_kept else "Self-distillation"
    if result.get("probed"):
        what = "A linear probe on self-supervised features"
    stopped = f", {gains[1].removesuffix(' points')} against the baseline with early stopping" if len(gains) > 1 else ""
    equal = " at equal steps" if task.equal_steps else ""
    return (
        f"{what} against {task.baseline(result)}: {gains[0]}{equal}{stopped}.{near}{kept} One seed "
        "proves little; repeat with other --seed values, or use `selfdistill compare`."
    )


def _gain(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """Points of accuracy, or the change of the root mean squared error in per cent, which is better below 0."""
    if "accuracy" in ours:
        return f"{100 * (ours['accuracy'] - theirs['accuracy']):+.1f} points"
    return f"{100 * (ours['rmse'] / theirs['rmse'] - 1):+.1f} % RMSE" if theirs["rmse"] else "no error to compare with"


def readme(result: dict[str, Any], record: dict[str, Any], task: TaskType) -> str:
    """The run folder's README."""
    return "\n".join([*_facts(result, record, task, f" in {result['seconds']} s"), *task.loading("model")])


def model_card_text(result: dict[str, Any], record: dict[str, Any], task: TaskType) -> str:
    """The README of the model's own folder: the same facts, the audit's decisions, and what it is not fit for."""
    data = result["data"]
    tested = "and tested " if rows(result, task) else ""
    decisions = [g["decision"]["why"] for g in result["generations"] if g.get("decision")]
    lines = [
        "---", "library_name: selfdistill", f"tags: [self-distillation, {data['task']}]",
        f"metrics: [{', '.join(list(COLUMNS[data['task']])[:1])}]", "---",
        "", *_facts(result, record, task), "## Audit", "", *(f"- {why}" for why in decisions), "", "## Limits", "",
        f"Trained {tested}on {data['name']} alone, with one seed: its scores on other data are unknown."
        + (f" Classes: {', '.join(map(str, data['classes']))}." if data["classes"] else ""),
        "", *task.loading("."),
    ]  # fmt: skip
    return "\n".join(lines)


def _facts(result: dict[str, Any], record: dict[str, Any], task: TaskType, time: str = "") -> list[str]:
    """Without ``time``, equal runs tell it in equal words."""
    data = result["data"]
    counts, noise = ", ".join(f"{n} {kind}" for kind, n in data["rows"].items()), 100 * data["noise"]
    return [
        f"# {result['method']} on {data['name']}",
        "",
        sentence(result, task),
        "",
        *_tested(result, task),
        f"- data: {data['name']} ({counts}; {noise:.0f} % of the training and validation labels are wrong ones)",
        *task.size(result, record, time),
        *together(result),
        f"- versions: {', '.join(f'{k} {v}' for k, v in record['versions'].items())}",
        "",
    ]


def _tested(result: dict[str, Any], task: TaskType) -> list[str]:
    """The table of a run as Markdown."""
    names, lines = table(result, task)
    if not names:
        return []
    head = [f"| on the test split | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    return [*head, *(f"| {name} | {' | '.join(figures)} |" for name, figures in lines), ""]


def together(result: dict[str, Any]) -> list[str]:
    """What an ensemble gains, how much of it the single model keeps, and how far its members differ."""
    whole = result.get("ensemble")
    if not whole:
        return []
    said = f"- {ensemble_name(whole)}: {_gain(whole['test'], whole['single'])} against the single model"
    if whole.get("kept") is not None:
        said += f", which keeps {100 * whole['kept']:.0f} % of the gain over plain"
    differ = whole.get("disagreement")
    return [said + ("" if differ is None else f"; two of them differ on {100 * differ:.1f} % of the test rows")]
