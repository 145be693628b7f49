"""The command line. torch is imported by the commands that need it, so that help is quick."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from ..io.files import write
from .experiments import benchmark, compare
from .language import preflight, pretrain
from .options import (
    announce_default_data,
    data_options,
    first_process,
    one_line_errors,
    training_options,
    training_settings,
)
from .report import doubts, report, theory, vitals

if TYPE_CHECKING:
    from ..experiments.run import Run
    from ..training.task_type import TaskType

MAIN_EXAMPLES = """\b
Examples:
  selfdistill run digits --label-noise 0.4
  selfdistill run digits --labels 100 --method 'curriculum()'
  selfdistill run table.csv --target outcome --method 'ps_kd(alpha=0.8)'
  selfdistill run prompts.jsonl --model smollm2 --method 'sdft()' --lora 16
  selfdistill explain 'fixmatch(confidence=0.9)'
"""


Command = Callable[..., None]


class OneLine(click.Group):
    """A group whose complaints about its arguments take one line, like all others."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with _one_line(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        with _one_line(ctx):
            return super().invoke(ctx)


@contextmanager
def _one_line(ctx: click.Context) -> Iterator[None]:
    try:
        yield
    except click.exceptions.NoArgsIsHelpError:
        raise
    except click.UsageError as error:
        message = " ".join(error.format_message().split()).rstrip(".")
        path = error.ctx.command_path if error.ctx else ctx.command_path
        click.echo(f"selfdistill: {message}; see `{path} --help`", err=True)
        ctx.exit(error.exit_code)


@click.group(
    cls=OneLine,
    epilog=MAIN_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="selfdistill")
def main() -> None:
    """A model teaches itself, and the run shows whether that helped."""


