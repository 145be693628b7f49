"""A run that was cut anywhere ends with the same bits as one that was not."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from selfdistill.errors import CheckpointError
from selfdistill.io import checkpoint
from selfdistill.language import trainer
from selfdistill.language.completions import Language
from selfdistill.language.recipes import minillm, mutual_adapters, opsd, rest, rft, sdft, sdpo, spin, ssd, star
from selfdistill.language.sampling import Sampling, by_transformers
from selfdistill.language.trainer import fit
from selfdistill.models.causal_lm import Causal
from selfdistill.training.fit import Result
from tests.language.tiny import prompts, student

DATA = prompts(30, checker="tests.language.test_recipes:lenient")
SUITE = replace(prompts(12, seed=3), test=torch.arange(12))


class PowerError(Exception):
    """The power fails."""


class Counting:
    """An engine that counts its calls and stops after some."""

    def __init__(self, most: int = 1000) -> None:
        self.most, self.calls = most, 0

    def __call__(self, model: Causal, asked: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> Any:
        if self.calls == self.most:
            raise PowerError
        self.calls += 1
        return by_transformers(model, asked, sampling, seed)


def run(method: Language, lora: int = 0, out: Path | None = None, **more: Any) -> Result:
    options: dict[str, Any] = {"steps": 4, "batch_size": 6, "max_tokens": 5, "lr": 1e-2, "seed": 3} | more
    return fit(
        lambda: student(lora, attention_dropout=0.1), DATA, method, out=out, device="cpu", suite=SUITE, **options
    )


def everything(result: Result) -> dict[str, Any]:
    """What a run ends with."""
    assert result.objective is not None
    return {
        "final_generation": result.final_generation,
        "weights": [g.weights for g in result.generations],
        "decisions": [g.decision for g in result.generations],
        "losses": [g.losses for g in result.generations],
        "teachers": dict(result.objective.states.state_dict()),
        "history": result.history,
        "steps": result.steps,
        "passes": list(result.passes),
    }


def same(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Tensor):
        return torch.equal(found, wanted)
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[k], v) for k, v in wanted.items())
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(map(same, found, wanted))
    return bool(found == wanted)


def equal(found: Result, wanted: Result) -> None:
    mine, theirs = everything(found), everything(wanted)
    assert [k for k in theirs if not same(mine[k], theirs[k])] == []


METHODS: dict[str, Language] = {
    "sdft": sdft(rate=0.3, max_tokens=5),
    "sdpo": sdpo(samples=2, k=5, rate=0.3, grpo=0.5, max_tokens=5),
    "opsd": opsd(max_tokens=5),
    "spin": spin(generations=2, max_tokens=5),
    "minillm": minillm(max_tokens=5),
    "mutual_adapters": mutual_adapters(),
}


@pytest.mark.parametrize(
    ("name", "lora"),
    [("sdft", 0), ("sdft", 4), ("sdpo", 4), ("opsd", 0), ("spin", 4), ("minillm", 4), ("mutual_adapters", 4)],
)
def test_cut_between_steps(name: str, lora: int, tmp_path: Path) -> None:
    method = METHODS[name]
    whole = run(method, lora)

    def cut(clock: Any, figures: dict[str, float]) -> None:
        if clock.generation == method.generations - 1:
            raise PowerError

    with pytest.raises(PowerError):
        run(method, lora, tmp_path, save_steps=1, progress=every(cut, 3))
    assert checkpoint.newest(tmp_path / "checkpoints") is not None
    equal(run(method, lora, tmp_path, resume=True), whole)


def every(cut: Any, step: int) -> Any:
    return lambda clock, figures: cut(clock, figures) if clock.step >= step else None


@pytest.mark.parametrize("generation", [0, 1])
@pytest.mark.parametrize("method", [ssd(max_tokens=5), star(generations=2, max_tokens=5)], ids=["ssd", "star"])
def test_cut_amid_rollouts(method: Language, generation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "PART", 5)
    method, count = replace(method, generations=2), Counting()
    whole = run(method, engine=count)
    file, found = tmp_path / f"rollouts/{generation}.jsonl", list[str]()
    most = 4 if generation == 0 else count.calls - 4  # a call or two each for audit and suite at the start and the end
    while len(found) not in (1, 2, 3):
        shutil.rmtree(tmp_path)
        with pytest.raises(PowerError):
            run(method, out=tmp_path, engine=Counting(most))
        found, most = (file.read_text().splitlines() if file.exists() else []), most - 1
        assert most > 0, "no cut was amid the rollouts"
    rest = Counting()
    equal(run(method, out=tmp_path, resume=True, engine=rest), whole)
    assert rest.calls < count.calls
    parts = file.read_text().splitlines()
    assert parts[: len(found)] == found
    assert len(parts) == 4


ONCE: dict[str, Language] = {
    "ssd": ssd(max_tokens=5),
    "star": star(generations=2, max_tokens=5),
    "rest": rest(generations=2, samples=2, max_tokens=5),
    "rft": rft(samples=2, max_tokens=5),
}


@pytest.mark.parametrize(("name", "generation"), [("ssd", 0), ("star", 0), ("star", 1), ("rest", 1), ("rft", 0)])
def test_cut_between_steps_completions_stay(name: str, generation: int, tmp_path: Path) -> None:
    """What a generation learns from was written by the weights that it began with, also where it goes on later."""
    whole = run(ONCE[name])

    def cut(clock: Any, figures: dict[str, float]) -> None:
        if clock.generation == generation:
            raise PowerError

    with pytest.raises(PowerError):
        run(ONCE[name], out=tmp_path, save_steps=1, progress=every(cut, 3))
    written = (tmp_path / f"rollouts/{generation}.jsonl").read_text()
    equal(run(ONCE[name], out=tmp_path, resume=True), whole)
    assert (tmp_path / f"rollouts/{generation}.jsonl").read_text() == written


def test_rollouts_of_another_run_are_not_taken(tmp_path: Path) -> None:
    """Cut in its first rollouts a run has no checkpoint; what it wrote must not become another run's."""
    method, most = ssd(max_tokens=5), 3
    with pytest.raises(PowerError):
        run(method, out=tmp_path, engine=Counting(most), seed=9)
    assert (tmp_path / "rollouts/0.jsonl").exists()
    assert not (tmp_path / "checkpoints").exists()
    equal(run(method, out=tmp_path), run(method))


