"""The command line. torch is imported by the commands that need it, so that help is quick."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import __version__
from ..errors import DataError, RecipeError
from ..io.display import printable
from ..io.files import writable, write
from .completion import complete_path, complete_recipe, completion
from .config import configured
from .experiments import benchmark, compare
from .language import preflight, pretrain
from .options import (
    Finite,
    ThemedHelp,
    adapt_options,
    annotators_option,
    announce_default_data,
    complain,
    control_options,
    data_options,
    echo,
    effort_option,
    folds_option,
    number_or_column,
    one_line_errors,
    raw_csv_option,
    run_options,
    save_option,
    training_settings,
    trust_option,
    update_options,
)
from .report import label_errors, label_next, report, review, theory, vitals
from .repository import pull, push

if TYPE_CHECKING:
    from ..experiments.run import Run
    from ..io.run_record import Request
    from ..training.task_type import TaskType

MAIN_EXAMPLES = """\b
Examples:
  selfdistill run digits --label-noise 0.4
  selfdistill run digits --labels 100 --method 'curriculum()'
  selfdistill run table.csv --target outcome --method 'ps_kd(alpha=0.8)'
  selfdistill run prompts.jsonl --model smollm2 --method 'sdft()' --lora 16
  selfdistill update RUN new.csv
  selfdistill adapt RUN later.csv --order day
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
        complain(f"{message}; see `{path} --help`")
        ctx.exit(error.exit_code)


@click.group(
    cls=OneLine,
    epilog=MAIN_EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="selfdistill")
def main() -> None:
    """Train models by self-distillation, and compare them with a baseline without it."""


@main.command(cls=ThemedHelp)
@data_options
@annotators_option
@click.option(
    "--method",
    shell_complete=complete_recipe,
    metavar="EXPR",
    help="A recipe, such as 'ps_kd(alpha=0.8)' [default, by the data: auto(), which chooses among a few recipes; "
    "for tables of learners self_distilled() and others; for prompts sdft() and others].",
)
@click.option(
    "--search",
    shell_complete=complete_recipe,
    metavar="EXPR",
    help="Search a recipe's arguments on folds of the labels, by Optuna: ranges and lists, such as "
    "'elr(weight=1..10)', 'elr(weight=0.1..10 log)', 'elr(weight={1,3,5})'.",
)
@click.option(
    "--trials",
    type=click.IntRange(min=1, max=10**6),
    metavar="N",
    help="Trials of --search [default: 20; of lists all combinations].",
)
@click.option(
    "--storage",
    metavar="FILE|sqlite:///FILE",
    help="Where Optuna keeps the trials of --search, for its dashboard or for several runs: a journal, or a database "
    "of SQLite [default: search/journal.log in the run folder].",
)
@click.option(
    "--explore",
    type=Finite(min=0, max=1),
    metavar="F",
    help="Largest share of the trainings that only try something out, of auto() and --search [default: try all].",
)
@effort_option
@click.option(
    "--refit",
    type=click.Choice(["all"]),
    help="Train the final model once more, on all labelled rows: those of the validation and test split too. The "
    "scores are of the model before.",
)
@click.option(
    "--product",
    type=click.Choice(["best", "single", "stack"]),
    help="Tables: what auto() hands over: the best on rows held out, one student of the stack, or the stack itself "
    "[default: best].",
)
@click.option(
    "--control/--no-control",
    default=True,
    help="Train the baseline too: the same model for as many steps without self-distillation.",
)
@click.option(
    "--audit-folds",
    type=click.IntRange(min=2),
    metavar="K",
    help="For few labels: audit by cross-validation in K folds (K more trainings) in place of a validation split. "
    "The final model is then trained on all labels.",
)
@folds_option
@click.option(
    "--targets",
    metavar="DIR",
    help="Store the outputs of a frozen external teacher in this folder; later runs on the same inputs reuse them.",
)
@click.option(
    "--tasks",
    callback=number_or_column,
    metavar="N|COL",
    help="Continual learning: the classes come in N tasks, or the rows in those that a column names, one after another "
    "[recipe: der_pp()]. Controls are naive and joint training.",
)
@control_options
@save_option
@run_options
@one_line_errors
def run(as_json: bool, quiet: bool, out: str | None, product: str | None, **options: Any) -> None:
    """Train a method and a baseline on DATA, and score both on the test split.

    DATA is digits, fashion-mnist, a folder of images (one sub-folder per class), a CSV or Parquet table, a .jsonl file
    of prompts, reasoning-gym:TASK, or an environment of gymnasium (gym:CartPole-v1, gym:module:ID). Without DATA
    it uses digits: 1,797 small images that come with scikit-learn.

    An interrupted run resumes when the same command is given again, or by `selfdistill resume`.

    Self-supervised recipes, such as byol(), also train on a folder of images without classes and on a table without
    --target. Such a run has no scores. Another run can start from its weights with --init.
    """
    announce_default_data(quiet)
    _begin(options, out, as_json, quiet, product)


