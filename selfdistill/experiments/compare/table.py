"""A comparison as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...evaluation.metrics import POINTS, ordered
from ...evaluation.statistics import SAME_ROWS, TIED
from ...io.display import printable
from ...report.summary import budget_lines
from ...training.comparison import BEFORE, PLAIN
from .verdicts import called

MORE = {
    "kept": "prior",
    "tasks": "lm-eval",
    "length": "tokens",
}  # metrics of language models that are told beside the first


def show(result: dict[str, Any]) -> None:
    """Print one row for each method and control, then the verdicts in words."""
    console = Console(markup=False, emoji=False)
    data, metrics = result["data"], ordered(result["metrics"], result["task"])
    metric, more = metrics[0], [name for name in metrics if name in MORE]
    where = [name for name in (PLAIN, BEFORE, "best_control") if name in called(result["references"])]
    before = _has_before(result)
    table = Table(
        title=Text(
            f"{printable(data['name'])}, test split ({data['rows']['test']} rows), {len(result['seeds'])} seeds, "
            f"{_short(result['budget']['amount'])} {result['budget']['kind']} each"
        ),
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    verdicts = ["best" if name == "best_control" else result["references"][name] for name in where]
    head = ["", {"accuracy": "right" if before else "acc."}.get(metric, metric), "± 95 %", *([] if before else ["p"])]
    head += [*verdicts, *(MORE[name] for name in more), result["budget"]["unit"], "s"]
    lines = [cells(row, metric, result["times"]["rows"][row["name"]]["seconds"], where, more) for row in result["rows"]]
    for i, name in enumerate(head):
        left, widest = name in ("", *verdicts), max(len(line[i]) for line in (head, *lines))
        # figures are never cut: where the terminal is narrow, the names wrap
        table.add_column(
            Text(printable(name)),
            justify="left" if left else "right",
            no_wrap=i > 0,
            min_width=widest if i else 10,
            overflow="fold",
        )
    for line in lines:
        table.add_row(*(Text(printable(cell)) for cell in line))
    console.print(table)
    console.print(printable(f"{_legend(result, verdicts)} {TIED}"), highlight=False)
    if "return" not in result["metrics"]:  # each seed of a policy has test episodes of its own
        console.print(SAME_ROWS, highlight=False)
    bounds = [line.removeprefix("- ") for line in budget_lines({"budget": result.get("bound")})]
    ablation = [one["verdict"] for one in result.get("ablation", [])]
    benefits = [*result.get("benefits", []), *ablation]
    for line in (*result["reachable"], *result["verdict"], *benefits, *result["trouble"], *bounds):
        console.print(printable(line), highlight=False)


def show_label_curve(result: dict[str, Any]) -> None:
    """Print the score of each row at each number of labels, and the labels that it needs."""
    console, scale = Console(markup=False, emoji=False), 100 if result["metric"] in POINTS else 1
    title = f"{printable(result['data']['name'])}, {result['metric']} by labels, {len(result['seeds'])} seeds"
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", min_width=10, overflow="fold")
    for name in (*map(str, result["labels"]), "labels needed", "95 %"):
        table.add_column(name, justify="right")
    for row in result["rows"]:
        table.add_row(Text(printable(row["name"])), *(f"{scale * mean:.4g}" for mean in row["means"]), *row["needed"])
    console.print(table)
    for line in result["verdict"]:
        console.print(printable(line), highlight=False)


def _has_before(result: dict[str, Any]) -> bool:
    """Whether the model before training is a row, with which each row has a verdict of its own."""
    return any(row["name"] == BEFORE for row in result["rows"])


def _legend(result: dict[str, Any], verdicts: Sequence[str]) -> str:
    """What the columns are."""
    best, plain = result["best_control"]["name"], result["references"][PLAIN]
    if not _has_before(result):
        return (
            f"± 95 %: difference to {plain}; p: of it, corrected (Holm); {', '.join(verdicts)}: verdict against "
            f"{plain} and {best}, the best control by the audit."
        )
    prior = "; prior: prior tasks right" if "kept" in result["metrics"] else ""
    prior += "; lm-eval: score on its tasks" if "tasks" in result["metrics"] else ""
    return (
        f"± 95 %: difference to {verdicts[0]}; {', '.join(verdicts)}: verdict against each (p-values corrected, Holm); "
        f"the best control is {best}{prior}."
    )


def cells(
    row: dict[str, Any], metric: str, seconds: float, where: Sequence[str], more: Sequence[str] = ()
) -> list[str]:
    """One row of the table, as text; ``where`` are the verdicts and ``more`` the further metrics that are told."""
    usual, spoken = (row["against"][PLAIN] or {}).get(metric), bool(more)
    if usual is None:
        compared = [""] if spoken else ["", ""]
    else:
        scale = 100 if metric in POINTS else 1
        mean, half = scale * usual["difference"], scale * (usual["interval"][1] - usual["interval"][0]) / 2
        digits = ".2f" if metric in POINTS else ".3g"
        compared = [f"{mean:+{digits}} ± {half:{digits}}", *([] if spoken else [f"{usual['holm']:.3f}"])]
    compared += [((row["against"][one] or {}).get(metric) or {"verdict": ""})["verdict"] for one in where]
    whole, passes = row["passes"]["with_teacher_training"], _short(row["passes"]["total"])
    if whole is not None:  # the teacher's own training
        passes += f"+{_short(whole - row['passes']['total'])}"
    told = [_shown(name, row["metrics"][name]["mean"]) for name in more]
    return [row["name"], _shown(metric, row["metrics"][metric]["mean"]), *compared, *told, passes, f"{seconds:.0f}"]


def _shown(metric: str, mean: float) -> str:
    return f"{100 * mean:.1f} %" if metric in POINTS else f"{mean:.0f}" if metric == "length" else f"{mean:.4g}"


def _short(count: float) -> str:
    """A count in three digits or so.

    >>> _short(21900.0), _short(1.2e6), _short(60.0)
    ('21.9k', '1.2M', '60')
    """
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return f"{count:.0f}"
