"""What the commands share: options, and errors in one line."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..errors import SelfdistillError
from ..io import trust
from ..io.display import printable
from ..io.expressions import one_line
from .completion import complete_path
from .config import config_option


def echo(text: str, err: bool = False) -> None:
    """Print a text; names in it that a file gave cannot steer the terminal."""
    click.echo(printable(text), err=err)


def complain(text: str) -> None:
    """Print an error on one line of stderr, whatever names it holds."""
    click.echo(printable(f"selfdistill: {text}", kept=""), err=True)


def one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """One line on stderr and exit code 2 for what a person can mend; 130 for a run that was stopped and resumes."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except SelfdistillError as error:
            complain(str(error))
            sys.exit(2)
        except KeyboardInterrupt as stopped:
            complain(str(stopped) or "stopped")
            sys.exit(130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has left; say no more
            sys.exit(1)
        except (MemoryError, RuntimeError) as error:
            if not _is_of_memory(error):
                raise
            complain(f"the memory is too small ({one_line(error, 120)}); make model or batch smaller")
            sys.exit(2)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            why = error.strerror or type(error).__name__
            complain(f"{place}{why}; check the place, its free space and its permissions")
            sys.exit(2)

    return wrapped


def _is_of_memory(error: Exception) -> bool:
    """Whether memory was asked for that is not there; torch has no type for that on a CPU."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or "can't allocate memory" in str(error)


def trust_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """``--trust-code`` for a command that loads folders or files of others; within it the trust holds."""

    @click.option(
        "--trust-code",
        is_flag=True,
        help="Run functions that the loaded folders and files name (models, checkers). Only for files you trust.",
    )
    @wraps(command)
    def wrapped(*args: Any, trust_code: bool, **kwargs: Any) -> Any:
        with trust.trust_code(trust_code):
            return command(*args, **kwargs)

    return wrapped


class Finite(click.FloatRange):
    """A range of numbers that has neither nan nor infinity in it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number.", param, ctx)
        return number


def joined(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str | None:
    """The values of an option that may be repeated, as a request has them: one text, or None of none."""
    return "|".join(values) or None


def number_or_column(context: click.Context, option: click.Parameter, value: str | None) -> int | str | None:
    """A number of tasks, 2 or more, or the name of a column."""
    if value is None:
        return None
    number = int(value) if value.lstrip("-").isdecimal() else 2
    if not value or number < 2:
        raise click.BadParameter(f"{value!r} is neither a number of 2 or more nor the name of a column.")
    return number if value.isdecimal() else value


def label_options(context: click.Context, values: tuple[str, ...]) -> int | None:
    """The number among the values of ``--labels``; the file among them becomes the parameter ``decisions``."""
    numbers = [value for value in values if value.lstrip("+-").isdecimal()]
    files = [value for value in values if value not in numbers]
    for each in (numbers, files):
        if len(each) > 1:
            raise click.BadParameter(f"{each[1]!r} is the second one of its kind; give one number and one file at most")
    if numbers and int(numbers[0]) < 1:
        raise click.BadParameter(f"{numbers[0]} is not in the range x>=1.")
    if files and not Path(files[0]).is_file():
        raise click.BadParameter(
            f"{files[0]!r} is neither a number of 1 or more nor a file; `selfdistill review RUN` and `label-next RUN` "
            "write files of decisions."
        )
    context.params["decisions"] = files[0] if files else None
    return int(numbers[0]) if numbers else None


#: The options of `run --help` by theme, those of the main job first.
THEMES = {
    "Main options": "target text unlabelled test labels groups model method steps budget seed out",
    "Data and splits": (
        "columns annotators time validation label_noise image_size augment tasks order domains leave_out verify"
    ),
    "Method and what it is compared with": (
        "control effort product refit folds search trials storage explore init tune targets memory warm"
    ),
    "Training": (
        "epochs batch_size lr weight_decay optimizer schedule clip accumulate precision compile device "
        "parallel save_seconds save_steps cache memory_dtype memory_top layer_decay vitals"
    ),
    "Audit of generations": "audit audit_level audit_delta audit_measure audit_epochs audit_folds patience",
    "Language models": (
        "fields keep eval_tasks checker student_template teacher_template skip_long group_lengths lora dtype "
        "load_in_4bit save max_tokens checkpointing alarms"
    ),
    "Policies in environments": "net sees teacher engine episodes deployment",
    "Output and trust": "log config as_json quiet raw_csv trust_code help",
}


class ThemedHelp(click.Command):
    """A command of many options, whose help groups them: those of the main job first, the others by theme."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        options = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)]
        records = {str(option.name): option.get_help_record(ctx) for option in options}
        rest = [name for name in records if not any(name in names.split() for names in THEMES.values())]
        for theme, names in {**THEMES, "Other options": " ".join(rest)}.items():
            if lines := [record for name in names.split() if (record := records.get(name)) is not None]:
                with formatter.section(theme):
                    formatter.write_dl(lines)


raw_csv_option = click.option(
    "--raw-csv",
    is_flag=True,
    help="Write cells of CSV files as they are [default: an apostrophe before what a spreadsheet takes for a formula].",
)


def _column_types(values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The types of columns from the command line, by name."""
    pairs: dict[str, str] = {}
    for value in values:
        name, equals, kind = value.rpartition("=")
        if not equals or not name:
            raise click.BadParameter(f"{value!r} is no NAME=TYPE, such as size=numeric")
        if pairs.setdefault(name, kind) != kind:
            raise click.BadParameter(f"{name!r} has two types, {pairs[name]} and {kind}; give one")
    return tuple(sorted(pairs.items()))


dtype_option = click.option(
    "--dtype",
    type=click.Choice(["auto", "bfloat16", "float16", "float32"]),
    help="Prompts: dtype of the base weights and of the saved model; what learns is float32 [default: as in the file].",
)


load_in_4bit_option = click.option(
    "--load-in-4bit",
    is_flag=True,
    help="Prompts: quantise the base to 4 bits (NF4, by bitsandbytes); needs --lora, and saves the adapter.",
)


save_option = click.option(
    "--save",
    type=click.Choice(["merged", "adapter", "both"]),
    help="Prompts: save the whole model, the LoRA adapter as PEFT loads it, or both [default: merged].",
)


def _field_names(context: click.Context, option: click.Parameter, value: str | None) -> tuple[tuple[str, str], ...]:
    """The columns of prompts from the command line."""
    from ..data.examples import field_names

    try:
        return field_names(value or "")
    except SelfdistillError as error:
        raise click.BadParameter(str(error)) from None


#: Of all commands that read prompts.
fields_option = click.option(
    "--columns",
    "fields",
    metavar="FIELD=COLUMN,...",
    callback=_field_names,
    help="Prompts: the columns of fields that the file calls otherwise, such as prompt=question,answer=solution.",
)


#: Options of the chat template, apart for student and teacher.
TEMPLATE_OPTIONS = [
    click.option(
        "--student-template",
        metavar="NAME=VALUE,...",
        help="Prompts: options of the model's chat template, such as enable_thinking=false; saved with the model.",
    ),
    click.option(
        "--teacher-template",
        metavar="NAME=VALUE,...",
        help="Prompts: those of what is read with a context, where they differ from the student's.",
    ),
]


DATA_OPTIONS = [
    click.argument("data", default="digits", shell_complete=complete_path),
    click.option("--target", metavar="COL", help="Tables: column to predict; rows where it is empty are unlabelled."),
    click.option(
        "--column",
        "columns",
        multiple=True,
        metavar="NAME=TYPE",
        callback=lambda context, option, values: _column_types(values),
        help="Tables: the type of a column where the inferred one is wrong: numeric, categorical, date, text or "
        "identifier; the last two are left out. May be repeated.",
    ),
    click.option("--text", metavar="COL", help="Tables: column of texts, read by a text encoder (--model)."),
    click.option("--unlabelled", metavar="PATH", help="More unlabelled data: a folder of images, or a table."),
    click.option(
        "--groups",
        metavar="COL",
        help="Keep the rows of one value of this column, such as a patient, in one split. Equal rows always share one.",
    ),
    click.option(
        "--time",
        metavar="COL",
        help="Split in the order of this column: the latest rows test, the ones before validate, the earliest teach.",
    ),
    click.option(
        "--test",
        metavar="PATH|cross-fit",
        help="Your own test split: a table, images as in DATA, or prompts. A column `split` (train, "
        "validation, test) does the same. cross-fit, for few labels: no test split; every labelled row is scored by a "
        "model that did not learn it (5 trainings more, or --folds K), and the final model learns from all of them.",
    ),
    click.option("--validation", metavar="PATH", help="Your own validation split, likewise."),
    click.option(
        "--labels",
        multiple=True,
        metavar="N|FILE",
        callback=lambda context, option, values: label_options(context, values),
        help="N: use the labels of N training rows and of at most N validation rows only; the rest is unlabelled. "
        "FILE: add the labels of a decisions CSV (see `label-next`). Both may be given.",
    ),
    click.option(
        "--label-noise",
        type=float,
        default=0.0,
        metavar="F",
        help="For experiments: replace this share of the training and validation labels by wrong ones.",
    ),
    click.option(
        "--image-size",
        type=click.IntRange(min=8),
        metavar="N",
        help="Images of a folder are resized to N x N pixels [default: 32].",
    ),
    click.option(
        "--augment",
        metavar="NAME|PARTS",
        help="Augmentation where the recipe names none: none, weak, strong, or parts such as flip,crop (images: flip, "
        "shift, crop, colour, warp, cutout; tables: noise, mask; texts: mask) [default: weak for folders of images and "
        "fashion-mnist, else none; images of classes that are letters or digits are not mirrored].",
    ),
    click.option(
        "--model",
        metavar="SPEC",
        help="mlp, cnn(width=64), resnet, vit; tables: also boosting, forest, extra_trees, linear, neighbours; "
        "pretrained: efficientnet-lite0(size=128) for images, gt-minilm(length=128) for --text, the folder of an image "
        "model or text encoder, or owner/name on the Hugging Face hub; "
        "prompts: smollm2 or a folder; or module:function for your own [default: by the data].",
    ),
    click.option(
        "--tune",
        type=click.Choice(["head", "full"]),
        help="Pretrained image models: train a head on features that are computed once, or all weights [default: "
        "head].",
    ),
    click.option(
        "--init",
        metavar="RUN|FILE",
        help="Start from the weights of this run, or of a file (.safetensors, .pt, .pth) for --model, except the "
        "classifier [default: new weights].",
    ),
    click.option(
        "--keep",
        metavar="SUITE",
        help="Prompts: prior tasks that must not be forgotten (.jsonl, reasoning-gym:TASK).",
    ),
    click.option(
        "--eval-tasks",
        multiple=True,
        metavar="YAML",
        callback=joined,
        help="Prompts: also evaluate on a task of lm-eval (EleutherAI's harness), given by its YAML file; needs "
        "--trust-code, as its templates and functions are code. May be repeated.",
    ),
    fields_option,
    *TEMPLATE_OPTIONS,
    click.option(
        "--checker",
        metavar="SPEC",
        help="Prompts: checker of the rows that have an answer and name no checker (exact, numeric, regex, "
        "module:function).",
    ),
    click.option(
        "--skip-long",
        is_flag=True,
        help="Prompts: leave out the rows that are longer than the model's context, and count them.",
    ),
    click.option(
        "--group-lengths",
        is_flag=True,
        help="Prompts: put prompts of similar length into a batch, which then has less padding.",
    ),
    click.option(
        "--lora",
        type=click.IntRange(min=0),
        metavar="RANK",
        help="Prompts: rank of the LoRA adapter; 0 trains all weights.",
    ),
    dtype_option,
    load_in_4bit_option,
    click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        help="Prompts: longest answer, in tokens [default: 256].",
    ),
    click.option(
        "--checkpointing", is_flag=True, help="Prompts: gradient checkpointing; needs less memory and more time."
    ),
    click.option(
        "--alarms",
        type=click.Choice(["warn", "roll-back", "stop"]),
        help="Prompts: compare length, entropy, diversity, leakage and confidence of answers before and after.",
    ),
    click.option(
        "--epochs",
        type=click.IntRange(min=1),
        metavar="N",
        help="Epochs per generation [default: about 2,000 steps; 500 for texts].",
    ),
    click.option(
        "--steps",
        type=click.IntRange(min=1),
        metavar="N",
        help="Optimizer steps per generation, instead of epochs.",
    ),
    click.option(
        "--batch-size", type=click.IntRange(min=1), metavar="N", help="Rows per batch [default: 64; 32 for texts]."
    ),
    click.option(
        "--budget",
        multiple=True,
        metavar="BOUND",
        callback=joined,
        help="Bound the whole: time (90s, 10min, 2h), memory (4GiB), sample passes (20000passes; a forward pass counts "
        "1, a backward pass 2). May be repeated. What it cuts is reported.",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Random seed."),
    click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1 [default: a CUDA device if there is one]."),
]


log_option = click.option(
    "--log",
    multiple=True,
    type=click.Choice(["tensorboard", "wandb", "trackio"]),
    help="Draw the curves of the run in this tool, as it goes. May be repeated; `resume` goes on with it.",
)


memory_option = click.option(
    "--memory",
    type=click.IntRange(min=0, max=10**6),
    metavar="N",
    help="Networks that classify: keep a sample of N training rows beside the model, for `update`; 0 keeps none "
    "[default: 200].",
)


CONTROL_OPTIONS = [
    click.option("--net", metavar="N,N", help="Environments: sizes of the policy's hidden layers [default: 64,64]."),
    click.option(
        "--sees",
        metavar="KEY",
        help="Environments: what the teacher alone sees: keys of a Dict observation, or module:Class of an "
        "ObservationWrapper.",
    ),
    click.option("--teacher", metavar="ZIP|RUN", help="Environments: a trained policy, which teaches."),
    click.option(
        "--engine",
        type=click.Choice(["ppo", "a2c", "continuous", "vllm"]),
        help="Environments: the algorithm of stable-baselines3 [default: ppo]. Prompts: continuous refills the batch "
        "that writes; vllm writes by vLLM on the GPU that trains (never run with a real engine) [default: generate of "
        "transformers].",
    ),
    click.option(
        "--episodes",
        type=click.IntRange(min=2),
        metavar="N",
        help="Environments: test episodes [default: planned by their spread].",
    ),
    click.option(
        "--sampled",
        "deployment",
        flag_value="sampled",
        help="Environments: judge the policy by sampled actions [default: by the most probable ones].",
    ),
]


def control_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of environments that become fields of `Request`."""
    for option in reversed(CONTROL_OPTIONS):
        command = option(command)
    return command


def update_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """RUN, DATA and the options of an update, which are those of a run."""
    for option in reversed(
        [
            click.argument("update", metavar="RUN", shell_complete=complete_path),
            click.argument("data", shell_complete=complete_path),
            *DATA_OPTIONS[1:],
        ]
    ):
        command = option(command)
    return command


#: the options of a run that an adaptation has too
_ADAPT = {"target", "test", "augment", "epochs", "steps", "batch_size", "budget", "seed", "device"}


def adapt_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """RUN, DATA and the options of an adaptation."""
    own = [
        click.argument("adapt", metavar="RUN", shell_complete=complete_path),
        click.argument("data", shell_complete=complete_path),
        click.option(
            "--order",
            metavar="COL",
            help="Numbers or dates by which the rows are ordered [default: the order of the file; of images a "
            "sub-folder is a domain].",
        ),
        click.option(
            "--domains",
            type=click.IntRange(min=2),
            metavar="N",
            help="Cut the ordered rows into N domains [default: one for each value of --order up to 20, else 10].",
        ),
        click.option(
            "--leave-out",
            type=Finite(min=0, max=0.9),
            metavar="F",
            help="Share of each domain, the least certain rows, that teaches nothing [default: 0.1].",
        ),
        click.option(
            "--verify",
            type=Finite(min=0, max=0.9, min_open=True),
            metavar="F",
            help="Labelled rows verify and never teach: at most this share of a domain [default: a third].",
        ),
        click.option(
            "--warm",
            is_flag=True,
            help="Begin each domain with the weights of the last one. It gained less than fresh networks on turned "
            "digits (docs/streams.md).",
        ),
    ]
    shared = [option for option in DATA_OPTIONS[1:] if vars(option(lambda: None))["__click_params__"][0].name in _ADAPT]
    for option in reversed([*own, *shared]):
        command = option(command)
    return command


_EXAMINED = {
    "target", "columns", "text", "groups", "time", "test", "validation", "image_size", "augment", "model", "init",
    "epochs", "steps", "batch_size", "budget", "seed", "device",
}  # fmt: skip


annotators_option = click.option(
    "--annotators",
    metavar="COL,COL",
    help="Tables: columns with the labels of several annotators, an empty cell for none. Their consensus is the "
    "target, and the report says how often each one is right.",
)


folds_option = click.option(
    "--folds",
    type=click.IntRange(min=2),
    metavar="K",
    help="Examine labels by folds. Networks: K trainings more, each without one of K parts of all labelled rows, so "
    "that every row teaches and is examined by models that left it out. Tables leave rows out anyway: K is the number "
    "of their folds [default: 5]. With --test cross-fit: its folds.",
)


effort_option = click.option(
    "--effort",
    type=click.Choice(["quick"]),
    help="quick: a first answer in a minute: one short training of a small network without a baseline; of tables at "
    "most a minute of auto(). Options that are given come first.",
)


def examination_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """RUN or DATA, and the options of a run that examines labels."""
    names = {id(option): vars(option(lambda: None))["__click_params__"][0].name for option in DATA_OPTIONS[1:]}
    shared = [option for option in DATA_OPTIONS[1:] if names[id(option)] in _EXAMINED]
    for option in reversed(
        [
            click.argument("source", metavar="RUN|DATA", shell_complete=complete_path),
            *shared,
            annotators_option,
            effort_option,
            folds_option,
        ]
    ):
        command = option(command)
    return command


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """DATA and the options that become fields of `Request`: data, model, length and place of every training."""
    for option in reversed(DATA_OPTIONS):
        command = option(command)
    return command


TRAINING_OPTIONS = [
    click.option("--lr", type=Finite(min=0, min_open=True), help="Learning rate [default: 0.001; 5e-5 for texts]."),
    click.option("--weight-decay", type=Finite(min=0), help="Weight decay [default: 0.0001; 0.01 for texts]."),
    click.option("--optimizer", type=click.Choice(["adamw", "sgd"]), help="[default: adamw]"),
    click.option(
        "--schedule",
        type=click.Choice(["cosine", "constant"]),
        help="Schedule of the learning rate [default: cosine].",
    ),
    click.option(
        "--clip",
        type=Finite(min=0, min_open=True),
        help="Gradient norm above which gradients are clipped [default: none; 1 for texts].",
    ),
    click.option(
        "--accumulate",
        type=click.IntRange(min=1),
        help="Gradient accumulation: micro-batches per batch; the loss is that of the whole batch.",
    ),
    click.option("--precision", type=click.Choice(["float32", "bfloat16", "float16"]), help="[default: float32]"),
    click.option("--compile", is_flag=True, default=None, help="Compile the model with torch.compile."),
    click.option(
        "--parallel", type=click.Choice(["ddp", "fsdp"]), help="Distributed training under torchrun [default: ddp]."
    ),
    click.option(
        "--audit",
        type=click.Choice(["safe", "strict", "off"]),
        help="Test on the validation split. Only a generation that passes teaches the next one or is the final model. "
        "safe: not worse than the one before; strict: significantly better; off: no test [default: safe].",
    ),
    click.option(
        "--audit-level",
        type=Finite(min=0, max=0.5, min_open=True, max_open=True),
        help="Significance level of the audit, over all generations [default: 0.05].",
    ),
    click.option(
        "--audit-delta",
        type=Finite(min=0, min_open=True),
        help="The loss of accuracy that `safe` accepts, as a share of rows, or of another measure in its unit "
        "[default: the smallest change that the validation split can detect].",
    ),
    click.option(
        "--audit-measure",
        type=click.Choice(["accuracy", "nll", "brier", "mse"]),
        help="Measure that the audit compares [default: accuracy; mse for regression].",
    ),
    click.option(
        "--audit-epochs",
        type=click.IntRange(min=1),
        help="Audit also every N epochs within a generation, and restore the best weights if the model got worse.",
    ),
    click.option(
        "--patience", type=click.IntRange(min=1), help="Stop after this many generations without improvement."
    ),
    click.option(
        "--vitals/--no-vitals",
        default=None,
        help="Check at a few steps that each loss term gives a training signal; stop the run if one does not "
        "[default: vitals].",
    ),
    click.option(
        "--cache/--no-cache",
        default=None,
        help="Compute a frozen teacher's output once per input, where inputs are not augmented [default: cache].",
    ),
    click.option(
        "--memory-dtype",
        type=click.Choice(["float32", "float16", "bfloat16"]),
        help="Precision of remembered predictions, for many rows and classes [default: float32].",
    ),
    click.option(
        "--memory-top",
        type=click.IntRange(min=1),
        help="Remember the N largest probabilities of each prediction; the others share the rest [default: all].",
    ),
    click.option(
        "--layer-decay",
        type=Finite(min=0, max=1, min_open=True),
        help="Factor of the learning rate for each layer further from the output [default: 1; 0.75 with --tune full].",
    ),
    click.option("--save-seconds", type=Finite(min=0), help="Seconds between checkpoints [default: 30]."),
    click.option("--save-steps", type=click.IntRange(min=1), help="Steps between checkpoints, instead of seconds."),
]


def training_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that become fields of `Settings`; None keeps the default there."""
    for option in reversed(TRAINING_OPTIONS):
        command = option(command)
    return command


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What every command that makes a run folder has: its place and output, the stored rows, and the training."""
    command = config_option(training_options(trust_option(command)))
    for option in reversed(
        [
            memory_option,
            log_option,
            click.option("--out", metavar="DIR", help="Run folder [default: below runs/]."),
            click.option(
                "--json", "as_json", is_flag=True, help="Print the result as one JSON object, the last line of stdout."
            ),
            click.option("--quiet", is_flag=True, help="No progress."),
            raw_csv_option,
        ]
    ):
        command = option(command)
    return command


TRAINING = (
    "lr",
    "weight_decay",
    "optimizer",
    "schedule",
    "clip",
    "accumulate",
    "precision",
    "compile",
    "parallel",
    "audit",
    "audit_level",
    "audit_delta",
    "audit_measure",
    "audit_epochs",
    "patience",
    "vitals",
    "cache",
    "memory_dtype",
    "memory_top",
    "layer_decay",
    "save_seconds",
    "save_steps",
)


def refuse_two_lengths(steps: int | None, epochs: int | None) -> None:
    """Refuse two lengths of one training.

    Raises:
        DataError: steps and epochs were both given.
    """
    if steps is not None and epochs is not None:
        from ..errors import DataError

        raise DataError(f"--steps {steps} and --epochs {epochs} both set the length of training; give only one")


def first_process() -> bool:
    """Whether this process prints: under torchrun one does."""
    return int(os.environ.get("RANK", "0")) == 0


def announce_default_data(quiet: bool) -> None:
    """Print which data are used if none are given."""
    source = click.get_current_context().get_parameter_source("data")
    if source is ParameterSource.DEFAULT and not quiet and first_process():
        click.echo("no DATA was given: using digits, 1,797 small images that come with scikit-learn", err=True)


def training_settings(options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Take the training options out; those that were given, as a request has them.

    Raises:
        DataError: steps and epochs were both given.
    """
    refuse_two_lengths(options.get("steps"), options.get("epochs"))
    training = {name: options.pop(name) for name in TRAINING}
    return tuple(sorted((name, value) for name, value in training.items() if value is not None))
