"""Language models in the processes that torchrun started, or in one: ``python -m tests.workers.spoken BASE``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.tensor import DTensor

from selfdistill.core import distributed
from selfdistill.io.tensors import digest, write_tensors
from selfdistill.language.completions import Language
from selfdistill.language.recipes import opsd, rft, sdft, sdpo, sft, spin
from selfdistill.language.sampling import Engine, Sampling, by_transformers
from selfdistill.language.trainer import fit
from selfdistill.models.causal_lm import Causal
from tests.language.tiny import prompts as made
from tests.language.tiny import student
from tests.terminal import passed

#: Name of a case -> its method and the rank of its adapter.
CASES: dict[str, tuple[Callable[[], Language], int]] = {
    "sft": (sft, 0),
    "sft-lora": (sft, 4),
    "sdft": (lambda: sdft(max_tokens=4), 0),
    "sdft-lora": (lambda: sdft(max_tokens=4), 4),
    "sdpo": (lambda: sdpo(samples=2, max_tokens=4), 0),
    "rft": (lambda: rft(samples=2, max_tokens=4), 0),
    "opsd-lora": (lambda: opsd(max_tokens=4), 4),
    "spin-lora": (lambda: spin(generations=2, max_tokens=4), 4),
}
ENGINES = ("ddp", "fsdp")


class PowerError(Exception):
    """The power fails."""


def failing(most: int) -> Engine:
    """An engine that writes as transformers do, so many times."""
    calls = 0

    def write(model: Causal, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> Any:
        nonlocal calls
        calls += 1
        if calls > most:
            raise PowerError
        return by_transformers(model, prompts, sampling, seed)

    return write


def train(
    folder: Path, case: str, parallel: str = "ddp", engine: Engine = by_transformers, resume: bool = False
) -> None:
    """Train a case; rank 0 writes the weights, and every rank what its own are and how many of them it trains."""
    make, lora = CASES[case]
    data = made(30, checker="tests.language.test_recipes:lenient")
    result = fit(
        lambda: student(lora), data, make(), out=folder / "run", resume=resume, device="cpu", engine=engine,
        warn=lambda line: None, steps=4, batch_size=6, lr=1e-2, seed=3, max_tokens=4, save_steps=1, parallel=parallel,
    )  # fmt: skip
    weights = {name: value.detach() for name, value in result.model.state_dict().items()}
    assert result.objective is not None
    learning = [p for p in result.objective.student.parameters() if p.requires_grad]
    held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in learning)
    (folder / f"digest-{distributed.rank()}").write_text(digest(weights))
    (folder / f"held-{distributed.rank()}").write_text(str(held))
    if distributed.rank() == 0:
        write_tensors(folder / "weights.safetensors", weights)


def command(folder: Path, parallel: str) -> None:
    """`selfdistill run` on the model and the prompts in the folder; every rank writes what it says."""
    said = passed(
        "run", folder / "p.jsonl", "--model", folder / "tiny", "--method", "sdft(max_tokens=4)", "--max-tokens", 4,
        "--steps", 2, "--batch-size", 6, "--device", "cpu", "--out", folder / "run", "--quiet", "--parallel", parallel,
        "--audit", "off", "--lr", 0.01,
    )  # fmt: skip
    (folder / f"said-{distributed.rank()}").write_text(said.output)


def main(base: Path) -> None:
    """Under every engine: the command, which joins the processes; every case; and one that is cut and goes on."""
    for parallel in ENGINES:
        command(base / parallel / "command", parallel)
        for case in (*CASES, "cut"):
            (base / parallel / case).mkdir(exist_ok=True)
        for case in CASES:
            train(base / parallel / case, case, parallel)
        cut = base / parallel / "cut"
        with pytest.raises(PowerError):
            train(cut, "sdft-lora", parallel, failing(4))
        train(cut, "sdft-lora", parallel, resume=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
