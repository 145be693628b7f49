"""A callback for trainers of transformers and TRL that looks whether a language model is getting worse unseen.

It works in every trainer of a causal model, such as ``SFTTrainer`` and ``GRPOTrainer``, and takes the trainer as TRL's
own callbacks do: ``trainer.add_callback(AlarmCallback(trainer, prompts, response="stop"))``. docs/language.md has an
example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.prompts import Prompts, of_records
from ..errors import DataError
from ..io.tensors import read_tensors, write_tensors
from ..language.alarms import FEWEST, RESPONSES, Alarm, Reading, alarms, reading
from ..language.completions import Writer
from ..language.evaluation import measure
from ..language.prompt_check import check_answers
from ..language.recipes import sft
from ..models.causal_lm import Causal
from .common import requiring, warn
from .trl import SelfDistillTrainer

with requiring("transformers accelerate"):
    from transformers import TrainerCallback

FILE = "alarms.safetensors"  # in a checkpoint: the weights that an alarm goes back to
KEY = "selfdistill alarms"  # in the state of the Trainer: how the model answered before training


class AlarmCallback(TrainerCallback):
    """Has the model answer the same prompts before training and every few steps, and tells what went wrong.

    The alarms are those of `selfdistill.language.alarms`; what was measured is in the Trainer's own log as ``vitals/``
    and its name. A run that is resumed compares with the model before training, too.

    Args:
        trainer: The trainer, as TRL's own callbacks take it.
        prompts: At least 8 prompts that are not learnt: rows of fields, a ``datasets.Dataset`` or `Prompts`.
        every: Steps between two looks; the last step is looked at, too.
        response: What follows an alarm: "warn", "stop", or "roll-back", which puts back the weights of the last look
            without an alarm and stops.
        max_tokens: The longest answer, in tokens.
        seed: Of the answers.
        trust_code: Allow checkers that rows name as ``module:function``.
        warn: Called with each alarm.

    Attributes:
        alarms: What was wrong at the last look.
        first: How the model answered before training.

    Raises:
        CheckpointError: A row names a function as a checker, and is not trusted.
        DataError: The prompts are too few, or do not fit the model's context; there is no such response.

    >>> AlarmCallback(None, [{"prompt": "1 + 1?"}])
    Traceback (most recent call last):
    selfdistill.errors.DataError: an alarm needs 8 prompts or more, and prompts has 1; give more
    """

    def __init__(
        self,
        trainer: Any,
        prompts: Prompts | Iterable[Mapping[str, Any]],
        *,
        every: int = 50,
        response: str = "warn",
        max_tokens: int = 256,
        seed: int = 0,
        trust_code: bool = False,
        warn: Callable[[str], None] = warn,
    ) -> None:
        if response not in RESPONSES:
            raise DataError(f"an alarm is followed by one of {', '.join(RESPONSES)}, not {response!r}")
        if every < 1:
            raise DataError(f"there is a look every 1, 2 or more steps, not every {every}; give such a number")
        data = prompts if isinstance(prompts, Prompts) else of_records(prompts, "prompts", trust_code=trust_code)
        if len(data.rows) < FEWEST:
            raise DataError(f"an alarm needs {FEWEST} prompts or more, and {data.name} has {len(data.rows)}; give more")
        self.trainer, self.every, self.response, self.warn = trainer, every, response, warn
        self.alarms, self.first, self.good = list[Alarm](), Reading(), 0
        self.kept: dict[str, Tensor] = {}
        self.distils = isinstance(trainer, SelfDistillTrainer)
        method = trainer.writer.method if self.distils else sft()
        method = method.drawing(lambda sampling: replace(sampling, max_tokens=max_tokens))
        self.writer = Writer(method, data, seed=seed, max_tokens=max_tokens)
        self.writer.model = trainer.causal if self.distils else Causal(trainer.model, trainer.processing_class)
        self.writer.objective = trainer.distillation if self.distils else method.bind(self.writer.model)
        self.writer.autocast, self.writer.alike = trainer.accelerator.autocast, True
        check_answers(self.writer.model.reader, data, max_tokens)

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        saved = state.stateful_callbacks.get(KEY)
        self.first = self._look() if saved is None else Reading(**saved["first"])
        state.stateful_callbacks[KEY] = {"first": asdict(self.first)}
        if self.response == "roll-back":
            self._keep(state.global_step)
            file = _file(args, state)
            if state.global_step and file.exists():
                tensors = read_tensors(file)
                self.good, self.kept = int(tensors.pop("good")), tensors

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        now, figures = self._look(), self._measure()
        self.alarms = found = alarms(self.first, now, figures)
        told = now.means() | {name: value for name, value in figures.items() if value is not None}
        self.trainer.log({f"vitals/{name}": float(value) for name, value in {**told, "alarms": len(found)}.items()})
        for alarm in found:
            self.warn(f"warning: step {state.global_step}: {alarm}")
        if not found:
            if self.response == "roll-back":
                self._keep(state.global_step)
        elif self.response != "warn":
            control.should_training_stop = True
            if self.response == "roll-back":
                self._roll_back()

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        if self.response == "roll-back" and state.is_world_process_zero:
            write_tensors(_file(args, state), {**self.kept, "good": torch.tensor(self.good)})

    def _look(self) -> Reading:
        self._follow()
        return reading(self.writer)

    def _measure(self) -> dict[str, Any]:
        """Of a recipe with a teacher also how the teacher fares."""
        return measure(self.writer) if self.distils else {}

    def _follow(self) -> None:
        """The wrapper is in the mode of the model, which it leaves as it finds it."""
        self.writer.model.training = self.trainer.model.training

    def _keep(self, step: int) -> None:
        learning = self.writer.model.learning()
        self.good, self.kept = step, {name: w.detach().cpu().clone() for name, w in learning.items()}

    @torch.no_grad()
    def _roll_back(self) -> None:
        for name, weight in self.writer.model.learning().items():
            weight.copy_(self.kept[name])
        self.warn(f"warning: the weights of step {self.good} are back, and training stops")


def _file(args: Any, state: Any) -> Path:
    return Path(args.output_dir, f"checkpoint-{state.global_step}", FILE)
