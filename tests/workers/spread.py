"""Several small runs in the processes that torchrun started, or in one: the same orders, the same folders.

``python -m torch.distributed.run --nproc-per-node 2 -m tests.workers.spread BASE`` trains each case into
``BASE/CASE``. Rank 0 writes what `fit` returned to ``BASE/CASE/returned.safetensors``.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from selfdistill.cli import main as command
from selfdistill.core import distributed
from selfdistill.core.objective import Method
from selfdistill.core.parts import Term
from selfdistill.core.step import TrainingClock
from selfdistill.data.dataset import Data
from selfdistill.errors import SelfdistillError
from selfdistill.gates import Confident
from selfdistill.io import tensors
from selfdistill.losses import KL, AmongOthers, CrossEntropy, Squared
from selfdistill.methods import recipes
from selfdistill.models.feature_taps import Features
from selfdistill.teachers import CurrentStudent, Ema, Generation, Labels, ZipfRanks
from selfdistill.training.fit import Stopped, fit
from selfdistill.views import View, Views, weak_strong
from tests.harness import CLASSES, tiny_data
from tests.workers.runs import Net, everything


class Bare(nn.Module):
    """8x8 images -> logits without batch norm and dropout; weights of its own, in a list, and in a child."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(64))
        self.layers = nn.ModuleList([nn.Linear(64, 9), nn.Linear(9, 7)])  # odd widths: shards differ in size
        self.classifier = nn.Linear(7, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) + self.shift
        for layer in self.layers:
            x = torch.tanh(layer(x))
        out: Tensor = self.classifier(x)
        return out


class Mapped(nn.Module):
    """8x8 images -> logits by maps, without batch norm and dropout: for heads that read layers."""

    def __init__(self) -> None:
        super().__init__()
        self.shallow, self.deep = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 5, 3, 2, 1)
        self.classifier = nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(torch.tanh(self.deep(torch.tanh(self.shallow(x)))).mean((2, 3)))
        return out


def reading() -> Method:
    """Layers teach layers: by attention, through a projector, by an average's map, and by votes of positions."""
    heads = ("attention:shallow", "attention:deep@shallow", "project:shallow@deep", "vector:deep", "dense:deep")
    return Method(
        {
            "label": Term(Labels(), CrossEntropy()),
            "attention": Term(CurrentStudent(head=heads[1]), Squared(), head=heads[0], weight=10.0),
            "hint": Term(CurrentStudent(head=heads[3]), Squared(), head=heads[2]),
            "past": Term(Ema(0.9), Squared(), head=heads[3]),
            "votes": Term(ZipfRanks(heads[4]), AmongOthers()),
        },
        wrap_model=Features(heads),
    )


def fixmatch() -> Method:
    """FixMatch with a threshold that some rows pass at once."""
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), view="labelled"),
            "pseudo": Term(CurrentStudent(view="weak"), CrossEntropy(hard=True), view="strong", gate=Confident(0.27)),
        },
        views=weak_strong(2.0),
    )


def cached() -> Method:
    """A frozen teacher on a fixed view whose rows come unevenly: one process may know its rows and the other not."""
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), view="labelled"),
            "frozen": Term(Generation(), KL(2.0), view="clean"),
        },
        views=Views(
            (View("labelled"), View("clean", "unlabelled", "none")), 23 / 16
        ),  # of 24 rows the second step has 1
        generations=2,
    )


