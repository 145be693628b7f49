"""The command line. torch is imported by the commands that need it, so that help is quick."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any

import click

from . import __version__
from .errors import SelfdistillError

MAIN_EXAMPLES = """\b
Examples:
  selfdistill run digits --label-noise 0.4
  selfdistill run digits --labels 100 --method 'curriculum()'
  selfdistill run table.csv --target outcome --method 'ps_kd(alpha=0.8)'
  selfdistill explain 'fixmatch(confidence=0.9)'
"""


def refusing(command: Callable[..., Any]) -> Callable[..., Any]:
    """One line on stderr and exit code 2 for what a person can mend; 130 for a run that was stopped and resumes."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except SelfdistillError as error:
            click.echo(f"selfdistill: {error}", err=True)
            sys.exit(2)
        except KeyboardInterrupt as stopped:
            click.echo(f"selfdistill: {str(stopped) or 'stopped'}", err=True)
            sys.exit(130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left; say no more
            sys.exit(1)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            why = error.strerror or type(error).__name__
            click.echo(f"selfdistill: {place}{why}; check the place, its free space and its permissions", err=True)
            sys.exit(2)

    return wrapped


class Finite(click.FloatRange):
    """A range of numbers that has neither nan nor infinity in it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


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
        said = " ".join(error.format_message().split()).rstrip(".")
        path = error.ctx.command_path if error.ctx else ctx.command_path
        click.echo(f"selfdistill: {said}; see `{path} --help`", err=True)
        ctx.exit(error.exit_code)


@click.group(
    cls=OneLine,
    epilog=MAIN_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="selfdistill")
def main() -> None:
    """A model teaches itself, and the run shows whether that helped."""


def _training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that become fields of `Settings`; None keeps the default there."""
    options = [
        click.option("--lr", type=Finite(min=0, min_open=True), help="Learning rate [default: 0.001]."),
        click.option("--weight-decay", type=Finite(min=0), help="Weight decay [default: 0.0001]."),
        click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), help="[default: adamw]"),
        click.option(
            "--schedule", type=click.Choice(["cosine", "constant"]), help="Of the learning rate [default: cosine]."
        ),
        click.option("--clip", type=Finite(min=0, min_open=True), help="Largest gradient norm [default: none]."),
        click.option(
            "--accumulate", type=click.IntRange(min=1), help="Micro-batches a batch; their loss is that of the batch."
        ),
        click.option("--precision", type=click.Choice(["float32", "bfloat16", "float16"]), help="[default: float32]"),
        click.option("--compile", is_flag=True, default=None, help="Compile the model by torch.compile."),
        click.option("--parallel", type=click.Choice(["ddp", "fsdp"]), help="Engine under torchrun [default: ddp]."),
        click.option(
            "--audit",
            type=click.Choice(["safe", "strict", "off"]),
            help="Which generations may teach and be the product [default: safe].",
        ),
        click.option(
            "--audit-level",
            type=Finite(min=0, max=0.5, min_open=True, max_open=True),
            help="Of its tests, over all generations [default: 0.05].",
        ),
        click.option(
            "--audit-delta",
            type=Finite(min=0, max=1, min_open=True, max_open=True),
            help="Loss that `safe` lets pass, a share of rows [default: what the split can see].",
        ),
        click.option(
            "--audit-measure",
            type=click.Choice(["accuracy", "nll", "brier"]),
            help="What the audit compares [default: accuracy].",
        ),
        click.option(
            "--audit-epochs",
            type=click.IntRange(min=1),
            help="Audit every N epochs within a generation too, and roll back what got worse.",
        ),
        click.option("--patience", type=click.IntRange(min=1), help="End after so many generations without gain."),
        click.option("--save-seconds", type=Finite(min=0), help="Between checkpoints [default: 30]."),
        click.option("--save-steps", type=click.IntRange(min=1), help="Steps between checkpoints, instead of seconds."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


TRAINING = (
    "lr", "weight_decay", "optimizer", "schedule", "clip", "accumulate", "precision", "compile", "parallel",
    "audit", "audit_level", "audit_delta", "audit_measure", "audit_epochs", "patience", "save_seconds", "save_steps",
)  # fmt: skip


@main.command()
@click.argument("data", default="digits")
@click.option("--target", metavar="COL", help="Column to predict, for tables; rows where it is empty are unlabelled.")
@click.option("--unlabelled", metavar="PATH", help="Folder of images, or table, without labels.")
@click.option(
    "--labels", type=click.IntRange(min=1), metavar="N", help="Keep N training labels; the rest is unlabelled."
)
@click.option(
    "--label-noise", type=float, default=0.0, metavar="F", help="Make this share of training and audit labels wrong."
)
@click.option("--image-size", type=click.IntRange(min=8), metavar="N", help="Side in pixels, for a folder of images.")
@click.option(
    "--augment", type=click.Choice(["none", "weak", "strong"]), help="Of the default view [default: by data]."
)
@click.option("--model", metavar="SPEC", help="mlp, cnn(width=64), resnet, or module:function.")
@click.option(
    "--method",
    metavar="EXPR",
    help="A recipe, such as 'ps_kd(alpha=0.8)' [default: elr(), or curriculum() with unlabelled rows].",
)
@click.option("--epochs", type=click.IntRange(min=1), metavar="N", help="Per generation [default: about 2,000 steps].")
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Per generation, instead of epochs.")
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="[default: 64]")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1 [default: a CUDA device if there is one].")
@click.option("--control/--no-control", default=True, help="Train the plain model for as many steps, to compare.")
@click.option(
    "--audit-folds",
    type=click.IntRange(min=2),
    metavar="K",
    help="Few labels: audit on all of them by K trainings more, and teach by all of them.",
)
@click.option("--out", metavar="DIR", help="Run folder [default: below runs/].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, last on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
@_training_options
@refusing
def run(as_json: bool, quiet: bool, out: str | None, **options: Any) -> None:
    """Train DATA (digits, fashion-mnist, a folder of images by class, a CSV or Parquet table) with a method.

    Trains the plain model for as many steps beside it, and prints what the test split says of both. A run that was
    cut goes on when the same command is given again, or by `selfdistill resume`.
    """
    from .request import Request
    from .run import Run

    training = {name: options.pop(name) for name in TRAINING}
    given = tuple(sorted((name, value) for name, value in training.items() if value is not None))
    _execute(Run.create(Request(**options, training=given), out), as_json, quiet)


@main.command()
@click.argument("run_folder", metavar="RUN")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, last on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
@refusing
def resume(run_folder: str, as_json: bool, quiet: bool) -> None:
    """Go on with a run that was cut; it ends as if it had not been."""
    from .run import Run

    _execute(Run.open(run_folder), as_json, quiet)


def _execute(found: Any, as_json: bool, quiet: bool) -> None:
    from . import ranks
    from .progress import reporting

    first = int(os.environ.get("RANK", "0")) == 0  # under torchrun one process speaks

    def warn(line: str) -> None:
        if first:
            click.echo(line, err=True)

    if first and not quiet and found.result() is not None:
        warn(f"{found.folder} is finished: nothing is trained, this is its result")
    try:
        with reporting(quiet or not first) as reporter:
            result = found.execute(reporter.begin if reporter else None, warn, None if quiet else warn)
    except KeyboardInterrupt as stopped:
        begun = (found.folder / "run.json").exists()  # else there is nothing to go on from
        hint = f"; go on by `selfdistill resume {found.folder}`" if begun else ""
        raise KeyboardInterrupt(f"{str(stopped) or 'stopped'}{hint}") from None
    if ranks.rank() != 0:
        return
    if as_json:
        click.echo(json.dumps(result, sort_keys=True))
        return
    _table(result)


def _table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from .summary import cells, rows, sentence

    console = Console()
    data = result["data"]
    table = Table(
        title=f"{data['name']}, test split ({data['rows']['test']} rows, never trained on)", title_justify="left"
    )
    table.add_column("")
    for name in ("accuracy", "NLL", "ECE", "Brier"):
        table.add_column(name, justify="right")
    for name, metrics in rows(result):
        table.add_row(name, *cells(metrics))
    console.print(table)
    console.print(sentence(result), highlight=False)
    console.print(f"The run lies in {result['run']}", highlight=False, soft_wrap=True)


@main.command()
@click.argument("run_folder", metavar="RUN")
@click.argument("data")
@click.option("--out", metavar="FILE", help="CSV file to write [default: stdout].")
@click.option("--exit", "exit_number", type=click.IntRange(min=1), metavar="N", help="Predict at early exit N (byot).")
@refusing
def predict(run_folder: str, data: str, out: str | None, exit_number: int | None) -> None:
    """Classes and probabilities for new DATA, by the model of RUN, as CSV."""
    import csv
    import io

    from .run import Run

    names, probabilities, classes = Run.open(run_folder).predict(data, exit_number)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "prediction", *(f"p({name})" for name in classes)])
    for name, p in zip(names, probabilities.tolist(), strict=True):
        best = max(range(len(p)), key=p.__getitem__)
        writer.writerow([name, classes[best], *(f"{value:.6g}" for value in p)])
    if out is None:
        click.echo(text.getvalue(), nl=False)
    else:
        _write(Path(out), text.getvalue())


