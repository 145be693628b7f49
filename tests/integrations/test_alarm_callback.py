"""The callback of alarms: a collapse is told, stopped or undone, also after a run was cut; a sound run goes on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from trl import GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

from selfdistill.data.prompts import of_examples
from selfdistill.errors import CheckpointError, DataError
from selfdistill.integrations.alarm_callback import AlarmCallback
from selfdistill.integrations.trl import SelfDistillTrainer
from selfdistill.language.completions import Demonstrations
from selfdistill.language.recipes import sdft
from selfdistill.testing import toys

QUIET: dict[str, Any] = {
    "report_to": [], "disable_tqdm": True, "use_cpu": True, "bf16": False, "dataloader_pin_memory": False,
    "logging_strategy": "no", "save_strategy": "no",
}  # fmt: skip


def rows(count: int, say: str | None = None, start: int = 0) -> list[dict[str, Any]]:
    """Questions whose right answer is to repeat the digits; ``say`` is what is taught in its place."""
    return [
        {"prompt": [{"role": "user", "content": e.prompt}], "answer": e.answer, "checker": "exact",
         "completion": [{"role": "assistant", "content": say or e.answer}]}
        for e in toys.examples(toys.ECHO, start + count)[start:]
    ]  # fmt: skip


def trained(response: str, out: Path, resume: Path | None = None, **settings: Any) -> tuple[Any, AlarmCallback, Any]:
    """A training that teaches one answer to everything, with its callback, and the weights after each step."""
    given = {"max_steps": 20, "learning_rate": 1e-2, "lr_scheduler_type": "constant", **QUIET, **settings}
    trainer = SFTTrainer(toys.untrained(), SFTConfig(str(out), **given), train_dataset=Dataset.from_list(rows(32, "5")),
                         processing_class=toys.tokenizer())  # fmt: skip
    told: list[str] = []
    callback = AlarmCallback(trainer, rows(16, start=32), every=5, response=response, max_tokens=8, warn=told.append)
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer, callback, told


def looks(trainer: Any) -> list[dict[str, Any]]:
    """What the Trainer's own log has of each look, without TRL's means since its last line."""
    found = [entry for entry in trainer.state.log_history if "vitals/entropy" in entry]
    return [{name: value for name, value in one.items() if name == "step" or "/" in name} for one in found]


def test_a_collapse_is_stopped_and_resumed_it_is_stopped_the_same(tmp_path: Path) -> None:
    trainer, callback, told = trained("stop", tmp_path, save_strategy="steps", save_steps=6)
    assert trainer.state.global_step == 10 < trainer.state.max_steps
    assert {"entropy-collapse", "over-confidence"} == {alarm.name for alarm in callback.alarms}
    assert told[0].startswith("warning: step 10: entropy-collapse: the entropy of a token fell from ")
    first, last = looks(trainer)
    assert (first["step"], last["step"]) == (5, 10)
    assert first["vitals/alarms"] == 0 < last["vitals/alarms"]
    assert last["vitals/entropy"] < callback.first.means()["entropy"] / 4
    resumed, again, _ = trained("stop", tmp_path / "resumed", tmp_path / "checkpoint-6")
    assert resumed.state.global_step == 10
    assert again.alarms == callback.alarms
    assert looks(resumed) == looks(trainer)


def test_a_collapse_is_undone(tmp_path: Path) -> None:
    """The weights are those of the last look without an alarm, here a checkpoint of the same step; also when cut."""
    settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
    trainer, callback, told = trained("roll-back", tmp_path, **settings)
    assert callback.good == 5
    assert told[-1] == "warning: the weights of step 5 are back, and training stops"
    kept = load_file(tmp_path / "checkpoint-5" / "model.safetensors")
    weights = trainer.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in kept.items())
    later = load_file(tmp_path / "checkpoint-9" / "model.safetensors")
    assert not torch.equal(later["model.norm.weight"], kept["model.norm.weight"])
    resumed, again, _ = trained("roll-back", tmp_path, tmp_path / "checkpoint-7", **settings)
    assert again.good == 5
    assert all(torch.equal(resumed.model.state_dict()[name], value) for name, value in kept.items())


@pytest.mark.slow
def test_a_warning_changes_nothing_of_the_training(tmp_path: Path) -> None:
    trainer, callback, _ = trained("warn", tmp_path)
    assert trainer.state.global_step == 20
    assert callback.alarms
    assert [entry["step"] for entry in looks(trainer)] == [5, 10, 15, 20]
    given = SFTConfig(str(tmp_path), max_steps=20, learning_rate=1e-2, lr_scheduler_type="constant", **QUIET)
    options: dict[str, Any] = {"train_dataset": Dataset.from_list(rows(32, "5")), "processing_class": toys.tokenizer()}
    alone = SFTTrainer(toys.untrained(), given, **options)
    alone.train()
    assert all(torch.equal(a, b) for a, b in zip(alone.model.parameters(), trainer.model.parameters(), strict=True))


def test_of_a_recipe_the_teacher_is_measured_too(tmp_path: Path) -> None:
    method = replace(sdft(skip=0), source=Demonstrations())
    trainer = SelfDistillTrainer(
        toys.untrained(), SFTConfig(str(tmp_path), max_steps=1, **QUIET), method=method,
        train_dataset=Dataset.from_list(rows(8)), processing_class=toys.tokenizer(),
    )  # fmt: skip
    trainer.add_callback(AlarmCallback(trainer, rows(8, start=8), max_tokens=4, response="stop"))
    trainer.train()
    (look,) = looks(trainer)
    assert look["vitals/kl"] > 0
    assert look["vitals/context_share"] == 1
    assert look["vitals/alarms"] == 0


@pytest.mark.slow
def test_it_watches_a_trainer_that_writes(tmp_path: Path) -> None:
    """TRL's GRPO with a reward that one token earns; the callback judges by another."""
    settings = {"num_generations": 4, "per_device_train_batch_size": 8, "max_completion_length": 6, "max_steps": 40}
    given = GRPOConfig(str(tmp_path), learning_rate=1e-2, beta=0.0, **settings, **QUIET)

    def fives(completions: Any, **more: Any) -> list[float]:
        return [float(said[0]["content"].count("5")) for said in completions]

    prompts = [{"prompt": row["prompt"]} for row in rows(32)]
    trainer = GRPOTrainer(toys.untrained(), fives, given, train_dataset=Dataset.from_list(prompts),
                          processing_class=toys.tokenizer())  # fmt: skip
    callback = AlarmCallback(trainer, rows(16, start=32), every=5, response="stop", max_tokens=6)
    trainer.add_callback(callback)
    trainer.train()
    assert callback.alarms
    assert trainer.state.global_step < 40


@pytest.mark.parametrize(
    ("prompts", "options", "words"),
    [(rows(7), {}, "needs 8 prompts or more, and prompts has 7"),
     (rows(8), {"response": "panic"}, "one of warn, roll-back, stop, not 'panic'"),
     (rows(8), {"every": 0}, "every 1, 2 or more steps, not every 0"),
     (rows(8), {"max_tokens": 5000}, "more than the model's context"),
     (of_examples(toys.examples(toys.ECHO, 8)[:7]), {}, "has 7"),
     ([{"text": "?"}], {}, "^prompts:1: no prompt")],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(prompts: Any, options: Any, words: str, tmp_path: Path) -> None:
    trainer = SFTTrainer(
        toys.untrained(), SFTConfig(str(tmp_path), **QUIET), train_dataset=Dataset.from_list(rows(1)),
        processing_class=toys.tokenizer(),
    )  # fmt: skip
    with pytest.raises((DataError, CheckpointError), match=words) as caught:
        AlarmCallback(trainer, prompts, **options)
    assert "\n" not in str(caught.value)
