"""Language models in the processes that torchrun started, or in one: ``python -m tests.workers.spoken BASE all``;
``fail`` and ``resume`` for runs that the power leaves."""

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


def main(base: Path, what: str) -> None:
    """Every case under every engine; or one that is cut, or goes on."""
    for parallel in ENGINES:
        for case in CASES if what == "all" else ["cut"]:
            (place := base / parallel / case).mkdir(parents=True, exist_ok=True)
            if what == "fail":
                with pytest.raises(PowerError):
                    train(place, "sdft-lora", parallel, failing(4))
            else:
                train(place, "sdft-lora" if case == "cut" else case, parallel, resume=what == "resume")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
