"""A whole SDFT step of a small pretrained model with LoRA: rollouts, teacher, student, update; ours beside TRL's.

Both sides train in a process each, with the same prompts, demonstrations, lengths, adapter and threads. The processes
take turns: one step here, one step there, so that both meet the same other load.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import torch

from ..errors import RecipeError
from ..language import contexts, recipes
from ..language.build import Pretrained
from ..language.causal import Causal
from ..language.trainer import LanguageTrainer
from ..settings import Settings
from ..tasks.examples import Example
from ..tasks.prompts import of_examples
from . import trl_peer

OURS, PEER, PEER_LEAN = "selfdistill", "TRL", "TRL, gradient checkpointing off"
BATCH, TOKENS, RANK, RATE, SKIP = 8, 48, 16, 0.01, 3
PROMPTS = 64


def task(model: str, quick: bool) -> dict[str, Any]:
    """What both sides are asked to do, ready for JSON."""
    batch, tokens, rank = (2, 4, 2) if quick else (BATCH, TOKENS, RANK)
    return {
        "model": model, "prompts": prompts(PROMPTS), "batch": batch, "tokens": tokens, "rank": rank, "rate": RATE,
        "skip": min(SKIP, tokens - 1), "lr": 2e-5, "threads": 2, "template": contexts.Demonstration().template,
        "checkpointing": True,
    }  # fmt: skip


def prompts(number: int) -> list[tuple[str, str]]:
    """Questions with worked answers, made on the spot.

    >>> prompts(1)[0][0]
    'Anna has 3 bags with 2 apples in each and gives 1 apples away. How many apples does she have left?'
    """
    names = ("Anna", "Bela", "Chen", "Dora", "Eva", "Fatima", "Gita")
    found = []
    for i in range(number):
        name, bags, each, gone = names[i % len(names)], 3 + i % 5, 2 + i % 7, 1 + i % 3
        asked = (
            f"{name} has {bags} bags with {each} apples in each and gives {gone} apples away. How many apples does she "
            "have left?"
        )
        worked = (
            f"First I count all apples: {bags} bags with {each} apples in each are {bags} * {each} = {bags * each} "
            f"apples. Then I take away what she gives: {bags * each} - {gone} = {bags * each - gone}. So {name} has "
            f"{bags * each - gone} apples left."
        )
        found.append((asked, worked))
    return found


def serve(asked: str) -> None:
    """Our side, in a process of its own."""
    paced, wanted = trl_peer.Paced(), json.loads(asked)
    torch.set_num_threads(wanted["threads"])
    trainer = prepared(wanted)
    paced.say(ready=True, versions={"torch": torch.__version__})
    while True:
        paced.begin()
        trainer.step()
        paced.end(weights=sum(p.numel() for p in trainer.model.learning().values()))


def prepared(wanted: dict[str, Any]) -> LanguageTrainer:
    """The trainer that `language.trainer.fit` would drive, before its first step."""
    tokens = wanted["tokens"]

    def build() -> Causal:
        model = Pretrained(wanted["model"], lora=wanted["rank"])()
        model.plain.generation_config.min_new_tokens = tokens  # both sides write to the full length
        return model

    rows = [Example((("user", asked),), demonstration=worked) for asked, worked in wanted["prompts"]]
    data = of_examples(rows, "made on the spot", audit=0.0, test=0.0)
    method = recipes.sdft(wanted["rate"], wanted["skip"], tokens)
    settings = Settings(epochs=1000, batch_size=wanted["batch"], clip=1.0, lr=wanted["lr"], vitals=False)
    trainer = LanguageTrainer(build, data.sealed(), method, settings)
    trainer.begin(0)
    return trainer


class Side:
    """A process that does a step when it is asked to."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def _said(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            errors = (self.process.communicate()[1] or "").strip().splitlines() or ["nothing"]
            raise RecipeError(f"bench language: {self.name} ended before its time; it last said: {errors[-1]}")
        return dict(json.loads(line))

    def ready(self) -> dict[str, Any]:
        return self._said()

    def step(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self._said()
