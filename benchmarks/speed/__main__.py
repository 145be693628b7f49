"""The command `python -m benchmarks.speed NAME`: the cost of a step, a store, the vitals and the divergences."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import Any

import click

from selfdistill.cli.options import one_line_errors


@click.group()
def main() -> None:
    """Measure speed, as ratios within one run."""


def _more(name: str) -> Callable[[Any], Any]:
    """What one of the measurements can be told beside the usual."""
    if name == "images":
        return click.option("--count", type=click.IntRange(min=200), default=5000, show_default=True, help="Files.")
    if name == "memory":
        count = click.option(
            "--ids", type=click.IntRange(min=1000), default=10_000_000, show_default=True, help="Samples."
        )
        kind = click.Choice(["float32", "float16", "bfloat16"])
        return lambda command: count(click.option("--dtype", type=kind, default="float32", show_default=True)(command))
    if name != "language":
        return lambda command: command
    return click.option("--peer", metavar="PYTHON", help="An interpreter that has trl, transformers and peft.")


def _benchmark(name: str, what: str, quick: str) -> None:
    """Add the command of a module of this folder: it has ``run`` and ``render``."""

    @main.command(name, help=what)
    @_more(name)
    @click.option("--json", "as_json", is_flag=True)
    @click.option("--quick", is_flag=True, help=f"{quick}, to see that it works; the numbers mean nothing.")
    @one_line_errors
    def command(as_json: bool, quick: bool, **more: Any) -> None:
        measured = importlib.import_module(f"benchmarks.speed.{name}")
        result = measured.run(quick=quick, progress=lambda line: click.echo(line, err=True), **more)
        click.echo(json.dumps(result, sort_keys=True) if as_json else measured.render(result))


for _name, _what, _quick in (
    ("steps", "What a step of each kind of method costs, against a plain step and against a hand-written loop.",
     "A few tiny steps"),
    ("loggers", "What TensorBoard, Weights & Biases and Trackio add to a step, each where it is installed.",
     "A few tiny steps"),
    ("vitals", "What looking at the signal costs, as a share of run time.", "A few tiny steps"),
    ("divergence", "What a divergence over a large vocabulary costs in time and memory, against holding all logits.",
     "A small vocabulary"),
    ("language", "What a teacher adds to a language model's step, and a whole SDFT step beside TRL's.", "Small sizes"),
    ("sdft_memory", "The peak memory of a training by sdft() over that by sft(), of a bfloat16 model.",
     "A small model"),
    ("images", "What a step with images on disk takes, against a bare loop over a DataLoader, and the memory of both.",
     "Few files and steps"),
    ("store", "What targets on disk take and cost: bytes, reading, the gradient's error, a training step.",
     "Small sizes"),
    ("tables", "How the time to read a table grows with its columns, and the memory of a run on a long one.",
     "Small sizes"),
    ("memory", "The bytes that a sample takes in the memory of a method, with ids spread up to 2^62.", "Few ids"),
):  # fmt: skip
    _benchmark(_name, _what, _quick)


if __name__ == "__main__":
    main()
