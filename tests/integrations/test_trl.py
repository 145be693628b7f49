"""The trainer of TRL: losses are TRL's and those of our trainer, teachers resume bit by bit, misfits are refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from selfdistill.core.parts import Term
from selfdistill.data.prompts import of_records
from selfdistill.errors import CheckpointError, DataError, RecipeError, VitalsError
from selfdistill.integrations.trl import SelfDistillTrainer
from selfdistill.language.completions import CONTEXT, Demonstrations, Language
from selfdistill.language.recipes import grpo, opsd, sdft, sft, spin, ssd
from selfdistill.language.trainer import fit
from selfdistill.losses.chunked.divergences import TokenDivergence
from selfdistill.models.causal_lm import Causal
from selfdistill.teachers import CurrentStudent, Ema, Frozen, Generation
from selfdistill.testing import toys
from tests.language.tiny import distil, label

ROWS = 8


def records(style: Callable[[str], Any] = lambda text: text) -> list[dict[str, Any]]:
    """Questions with answers of different lengths, as messages."""
    found = []
    for i, example in enumerate(toys.examples(toys.NEW, ROWS)):
        said = (example.demonstration or "") * (1 + i % 2)
        found.append({"prompt": [{"role": "user", "content": style(example.prompt)}],
                      "completion": [{"role": "assistant", "content": said}]})  # fmt: skip
    return found


def config(out: Path, **settings: Any) -> SFTConfig:
    given: dict[str, Any] = {
        "max_steps": 4, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
        "logging_steps": 1, "save_strategy": "no", "report_to": [], "disable_tqdm": True, "use_cpu": True,
        "bf16": False, "dataloader_pin_memory": False,
    }  # fmt: skip
    return SFTConfig(str(out), **(given | settings))


def trainer(method: Language | None, out: Path, rows: Any = None, lora: bool = False, **settings: Any) -> Any:
    """TRL's own trainer without a method."""
    options: dict[str, Any] = {name: settings.pop(name) for name in ("bind", "warn") if name in settings}
    if lora:  # with dropout, so that the random state counts
        options["peft_config"] = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.2)
    options |= {"train_dataset": Dataset.from_list(rows or records()), "processing_class": toys.tokenizer()}
    if method is None:
        return SFTTrainer(toys.untrained(), config(out, **settings), **options)
    return SelfDistillTrainer(toys.untrained(), config(out, **settings), method=method, **options)


def losses(theirs: Any) -> list[float]:
    return [entry["loss"] for entry in theirs.state.log_history if "loss" in entry]


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def given(method: Language) -> Language:
    """The method on the completions of the data."""
    return replace(method, source=Demonstrations())


def greedy(method: Language) -> Language:
    return method.drawing(lambda sampling: replace(sampling, temperature=0.0, max_tokens=8))


AVERAGE = Language({"label": label(), "distil": distil(Ema(0.9, CONTEXT))}, source=Demonstrations())


