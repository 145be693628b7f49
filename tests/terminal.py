"""What the command-line tests share: the command run in this process, small files to train on, odd models."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result

from selfdistill.cli import main

MODELS = '''
import torch
from torch import nn


class Flat(nn.Module):
    """64 pixels -> outputs; ``wrong`` says what is wrong with it."""

    def __init__(self, shape, outputs, wrong=""):
        super().__init__()
        self.linear, self.wrong, self.calls = nn.Linear(torch.Size(shape).numel(), outputs), wrong, 0

    def forward(self, x):
        self.calls += 1
        y = self.linear(x.flatten(1))
        if self.wrong == "nan" and self.calls > 6:
            return torch.where(torch.arange(len(x))[:, None] == 3, torch.nan, y)  # one sample of the batch
        if self.wrong == "at once":
            return y * torch.nan
        if self.wrong == "tuple":
            return (y,)
        if self.wrong == "name":
            return {"scores": y}
        if self.wrong == "rows":
            return y.mean(0)
        if self.wrong == "raises":
            raise ValueError("two\\nlines")
        return y


def good(shape, outputs):
    return Flat(shape, outputs)

def wide(shape, outputs):
    return Flat(shape, outputs + 3)

def narrow(shape, outputs):
    return Flat(shape, outputs - 3)

def other_input(shape, outputs):
    return Flat((5,), outputs)

def wrong(shape, outputs, how=""):
    return Flat(shape, outputs, how)

def weightless(shape, outputs):
    return nn.Flatten()

def nothing(shape, outputs):
    return None

def failing(shape, outputs):
    raise RuntimeError("no luck")
'''


def invoke(*args: object, **options: Any) -> Result:
    """`selfdistill ARGS` in this process; anything but an orderly exit is raised."""
    result = CliRunner().invoke(main, [str(arg) for arg in args], prog_name="selfdistill", **options)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def passed(*args: object) -> Result:
    result = invoke(*args)
    assert result.exit_code == 0, result.stderr
    return result


def report(*args: object) -> dict[str, Any]:
    """The JSON object that a command prints last on stdout (its only line here)."""
    line = passed(*args, "--json", "--quiet").stdout
    assert line.count("\n") == 1
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def refused(*args: object) -> str:
    """The one line on stderr of a command that is refused with exit code 2."""
    result = invoke(*args)
    assert result.exit_code == 2, (result.exit_code, result.stdout, result.stderr)
    assert result.stdout == ""
    line: str = result.stderr
    assert line.startswith("selfdistill: "), line
    assert line.endswith("\n")
    assert line.count("\n") == 1, line
    return line.removeprefix("selfdistill: ").rstrip()


def child(*args: object, **options: Any) -> subprocess.Popen[str]:
    """`selfdistill ARGS` in a process of its own, one thread, both outputs captured."""
    one = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": one, **options}
    return subprocess.Popen([sys.executable, "-m", "selfdistill", *map(str, args)], text=True, **options)


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder: what must not change where nothing may be lost."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def write_tables(folder: Path) -> None:
    """t.csv and t.parquet (two classes, 90 rows), half.csv (a third unlabelled), more.csv (no target), and bad ones."""
    import pandas

    rng = np.random.default_rng(0)
    size = rng.normal(size=90)
    frame = pandas.DataFrame(
        {
            "size": size,
            "weight": rng.normal(size=90),
            "kind": rng.choice(["u", "v"], 90),
            "outcome": np.where(size + 0.3 * rng.normal(size=90) > 0, "yes", "no"),
        }
    )
    frame.to_csv(folder / "t.csv", index=False)
    frame.to_parquet(folder / "t.parquet")
    frame.drop(columns="outcome").to_csv(folder / "more.csv", index=False)
    changed: dict[str, tuple[str, object, slice | int]] = {
        "half": ("outcome", np.nan, slice(60, 90)),
        "infinite": ("weight", np.inf, 7),
        "one": ("outcome", "yes", slice(0, 90)),
        "rare": ("outcome", "seldom", 0),
    }
    for name, (column, value, rows) in changed.items():
        other = frame.copy()
        other.iloc[rows, list(frame.columns).index(column)] = value
        other.to_csv(folder / f"{name}.csv", index=False)
    frame.assign(outcome=2.5 * size).to_csv(folder / "numbers.csv", index=False)
    frame.drop(columns="weight").to_csv(folder / "fewer.csv", index=False)
    frame.rename(columns={"weight": "height"}).to_csv(folder / "renamed.csv", index=False)


def write_images(root: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 12) -> None:
    """A folder of grey 10 x 10 images by class."""
    from PIL import Image

    rng = np.random.default_rng(len(classes))
    for label in classes:
        (root / label).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(rng.integers(0, 255, (10, 10), dtype=np.uint8)).save(root / label / f"{number}.png")
