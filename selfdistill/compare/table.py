"""A comparison as a table for the terminal."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..stats import SAME_ROWS, TIED
from ..tasks.metrics import ordered


def show(result: dict[str, Any]) -> None:
    """Print one row for each method and control, then the verdicts in words."""
    console = Console()
    data, metric = result["data"], ordered(result["metrics"], result["task"])[0]
    table = Table(
        title=f"{data['name']}, test split ({data['rows']['test']} rows), {len(result['seeds'])} seeds, "
        f"{_short(result['budget']['amount'])} {result['budget']['kind']} each",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    head = [
        "",
        "acc." if metric == "accuracy" else metric,
        "± 95 %",
        "p",
        "plain",
        "best",
        result["budget"]["unit"],
        "s",
    ]
    lines = [cells(row, metric, result["times"]["rows"][row["name"]]["seconds"]) for row in result["rows"]]
    for i, name in enumerate(head):
        left, widest = name in ("", "plain", "best"), max(len(line[i]) for line in (head, *lines))
        # figures are never cut: where the terminal is narrow, the names wrap
        table.add_column(name, justify="left" if left else "right", no_wrap=i > 0, min_width=widest if i else 10)
    for line in lines:
        table.add_row(*line)
    console.print(table)
    console.print(
        f"± 95 %: difference to plain; p: of it, corrected (Holm); plain, best: verdict against plain and against "
        f"{result['best_control']['name']}, the best control. {TIED}",
        highlight=False,
    )
    console.print(SAME_ROWS, highlight=False)
    for line in (*result["reachable"], *result["verdict"]):
        console.print(line, highlight=False)


def cells(row: dict[str, Any], metric: str, seconds: float) -> list[str]:
    """One row of the table, as text."""
    usual, best = ((row["against"][where] or {}).get(metric) for where in ("plain", "best_control"))
    if usual is None:
        compared = ["", "", ""]
    else:
        scale = 100 if metric == "accuracy" else 1
        mean, half = scale * usual["difference"], scale * (usual["interval"][1] - usual["interval"][0]) / 2
        digits = ".2f" if metric == "accuracy" else ".3g"
        compared = [f"{mean:+{digits}} ± {half:{digits}}", f"{usual['holm']:.3f}", usual["verdict"]]
    mean = row["metrics"][metric]["mean"]
    whole, passes = row["passes"]["with_teacher_training"], _short(row["passes"]["total"])
    if whole is not None:  # the teacher's own training
        passes += f"+{_short(whole - row['passes']['total'])}"
    score = f"{100 * mean:.1f} %" if metric == "accuracy" else f"{mean:.4g}"
    return [row["name"], score, *compared, best["verdict"] if best else "", passes, f"{seconds:.0f}"]


def _short(count: float) -> str:
    """A count in three digits or so.

    >>> _short(21900.0), _short(1.2e6), _short(60.0)
    ('21.9k', '1.2M', '60')
    """
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return f"{count:.0f}"
