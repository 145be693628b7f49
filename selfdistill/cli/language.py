"""``selfdistill preflight``: a test of the teacher before training.

``selfdistill pretrain``: further pre-training of a text encoder on texts without labels.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .completion import complete_path, complete_recipe
from .options import (
    TEMPLATE_OPTIONS,
    Finite,
    dtype_option,
    echo,
    fields_option,
    load_in_4bit_option,
    one_line_errors,
    refuse_two_lengths,
    trust_option,
)


@click.command()
@click.argument("data", metavar="PROMPTS", shell_complete=complete_path)
@click.option(
    "--model", default="smollm2", show_default=True, metavar="SPEC", help="Language model: a known name, or a folder."
)
@click.option(
    "--method",
    shell_complete=complete_recipe,
    metavar="EXPR",
    help="A recipe for language models [default: sdft() with demonstrations, sdpo() with checkers, else ssd()].",
)
@click.option(
    "--prompts",
    type=click.IntRange(min=2, max=100_000),
    default=32,
    show_default=True,
    metavar="N",
    help="Prompts to test on.",
)
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="Longest answer, in tokens [default: 256].")
@dtype_option
@load_in_4bit_option
@click.option("--checker", metavar="SPEC", help="Checker of the rows that have an answer and name no checker.")
@fields_option
@TEMPLATE_OPTIONS[0]
@TEMPLATE_OPTIONS[1]
@click.option("--skip-long", is_flag=True, help="Leave out the rows that are longer than the model's context.")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
@click.option("--device", metavar="NAME", help="cpu, cuda [default: a CUDA device if there is one].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@trust_option
@one_line_errors
def preflight(data: str, prompts: int, device: str | None, as_json: bool, **options: Any) -> None:
    """Test on a few PROMPTS whether the teacher of a language model is better than the student.

    It scores the student, the student that reads the teacher's context, and the teacher. Then it prints "go", or
    "no-go" with exit code 1.
    """
    from ..experiments.task_types import TASK_TYPES
    from ..io.run_record import Request
    from ..language.preflight import text

    request = Request(data=data, device=device, **options)
    found = TASK_TYPES.of_request(request).preflight(request, prompts, lambda line: echo(line, err=True))
    echo(json.dumps(found, sort_keys=True) if as_json else text(found))
    if not found["go"]:
        raise SystemExit(1)


@click.command()
@click.argument("data", shell_complete=complete_path)
@click.option("--text", required=True, metavar="COL", help="Column of texts.")
@click.option("--model", default="gt-minilm", show_default=True, metavar="SPEC", help="Encoder, as for `run`.")
@click.option("--out", required=True, metavar="DIR", help="Folder for the encoder; for `run --model DIR`.")
@click.option("--weight", type=Finite(min=0), default=1.0, show_default=True, help="Weight of the distillation term.")
@click.option(
    "--epochs", type=click.IntRange(min=1), metavar="N", help="Epochs of each of the two trainings [default: 3]."
)
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Steps of each of the two, instead of epochs.")
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="Texts per batch [default: 32].")
@click.option("--lr", type=Finite(min=0, min_open=True), help="Learning rate [default: 5e-5].")
@click.option("--seed", type=int, default=0, show_default=True, help="Random seed.")
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1 [default: a CUDA device if there is one].")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object, the last line of stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
@one_line_errors
def pretrain(data: str, text: str, out: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Continue the pre-training of a text encoder on the texts of DATA, with self-distillation.

    DATA is a CSV or Parquet table; no labels are read. The encoder is trained twice by masked language modelling. The
    second training starts from the original weights and is also taught by the result of the first. An interrupted run
    resumes when the same command is given again.
    """
    from ..training import further_pretraining
    from .progress import reporting

    refuse_two_lengths(options["steps"], options["epochs"])
    given = {name: value for name, value in options.items() if value is not None}
    with reporting(quiet) as reporter:
        record = further_pretraining.pretrain(
            data,
            text,
            Path(out),
            make=reporter.begin if reporter else lambda name: None,
            warn=lambda line: echo(line, err=True),
            **given,
        )
    if as_json:
        click.echo(json.dumps({"out": out, **record}, sort_keys=True))
        return
    for role, terms in record["losses"].items():
        said = ", ".join(f"{name} {one['loss']:.3f}" for name, one in terms.items())
        click.echo(f"{role}, losses of the last epoch: {said}")
    echo(f"Encoder folder: {out}; train on labels by `selfdistill run DATA --text {text} --model {out}`")