@main.command()
@data_options
@click.option(
    "--method",
    metavar="EXPR",
    help="A recipe, such as 'ps_kd(alpha=0.8)' [default: elr(), or curriculum() with unlabelled rows; for tables "
    "boosting with peers].",
)
@click.option("--control/--no-control", default=True, help="Train the plain model for as many steps, to compare.")
@click.option(
    "--audit-folds",
    type=click.IntRange(min=2),
    metavar="K",
    help="Few labels: audit on all of them by K trainings more, and teach by all of them.",
)
@click.option(
    "--targets",
    metavar="DIR",
    help="Keep what a frozen outside teacher says there, for later runs on the same inputs too.",
)
@click.option("--out", metavar="DIR", help="Run folder [default: below runs/].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, last on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
@training_options
@one_line_errors
def run(as_json: bool, quiet: bool, out: str | None, **options: Any) -> None:
    """Train DATA (digits, fashion-mnist, a folder of images by class, a CSV or Parquet table, prompts in a .jsonl file
    or reasoning-gym:TASK) with a method. Without DATA, digits: 1,797 small images that come with scikit-learn.

    Trains the plain model for as many steps beside it, and prints what the test split says of both. A run that was
    cut goes on when the same command is given again, or by `selfdistill resume`.

    Recipes without labels, such as byol(), also learn of a folder of images without classes and of a table without
    --target: nothing is scored then, and another run begins with the features by --init.
    """
    from ..experiments.run import Run
    from ..io.run_record import Request

    announce_default_data(quiet)
    training = training_settings(options)
    _execute(Run.create(Request(**options, training=training), out), as_json, quiet)


@main.command()
@click.argument("run_folder", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, last on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
@one_line_errors
def resume(run_folder: str, as_json: bool, quiet: bool) -> None:
    """Go on with a run that was cut; it ends as if it had not been."""
    from ..experiments.run import Run

    _execute(Run.open(run_folder), as_json, quiet)


def _execute(run: Run, as_json: bool, quiet: bool) -> None:
    from ..core import distributed
    from .progress import reporting

    first = first_process()

    def warn(line: str) -> None:
        if first:
            click.echo(line, err=True)

    if first and not quiet and run.result() is not None:
        warn(f"{run.folder} is finished: nothing is trained, this is its result")
    try:
        with reporting(quiet or not first) as reporter:
            result = run.execute(reporter.begin if reporter else None, warn, None if quiet else warn)
    except KeyboardInterrupt as stopped:
        begun = (run.folder / "run.json").exists()  # else there is nothing to go on from
        hint = f"; go on by `selfdistill resume {run.folder}`" if begun else ""
        raise KeyboardInterrupt(f"{str(stopped) or 'stopped'}{hint}") from None
    if distributed.rank() != 0:
        return
    if as_json:
        click.echo(json.dumps(result, sort_keys=True))
        return
    _print(result, run.task)


def _print(result: dict[str, Any], task: TaskType) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..report.summary import sentence, table

    console = Console()
    data = result["data"]
    grid = Table(
        title=f"{data['name']}, test split ({data['rows']['test']} rows, never trained on)", title_justify="left"
    )
    grid.add_column("")
    names, rows = table(result, task)
    for name in names:
        grid.add_column(name, justify="right")
    for name, figures in rows:
        grid.add_row(name, *figures)
    if grid.rows:
        console.print(grid)
    console.print(sentence(result, task), highlight=False)
    console.print(f"The run lies in {result['run']}", highlight=False, soft_wrap=True)


@main.command()
@click.argument("run_folder", metavar="RUN")
@click.argument("data")
@click.option("--out", metavar="FILE", help="CSV file to write [default: stdout].")
@click.option("--exit", "exit_number", type=click.IntRange(min=1), metavar="N", help="Predict at early exit N (byot).")
@one_line_errors
def predict(run_folder: str, data: str, out: str | None, exit_number: int | None) -> None:
    """Classes and probabilities, or values and intervals of 90 %, for new DATA, by the model of RUN, as CSV; for
    prompts its answers, as JSON lines. Rows are counted as by `doubts`: the first row of data is 1, the header of a
    table is not counted."""
    from ..experiments.run import Run

    run = Run.open(run_folder)
    text = run.task.predict(run.folder, data, exit_number).text()
    if out is None:
        click.echo(text, nl=False)
    else:
        write(Path(out), text)


@main.command()
@click.option("--json", "as_json", is_flag=True)
@click.option("--markdown", "as_markdown", is_flag=True, help="The page docs/methods.md.")
@one_line_errors
def methods(as_json: bool, as_markdown: bool) -> None:
    """List the recipes: what they are, what they need, what they cost."""
    from ..experiments.catalogue import cards, markdown

    found = cards()
    if as_json or as_markdown:
        click.echo(json.dumps(found, sort_keys=True) if as_json else markdown(found), nl=as_json)
        return
    for c in found:
        click.echo(f"{c['signature']}\n    {c['summary']}")
        step = f"{c['cost']['of_plain']:g} x a plain step, " if "of_plain" in c["cost"] else ""
        click.echo(f"    for {c['for']}, {c['targets']}; needs {c['needs']}; {step}{c['generations']} generation(s)")


@main.command()
@click.argument("expression", metavar="EXPR")
@click.option("--example", metavar="PROMPTS", help="Show what student and teacher read of the first of these prompts.")
@click.option(
    "--code", "as_code", is_flag=True, help="Print the recipe's source and the same as a plain training loop."
)
@click.option("--json", "as_json", is_flag=True)
@one_line_errors
def explain(expression: str, as_code: bool, as_json: bool, example: str | None) -> None:
    """Equation, schedule, views, heads, cost and paper of a recipe, such as 'ps_kd(alpha=0.8)'."""
    from ..experiments.task_types import TASK_TYPES
    from ..io.expressions import checked, expression_name, parse_expression
    from ..methods.cards import code, code_text

    task = TASK_TYPES.of_recipe(expression)
    if as_code:
        parse_expression(expression, {name: checked(recipe) for name, recipe in task.recipes().items()})  # checks it
        name = expression_name(expression)
        recipe = task.recipes()[name]
        click.echo(json.dumps(code(name, recipe), sort_keys=True) if as_json else code_text(name, recipe))
        return
    card = task.explain(expression, example)
    click.echo(json.dumps(card, sort_keys=True) if as_json else task.text(card))


@main.command()
@one_line_errors
def doctor() -> None:
    """Check the installation, and name what is broken with its remedy. Exit code 1 if something fails."""
    from .doctor import examine

    findings = examine()
    for finding in findings:
        click.echo(f"{finding.state:<5} {finding.name}: {finding.detail}")
        if finding.remedy and finding.state != "ok":
            click.echo(f"      remedy: {finding.remedy}")
    sys.exit(1 if any(finding.state == "fail" for finding in findings) else 0)


main.add_command(benchmark)
main.add_command(compare)
main.add_command(preflight)
main.add_command(pretrain)
main.add_command(report)
main.add_command(vitals)
main.add_command(doubts)
main.add_command(theory)


if __name__ == "__main__":
    main()
