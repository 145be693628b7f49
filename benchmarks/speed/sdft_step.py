"""A whole SDFT step of a small pretrained model with LoRA: rollouts, teacher, student, update; ours beside TRL's.

Both sides train in a process each, with the same prompts, demonstrations, lengths, adapter and threads. The processes
take turns: one step here, one step there, so that both meet the same other load.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.speed import trl_peer
from selfdistill.data.examples import Example
from selfdistill.data.prompts import of_examples
from selfdistill.errors import RecipeError
from selfdistill.language import contexts, recipes
from selfdistill.language.sampling import export
from selfdistill.language.trainer import LanguageTask
from selfdistill.models.causal_lm import Causal, Pretrained
from selfdistill.training.settings import Settings
from selfdistill.training.trainer import Trainer

OURS, PEER, PEER_LEAN = "selfdistill", "TRL", "TRL, gradient checkpointing off"
BATCH, TOKENS, RANK, RATE, SKIP = 8, 48, 16, 0.01, 3
PROMPTS, THREADS = 64, 1


def task(model: str, quick: bool) -> dict[str, Any]:
    """What both sides are asked to do, ready for JSON."""
    batch, tokens, rank = (2, 4, 2) if quick else (BATCH, TOKENS, RANK)
    return {
        "model": model, "prompts": prompts(PROMPTS), "batch": batch, "tokens": tokens, "rank": rank, "rate": RATE,
        "skip": min(SKIP, tokens - 1), "lr": 2e-5, "threads": THREADS, "template": contexts.Demonstration().template,
        "checkpointing": True,
    }  # fmt: skip


def prompts(number: int) -> list[tuple[str, str]]:
    """Questions about a price list with worked answers, made on the spot: some 170 and 130 tokens.

    >>> asked, worked = prompts(1)[0]
    >>> asked.splitlines()[-1], worked.split(". ")[-1]
    ('Anna buys 3 apples, 2 plums and 1 lemons. How much does she pay?', 'So Anna pays 101 cents.')
    """
    return [_purchase(i) for i in range(number)]


def _purchase(i: int) -> tuple[str, str]:
    goods = ("apples", "pears", "plums", "lemons", "melons", "figs", "dates", "limes", "olives", "onions", "leeks")
    prices = {name: 11 + (7 * i + 5 * j) % 23 for j, name in enumerate(goods)}
    who = ("Anna", "Bela", "Chen", "Dora", "Eva", "Fatima", "Gita")[i % 7]
    bought = {goods[i % 11]: 3 + i % 5, goods[(i + 2) % 11]: 2, goods[(i + 3) % 11]: 1 + i % 4}
    parts = [f"{n} {name}" for name, n in bought.items()]
    asked = (
        "A shop sells fruit and vegetables by the piece, and its list of prices is as follows.\n"
        + "\n".join(f"- one of the {name}: {price} cents" for name, price in prices.items())
        + f"\n{who} buys {', '.join(parts[:-1])} and {parts[-1]}. How much does she pay?"
    )
    sums = {name: n * prices[name] for name, n in bought.items()}
    lines = (f"{n} {name} at {prices[name]} cents each are {n} * {prices[name]} = {sums[name]} cents" for name, n in
             bought.items())  # fmt: skip
    total = sum(sums.values())
    worked = (
        f"I look up each price in the list, one after another. {'. '.join(lines)}. Then I add up what {who} pays for "
        f"all of them: {' + '.join(map(str, sums.values()))} = {total} cents. So {who} pays {total} cents."
    )
    return asked, worked


def serve(asked: str) -> None:
    """Our side, in a process of its own."""
    paced, wanted = trl_peer.Paced(), json.loads(asked)
    torch.set_num_threads(wanted["threads"])
    trainer, task = prepared(wanted)
    paced.say(ready=True, versions={"torch": torch.__version__})
    while True:
        paced.begin()
        trainer.step()
        paced.end(weights=sum(p.numel() for p in task.writer.model.learning().values()))


def prepared(wanted: dict[str, Any]) -> tuple[Trainer, LanguageTask]:
    """The trainer that `language.trainer.fit` would drive, before its first step."""
    tokens = wanted["tokens"]

    def build() -> Causal:
        model = Pretrained(wanted["model"], lora=wanted["rank"])()
        model.plain.generation_config.min_new_tokens = tokens  # both sides write to the full length
        return model

    rows = [Example((("user", asked),), demonstration=worked) for asked, worked in wanted["prompts"]]
    data = of_examples(rows, "made on the spot", audit=0.0, test=0.0)
    method = recipes.sdft(wanted["rate"], wanted["skip"], max_tokens=tokens)
    settings = Settings(epochs=1000, batch_size=wanted["batch"], clip=1.0, lr=wanted["lr"], vitals=False)
    task = LanguageTask(build, data.sealed(), method)
    trainer = Trainer(task, method, settings)
    trainer.begin(0)
    return trainer, task


class Side:
    """A process that does a step when it is asked to."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name, self.versions = name, dict[str, str]()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def said(self) -> dict[str, Any]:
        """Its next report.

        Raises:
            RecipeError: it has ended.
        """
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            errors = (self.process.communicate()[1] or "").strip().splitlines() or ["nothing"]
            raise RecipeError(f"bench language: {self.name} ended before its time; it last said: {errors[-1]}")
        return dict(json.loads(line))

    def step(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.said()

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def _peers(python: str, asked: dict[str, Any]) -> list[Side]:
    """TRL as it comes, and without checkpoints of activations; both read a plain copy of the model."""
    with tempfile.TemporaryDirectory() as folder:
        export(Pretrained(asked["model"])(), folder)
        sides = []
        for name, checkpointing in ((PEER, True), (PEER_LEAN, False)):
            given = json.dumps({**asked, "model": folder, "checkpointing": checkpointing})
            sides.append(Side(name, [python, trl_peer.__file__, given]))
            sides[-1].versions = sides[-1].said()["versions"]  # it has read the model
        return sides


def run(
    rounds: int, quick: bool, tell: Callable[[str], None], peer: str | None, model: str = "smollm2"
) -> dict[str, Any]:
    """Steps of each side in turns, after one to warm up; seconds of each, and the highest resident mebibytes.

    Raises:
        RecipeError: a side ends before its time.
    """
    asked = task(model, quick)
    ours = f"import sys; from {__name__} import serve; serve(sys.argv[1])"
    sides = [Side(OURS, [sys.executable, "-c", ours, json.dumps(asked)])]
    if peer:
        sides += _peers(peer, asked)
    try:
        sides[0].versions = sides[0].said()["versions"]
        taken: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
        for i in range(1 + rounds):
            for side in sides[i % len(sides) :] + sides[: i % len(sides)]:
                taken[side.name].append(side.step())
            tell(f"SDFT steps: {i} of {rounds} rounds")
    finally:
        for side in sides:
            side.stop()
    versions = {side.name: side.versions for side in sides}
    found = {
        name: {
            **{clock: [round(step[clock], 3) for step in steps[1:]] for clock in ("cpu", "wall")},
            "mebibytes": round(steps[-1]["mebibytes"], 1), "weights": steps[-1]["weights"], "versions": versions[name],
        }
        for name, steps in taken.items()
    }  # fmt: skip
    return {"asked": {k: v for k, v in asked.items() if k != "prompts"}, "sides": found}