@main.command(cls=ThemedHelp)
@update_options
@click.option(
    "--method",
    shell_complete=complete_recipe,
    metavar="EXPR",
    help="er(), der(), der_pp(), er_ema() or lwf() [default: der_pp(alpha=0.2); lwf() without stored rows].",
)
@click.option(
    "--control/--no-control", default=True, help="Train the baseline too: the same model on the new rows alone."
)
@save_option
@run_options
@one_line_errors
def update(as_json: bool, quiet: bool, out: str | None, **options: Any) -> None:
    """Teach the model of RUN new classes, or new rows of its classes, in DATA.

    The data of RUN are not opened: its model goes on, and the sample of rows that it kept is replayed, so that old
    classes are not forgotten. The classifier grows by the classes that RUN does not know. Give --test with rows of old
    and new classes to measure both.
    """
    _begin(options, out, as_json, quiet)


@main.command(cls=ThemedHelp)
@adapt_options
@click.option(
    "--method",
    shell_complete=complete_recipe,
    metavar="EXPR",
    help="A recipe of one generation that learns the pseudo-labels of a domain [default: plain()].",
)
@click.option(
    "--control/--no-control", default=True, help="Train on all unlabelled rows at once too, for as many steps."
)
@run_options
@one_line_errors
def adapt(as_json: bool, quiet: bool, out: str | None, **options: Any) -> None:
    """Adapt the model of RUN to unlabelled rows in DATA that have moved away step by step.

    Gradual self-training: the rows are cut into domains in their order. The present model labels a domain, the least
    certain rows are left out, and a fresh network learns the others and labels the next domain. RUN stays as it is.

    Some rows of DATA, best of the last domain, must have a label in the target column or in a folder of their class,
    or --test gives labelled rows. They never teach. The final model is that of RUN if the adapted one is worse on them.
    """
    _begin(options, out, as_json, quiet)


@main.command()
@click.argument("run_folder", metavar="RUN", shell_complete=complete_path)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object, the last line of stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
@trust_option
@one_line_errors
def resume(run_folder: str, as_json: bool, quiet: bool) -> None:
    """Continue an interrupted run. It ends with the same weights as without the interruption."""
    from ..experiments.run import Run

    _execute(Run.open(run_folder), as_json, quiet)


def _begin(options: dict[str, Any], out: str | None, as_json: bool, quiet: bool, product: str | None = None) -> None:
    """Execute the run that the options of a command ask for."""
    from ..experiments.run import Run
    from ..io.run_record import Request

    training = training_settings(options)
    request = Request(**options, training=training)
    request = request if product is None else _with_product(request, product)
    _execute(Run.create(request, out, source=configured()), as_json, quiet)


def _with_product(request: Request, product: str) -> Request:
    """The request with the product that ``auto()`` is to hand over.

    Raises:
        RecipeError: the request names a recipe, or is not for tables.
    """
    from ..experiments.task_types import TASK_TYPES
    from ..io.expressions import foreign_arguments
    from ..methods.prior import auto
    from ..methods.registry import AUTO

    if request.method is not None:
        raise RecipeError("--product is of auto(), and --method names a recipe; leave one of the two out")
    task, method = TASK_TYPES.of_request(request), f"{AUTO}(product={product!r})"
    if foreign_arguments(method, task.recipes().get(AUTO, auto)):
        what = task.title.removeprefix("For ")
        raise RecipeError(
            f"--product is for tables by learners of scikit-learn, and this run is for {what}; leave it out"
        )
    return replace(request, method=method)