def test_before_is_kept(tmp_path: Path) -> None:
    method = METHODS["sdft"]
    whole = run(method, out=tmp_path / "whole")

    def cut(clock: Any, figures: dict[str, float]) -> None:
        raise PowerError

    with pytest.raises(PowerError):
        run(method, out=tmp_path / "cut", save_steps=1, progress=every(cut, 3))

    def before(folder: Path) -> Any:
        newest = checkpoint.newest(folder / "checkpoints")
        assert newest is not None
        return checkpoint.read(newest)["progress"]["baseline"]

    known = before(tmp_path / "cut")
    assert known == before(tmp_path / "whole")
    assert known["losses"]
    assert len(known["guard"]) == len(SUITE.test)
    equal(run(method, out=tmp_path / "cut", resume=True), whole)


@pytest.mark.parametrize("name", ["sdft", "opsd", "spin", "sdpo"])
def test_checkpoints_under_lora_hold_no_frozen_weights(name: str, tmp_path: Path) -> None:
    run(METHODS[name], 4, tmp_path)
    newest = checkpoint.newest(tmp_path / "checkpoints")
    assert newest is not None
    saved = checkpoint.read(newest)
    frozen = [p for p in student(4, attention_dropout=0.1).parameters() if not p.requires_grad]
    held = [v for part in ("student", "objective", "best") for v in tensors(saved[part])]
    assert len(held) > 10
    assert not [v for v in held for p in frozen if p.shape == v.shape and torch.equal(p, v)]
    assert all("lora_" in n for n in saved["student"])
    adapter = sum(v.nbytes for v in tensors(saved["student"]))
    shares = {part: sum(v.nbytes for v in tensors(saved[part])) / adapter for part in saved}
    assert shares["optimizer"] == pytest.approx(2, rel=0.01)  # two moments
    assert shares["objective"] == pytest.approx({"opsd": 0.0}.get(name, 1.0), abs=0.01)
    assert sum(size for part, size in shares.items() if part != "progress") < 4.02  # that grows with the log


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for v in value.values() for t in tensors(v)] if isinstance(value, dict) else []


@pytest.mark.parametrize("earlier", ["dense", "version"])
def test_a_checkpoint_with_a_dense_average_of_an_adapter_is_refused(earlier: str, tmp_path: Path) -> None:
    """Earlier versions held the product B A of each layer, by number; and one whose number is another is not read."""
    run(sdft(max_tokens=5), 4, tmp_path, save_steps=1)
    newest = checkpoint.newest(tmp_path / "checkpoints")
    assert newest is not None
    if earlier == "version":
        for manifest in (tmp_path / "checkpoints").glob("*/manifest.json"):
            manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 1'))
    else:
        saved = checkpoint.read(newest)
        objective = saved["objective"]
        factors = [name for name in objective if "lora_A" in name]
        place = factors[0].rpartition(".")[0]
        dense = [objective[b].float() @ objective[a].float() for a in factors for b in [a.replace("lora_A", "lora_B")]]
        saved["objective"] = {name: value for name, value in objective.items() if "lora_" not in name}
        saved["objective"] |= {f"{place}.{number}": value for number, value in enumerate(dense)}
        checkpoint.write(tmp_path / "checkpoints", saved)
    with pytest.raises(CheckpointError) as refused:
        run(sdft(max_tokens=5), 4, tmp_path, resume=True, save_steps=1)
    assert "\n" not in str(refused.value)
    assert "start" in str(refused.value)