def _write(path: Path, text: str) -> None:
    """All of it or nothing: a file that was there before is replaced, never cut short."""
    from .errors import DataError

    path = path.resolve()
    device = path.exists() and not path.is_file()  # a pipe or /dev/null is written to, not replaced
    unfinished = path if device else path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        if not device:
            unfinished.replace(path)
    except OSError as error:
        if not device:
            with suppress(OSError):
                unfinished.unlink()
        raise DataError(f"{path} cannot be written ({error.strerror}); give another --out") from error


@main.command()
@click.option("--json", "as_json", is_flag=True)
@refusing
def methods(as_json: bool) -> None:
    """List the recipes: what they are, what they need, what they cost."""
    from .explain import card
    from .methods import recipes

    cards = [card(name) for name in recipes()]
    if as_json:
        click.echo(json.dumps(cards, sort_keys=True))
        return
    for c in cards:
        click.echo(f"{c['signature']}\n    {c['summary']}")
        click.echo(
            f"    needs {c['needs']}; {c['cost']['of_plain']:g} x a plain step, {c['generations']} generation(s)"
        )


@main.command()
@click.argument("expression", metavar="EXPR")
@click.option("--json", "as_json", is_flag=True)
@refusing
def explain(expression: str, as_json: bool) -> None:
    """Equation, schedule, views, heads, cost and paper of a recipe, such as 'ps_kd(alpha=0.8)'."""
    from .explain import explain as explained
    from .explain import text
    from .prepared import read_method

    found = explained(expression, read_method(expression))
    click.echo(json.dumps(found, sort_keys=True) if as_json else text(found))


@main.group()
def bench() -> None:
    """Measure speed, as ratios within one run."""


@bench.command()
@click.option("--json", "as_json", is_flag=True)
@click.option("--quick", is_flag=True, help="A few tiny steps, to see that it works; the numbers mean nothing.")
@refusing
def steps(as_json: bool, quick: bool) -> None:
    """What a step of each kind of method costs, against a plain step and against a hand-written loop."""
    from .bench import steps as measured

    result = measured.run(quick=quick, progress=lambda line: click.echo(line, err=True))
    click.echo(json.dumps(result, sort_keys=True) if as_json else measured.render(result))


@main.command()
@refusing
def doctor() -> None:
    """Check the installation, and name what is broken with its remedy. Exit code 1 if something fails."""
    from .doctor import examine

    findings = examine()
    for finding in findings:
        click.echo(f"{finding.state:<5} {finding.name}: {finding.detail}")
        if finding.remedy and finding.state != "ok":
            click.echo(f"      remedy: {finding.remedy}")
    sys.exit(1 if any(finding.state == "fail" for finding in findings) else 0)


if __name__ == "__main__":
    main()
