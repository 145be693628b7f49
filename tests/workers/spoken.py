"""Language models in the processes that torchrun started, or in one: ``python -m tests.workers.spoken BASE first``
trains every case and leaves some to a failing power; ``BASE second``, in fresh processes, goes on with those and gives
the command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.tensor import DTensor

from selfdistill.cli import main as command
from selfdistill.core import distributed
from selfdistill.core.memory import WeightView
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
    "spin": (lambda: spin(generations=2, max_tokens=4), 0),
    "opsd": (lambda: opsd(max_tokens=4), 0),
}
#: AdamW makes a step of a rounding where a gradient is nearly 0, which two generations may show.
OPTIMIZERS: dict[str, dict[str, Any]] = {"spin": {"optimizer": "sgd", "lr": 0.5}}
CUT = ("sdft", "sdft-lora")
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
    optimizer = {"optimizer": "adamw", "lr": 1e-2, **OPTIMIZERS.get(case, {})}
    result = fit(
        lambda: student(lora), data, make(), out=folder / "run", resume=resume, device="cpu", engine=engine,
        warn=lambda line: None, steps=4, batch_size=6, seed=3, max_tokens=4, save_steps=1, parallel=parallel,
        **optimizer,
    )  # fmt: skip
    weights = {name: value.detach() for name, value in result.model.state_dict().items()}
    assert result.objective is not None
    learning = [p for p in result.objective.student.parameters() if p.requires_grad]
    held = sum((p.to_local() if isinstance(p, DTensor) else p).numel() for p in learning)
    views = [view for view in result.objective.states.modules() if isinstance(view, WeightView)]
    taught = sum(distributed.local(buffer).numel() for view in views for buffer in view.buffers())
    (folder / f"digest-{distributed.rank()}").write_text(digest(weights))
    (folder / f"held-{distributed.rank()}").write_text(str(held))
    (folder / f"taught-{distributed.rank()}").write_text(str(taught))
    if distributed.rank() == 0:
        write_tensors(folder / "weights.safetensors", weights)


def give_command(base: Path, parallel: str) -> None:
    """Have the command train in these processes; the model and the prompts are there."""
    usual = ["--method", "sdft(max_tokens=4)", "--max-tokens", "4", "--steps", "2", "--batch-size", "6", "--device"]
    more = ["cpu", "--quiet", "--parallel", parallel, "--audit", "off", "--lr", "0.01"]
    place = ["--model", str(base / "tiny"), "--out", str(base / parallel / "command")]
    command(["run", str(base / "p.jsonl"), *usual, *more, *place], standalone_mode=False)


def main(base: Path, part: str) -> None:
    """The first part or the second one, under every engine."""
    for parallel in ENGINES:
        for case in CASES if part == "first" else ():
            (place := base / parallel / case).mkdir(parents=True, exist_ok=True)
            train(place, case, parallel)
        for case in CUT:
            place = base / parallel / f"{case}-cut"
            place.mkdir(parents=True, exist_ok=True)
            if part == "second":
                train(place, case, parallel, resume=True)
                continue
            with pytest.raises(PowerError):
                train(place, case, parallel, failing(4))
        if part == "second":
            give_command(base, parallel)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
