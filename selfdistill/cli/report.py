"""``selfdistill report``, ``vitals``, ``label-errors``, ``review``, ``label-next``: results and labels of a run.

``selfdistill theory``: every identity of the theory with its largest deviation from a reference of its own.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..errors import DataError
from ..io.display import text_table
from ..io.files import writable, write
from ..io.local_address import LocalAddress, open_address
from .completion import complete_path, complete_recipe
from .config import config_option, configured
from .options import Finite, echo, examination_options, one_line_errors, raw_csv_option, trust_option

ACTIONS = ("drop", "relabel", "set-aside")  # of `evaluation.cleaning`
SORTS = ("score", "seconds", "date")  # of `report.leaderboard`
STRATEGIES, MAX_ERROR = ("best", "margin", "random"), 0.05  # of `evaluation.label_next`, which imports torch


@click.command()
@click.argument("source", metavar="RUN|COMPARISON|FOLDER", shell_complete=complete_path)
@click.option("--out", metavar="FILE", help="HTML file to write [default: report.html in the folder].")
@click.option(
    "--sort",
    type=click.Choice(SORTS),
    help="Folder of runs: what is first [default: score]: the best score, the fewest seconds, the last date.",
)
@one_line_errors
def report(source: str, out: str | None, sort: str | None) -> None:
    """Write the HTML page of a run or a comparison: what was asked, what was measured, and what to do next.

    Of a FOLDER of runs it is a leaderboard, which is printed too: the runs by their data, the best score first.
    """
    from ..experiments.task_types import TASK_TYPES
    from ..report import is_leaderboard, leaderboard, write

    if not is_leaderboard(source):
        if sort is not None:
            raise DataError(f"--sort is for a folder of runs, and {source} is none; leave it out")
        echo(str(write(source, TASK_TYPES, out)))
        return
    board = leaderboard.read_leaderboard(Path(source), sort or SORTS[0])
    for one in board.tables:
        echo(f"{one.title}\n{text_table(one.head, one.rows)}\n")
    for note in board.notes:
        echo(note)
    echo(str(write(source, TASK_TYPES, out, sort=sort or SORTS[0])))


@click.command()
@click.argument("run_folder", metavar="RUN", shell_complete=complete_path)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@one_line_errors
def vitals(run_folder: str, as_json: bool) -> None:
    """Show whether each loss term gave a training signal.

    The columns are the size of the gradient, the disagreement of teacher and student, the entropy of the targets, and
    the share of the targets that the gate kept. Warnings follow.
    """
    from ..experiments.run import Run

    run = Run.open(run_folder)
    figures = run.task.vitals(run.folder)
    echo(json.dumps(figures, sort_keys=True) if as_json else run.task.vitals_text(figures))


@click.command("label-errors")
@examination_options
@click.option(
    "--method",
    shell_complete=complete_recipe,
    metavar="EXPR",
    help="DATA: the recipe [default: elr(weight=1.0) for networks, with --effort quick elr(); plain() for values; "
    "auto() for tables].",
)
@click.option("--out", metavar="DIR", help="DATA: the run folder [default: below runs/].")
@click.option("--top", type=click.IntRange(min=1), default=20, show_default=True, metavar="N", help="Rows to print.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--write", "place", metavar="PLACE", help="Write a cleaned copy of the data: a folder, or a .csv file.")
@click.option(
    "--action",
    type=click.Choice(ACTIONS),
    help="With --write, what becomes of rows whose label looks wrong: left out, given the suggested label, or written "
    "beside the copy [default: drop].",
)
@click.option("--labels", metavar="FILE", help="With --write, change what this file of decisions says, and no more.")
@config_option
@trust_option
@one_line_errors
@click.pass_context
def label_errors(
    context: click.Context,
    /,
    source: str,
    out: str | None,
    top: int,
    as_json: bool,
    quiet: bool,
    place: str | None,
    action: str | None,
    labels: str | None,
    **options: Any,
) -> None:
    """List likely label errors in the data of RUN, or train on DATA to find them; the most certain first.

    RUN/label_errors.csv scores all labels. The first row of data is 1; the header of a table is not counted, as in
    `predict`. --write copies the data without these errors; the originals stay as they are.
    """
    from ..evaluation.cleaning import AFTER, check_place, clean
    from ..evaluation.label_errors import label_error_table
    from ..experiments.run import Run, examining_request
    from .progress import execute

    if place is None and (action or labels):
        raise DataError(f"--{'action' if action else 'labels'} says what --write changes; give --write PLACE too")
    if Path(source, "run.json").exists():
        given = [
            name
            for name in (*options, "out")
            if context.get_parameter_source(name) in (ParameterSource.COMMANDLINE, ParameterSource.DEFAULT_MAP)
        ]
        if given:
            raise DataError(f"--{given[0].replace('_', '-')} is for DATA, and {source} is a run already; leave it out")
        run = Run.open(source)
    else:
        run = Run.create(examining_request(source, options, configured()), out, source=configured())
        if place is not None:  # before anything is trained
            check_place(source, place, run.request.target or run.request.annotators, action)
        execute(run, quiet)
    listed = run.task.label_errors(run.folder, top)  # a task without scores says so
    copy = clean(run.folder, place, action, labels) if place is not None else None
    if as_json:
        echo(json.dumps({**listed, **({"copy": copy.to_json()} if copy else {})}, sort_keys=True))
        return
    echo(f"{label_error_table(listed)}\nRun folder: {run.folder}")
    if copy is not None:
        echo(f"{copy.describe()}\n{AFTER}")


@click.command("label-next")
@click.argument("run_folder", metavar="RUN", shell_complete=complete_path)
@click.option(
    "-n", "count", type=click.IntRange(min=1), default=50, show_default=True, metavar="N", help="Rows to ask for."
)
@click.option("--out", metavar="FILE", help="File of decisions [default: decisions.csv in RUN].")
@click.option(
    "--strategy",
    type=click.Choice(STRATEGIES),
    default=STRATEGIES[0],
    show_default=True,
    help="best: uncertain rows that differ from each other; margin: the most uncertain rows; random.",
)
@click.option(
    "--max-error",
    type=Finite(min=0, max=1, max_open=True),
    default=MAX_ERROR,
    show_default=True,
    metavar="F",
    help="Largest error rate of the labels that the model gives itself; 0: it gives none.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@raw_csv_option
@trust_option
@one_line_errors
def label_next(
    run_folder: str, count: int, out: str | None, strategy: str, max_error: float, as_json: bool, raw_csv: bool
) -> None:
    """Propose which unlabelled rows of RUN to label next, and label the rows on which the model is sure.

    The file has the columns row, given, suggested, decision and by. Fill in `decision` where `by` is person: accept,
    the class itself, skip (leave it open for good) or drop. Then train with these labels: `selfdistill run DATA
    --labels FILE`. The test split never changes. Given again, the command keeps the decisions in the file.
    """
    from ..evaluation.label_next import proposal_text
    from ..experiments.run import Run

    summary = Run.open(run_folder).label_next(count, out, strategy=strategy, max_error=max_error, raw_csv=raw_csv)
    if as_json:
        echo(json.dumps(summary, sort_keys=True))
        return
    echo(proposal_text(summary))
    echo(f"File: {summary['file']}. Fill in its column decision, then train by `selfdistill run DATA --labels FILE`.")


@click.command()
@click.argument("run_folder", metavar="RUN", shell_complete=complete_path)
@click.option("--out", metavar="FILE", help="File of decisions [default: decisions.csv in RUN].")
@click.option(
    "--top",
    type=click.IntRange(min=1),
    metavar="N",
    help="The N most doubtful labels [default: those that look wrong].",
)
@click.option(
    "--test",
    is_flag=True,
    help="Test rows too: decisions on them change a copy of the data (`label-errors --write`), and no run.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="Port [default: a free one].")
@click.option("--no-open", is_flag=True, help="Print the address, and open no browser.")
@click.option(
    "--static",
    is_flag=True,
    help="Write review.html into RUN in place of a server: one file that works offline, for another person or machine; "
    "its browser downloads the file of decisions.",
)
@raw_csv_option
@trust_option
@one_line_errors
def review(
    run_folder: str, out: str | None, top: int | None, test: bool, port: int, no_open: bool, static: bool, raw_csv: bool
) -> None:
    """Look at the labels of RUN that look wrong, on a local page that the keyboard drives.

    Keys: a accepts the suggestion, k or the space bar keeps the label, s skips the row, d drops it, a number chooses a
    class, / writes another label, u undoes, the arrows move. Every decision is written into the file at once; then
    train on it: `selfdistill run DATA --labels FILE`. Given again, the command goes on where it was left. Rows that
    `label-next` proposed come last. The page is served to this machine only, and nothing leaves it; from another one
    use `ssh -L N:127.0.0.1:N` and --port N.
    """
    import webbrowser

    place = None if static else _review_address(Path(run_folder), out, port)
    from ..experiments.folder import locked
    from ..experiments.run import Run
    from ..report.review import serve, write_static

    run = Run.open(run_folder)
    with locked(run.folder, "a run or a review goes on in it; wait for it or end it"):
        found = run.review(out, top=top, test=test, raw_csv=raw_csv)
        if not found.rows:
            echo("No label looks wrong in the splits that are asked about; --top 20 shows the most doubtful ones")
            return
        if place is None:
            write_static(found, run.folder / "review.html")
            echo(
                f"{run.folder / 'review.html'}: {len(found.rows)} rows; open it in a browser. Save what it "
                f"downloads as {found.path}, and train on it by `{found.command}`."
            )
            return
        echo(serve(found, place, lambda line: echo(line, err=True), None if no_open else webbrowser.open))
    if found.path.exists():
        echo(f"File: {found.path}. Train on it by `{found.command}`.")


def _review_address(run: Path, out: str | None, port: int) -> LocalAddress:
    """The address of the review page, which is told before what takes long: torch, and reading the data."""
    place = open_address(port)
    if out is not None:
        writable(Path(out), "--out")
    if (run / "label_errors.csv").exists() and (run / "run.json").exists():  # without, the run is refused in one line
        echo(f"Review on {place.url} (the rows are being read)", err=True)
    return place


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--plot",
    is_flag=False,
    flag_value="theory.html",
    metavar="FILE",
    help="Plot formulas and simulations on one HTML page [without FILE: theory.html].",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the random problems.")
@one_line_errors
def theory(as_json: bool, plot: str | None, seed: int) -> None:
    """Check the closed forms of self-distillation against numerical references.

    The target is xi x teacher + (1 - xi) x label. Takes about half a minute on one core. Exit code 1 if a deviation is
    too large.
    """
    from ..theory.checks import run_checks

    if plot is not None:
        writable(Path(plot), "--plot")
    outcomes = []
    for row in run_checks(seed):
        outcomes.append(row)
        if not as_json:
            click.echo(_line(row))
    ok = all(one["ok"] for one in outcomes)
    if plot is not None:
        from ..report.theory_page import render

        write(Path(plot), render(outcomes), "--plot")
    if as_json:
        for one in outcomes:
            if not math.isfinite(one["deviation"]):
                one["deviation"] = None  # JSON has no infinity
        click.echo(json.dumps({"kind": "theory", "seed": seed, "ok": ok, "identities": outcomes, "plot": plot}))
    else:
        held = sum(one["ok"] for one in outcomes)
        click.echo(f"{held} of {len(outcomes)} identities hold" + (f"; drawn in {plot}" if plot else ""))
    sys.exit(0 if ok else 1)


def _line(one: dict[str, Any]) -> str:
    off = "" if one["unit"] == "relative" else f" {one['unit']}"
    verdict = "ok   " if one["ok"] else "FAILS"
    return f"{verdict} {one['name']:<22} {one['deviation']:8.1e} of {one['tolerance']:g}{off}: {one['statement']}"
