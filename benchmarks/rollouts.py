"""Completions of mixed lengths on a CPU: the batch that is refilled against batches by `generate`, in one run.

``python -m benchmarks.rollouts`` makes a random Llama (4 layers, width 256) whose tokens count down to the end: the
last token of a prompt says how many follow, 8 to 256, and of 8 tokens with the right count the model chooses. So
lengths are those that were drawn, whatever the weights are, and each choice depends on all tokens before it.
"""

from __future__ import annotations

import functools
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import click
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from selfdistill.core.step import TrainingClock
from selfdistill.data.sampler import Order
from selfdistill.language.sampling import CHUNK, ContinuousBatching, Sampling, by_transformers
from selfdistill.models.causal_lm import Causal

CHOICES, LEAST, LONGEST = 8, 8, 256


class Countdown(LlamaForCausalLM):  # type: ignore[no-untyped-call]
    """A Llama after whose token k only the tokens of one count less come."""

    @functools.wraps(LlamaForCausalLM.forward)
    def forward(self, *args: Any, **options: Any) -> Any:  # type: ignore[override]
        output = super().forward(*args, **options)
        ids: Tensor = options["input_ids"]
        first = (ids[:, -1] // CHOICES - 1).clamp(min=0) * CHOICES
        away = torch.arange(output.logits.shape[-1]) - first[:, None]
        output.logits[:, -1] = output.logits[:, -1].masked_fill((away < 0) | (away >= CHOICES), -1e9)
        return output


class Words:
    """What the engines ask of a tokenizer."""

    pad_token_id, eos_token_id, chat_template = 0, 0, None

    def __len__(self) -> int:
        return CHOICES * (LONGEST + 1)


def model(seed: int) -> Causal:
    """The random model."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(Words()), hidden_size=256, intermediate_size=688, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=1024, eos_token_id=0, bos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    lm: Any = Countdown(config)
    made = Causal(lm.eval(), Words())
    made.plain.generation_config.eos_token_id = list(range(CHOICES))
    return made


def prompts(rows: int, seed: int) -> list[list[int]]:
    """Prompts of 9 to 65 tokens, whose last token says how long the completion is."""
    r, vocabulary = random.Random(seed), len(Words())
    found = []
    for _ in range(rows):
        length = r.randint(LEAST, LONGEST)
        start = [r.randrange(CHOICES, vocabulary) for _ in range(r.randint(8, 64))]
        found.append([*start, length * CHOICES + r.randrange(CHOICES)])
    return found


def in_batches(made: Causal, asked: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
    """By `generate`, prompts of similar length together."""
    order, found = sorted(range(len(asked)), key=lambda i: len(asked[i])), dict[int, list[int]]()
    for start in range(0, len(order), CHUNK):
        few = order[start : start + CHUNK]
        written = by_transformers(made, [asked[i] for i in few], sampling, start)
        found.update({i: ids for i, (ids, _) in zip(few, written, strict=True)})
    return [found[i] for i in range(len(asked))]


def refilled(made: Causal, asked: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
    """By the batch that is refilled."""
    return [ids for ids, _ in ContinuousBatching()(made, asked, sampling, 0)]


def rate(write: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    """Tokens a second of processor time, and what was written."""
    began = time.process_time()
    found = write()
    return sum(map(len, found)) / (time.process_time() - began), found


def padding(rows: int, batch: int, seed: int) -> dict[str, float]:
    """The share of padding among the tokens of batches of these completions, shuffled and by length."""
    lengths = torch.tensor([len(p) + p[-1] // CHOICES for p in prompts(rows, seed)])

    def share(order: Order) -> float:
        steps = order.steps_per_epoch
        parts = [order.sample(TrainingClock(0, 1, 0, 1, step, steps)) for step in range(steps)]
        return 1 - float(lengths.sum()) / sum(len(ids) * int(lengths[ids].max()) for ids in parts)

    return {"shuffled": share(Order(rows, batch, seed, 0)), "by length": share(Order(rows, batch, seed, 0, lengths))}


def run(rows: int, rounds: int, seed: int, progress: Callable[[str], None]) -> dict[str, Any]:
    """The rates of both, greedy and sampled, in turns."""
    torch.set_num_threads(1)
    made, asked = model(seed), prompts(rows, seed)
    result: dict[str, Any] = {"rows": rows, "rounds": rounds, "seed": seed, "padding": padding(2000, 8, seed)}
    for name, temperature in (("greedy", 0.0), ("sampled", 1.0)):
        sampling, ratios, rates = Sampling(temperature, max_tokens=LONGEST), list[float](), list[list[float]]()
        for number in range(rounds):
            plain, theirs = rate(functools.partial(in_batches, made, asked, sampling))
            ours, mine = rate(functools.partial(refilled, made, asked, sampling))
            ratios.append(ours / plain)
            rates.append([plain, ours])
            progress(f"{name}, round {number + 1}: {plain:.0f} and {ours:.0f} tokens a second")
            if temperature == 0 and mine != theirs:
                raise click.ClickException("greedy completions differ")
        result[name] = {
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "generate": statistics.median(plain for plain, _ in rates),
            "refilled": statistics.median(ours for _, ours in rates),
            "tokens": sum(map(len, mine)),
        }
    return result


@click.command()
@click.option("--rows", type=click.IntRange(min=2), default=256, show_default=True, help="Prompts.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Measurements of each.")
@click.option("--seed", type=int, default=100, show_default=True, help="Of weights, prompts and lengths.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(rows: int, rounds: int, seed: int, as_json: bool) -> None:
    """Measure tokens a second of processor time, one thread."""
    result = run(rows, rounds, seed, lambda line: click.echo(line, err=True))
    if as_json:
        click.echo(json.dumps(result, sort_keys=True))
        return
    for name in ("greedy", "sampled"):
        one = result[name]
        spread = f"{min(one['ratios']):.2f} to {max(one['ratios']):.2f}"
        click.echo(
            f"{name}: {one['generate']:.0f} tokens a second by generate, {one['refilled']:.0f} refilled, ratio "
            f"{one['ratio']:.2f} ({spread})"
        )
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in result["padding"].items())
    click.echo(f"padding in batches of 8: {shares}")


if __name__ == "__main__":
    main()
