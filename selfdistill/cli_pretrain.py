"""``selfdistill pretrain``: further pre-training of a text encoder on texts without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from .cli_options import Finite, one_length, refusing


@click.command()
@click.argument("data")
@click.option("--text", required=True, metavar="COL", help="Column of texts.")
@click.option("--model", default="gt-minilm", show_default=True, metavar="SPEC", help="Encoder, as for `run`.")
@click.option("--out", required=True, metavar="DIR", help="Folder for the encoder; `run --model DIR` takes it.")
@click.option("--weight", type=Finite(min=0), default=1.0, show_default=True, help="Of the likeness to the teacher.")
@click.option("--epochs", type=click.IntRange(min=1), metavar="N", help="Of each of the two trainings [default: 3].")
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Of each of the two, instead of epochs.")
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="[default: 32]")
@click.option("--lr", type=Finite(min=0, min_open=True), help="Learning rate [default: 5e-5].")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1 [default: a CUDA device if there is one].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, last on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
@refusing
def pretrain(data: str, text: str, out: str, as_json: bool, quiet: bool, **options: Any) -> None:
    """Go on pre-training an encoder on the texts of DATA (a CSV or Parquet table), with itself as the teacher.

    Words are hidden and filled in, twice: what the first training makes of the encoder teaches the second, which starts
    from the original weights. No labels are read. A cut run goes on when the same command is given again.
    """
    from .progress import reporting
    from .tasks import pretraining

    one_length(options["steps"], options["epochs"])
    given = {name: value for name, value in options.items() if value is not None}
    with reporting(quiet) as reporter:
        record = pretraining.pretrain(
            data, text, Path(out), make=reporter.begin if reporter else lambda name: None,
            warn=lambda line: click.echo(line, err=True), **given,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps({"out": out, **record}, sort_keys=True))
        return
    for role, terms in record["losses"].items():
        said = ", ".join(f"{name} {one['loss']:.3f}" for name, one in terms.items())
        click.echo(f"{role}, in its last epoch: {said}")
    click.echo(f"The encoder lies in {out}; learn from labels by `selfdistill run DATA --text {text} --model {out}`")
