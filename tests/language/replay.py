"""What the oracles of recipes for language models share: a small real training, recorded for a plain loop to repeat.

An oracle has the initial weights and the rows of each step, and writes its prompts itself. `sample` checks them against
those of the real run and gives back what was drawn there; everything else the oracle computes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfdistill import rng
from selfdistill.language import completions, sampling
from selfdistill.language.completions import Language
from selfdistill.language.trainer import LanguageTask, fit
from selfdistill.models.causal_lm import Causal
from selfdistill.training.task import FunctionCallback
from tests.language.tiny import EOS, doubled, prompts, student

LR, MOMENTUM, DECAY = 0.02, 0.9, 1e-4
Messages = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Sample:
    """A completion: its tokens, its text, and log-probabilities under what drew it where that was a mixture."""

    ids: list[int]
    text: str
    log_m: Tensor | None


def reward(completion: str, answer: str) -> float:
    """About half of all completions are right."""
    return float(len(completion) % 2)


@dataclass
class Recorded:
    """A run of a recipe, with the losses of its steps and its final weights."""

    started: Causal
    data: Any
    draws: list[tuple[list[tuple[int, ...]], list[Sample]]] = field(default_factory=list)
    rows: dict[int, list[list[int]]] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    replayed: int = 0

    def model(self) -> Any:
        """The pre-trained model of plain transformers, in float64."""
        return doubled(self.started)

    @staticmethod
    def plain_model() -> Any:
        """The base of an adapter alone, in float64."""
        return doubled(student())

    @staticmethod
    def copy(model: Any) -> Any:
        """A teacher with the weights that a model has now."""
        return copy.deepcopy(model).requires_grad_(False)

    @staticmethod
    def optimizer(model: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), LR, momentum=MOMENTUM, nesterov=True, weight_decay=DECAY)

    def batches(self, generation: int = 0) -> list[list[int]]:
        """The rows of each step: sample ids, or places in the list of completions that was written at the beginning."""
        return self.rows[generation]

    @property
    def taught(self) -> list[int]:
        """The sample ids that teach."""
        ids: list[int] = self.data.labelled.tolist()
        return ids

    def example(self, i: int) -> Any:
        """A row of the data: messages, prompt, demonstration, answer."""
        return self.data.rows[i]

    def render(self, messages: Messages) -> list[int]:
        """Messages as token ids, with the assistant's turn begun."""
        turns = [{"role": role, "content": content} for role, content in messages]
        text = self.started.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return list(self.started.tokenizer(text, add_special_tokens=False)["input_ids"])

    def answer(self, text: str) -> list[int]:
        """A text as a completion: its token ids, and the end of a turn."""
        return [*self.started.tokenizer(text, add_special_tokens=False)["input_ids"], EOS]

    @staticmethod
    def right(text: str) -> bool:
        """What the checker says."""
        return reward(text, "") == 1.0

    @staticmethod
    def nonempty(sample: Sample) -> bool:
        """Whether there is more than the token that ends a completion."""
        return bool(sample.text.strip()) and any(token != EOS for token in sample.ids)

    def sample(self, asked: Sequence[Sequence[int]]) -> list[Sample]:
        """What the real run drew for these prompts."""
        given, samples = self.draws[self.replayed]
        self.replayed += 1
        assert [tuple(prompt) for prompt in asked] == given, "the real run wrote to other prompts"
        return samples

    @staticmethod
    def uniform(generation: int, step: int) -> float:
        """The number in [0, 1) that decided who writes a batch."""
        return float(rng.uniform((0, "mixed", generation), torch.tensor([step]), 1))

    @staticmethod
    def other(folder: str) -> tuple[Any, Any]:
        """The model of a folder in float64, which does not learn, and its tokenizer."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
        return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(folder)

    def log_probs(self, model: Any, prompt: Sequence[int], ids: Sequence[int], vocabulary: int = 0) -> Tensor:
        """(tokens, vocabulary): log p of every token of the vocabulary at each token of a completion."""
        size = vocabulary or self.started.vocabulary
        logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, :, :size]
        return torch.log_softmax(logits[len(prompt) - 1 : -1], -1)


def of(log_p: Tensor, ids: Sequence[int]) -> Tensor:
    """(tokens,): log p of the tokens themselves."""
    return log_p[torch.arange(len(ids)), torch.tensor(list(ids))]


def step(optimizer: torch.optim.Optimizer, loss: Tensor, losses: list[float]) -> None:
    """One step of gradient descent."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())


def record(method: Language, patch: pytest.MonkeyPatch, steps: int = 2) -> Recorded:
    """Train a recipe and record what was drawn, the rows of each step, the losses and the final weights."""
    more: dict[str, Any] = {"feedback": "No: dcba."} if "feedback" in method.needs else {}
    more |= {"privileged_context": "ab?"} if "privileged_context" in method.needs else {}
    build = student if method.wrap_model is None else lambda: student(4)
    run = Recorded(method.student(build)(), prompts(20, checker="tests.language.replay:reward", **more))
    roll, rollouts, callbacks = sampling.roll, LanguageTask._rollouts, LanguageTask.callbacks

    def rolling(model: Any, asked: Any, *rest: Any) -> Any:
        found = roll(model, asked, *rest)
        logs = [None if r.log_probs is None else torch.tensor(r.log_probs).double() for r in found]
        samples = [Sample(list(r.ids), r.text, log) for r, log in zip(found, logs, strict=True)]
        run.draws.append(([tuple(ids) for _, ids in asked], samples))
        return found

    def of_step(task: LanguageTask, state: Any, rows: Tensor) -> Any:
        ids = rows if method.source.once else task.data.labelled[rows]
        run.rows.setdefault(state.clock.generation, []).append(ids.tolist())
        return rollouts(task, state, rows)

    watch: Callable[..., None] = lambda clock, batches, loss: run.losses.append(float(loss))
    patch.setattr(completions, "roll", rolling)
    patch.setattr(LanguageTask, "_rollouts", of_step)
    patch.setattr(LanguageTask, "callbacks", lambda task: [*callbacks(task), FunctionCallback(watch)])
    given: dict[str, Any] = {"audit": "off", "vitals": False, "optimizer": "sgd", "schedule": "constant", "clip": 1e9}
    result = fit(build, run.data, method, device="cpu", steps=steps, batch_size=4, lr=LR, max_tokens=5, **given)
    run.weights = {name.removeprefix("lm."): w for name, w in result.generations[-1].weights.items()}
    return run
