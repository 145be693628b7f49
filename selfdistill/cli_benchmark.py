"""``selfdistill benchmark``."""

from __future__ import annotations

from pathlib import Path

import click

from .cli_compare import Several
from .cli_options import Finite, refusing
from .files import writable

QUICK_METHODS = ("elr()", "mean_teacher()", "born_again()")


@click.group()
def benchmark() -> None:
    """Measure what methods gain, on small data, at matched compute."""


@benchmark.command(cls=Several)
@click.option(
    "--settings", multiple=True, metavar="NAMES", help="With commas between; digits-* means many [default: all]."
)
@click.option(
    "--methods", multiple=True, metavar="EXPR ...", help="Recipes, such as 'elr()' 'ps_kd()' [default: all that fit]."
)
@click.option("--seeds", type=click.IntRange(min=1), metavar="N", help="[default: 10 of digits, 5 of Fashion-MNIST]")
@click.option("--quick", is_flag=True, help="Three methods, two seeds, a few steps, to see that it works (a minute).")
@click.option(
    "--out", metavar="DIR", help="Folder of the cells [default: benchmarks/cells; quick: runs/benchmark-quick/cells]."
)
@click.option(
    "--page",
    metavar="FILE",
    help="What is written [default: docs/benchmark.md; quick: runs/benchmark-quick/benchmark.md].",
)
@click.option("--only-page", is_flag=True, help="Train nothing; write the page of what is there.")
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes, a thread each.")
@click.option("--minutes", type=Finite(min=0), metavar="N", help="Stop before so much time is over; go on later.")
@click.option("--quiet", is_flag=True, help="No progress.")
@refusing
def methods(
    settings: tuple[str, ...],
    methods: tuple[str, ...],
    seeds: int | None,
    quick: bool,
    out: str | None,
    page: str | None,
    only_page: bool,
    workers: int,
    minutes: float | None,
    quiet: bool,
) -> None:
    """Train all recipes and controls on digits and Fashion-MNIST, cell by cell, and write the page.

    Every cell that is done is a JSON file, and is not trained again; the page says which are missing.
    """
    from .benchmark import page as pages
    from .benchmark import running
    from .benchmark.fitting import ABOUT
    from .benchmark.settings import QUICK, SETTINGS, chosen
    from .prepared import read_method

    known = QUICK if quick else SETTINGS
    home = Path("runs/benchmark-quick") if quick else None
    cells = Path(out) if out else (home / "cells" if home else Path("benchmarks/cells"))
    target = Path(page) if page else (home / "benchmark.md" if home else Path("docs/benchmark.md"))
    wanted = chosen(settings, known)
    for expression in methods:
        if expression not in ABOUT:
            read_method(expression)
    if home and not page:
        home.mkdir(parents=True, exist_ok=True)
    writable(target, "--page")
    asked = methods or (QUICK_METHODS if quick else ())
    left = 0
    if not only_page:
        tell = (lambda line: None) if quiet else (lambda line: click.echo(line, err=True))
        planned = running.plan(wanted, asked, seeds)
        try:
            left = running.run(planned, cells, workers, minutes, tell)
        except KeyboardInterrupt:
            hint = f"stopped; the cells that are done are kept in {cells}: give the same command again to go on"
            raise KeyboardInterrupt(hint) from None
    missing = pages.write(known, cells, target, asked if quick else ())
    over = f"{left} of the cells asked for are left; give the same command again to go on. " if left else ""
    click.echo(
        f"{over}The page is {target}; of the {'quick' if quick else 'whole'} benchmark {missing} cells are missing"
    )