def _execute(run: Run, as_json: bool, quiet: bool) -> None:
    from ..core import distributed
    from .progress import execute

    result = execute(run, quiet)
    if distributed.rank() != 0:
        return
    if as_json:
        click.echo(json.dumps(result, sort_keys=True))
        return
    _print(result, run.task)


def _print(result: dict[str, Any], task: TaskType) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..evaluation.annotator_noise import annotator_lines
    from ..evaluation.label_errors import summary_lines
    from ..report.summary import budget_lines, sentence, table, trials

    console = Console(markup=False, emoji=False)
    data = result["data"]
    title = f"{printable(data['name'])}, test split ({data['rows']['test']} {task.unit}, never trained on)"
    if cross := result.get("cross_fit"):
        title = f"{printable(data['name'])}, cross-fitted ({cross['rows']} rows, {cross['folds']} folds)"
    grid = Table(title=Text(title), title_justify="left")
    grid.add_column("", overflow="fold")
    names, rows = table(result, task)
    for name in names:
        grid.add_column(name, justify="right")
    for name, figures in rows:
        grid.add_row(Text(printable(name)), *figures)
    if grid.rows:
        console.print(grid)
    if candidates := trials(result):
        grid = Table(*candidates.head, title=Text(candidates.title), title_justify="left")
        for row in candidates.rows:
            grid.add_row(*map(Text, map(printable, row)))
        console.print(grid)
    console.print(printable(sentence(result, task)), highlight=False)
    found = result.get("label_errors") or {}
    for line in [*summary_lines(found), *annotator_lines(found.get("annotators", []))] if found else ():
        console.print(printable(line), highlight=False)
    for line in budget_lines(result):
        console.print(printable(line.removeprefix("- ")), highlight=False)
    console.print(printable(f"Run folder: {result['run']}"), highlight=False, soft_wrap=True)


@main.command()
@click.argument("run_folder", metavar="RUN", shell_complete=complete_path)
@click.argument("data", required=False, shell_complete=complete_path)
@click.option("--out", metavar="FILE", help="CSV file to write [default: stdout].")
@click.option("--episodes", type=click.IntRange(min=1), metavar="N", help="Policies: episodes to play [default: 20].")
@click.option("--video", metavar="DIR", help="Policies: folder for an animated GIF of each episode.")
@click.option(
    "--exit",
    "exit_number",
    type=click.IntRange(min=1),
    metavar="N",
    help="Predict with early exit N of a model of byot().",
)
@raw_csv_option
@trust_option
@one_line_errors
def predict(
    run_folder: str,
    data: str | None,
    out: str | None,
    exit_number: int | None,
    raw_csv: bool,
    episodes: int | None,
    video: str | None,
) -> None:
    """Predict new DATA with the final model of RUN.

    Writes CSV: classes with probabilities, or for regression values with 90 % intervals. For prompts it writes the
    answers as JSON lines. A policy has no DATA: it plays episodes, and each is a line with its return.

    The first row of data is 1; the header of a table is not counted, as in `label-errors`.
    """
    from ..experiments.run import Run, load

    if out is not None:
        writable(Path(out), "--out")  # before the model is asked
    if data is None:
        if exit_number:
            raise DataError("--exit is for DATA that a network predicts; give DATA, or leave it out")
        run = Run.open(run_folder)
        answers = run.task.play(run.folder, run.request, episodes or 20, Path(video) if video else None)
    else:
        if episodes or video:
            raise DataError("--episodes and --video are for policies, which have no DATA; leave DATA or them out")
        answers = load(run_folder).predict(data, exit_number)
    text = answers.text(raw_csv)
    if answers.note:
        echo(answers.note, err=True)
    if out is None:
        shown = printable(text) if sys.stdout.isatty() else text  # a file or a pipe gets names as they are
        click.echo(shown, nl=False)
    else:
        write(Path(out), text)


