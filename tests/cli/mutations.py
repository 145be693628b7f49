"""Inputs changed at random, each by a seed of its own, and what the commands answer to them.

Every kind has a function that changes one input in the working folder and returns the command for it. An answer is
right if the command passes, or is refused in one line with exit code 2 before anything is trained.
"""

from __future__ import annotations

import copy
import inspect
import json
import random
import shutil
import signal
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from click.testing import CliRunner

from selfdistill.cli import main
from selfdistill.errors import NotFiniteError, VitalsError
from tests.language.tiny import write_prompts
from tests.terminal import passed, write_images, write_tables

SECONDS = 60  # that one command may take

Args = list[str]

TOKENS = (
    "", " ", "nan", "NaN", "inf", "-inf", "1e400", "-1", "0", "1", "-0.0", "9" * 400, "1e-320", "null", "None",
    "true", "True",
    "[", "]", "{", "}", "(", ")", '"', "'", ",", ";", ":", "=", "\n", "\r", "\t", "\x00", "\ufeff", "\u202e",
    "\x1b[31m",
    "1,5", "1 000", "5 kg", "=1+1", "@x", "💥", "é", "ü" * 50, "2024-01-31", "31.12.1999 25:61", "../../etc/passwd",
    "%s",
    "{0}", "\\", "//", "lambda: 0", "__class__", "x" * 3000,
)  # fmt: skip

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "",
    "x", "nan",
    "\x00", "\x1b[2J", "../..", [], [[]], {}, {"": None}, [None], ["a", 1], {"a": {"b": []}}, "x" * 5000,
)  # fmt: skip


# ---- changes -------------------------------------------------------------------------------------------------------


def change_bytes(r: random.Random, data: bytes) -> bytes:
    """Bytes with one to six places flipped, removed, doubled, cut or filled."""
    for _ in range(r.choice((1, 1, 2, 6))):
        at, size = r.randrange(len(data) + 1), r.choice((1, 1, 2, 8, 64))
        piece = data[at : at + size]
        flipped = bytes(b ^ (1 << r.randrange(8)) for b in piece)
        data = r.choice(
            (
                data[:at] + flipped + data[at + size :],
                data[:at] + data[at + size :],
                data[:at] + piece * 3 + data[at + size :],
                data[:at] + r.randbytes(size) + data[at:],
                data[:at] + b"\x00" * size + data[at + size :],
                data[:at] + r.choice(TOKENS).encode() + data[at + size :],
                data[:at] if r.random() < 0.3 else data[:at] + b"\xff" + data[at:],
            )
        )
    return data