@pytest.mark.parametrize("accumulate", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_sft_has_the_losses_of_trl(accumulate: int, tmp_path: Path) -> None:
    """Also over micro-batches with different numbers of tokens."""
    mine, theirs = (trainer(m, tmp_path, gradient_accumulation_steps=accumulate, max_steps=3) for m in (sft(), None))
    mine.train()
    theirs.train()
    assert losses(mine) == pytest.approx(losses(theirs), abs=1e-5)
    assert losses(mine)[0] == pytest.approx(losses(theirs)[0], abs=1e-6)
    assert losses(mine)[2] < losses(mine)[0] - 0.1
    assert mine.state.log_history[1]["num_tokens"] == theirs.state.log_history[1]["num_tokens"]
    assert mine.evaluate(Dataset.from_list(records()))["eval_loss"] < losses(mine)[0]


@pytest.mark.parametrize(
    ("method", "parts"),
    [(given(opsd()), 1), (AVERAGE, 2), (greedy(sdft()), 2), pytest.param(greedy(opsd()), 1, marks=pytest.mark.slow),
     pytest.param(given(opsd()), 2, marks=pytest.mark.slow), pytest.param(AVERAGE, 1, marks=pytest.mark.slow)],
)  # fmt: skip
def test_the_first_loss_is_that_of_our_own_trainer(method: Language, parts: int, tmp_path: Path) -> None:
    """All rows in one step, here in micro-batches too, so that their order does not matter."""
    sizes: dict[str, Any] = {"per_device_train_batch_size": ROWS // parts, "gradient_accumulation_steps": parts}
    theirs = trainer(method, tmp_path, max_steps=1, **sizes)
    theirs.train()
    data = of_records(records(), "rows")
    options: dict[str, Any] = {"steps": 1, "batch_size": ROWS, "device": "cpu", "audit": "off", "vitals": False}
    fit(lambda: Causal(toys.untrained(), toys.tokenizer()), data, method, out=tmp_path / "ours", **options)
    ours = json.loads((tmp_path / "ours" / "steps.jsonl").read_text())
    assert ours["loss"] > 1e-3
    assert losses(theirs) == [pytest.approx(ours["loss"], abs=1e-6)]
    logged = theirs.state.log_history[0]
    assert {name: logged[f"loss_{name}"] for name in method.terms} == pytest.approx(ours["terms"], abs=1e-6)
    assert logged["num_tokens"] == ours["read"]


@pytest.mark.parametrize(
    ("method", "lora"),
    [(sdft(rate=0.3, skip=0, max_tokens=6), True), (AVERAGE, False),
     pytest.param(sdft(rate=0.3, skip=0, max_tokens=6), False, marks=pytest.mark.slow),
     pytest.param(given(opsd()), True, marks=pytest.mark.slow),
     pytest.param(AVERAGE, True, marks=pytest.mark.slow)],
)  # fmt: skip
def test_stopped_and_resumed_it_ends_as_if_it_had_not_been(method: Language, lora: bool, tmp_path: Path) -> None:
    """Weights, teachers and what is written; under LoRA with dropout."""
    whole = trainer(method, tmp_path, lora=lora, save_strategy="steps", save_steps=2)
    whole.train()
    folder = tmp_path / "checkpoint-2"
    resumed = trainer(method, tmp_path / "resumed", lora=lora)
    fresh = {name: value.clone() for name, value in resumed.distillation.state_dict().items()}
    resumed.train(resume_from_checkpoint=str(folder))
    assert losses(resumed) == losses(whole)
    assert same(dict(whole.model.named_parameters()), dict(resumed.model.named_parameters()))
    assert same(whole.distillation.state_dict(), resumed.distillation.state_dict())
    assert not same(fresh, resumed.distillation.state_dict())
    if lora:
        saved = {path.name for path in folder.rglob("*") if path.is_dir() or path.name.startswith("adapter")}
        assert saved == {"adapter_config.json", "adapter_model.safetensors"}, "no adapter of a teacher"
        assert len(resumed.model.peft_config) == len(whole.model.peft_config)
    (folder / "objective.safetensors").unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        trainer(method, tmp_path / "bare", lora=lora).train(resume_from_checkpoint=str(folder))


def test_a_recipe_with_rewards_needs_no_completions(tmp_path: Path) -> None:
    """The prompts are texts, read by the chat template; the reward comes from a checker, the signal from its spread."""
    rows = [{"prompt": e.prompt, "answer": "[0-4]", "checker": "regex"} for e in toys.examples(toys.ECHO, 4)]
    theirs = trainer(grpo(samples=4, max_tokens=4), tmp_path, rows, max_steps=2)
    before = {name: value.clone() for name, value in theirs.model.named_parameters()}
    theirs.train()
    assert not same(before, dict(theirs.model.named_parameters()))
    assert 1 <= theirs.state.log_history[0]["completion_length"] <= 4


def test_a_model_of_a_generation_before_teaches(tmp_path: Path) -> None:
    """Born again: the student is the teacher's equal, and begins elsewhere."""
    term = Term(Generation(CONTEXT), TokenDivergence())
    method = Language({"distil": term}, source=Demonstrations(), generations=2)
    settings: dict[str, Any] = {"per_device_train_batch_size": ROWS, "learning_rate": 3e-3, "max_steps": 3}
    theirs = trainer(method, tmp_path, bind={"previous": toys.untrained(seed=1)}, warn=lambda line: None, **settings)
    theirs.train()
    assert losses(theirs)[0] > losses(theirs)[2] > 0
    with pytest.raises(RecipeError, match="2 generations, and TRL's trainer one"):
        trainer(method, tmp_path)


def texts() -> list[dict[str, Any]]:
    return [{"prompt": row["prompt"][0]["content"], "completion": "1"} for row in records()]


def turns() -> list[dict[str, Any]]:
    return [{"messages": row["prompt"] + row["completion"]} for row in records()]


REFUSED: dict[str, tuple[Language, Any, dict[str, Any], str]] = {
    "written before": (ssd(), records(), {}, "writes all completions before its first step"),
    "generations": (spin(), records(), {}, "writes all completions before its first step"),
    "text": (sft(), [{"text": "1 + 1 = 2"}], {}, r'^train_dataset:1: no prompt \(it has "text"\)'),
    "no demonstration": (sdft(), [{"prompt": "1 + 1?"}], {}, "needs a demonstration on each prompt"),
    "plain texts": (sdft(), texts(), {}, r"^train_dataset:\d+: TRL makes \d+ tokens .* as messages$"),
    "all turns": (given(opsd()), turns(), {}, r"^train_dataset:\d+: TRL makes 1 tokens .* as messages$"),
    "packing": (sft(), records(), {"packing": True}, "leave packing out"),
    "another loss": (sft(), records(), {"loss_type": "dft"}, "change TRL's loss"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    method, rows, settings, words = REFUSED[name]
    with pytest.raises((DataError, RecipeError), match=words) as caught:
        trainer(method, tmp_path, rows, **settings)
    assert "\n" not in str(caught.value)


def test_a_teacher_that_is_the_student_is_refused_and_one_that_adds_nothing_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    rows = [{**row, "level": 3} for row in records()]
    trainer(Language({"distil": distil(Frozen(CONTEXT))}, source=Demonstrations()), tmp_path, rows, warn=told.append)
    assert "adds nothing to any of 8 prompts" in told[0]
    assert told[1:] == ["warning: no recipe reads of train_dataset: level"]
    with pytest.raises(VitalsError, match="teacher-is-student"):
        trainer(Language({"distil": distil(CurrentStudent(CONTEXT))}, source=Demonstrations()), tmp_path)


def test_a_checker_that_the_data_name_is_run_only_where_they_are_trusted(tmp_path: Path) -> None:
    rows = [{"prompt": "1 + 1?", "answer": "2", "checker": "somewhere:judge"}]
    with pytest.raises(CheckpointError, match="trust_code=True"):
        trainer(grpo(), tmp_path, rows)
