"""What the commands share: options, and errors in one line."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click
from click.core import ParameterSource

from ..errors import SelfdistillError


def one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
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


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """DATA and the options that become fields of `Request`: data, model, length and place of every training."""
    options = [
        click.argument("data", default="digits"),
        click.option(
            "--target", metavar="COL", help="Column to predict, for tables; rows where it is empty are unlabelled."
        ),
        click.option("--text", metavar="COL", help="Column of texts, for an encoder (--model gt-minilm or another)."),
        click.option("--unlabelled", metavar="PATH", help="Folder of images, or table, without labels."),
        click.option(
            "--labels",
            type=click.IntRange(min=1),
            metavar="N",
            help="Keep N labels to teach, N more at most to audit.",
        ),
        click.option(
            "--label-noise", type=float, default=0.0, metavar="F", help="Share of training and audit labels made wrong."
        ),
        click.option(
            "--image-size",
            type=click.IntRange(min=8),
            metavar="N",
            help="Side in pixels that a folder of images is brought to [default: 32].",
        ),
        click.option(
            "--augment", type=click.Choice(["none", "weak", "strong"]), help="Of the default view [default: by data]."
        ),
        click.option(
            "--model",
            metavar="SPEC",
            help="mlp, cnn(width=64), resnet, vit; for tables boosting, forest, extra_trees, linear, neighbours; for "
            "--text gt-minilm(length=128), the folder of an encoder, or owner/name of the Hugging Face hub; or "
            "module:function.",
        ),
        click.option(
            "--init", metavar="RUN", help="Begin with the layers of this run, all but the classifier [default: afresh]."
        ),
        click.option("--keep", metavar="SUITE", help="Prompts: prior tasks (.jsonl, reasoning-gym:TASK) to keep."),
        click.option(
            "--lora", type=click.IntRange(min=0), metavar="RANK", help="Prompts: of the adapter; 0 trains all weights."
        ),
        click.option(
            "--max-tokens", type=click.IntRange(min=1), metavar="N", help="Prompts: tokens of an answer [256]."
        ),
        click.option("--checkpointing", is_flag=True, help="Prompts: less memory, more time in the backward pass."),
        click.option(
            "--epochs",
            type=click.IntRange(min=1),
            metavar="N",
            help="Per generation [default: about 2,000 steps, of texts 500].",
        ),
        click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Per generation, instead of epochs."),
        click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="[default: 64, of texts 32]"),
        click.option("--seed", type=int, default=0, show_default=True),
        click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1 [default: a CUDA device if there is one]."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that become fields of `Settings`; None keeps the default there."""
    options = [
        click.option("--lr", type=Finite(min=0, min_open=True), help="Learning rate [default: 0.001, of texts 5e-5]."),
        click.option("--weight-decay", type=Finite(min=0), help="Weight decay [default: 0.0001, of texts 0.01]."),
        click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), help="[default: adamw]"),
        click.option(
            "--schedule", type=click.Choice(["cosine", "constant"]), help="Of the learning rate [default: cosine]."
        ),
        click.option(
            "--clip", type=Finite(min=0, min_open=True), help="Largest gradient norm [default: none, of texts 1]."
        ),
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
            type=Finite(min=0, min_open=True),
            help="Loss that `safe` lets pass, a share of rows or in the measure's unit [default: what it can see].",
        ),
        click.option(
            "--audit-measure",
            type=click.Choice(["accuracy", "nll", "brier", "mse"]),
            help="What the audit compares [default: accuracy, or mse for values].",
        ),
        click.option(
            "--audit-epochs",
            type=click.IntRange(min=1),
            help="Audit every N epochs within a generation too, and roll back what got worse.",
        ),
        click.option("--patience", type=click.IntRange(min=1), help="End after so many generations without gain."),
        click.option(
            "--vitals/--no-vitals", default=None, help="Look at a few steps; refuse a dead signal [default: vitals]."
        ),
        click.option(
            "--cache/--no-cache",
            default=None,
            help="Ask a frozen teacher once for each input that does not change [default: cache].",
        ),
        click.option("--save-seconds", type=Finite(min=0), help="Between checkpoints [default: 30]."),
        click.option("--save-steps", type=click.IntRange(min=1), help="Steps between checkpoints, instead of seconds."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


TRAINING = (
    "lr", "weight_decay", "optimizer", "schedule", "clip", "accumulate", "precision", "compile", "parallel",
    "audit", "audit_level", "audit_delta", "audit_measure", "audit_epochs", "patience", "vitals",
    "cache", "save_seconds", "save_steps",
)  # fmt: skip


def refuse_two_lengths(steps: int | None, epochs: int | None) -> None:
    """Refuse two lengths of one training.

    Raises:
        DataError: steps and epochs were both given.
    """
    if steps is not None and epochs is not None:
        from ..errors import DataError

        raise DataError(f"--steps {steps} and --epochs {epochs} both say how long; give one of them")


def first_process() -> bool:
    """Whether this process prints: under torchrun one does."""
    return int(os.environ.get("RANK", "0")) == 0


def announce_default_data(quiet: bool) -> None:
    """Say which data are used where none are named."""
    source = click.get_current_context().get_parameter_source("data")
    if source is ParameterSource.DEFAULT and not quiet and first_process():
        click.echo("no DATA was given: digits, 1,797 small images that come with scikit-learn", err=True)


def training_settings(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Take the training options out; those that were given, as a request has them.

    Raises:
        DataError: steps and epochs were both given.
    """
    refuse_two_lengths(options.get("steps"), options.get("epochs"))
    training = {name: options.pop(name) for name in TRAINING}
    return tuple(sorted((name, value) for name, value in training.items() if value is not None))
