"""``selfdistill compare``.

``selfdistill benchmark``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ..io.files import writable, write
from .options import Finite, announce_default_data, data_options, one_line_errors, training_options, training_settings


class ManyMethods(click.Command):
    """A command whose ``--methods`` takes several expressions after one flag: 'a()' 'b()'."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        taking = False
        for arg in args:
            if taking and spread[-1] != "--methods" and not arg.startswith("-") and "(" in arg:
                spread.append("--methods")
            elif spread and spread[-1] != "--methods":
                taking = False
            taking |= arg == "--methods"
            spread.append(arg)
        return super().parse_args(ctx, spread)


@click.command(cls=ManyMethods)
@data_options
@click.option(
    "--methods",
    multiple=True,
    metavar="EXPR ...",
    help="Recipes, such as 'born_again()' 'ps_kd()', or for prompts 'sdft()' 'grpo()' [default: that of `run`].",
)
@click.option(
    "--seeds",
    type=int,
    metavar="N",
    help="From --seed on, at least 3 [default: the fewest with which a verdict can be reached: 6 for one method, 7 for "
    "two].",
)
@click.option(
    "--budget",
    type=click.Choice(["passes", "steps", "seconds", "completions"]),
    help="What is matched: sample passes (forward 1, backward 2), optimizer steps, time, or of prompts the completions "
    "drawn [default: passes; of prompts steps; of learners of scikit-learn always their trainings].",
)
@click.option(
    "--level", type=Finite(min=0, max=1, min_open=True, max_open=True), default=0.05, show_default=True,
    help="Of the verdicts, over all methods.",
)  # fmt: skip
@click.option("--out", metavar="DIR", help="Folder of the comparison [default: below runs/].")
@click.option("--json", "json_file", metavar="FILE", help="Write the result there as JSON too; - is stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
@training_options
@one_line_errors
def compare(
    methods: tuple[str, ...],
    seeds: int | None,
    budget: str | None,
    level: float,
    out: str | None,
    json_file: str | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Compare methods on DATA with controls at matched compute, paired over seeds.

    Controls of networks: plain, plain for longer, label smoothing, averaged weights, early stopping, tuned weight
    decay, independent models averaged, and distillation from a larger teacher. Of learners on tables: the learner
    alone, tuned, and bagged, each usual peer alone, all of them averaged, and scikit-learn's SelfTrainingClassifier.
    Of language models: the model before and, where prompts have demonstrations, sft(), which may be among --methods
    too. Says BEATS, TIES or LOSES for each method, against plain (sft()), the model before, and the best control. The
    same command goes on with what was cut. Without DATA, digits.
    """
    announce_default_data(quiet)
    from ..evaluation.statistics import fewest_seeds
    from ..experiments.compare import Comparison
    from ..experiments.compare.runner import design_for
    from ..experiments.compare.table import show
    from ..experiments.task_types import TASK_TYPES
    from ..io.run_record import Request
    from ..training.comparison import ComparisonSettings

    if json_file not in (None, "-"):
        writable(Path(str(json_file)), "--json")  # before anything is trained
    training = training_settings(options)
    request = Request(**options, training=training)
    methods = methods or (TASK_TYPES.of_request(request).default_recipe(request),)
    design = design_for(request, methods)
    count = fewest_seeds(len(design.judged(methods)), level) if seeds is None else max(0, seeds)
    all_seeds = tuple(range(request.seed, request.seed + count))
    settings = ComparisonSettings(methods, all_seeds, design.matched_budget(budget), level)
    comparison = Comparison.create(request, settings, out)
    try:
        result = comparison.execute((lambda line: None) if quiet else (lambda line: click.echo(line, err=True)))
    except KeyboardInterrupt:
        hint = f"stopped; finished trainings are kept in {comparison.folder}: give the same command again to go on"
        raise KeyboardInterrupt(hint) from None
    if json_file == "-":
        click.echo(json.dumps(result, sort_keys=True))
        return
    if json_file:
        write(Path(json_file), json.dumps(result, sort_keys=True, indent=1) + "\n", "--json")
    show(result)
    click.echo(f"The comparison lies in {comparison.folder}, for people in {comparison.folder}/report.html")


QUICK_METHODS = ("elr()", "mean_teacher()", "born_again()")


@click.group()
def benchmark() -> None:
    """Measure what methods gain, on small data, at matched compute."""


@benchmark.command(cls=ManyMethods)
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
@one_line_errors
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

    Every cell that is done is a line in its setting's file, and is not trained again; the page says which are missing.
    """
    from ..experiments.benchmark import cells as benchmark_cells
    from ..experiments.benchmark import page as benchmark_page
    from ..experiments.benchmark.settings import ABOUT, QUICK, SETTINGS, chosen
    from ..methods.registry import read_method

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
    tell = (lambda line: None) if quiet else (lambda line: click.echo(line, err=True))
    if not only_page:
        planned = benchmark_cells.plan(wanted, asked, seeds)
        try:
            left = benchmark_cells.run_cells(planned, cells, workers, minutes, tell)
        except KeyboardInterrupt:
            hint = f"stopped; the cells that are done are kept in {cells}: give the same command again to go on"
            raise KeyboardInterrupt(hint) from None
    missing = benchmark_page.write(known, cells, target, asked if quick else (), tell)
    over = f"{left} of the cells asked for are left; give the same command again to go on. " if left else ""
    click.echo(
        f"{over}The page is {target}; of the {'quick' if quick else 'whole'} benchmark {missing} cells are missing"
    )
