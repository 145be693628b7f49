"""``selfdistill compare`` and ``selfdistill benchmark``."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..io.display import plural
from ..io.files import writable, write
from .completion import complete_recipe
from .config import config_option, configured
from .options import (
    Finite,
    announce_default_data,
    control_options,
    data_options,
    echo,
    log_option,
    one_line_errors,
    training_options,
    training_settings,
    trust_option,
)

if TYPE_CHECKING:
    from ..io.run_record import Request
    from ..training.comparison import ComparisonSettings

on_option = click.option(
    "--on",
    metavar="ray|ray:ADDRESS",
    help="Train on all processors of a Ray cluster, whose machines share the folder and the data [default: processes "
    "here].",
)


def _numbers(text: str | None) -> tuple[int, ...] | None:
    """Numbers of labels from the command line."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 13 for part in parts):
        raise click.BadParameter(f"{text!r} is no list of numbers of labels, such as 25,50,100,200.")
    return tuple(map(int, parts))


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
    shell_complete=complete_recipe,
    multiple=True,
    metavar="EXPR ...",
    help="Recipes to compare, such as 'born_again()' 'ps_kd()'; for prompts 'sdft()' 'grpo()' [default: that of "
    "`run`].",
)
@click.option(
    "--seeds",
    type=click.IntRange(max=1000),
    metavar="N",
    help="Number of seeds from --seed upwards, at least 3 [default: the fewest with which a verdict is possible: 6 for "
    "one method, 7 for two].",
)
@click.option(
    "--match",
    type=click.Choice(["passes", "steps", "seconds", "completions", "tokens"]),
    help="The compute that is equal for all methods: sample passes (a forward pass counts 1, a backward pass 2), "
    "optimizer steps, seconds, or for prompts the sampled completions, or the tokens sampled plus those trained on "
    "[default: passes; steps for prompts]. For scikit-learn it is the number of trainings.",
)
@click.option(
    "--level",
    type=Finite(min=0, max=1, min_open=True, max_open=True),
    default=0.05,
    show_default=True,
    help="Significance level of the verdicts, over all methods.",
)
@click.option(
    "--label-curve",
    metavar="N,N,...",
    callback=lambda context, option, value: _numbers(value),
    help="The same comparison at several numbers of labels, such as 25,50,100,200, and the labels that each method "
    "needs for the score of the baseline with the most.",
)
@click.option(
    "--ablation",
    is_flag=True,
    help="Also train each method with peers by its own predictions, and by its peers' and its own: what do peers add?",
)
@click.option("--out", metavar="DIR", help="Folder of the comparison [default: below runs/].")
@click.option("--json", "json_file", metavar="FILE", help="Also write the result as JSON to this file; - is stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
@config_option
@log_option
@on_option
@control_options
@training_options
@trust_option
@one_line_errors
def compare(
    methods: tuple[str, ...],
    seeds: int | None,
    match: str | None,
    budget: str | None,
    level: float,
    label_curve: tuple[int, ...] | None,
    ablation: bool,
    out: str | None,
    json_file: str | None,
    quiet: bool,
    on: str | None,
    log: tuple[str, ...],
    **options: Any,
) -> None:
    """Compare methods on DATA with baselines at matched compute, paired over seeds.

    The verdict on a method is BEATS, TIES or LOSES, against plain training and against the best baseline; for prompts
    against sft() and the model before training. An interrupted comparison resumes when the same command is given again.
    Without DATA it uses digits.

    Baselines of networks: plain training, plain training for longer, label smoothing, EMA weights, early stopping,
    tuned weight decay, an average of independent models, and distillation from a larger teacher.

    Baselines of scikit-learn estimators on tables: the estimator alone, tuned, and bagged, each default peer alone, the
    average of all, and SelfTrainingClassifier.

    Baselines of policies in environments (gym:ID): a restart on reward alone, one with as many gradient steps, and the
    teacher that goes on training.

    Baselines of language models: the model before training and, where prompts have demonstrations, sft().
    """
    announce_default_data(quiet)
    from ..experiments.compare import Comparison
    from ..experiments.compare.runner import compare_labels, label_curve_folder
    from ..experiments.compare.table import show, show_label_curve
    from ..experiments.ray_jobs import check_address
    from ..experiments.run_log import log_comparison
    from ..io.loggers import require_loggers

    if json_file not in (None, "-"):
        writable(Path(str(json_file)), "--json")  # before anything is trained
    if on is not None:
        check_address(on)
    require_loggers(log)
    request, settings, source = _plan_comparison(methods, seeds, match, budget, level, ablation, options)
    tell = (lambda line: None) if quiet else (lambda line: echo(line, err=True))
    execute: Callable[[], dict[str, Any]]
    if label_curve:
        folder, draw = label_curve_folder(request, settings, out), show_label_curve
        execute = partial(compare_labels, request, settings, label_curve, folder, tell, on, source)
    else:
        comparison = Comparison.create(request, settings, out, source)
        comparison.on = on
        folder, draw, execute = comparison.folder, show, partial(comparison.execute, tell)
    try:
        result = execute()
    except KeyboardInterrupt:
        hint = f"stopped; finished trainings are kept in {folder}: give the same command again to resume"
        raise KeyboardInterrupt(hint) from None
    for place in sorted(folder.glob("labels-*")) if label_curve else [folder]:
        log_comparison(place, log, {"data": request.data, "methods": list(settings.methods)})
    _print_comparison(result, folder, json_file, draw)


def _plan_comparison(
    methods: tuple[str, ...],
    seeds: int | None,
    match: str | None,
    budget: str | None,
    level: float,
    ablation: bool,
    options: dict[str, Any],
) -> tuple[Request, ComparisonSettings, Path | None]:
    """The request, its settings, and the file that both were read from, if any."""
    from ..evaluation.statistics import fewest_seeds
    from ..experiments.compare.runner import design_for
    from ..experiments.request_trust import require_request_trust
    from ..experiments.task_types import TASK_TYPES
    from ..io.run_record import Request
    from ..training.comparison import ComparisonSettings, split_match

    training = training_settings(options)
    match, bounds = split_match(match, budget)
    request = Request(**options, budget=bounds, training=training)
    if source := configured():  # before data or model are looked at, which may import them
        require_request_trust(request, source)
    methods = methods or (TASK_TYPES.of_request(request).default_recipe(request),)
    design = design_for(request, methods)
    count = fewest_seeds(len(design.judged(methods)), level) if seeds is None else max(0, seeds)
    all_seeds = tuple(range(request.seed, request.seed + count))
    return request, ComparisonSettings(methods, all_seeds, design.matched(match), level, ablation), source


def _print_comparison(
    result: dict[str, Any], folder: Path, json_file: str | None, draw: Callable[[dict[str, Any]], None]
) -> None:
    if json_file == "-":
        click.echo(json.dumps(result, sort_keys=True))
        return
    if json_file:
        write(Path(json_file), json.dumps(result, sort_keys=True, indent=1) + "\n", "--json")
    draw(result)
    echo(f"Comparison folder: {folder}; open {folder}/report.html")


QUICK_METHODS = ("elr()", "mean_teacher()", "born_again()")


@click.group()
def benchmark() -> None:
    """Benchmark all methods on small data at matched compute."""


@benchmark.command(cls=ManyMethods)
@click.option(
    "--settings",
    multiple=True,
    metavar="NAMES",
    help="Settings, separated by commas, with wildcards such as digits-* [default: all].",
)
@click.option(
    "--methods",
    shell_complete=complete_recipe,
    multiple=True,
    metavar="EXPR ...",
    help="Recipes, such as 'elr()' 'ps_kd()' [default: all that suit the setting].",
)
@click.option(
    "--seeds",
    type=click.IntRange(min=1, max=1000),
    metavar="N",
    help="Number of seeds [default: 10 on digits, 5 on Fashion-MNIST].",
)
@click.option("--quick", is_flag=True, help="A trial of a minute: three methods, two seeds, a few steps.")
@click.option(
    "--out",
    metavar="DIR",
    help="Folder of the finished cells [default: benchmarks/cells; quick: runs/benchmark-quick/cells].",
)
@click.option(
    "--page",
    metavar="FILE",
    help="Page to write [default: docs/benchmark.md; quick: runs/benchmark-quick/benchmark.md].",
)
@click.option("--only-page", is_flag=True, help="Train nothing; write the page from the finished cells.")
@click.option(
    "--workers", type=click.IntRange(min=1, max=1024), default=1, show_default=True, help="Processes, one thread each."
)
@click.option(
    "--minutes", type=Finite(min=0), metavar="N", help="Stop within N minutes; the same command resumes later."
)
@on_option
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
    on: str | None,
    quiet: bool,
) -> None:
    """Train all recipes and baselines on digits and Fashion-MNIST, and write the page of results.

    A cell is one method in one setting with one seed. Finished cells are kept and not trained again; the page lists the
    missing ones.
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
    tell = (lambda line: None) if quiet else (lambda line: echo(line, err=True))
    if not only_page:
        planned = benchmark_cells.plan(wanted, asked, seeds)
        try:
            left = benchmark_cells.run_cells(planned, cells, workers, minutes, tell, on)
        except KeyboardInterrupt:
            hint = f"stopped; finished cells are kept in {cells}: give the same command again to resume"
            raise KeyboardInterrupt(hint) from None
    missing = benchmark_page.write(known, cells, target, asked if quick else (), tell)
    over = f"{plural(left, 'requested cell')} left; give the same command again to resume. " if left else ""
    echo(f"{over}Page: {target}; missing of the {'quick' if quick else 'full'} benchmark: {plural(missing, 'cell')}")
