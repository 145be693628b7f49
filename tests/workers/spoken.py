"""Language models in the processes that torchrun started, or in one: ``python -m tests.workers.spoken BASE all``;
``fail`` and ``resume`` for a run that the power leaves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from selfdistill import ranks
from selfdistill.language.causal import Causal
from selfdistill.language.method import Language
from selfdistill.language.recipes import rft, sdft, sdpo, sft
from selfdistill.language.rollouts import Engine, Sampling, by_transformers
from selfdistill.language.trainer import fit
from selfdistill.saving import digest
from selfdistill.serialization import write_tensors
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
}


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


def train(folder: Path, case: str, engine: Engine = by_transformers, resume: bool = False) -> None:
    """Train a case; rank 0 writes the weights, and every rank what its own weights are."""
    make, lora = CASES[case]
    data = made(30, checker="tests.language.test_recipes:lenient")
    result = fit(
        lambda: student(lora), data, make(), out=folder / "run", resume=resume, device="cpu", engine=engine,
        warn=lambda line: None, steps=4, batch_size=6, lr=1e-2, seed=3, max_tokens=4, save_steps=1,
    )  # fmt: skip
    weights = {name: value.detach() for name, value in result.model.state_dict().items()}
    (folder / f"digest-{ranks.rank()}").write_text(digest(weights))
    if ranks.rank() == 0:
        write_tensors(folder / "weights.safetensors", weights)


if __name__ == "__main__":
    base, what = Path(sys.argv[1]), sys.argv[2]
    for name in CASES if what == "all" else ["cut"]:
        (place := base / name).mkdir(parents=True, exist_ok=True)
        if name == "cut":
            train(place, "sdft-lora", failing(4) if what == "fail" else by_transformers, resume=what == "resume")
        else:
            train(place, name)