@main.command()
@click.argument("run_folder", metavar="RUN")
@click.option("--format", "form", type=click.Choice(["onnx", "torch"]), required=True, help="ONNX, or torch.export.")
@click.option("--out", metavar="FILE", help="The file to write [default: RUN/export/model.onnx or model.pt2].")
@click.option("--rows", metavar="DATA", help="Rows to check the graph on [default: the data of the run].")
@click.option("--json", "as_json", is_flag=True, help="Print the description as JSON.")
@trust_option
@one_line_errors
def export(run_folder: str, form: str, out: str | None, rows: str | None, as_json: bool) -> None:
    """Write the final network of RUN as a graph that other programs run.

    The graph takes any number of rows and returns probabilities, or values in their unit. A JSON file beside it says
    how a row is prepared. The graph is compared with the model on real rows, and removed if it computes something else.
    """
    from ..experiments.run import load

    path = Path(out) if out else Path(run_folder) / "export" / f"model{'.onnx' if form == 'onnx' else '.pt2'}"
    predictor = load(run_folder)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path.parent} cannot be made ({error.strerror}); give another --out") from error
    described = predictor.export(form, path, rows)
    if as_json:
        click.echo(json.dumps(described, sort_keys=True))
        return
    check = described["check"]
    echo(
        f"{path}: largest deviation from the model {check['deviation']:.1e} on {check['rows']} rows ({check['by']}); "
        f"preprocessing: {path.with_suffix('.json')}"
    )


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", "as_markdown", is_flag=True, help="Print the page docs/methods.md.")
@one_line_errors
def methods(as_json: bool, as_markdown: bool) -> None:
    """List all recipes with what they need and cost."""
    from ..experiments.catalogue import cards, markdown

    found = cards()
    if as_json or as_markdown:
        click.echo(json.dumps(found, sort_keys=True) if as_json else markdown(found), nl=as_json)
        return
    for c in found:
        echo(f"{c['signature']}\n    {c['summary']}")
        step = f"{c['cost']['of_plain']:g} x the cost of a baseline step, " if "of_plain" in c["cost"] else ""
        count = f"{c['generations']} generation{'s' if c['generations'] > 1 else ''}"
        click.echo(f"    for {c['for']}, {c['targets']}; needs {c['needs']}; {step}{count}")


@main.command()
@click.argument("expression", metavar="EXPR", shell_complete=complete_recipe)
@click.option(
    "--example",
    metavar="PROMPTS",
    help="Language models: show the student's and the teacher's input for the first of these prompts.",
)
@click.option(
    "--code",
    "as_code",
    is_flag=True,
    help="Print the recipe's source, and the same method as a plain PyTorch training loop.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@one_line_errors
def explain(expression: str, as_code: bool, as_json: bool, example: str | None) -> None:
    """Show equation, schedule, views, heads, cost and paper of a recipe, such as 'ps_kd(alpha=0.8)'."""
    from ..experiments.task_types import TASK_TYPES
    from ..io.expressions import expression_name, parse_expression
    from ..methods.cards import code, code_text

    task = TASK_TYPES.of_recipe(expression)
    if as_code:
        parse_expression(expression, task.recipes())  # checks it
        name = expression_name(expression)
        recipe = task.recipes()[name]
        echo(json.dumps(code(name, recipe), sort_keys=True) if as_json else code_text(name, recipe))
        return
    card = task.explain(expression, example)
    echo(json.dumps(card, sort_keys=True) if as_json else task.text(card))


@main.command()
@one_line_errors
def doctor() -> None:
    """Check the installation, and print a remedy for each fault. Exit code 1 if a check fails."""
    from .doctor import examine

    findings = examine()
    for finding in findings:
        echo(f"{finding.state:<5} {finding.name}: {finding.detail}")
        if finding.remedy and finding.state != "ok":
            click.echo(f"      remedy: {finding.remedy}")
    sys.exit(1 if any(finding.state == "fail" for finding in findings) else 0)


main.add_command(benchmark)
main.add_command(compare)
main.add_command(completion)
main.add_command(preflight)
main.add_command(pretrain)
main.add_command(pull)
main.add_command(push)
main.add_command(report)
main.add_command(vitals)
main.add_command(label_errors)
main.add_command(label_next)
main.add_command(review)
main.add_command(theory)


if __name__ == "__main__":
    main()