class Wordless(Bare):
    """Has no answer to a picture whose first pixel is far too bright."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.where(x[:, :1, 0, 0] > 50.0, torch.nan, 0.0)


class CrashError(Exception):
    """The run ends here without a word, as in a crash."""


@dataclass(frozen=True)
class Case:
    """A run: its method, model and settings; ``cut`` steps (over all generations) after its start it is disturbed once.

    ``how`` it ends then: ``crash`` and ``signal`` (which only the last process gets) are gone on with, ``left`` is not.
    """

    method: Callable[[], Method]
    options: dict[str, Any] = field(default_factory=dict)
    model: Callable[[], nn.Module] = Bare
    cut: int | None = None
    how: str = "crash"


ENGINES = ("ddp", "fsdp")
METHODS: dict[str, Case] = {
    "plain": Case(recipes()["plain"], {"clip": 0.5}),
    "elr": Case(recipes()["elr"], {"accumulate": 2}),
    "mean_teacher": Case(partial(recipes()["mean_teacher"], decay=0.9)),
    "ps_kd": Case(recipes()["ps_kd"]),
    "fixmatch": Case(fixmatch, {"accumulate": 2}),
    "born_again": Case(partial(recipes()["born_again"], xi=0.5)),
    "cs_kd": Case(recipes()["cs_kd"]),
    "dlb": Case(recipes()["dlb"]),
    "mutual": Case(recipes()["mutual"]),
    "cached": Case(cached, {"epochs": 3}),
    "ols": Case(recipes()["ols"], {"accumulate": 2}),
    "snapshot_distillation": Case(partial(recipes()["snapshot_distillation"], cycles=2)),
    "reading": Case(reading, {"optimizer": "sgd", "lr": 0.05}, Mapped),
}
OTHERS: dict[str, Case] = {
    "everything": Case(everything, {"batch_size": 24}, Net),
    "everything-crash": Case(everything, {"batch_size": 24}, Net, 22),
    "everything-signal": Case(everything, {"batch_size": 24}, Net, 9, "signal"),
    "ps_kd-left": Case(recipes()["ps_kd"], {}, Bare, 8, "left"),
    "dino": Case(
        partial(recipes()["dino"], decay=0.9, prototypes=16, crops=1, norm=False), {"optimizer": "sgd", "lr": 0.05}
    ),
    "nan": Case(recipes()["plain"], {}, Wordless),
    "small": Case(recipes()["plain"], {"batch_size": 3, "accumulate": 2}),
}
CASES = {f"{engine}-{name}": (engine, case) for engine in ENGINES for name, case in {**METHODS, **OTHERS}.items()}


def _data(case: Case) -> Data:
    data = tiny_data(24 if any(look.rows != "labelled" for look in case.method().views.views) else 0)
    if case.model is Wordless:
        data = replace(data, augment="none")
        data.tensor[50, 0, 0, 0] = 100.0
    return data


def train(base: Path, name: str, **more: Any) -> None:
    """One case, disturbed and gone on with as it says; what it refuses goes to ``refused-RANK.txt``."""
    engine, case = CASES[name]
    folder, steps = base / name, 0

    def watch(clock: TrainingClock, batches: object, loss: float) -> None:
        nonlocal steps
        steps += 1
        if steps != case.cut or more.get("resume"):
            return
        if case.how == "signal" and distributed.rank() == distributed.size() - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if case.how != "signal":
            raise CrashError

    options: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 0.02, "save_steps": 3, "parallel": engine}
    again = partial(fit, case.model, _data(case), case.method(), out=folder, **{**options, **case.options, **more})
    try:
        result = again(watch=watch)
    except (CrashError, Stopped):
        distributed.add(torch.zeros(1))  # nobody goes on before all have ended
        if case.how == "left":
            return
        result = again(resume=True)
    except SelfdistillError as error:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"refused-{distributed.rank()}.txt").write_text(f"{type(error).__name__}: {error}")
        return
    if distributed.rank() == 0:
        tensors.write_tensors(folder / "returned.safetensors", result.model.state_dict())


def main() -> None:
    """Give the command, which joins the processes, then train every case."""
    base = Path(sys.argv[1])
    options = ("--labels", "100", "--epochs", "1", "--method", "plain()", "--json", "--quiet")
    command(["run", "digits", *options, "--out", str(base / "command")], standalone_mode=False)
    torch.set_num_threads(1)
    for name in CASES:
        train(base, name)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
