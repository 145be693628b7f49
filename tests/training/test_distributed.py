"""Two processes compute what one does: DDP and FSDP2 over gloo on the CPU, started by torchrun, once for all cases.

Models without batch norm and dropout, whose results must not depend on how rows are spread, agree with one process to
1e-6 in student, teachers, memories, best weights and metrics. Resuming with as many processes is bit for bit exact,
with batch norm and dropout too.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from selfdistill.core import distributed
from selfdistill.io import checkpoint, tensors
from tests.workers.runs import bits, by_id, differences, flat
from tests.workers.spread import ENGINES, METHODS, train

ROOT = Path(__file__).parents[2]


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _torchrun(log: Path, *module: str) -> None:
    """Run a module in two processes, which speak into the log."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
        "--master-port", str(_free_port()), "-m", *module,
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as said:
        started = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=said, stdout=said, start_new_session=True)
    try:
        code = started.wait(240)
    finally:  # if one process waits for ever, so does the other
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    assert code == 0, log.read_text()[-4000:]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have trained every case."""
    base = tmp_path_factory.mktemp("two")
    _torchrun(base / "log.txt", "tests.workers.spread", str(base))
    return base


def test_the_command_runs_in_two_processes(two: Path) -> None:
    """One of them takes the folder's lock and speaks."""
    results = [json.loads(line) for line in (two / "log.txt").read_text().splitlines() if line.startswith("{")]
    assert [result["steps"] for result in results] == [2]
    assert (two / "command" / "model" / "model.safetensors").exists()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same methods in this process alone."""
    base = tmp_path_factory.mktemp("one")
    for name in METHODS:
        train(base, f"ddp-{name}")
    return base


def _end(folder: Path) -> dict[str, Tensor]:
    """Student, objective and best weights of the last checkpoint, and the weights of every generation."""
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    saved = checkpoint.read(newest)
    end = {f"student {k}": v for k, v in saved["student"].items()}
    end |= {f"objective {k}": v for k, v in saved["objective"].items()}
    end |= {f"best {k}": v for k, v in saved["best"]["weights"].items()}
    for path in [*(folder / "generations").glob("*.safetensors"), folder / "returned.safetensors"]:
        end |= {f"{path.stem} {k}": v for k, v in tensors.read_tensors(path).items()}
    return by_id(end)


def _assert_near(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        assert mine[name].shape == value.shape, name
        assert torch.allclose(mine[name].double(), value.double(), rtol=0, atol=1e-6), name


def test_features_without_labels_are_those_of_one_process(two: Path, tmp_path: Path) -> None:
    """Teacher, centre and heads too; the classifier is fitted to features that differ by roundings. FSDP is refused."""
    train(tmp_path, "ddp-dino")
    mine, theirs = _end(two / "ddp-dino"), _end(tmp_path / "ddp-dino")
    fitted = [name for name in theirs if "classifier" in name]
    assert len(fitted) >= 6
    for name in fitted:
        assert torch.allclose(mine.pop(name), theirs.pop(name), rtol=0, atol=0.02), name
    _assert_near(mine, theirs)
    refused = [(two / "fsdp-dino" / f"refused-{rank}.txt").read_text() for rank in range(2)]
    assert all("DataError" in line and "leave --parallel" in line for line in refused)


def _metrics(folder: Path) -> list[dict[str, float | None]]:
    """The log's figures; of the vitals, which each process reads on its own rows, only those of the weights."""
    lines = [flat(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    own = ("vitals/", "warnings/")
    return [
        {name: value for name, value in line.items() if not name.startswith(own) or "weight_" in name} for line in lines
    ]


def _assert_same_figures(mine: list[dict[str, float | None]], theirs: list[dict[str, float | None]]) -> None:
    assert len(mine) == len(theirs) > 0
    for line, other in zip(mine, theirs, strict=True):
        assert {name for name in line if line[name] is None} == {name for name in other if other[name] is None}
        assert {k: v for k, v in line.items() if v is not None} == pytest.approx(
            {k: v for k, v in other.items() if v is not None}, rel=0, abs=1e-6
        )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("engine", ENGINES)
def test_two_processes_equal_one(one: Path, two: Path, engine: str, name: str) -> None:
    """Weights, moving averages, memories, what `fit` returned, and every figure of every epoch: to 1e-6."""
    alone, together = one / f"ddp-{name}", two / f"{engine}-{name}"
    _assert_near(_end(together), _end(alone))
    _assert_same_figures(_metrics(together), _metrics(alone))


def test_the_cases_have_something_to_compare(one: Path) -> None:
    """Memories and averages are written, a gate keeps some and not all: equality is not that of empty tables."""
    elr = _end(one / "ddp-elr")
    assert len(elr["objective states.history_history.keys"]) == 66
    teacher = _end(one / "ddp-mean_teacher")
    name = "states.consistency_ema.module.classifier.weight"
    assert not torch.equal(teacher[f"objective {name}"], teacher["student classifier.weight"])
    assert any(0.0 < (line["terms/pseudo/kept"] or 0.0) < 1.0 for line in _metrics(one / "ddp-fixmatch"))
    assert all(line["vitals/consistency/weight_distance"] for line in _metrics(one / "ddp-mean_teacher")[:1])


@pytest.mark.parametrize("how", ["crash", "signal"])
@pytest.mark.parametrize("engine", ENGINES)
def test_resuming_with_two_processes_is_exact(two: Path, engine: str, how: str) -> None:
    """Cut in the middle of an epoch and gone on with: every bit, with every kind of state, batch norm and dropout.

    The signal reaches one process only; both stop, and after the same step.
    """
    assert differences(bits(two / f"{engine}-everything"), bits(two / f"{engine}-everything-{how}")) == []


@pytest.mark.parametrize("engine", ENGINES)
def test_one_process_goes_on_with_what_two_began(one: Path, two: Path, tmp_path: Path, engine: str) -> None:
    """A checkpoint is whole whoever wrote it: one process ends it as if it had begun it, to 1e-6."""
    name = f"{engine}-ps_kd-left"
    shutil.copytree(two / name, tmp_path / name)
    newest = checkpoint.newest(tmp_path / name / "checkpoints")
    assert newest is not None
    assert checkpoint.read(newest)["progress"]["steps_done"] == 6
    train(tmp_path, name, resume=True)
    _assert_near(_end(tmp_path / name), _end(one / "ddp-ps_kd"))
    _assert_same_figures(_metrics(tmp_path / name), _metrics(one / "ddp-ps_kd"))


@pytest.mark.parametrize("engine", ENGINES)
def test_all_processes_refuse_together(two: Path, engine: str) -> None:
    """A loss that is no number on one process ends both (nobody waits for ever), and one names the sample."""
    said = [(two / f"{engine}-nan" / f"refused-{rank}.txt").read_text() for rank in range(2)]
    assert all(text.startswith("NotFiniteError: the loss is") for text in said)
    assert sum("samples [50]" in text for text in said) == 1
    assert sum("on another process" in text for text in said) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_process_needs_a_row(two: Path, engine: str) -> None:
    """Fewer rows than processes x micro-batches: named, instead of a process that waits for the others."""
    for rank in range(2):
        text = (two / f"{engine}-small" / f"refused-{rank}.txt").read_text()
        assert text.startswith("DataError: a batch of 3 rows cannot be split into 2 micro-batches on 2 processes")


def test_alone_nothing_is_asked_of_others() -> None:
    """In one process the helpers give back what they got."""
    value = torch.arange(3.0)
    assert (distributed.size(), distributed.rank()) == (1, 0)
    assert distributed.add(value) is value
    assert distributed.gather(value) is value
    distributed.average_([value])
    assert value.tolist() == [0.0, 1.0, 2.0]