def change_table(r: random.Random, text: str) -> bytes:
    """A CSV file with other cells, rows, columns, or bytes."""
    if r.random() < 0.3:
        return change_bytes(r, text.encode())
    rows = [line.split(",") for line in text.splitlines()]
    for _ in range(r.choice((1, 1, 3, 20))):
        row, column = r.randrange(len(rows)), r.randrange(len(rows[0]))
        how = r.randrange(8)
        if how < 3:
            rows[row][column % max(1, len(rows[row]))] = r.choice(TOKENS)
        elif how == 3:
            token = r.choice(TOKENS)
            for line in rows[r.randrange(2) :]:
                line[column % max(1, len(line))] = token
        elif how == 4:
            rows.insert(row, rows[r.randrange(len(rows))][:])
        elif how == 5:
            rows[row] = rows[row][:column] if r.random() < 0.5 else rows[row] + ["1"] * r.choice((1, 5))
        elif how == 6:
            rows = rows[: max(1, row)] if r.random() < 0.3 else [line[::-1] for line in rows]
        else:
            for i, line in enumerate(rows):
                line[column % max(1, len(line))] = str(r.choice((i, i % 2, r.random(), f"w{r.random()}")))
        rows = [line or [""] for line in rows]
    newline = r.choice(("\n", "\n", "\n", "\r\n", "\r"))
    encoding = r.choice(("utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
    return newline.join(r.choice((",", ",", ",", ";")).join(row) for row in rows).encode(encoding, "replace")


def _value(r: random.Random) -> Any:
    return copy.deepcopy(r.choice(VALUES))


def _places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        yield (*path, key)
        yield from _places(value, (*path, key))


def change_json(r: random.Random, text: str) -> bytes:
    """JSON with another value, key or length at one to three places; or other bytes."""
    if r.random() < 0.25:
        return change_bytes(r, text.encode())
    tree = json.loads(text)
    for _ in range(r.choice((1, 1, 3))):
        places = list(_places(tree))
        if not places or r.random() < 0.02:
            tree = _value(r)
            continue
        *path, key = r.choice(places)
        node = tree
        for step in path:
            node = node[step]
        how = r.randrange(6)
        if how == 0:
            del node[key]
        elif how == 1 and isinstance(node, dict):
            node[r.choice(("x", "format", "", "\x1b"))] = _value(r)
        elif how == 2 and isinstance(node, list):
            node.extend(node[:1] * r.choice((1, 3)))
        else:
            node[key] = _value(r)
    return json.dumps(tree).encode()


def change_words(r: random.Random, text: str) -> str:
    """An expression with other characters, tokens or nesting."""
    for _ in range(r.choice((1, 1, 2, 4))):
        at = r.randrange(len(text) + 1)
        end = min(len(text), at + r.choice((0, 1, 1, 4)))
        piece = r.choice(
            (r.choice(TOKENS), r.choice(string.printable), text[at:end] * 2, "(" * r.choice((1, 1, 1, 2000)), "")
        )
        text = text[:at] + piece + text[end:]
    return text


# ---- kinds ---------------------------------------------------------------------------------------------------------

TINY = ["--steps", "1", "--no-control", "--out", "out", "--quiet"]
NETWORK = ["--model", "mlp(width=4)", "--method", "plain()", *TINY]
LEARNER = ["--model", "linear", "--method", "plain()", "--no-control", "--out", "out", "--quiet"]


def prepare(folder: Path) -> None:
    """The inputs as they are, and finished runs: of a table by a network and by a learner, and of images."""
    write_tables(folder)
    write_images(folder / "pets", each=8)
    write_prompts(folder)
    passed("run", "t.csv", "--target", "outcome", *NETWORK[:4], "--steps", 2, "--out", "network", "--quiet")
    passed("run", "t.csv", "--target", "outcome", *LEARNER[:4], "--out", "learner", "--quiet")
    passed("run", "pets", *NETWORK[:4], "--image-size", 8, "--steps", 1, "--out", "images", "--quiet")


def table(r: random.Random) -> Args:
    Path("m.csv").write_bytes(change_table(r, Path("t.csv").read_text()))
    options = r.choice((NETWORK, LEARNER, LEARNER))
    return ["run", "m.csv", "--target", r.choice(("outcome", "outcome", "outcome", "kind", "size")), *options]


def prediction(r: random.Random) -> Args:
    Path("m.csv").write_bytes(change_table(r, Path("t.csv").read_text()))
    return ["predict", r.choice(("network", "learner")), "m.csv"]


def parquet(r: random.Random) -> Args:
    Path("m.parquet").write_bytes(change_bytes(r, Path("t.parquet").read_bytes()))
    return r.choice((["predict", "network", "m.parquet"], ["run", "m.parquet", "--target", "outcome", *NETWORK]))


def prompts(r: random.Random) -> Args:
    lines = Path("p.jsonl").read_text().splitlines()
    for at in r.sample(range(len(lines)), r.choice((1, 1, 3))):
        lines[at] = change_json(r, lines[at]).decode("utf-8", "surrogateescape")
    Path("m.jsonl").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    if r.random() < 0.9:
        return ["explain", r.choice(("sdft()", "sft()", "sdpo()", "ssd()")), "--example", "m.jsonl"]
    return ["run", "m.jsonl", "--model", "tiny", "--method", "sft()", "--max-tokens", "2", "--batch-size", "4", *TINY]


def image(r: random.Random) -> Args:
    shutil.rmtree("m", ignore_errors=True)
    shutil.copytree("pets", "m")
    path = r.choice(sorted(Path("m").rglob("*.png")))
    content = change_bytes(r, path.read_bytes())
    path.unlink()
    path.with_suffix(r.choice((".png", ".png", ".jpg", ".gif", ".txt"))).write_bytes(content)
    if r.random() < 0.5:
        return ["predict", "images", r.choice(("m", str(path)))]
    return ["run", "m", "--image-size", "8", *NETWORK]


def record(r: random.Random) -> Args:
    run = r.choice(("network", "learner"))
    files = [
        "run.json",
        "run.json",
        "model/data.json",
        "model/config.json",
        "metrics.jsonl",
        "doubts.csv",
        "label_errors.csv",
    ]
    path = r.choice([path for name in files if (path := Path(run, name)).exists()])
    text = path.read_text()
    if path.suffix == ".json":
        content = change_json(r, text)
    elif path.suffix == ".jsonl":
        lines = text.splitlines()
        lines[0] = change_json(r, lines[0]).decode("utf-8", "surrogateescape")
        content = "\n".join(lines).encode("utf-8", "surrogateescape")
    else:
        content = change_bytes(r, text.encode())
    shutil.copytree(run, "m")
    Path("m", path.relative_to(run)).write_bytes(content)
    commands = ["report", "resume", "label-errors", "vitals", "predict"]
    return {"predict": ["predict", "m", "t.csv"]}.get(command := r.choice(commands), [command, "m"])


def weights(r: random.Random) -> Args:
    run = r.choice(("network", "learner"))
    path = r.choice(
        [path for path in sorted(Path(run, "model").iterdir()) if path.suffix in (".safetensors", ".skops")]
    )
    shutil.copytree(run, "m")
    Path("m/model", path.name).write_bytes(change_bytes(r, path.read_bytes()))
    if run == "learner" or r.random() < 0.8:
        return ["predict", "m", "t.csv"]
    option = r.choice((["--init", "m"], ["--method", "distil('m')"]))
    return ["run", "t.csv", "--target", "outcome", *NETWORK, *option]


def expression(r: random.Random) -> Args:
    from selfdistill.experiments.task_types import TASK_TYPES

    recipes = {name: recipe for task in TASK_TYPES for name, recipe in task.recipes().items()}
    name = r.choice(sorted(recipes))
    arguments = list(inspect.signature(recipes[name]).parameters)
    given = [
        f"{argument}={_value(r)!r}" for argument in r.sample(arguments, min(len(arguments), r.choice((0, 1, 1, 2))))
    ]
    changed = f"{name}({', '.join(given)})"
    changed = change_words(r, changed) if r.random() < 0.5 else changed
    if r.random() < 0.9 or "generations" in changed or "peers" in changed:
        return ["explain", "--", changed]
    return ["run", "t.csv", "--target", "outcome", *TINY, "--model", "mlp(width=4)", "--method", changed]


def model(r: random.Random) -> Args:
    changed = change_words(r, r.choice(("mlp(width=4)", "mlp(width=4, depth=1)", "linear", "cnn(width=4)", "nearest")))
    return ["run", "t.csv", "--target", "outcome", *TINY, "--method", "plain()", "--model", changed]


ODD_OPTIONS = {
    "--labels": ("1", "0", "x", "9" * 30, "20"), "--label-noise": ("nan", "-1", "0.5", "1e400", "x", "1"),
    "--augment": ("weak", "none", "x"), "--epochs": ("0", "x", "-5"), "--batch-size": ("0", "1", "9" * 25, "64", "2"),
    "--seed": ("x", "-1", "9" * 30, str(2**63), "1"), "--device": ("meta", "cpu:7", "cuda:99", "", "x", "mps", "cpu"),
    "--lr": ("0", "-1", "inf", "1e300", "1e-300", "x"), "--weight-decay": ("-1", "1e308", "nan"), "--clip": ("0",
    "1e-320"),
    "--accumulate": ("0", "1", "999", "x"), "--precision": ("float16", "bfloat16", "x"), "--audit": ("strict", "off",
    "x"),
    "--audit-level": ("0", "0.5", "nan", "1e-300"), "--audit-delta": ("0", "1e300", "x"), "--audit-epochs": ("0",
    "1", "x"),
    "--audit-measure": ("mse", "nll", "x"), "--audit-folds": ("1", "2", "9" * 20, "100"), "--patience": ("0", "1"),
    "--save-steps": ("0", "1"), "--save-seconds": ("-1", "0", "nan"), "--target": ("", "x", "size", "\x1b[31m",
    "outcome"),
    "--unlabelled": ("more.csv", "t.csv", "nowhere", "pets", ""), "--init": ("network", "learner", "images",
    "nowhere", ""),
    "--targets": ("store", "t.csv", "/proc/x", ""), "--text": ("kind", "x", ""), "--image-size": ("7", "8", "x"),
    "--keep": ("p.jsonl", "nowhere"), "--lora": ("-1", "2"), "--max-tokens": ("0", "3"), "--parallel": ("ddp", "x"),
    "--schedule": ("constant", "x"), "--optimizer": ("sgd", "x"), "--out": ("t.csv", "pets", "network", "/proc/x",
    "", "\x00"),
    "--method": ("plain()", "elr()", "self_distilled()", "sft()", "byol()", "x", ""), "--model": ("mlp", "boosting",
    "tiny", "x"),
}  # fmt: skip


def option(r: random.Random) -> Args:
    data = r.choice(
        ("t.csv", "t.csv", "t.csv", "half.csv", "numbers.csv", "pets", "p.jsonl", "digits", "", "\x00", "t.parquet")
    )
    base = [data, *(["--target", "outcome"] if data.endswith(("csv", "parquet")) else []), *NETWORK]
    for name in r.sample(sorted(ODD_OPTIONS), r.choice((1, 2, 3))):
        base += [name, r.choice(ODD_OPTIONS[name])]
    return ["run", *base] if r.random() < 0.9 else ["run", *(change_words(r, word) for word in base)]


KINDS: dict[str, tuple[Callable[[random.Random], Args], int]] = {  # and how many of each the suite tries
    "table": (table, 900), "prediction": (prediction, 500), "parquet": (parquet, 200), "prompts": (prompts, 600),
    "image": (image, 300), "record": (record, 800), "weights": (weights, 300), "expression": (expression, 800),
    "model": (model, 200), "option": (option, 400),
}  # fmt: skip


# ---- answers -------------------------------------------------------------------------------------------------------


class HangError(Exception):
    """A command took too long."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fault(args: Args) -> str | None:
    """What is wrong with a command's answer; None if nothing is."""
    from selfdistill.estimators import run as learners
    from selfdistill.training.trainer import Trainer

    trainings = [0]

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*given: Any, **named: Any) -> Any:
            result = call(*given, **named)
            trainings[0] += 1
            return result

        return counting

    with (
        mock.patch.object(Trainer, "step", counted(Trainer.step)),
        mock.patch.object(learners, "fit", counted(learners.fit)),
    ):
        try:
            with limited(SECONDS):
                result = CliRunner().invoke(main, args, prog_name="selfdistill")
        except HangError:
            return f"takes more than {SECONDS} s"
    error = result.exception
    if isinstance(error, HangError):
        return f"takes more than {SECONDS} s"
    if error is not None and not isinstance(error, SystemExit):
        return f"{type(error).__name__}: {str(error)[:200]}"
    if result.exit_code == 0:
        return None
    if result.exit_code != 2:
        return f"exit code {result.exit_code}: {result.stderr[-200:]}"
    *notes, _ = lines = result.stderr.splitlines() or [""]
    complaints = [line for line in lines if line.startswith("selfdistill: ")]
    if complaints != lines[-1:] or any("Error" in note or "Traceback" in note for note in notes):
        return f"{len(result.stderr.splitlines())} lines: {result.stderr[-300:]}"
    if trainings[0] and not isinstance(error and error.__context__, (NotFiniteError, VitalsError)):
        return f"refused after {trainings[0]} steps: {lines[-1][:300]}"
    return None


def attempt(kind: str, seed: int) -> tuple[Args, str | None]:
    """The command of a seed in the working folder of `prepare`, and what is wrong with its answer."""
    for place in ("m", "out", "store"):
        shutil.rmtree(place, ignore_errors=True)
    args = KINDS[kind][0](random.Random(f"{kind} {seed}"))
    return args, fault(args)
