"""The batch that is refilled writes what `generate` writes, and draws for a row what it would draw for it alone."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from selfdistill.errors import DataError
from selfdistill.experiments.task_types import TASK_TYPES
from selfdistill.io.run_record import Request
from selfdistill.language import continuous_batching
from selfdistill.language.recipes import sdft
from selfdistill.language.sampling import ContinuousBatching, Sampling, WritingProgress, by_transformers, ends, roll
from selfdistill.language.trainer import fit
from selfdistill.models.causal_lm import Causal
from tests.language.architectures import ARCHITECTURES, WORDS, build
from tests.language.tiny import prompts, shaken, student

QUICK = ("llama", "gpt2", "qwen3", "mamba", "mistral")


@pytest.fixture(autouse=True)
def few_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few that rows leave, move and are refilled, and columns are shifted in both directions and taken away."""
    for name, value in {"SLOTS": 5, "REFILL": 2, "SPARE": 6}.items():
        monkeypatch.setattr(continuous_batching, name, value)


def asked(count: int = 40, longest: int = 30, words: int = 60, seed: int = 0) -> list[list[int]]:
    r = random.Random(seed)
    return [[5 + r.randrange(words) for _ in range(r.randint(1, longest))] for _ in range(count)]


def written(model: Causal, given: Sequence[Sequence[int]], sampling: Sampling, keys: Any = None) -> list[list[int]]:
    keys = torch.arange(len(given)) if keys is None else torch.tensor(keys)
    rows = continuous_batching.RowPrompts(given, keys, (3, "x"))
    return continuous_batching.write(model, rows, sampling.draw, sampling.max_tokens, ends(model))


def several_ends(model: Causal) -> Causal:
    """Completions of many lengths: a good part of the vocabulary ends them."""
    model.plain.generation_config.eos_token_id = [1, *range(6, 14)]
    return model


@pytest.mark.parametrize("lora", [0, 4])
def test_greedy_answers_are_those_of_generate(lora: int) -> None:
    model, greedy = several_ends(shaken(student(lora), 0.2)), Sampling(0.0, max_tokens=24)
    given = asked()
    theirs = [by_transformers(model, [prompt], greedy, 0)[0][0] for prompt in given]
    assert written(model, given, greedy) == theirs
    lengths = Counter(map(len, theirs))
    assert len(lengths) > 5
    assert {1, 24} <= set(lengths)
    assert [list(r.ids) for r in roll(model, list(enumerate(given)), greedy, (0,))] == theirs  # so by itself on a CPU
    assert model.training


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in ARCHITECTURES])
def test_architectures_write_the_same_or_are_left_to_generate(name: str) -> None:
    model, greedy = build(name, lora=0), Sampling(0.0, max_tokens=12)
    model.plain.generation_config.eos_token_id = [1, *range(6, 6 + WORDS // 8)]
    given = asked(16, 12, WORDS - 6)
    theirs = [by_transformers(model, [prompt], greedy, 0)[0][0] for prompt in given]
    assert [ids for ids, _ in ContinuousBatching()(model, given, greedy, 0)] == theirs
    if name in ("llama", "gpt2", "qwen3"):
        assert continuous_batching.fits(model)
    if name == "mamba":
        assert not continuous_batching.fits(model)


def test_what_is_drawn_for_a_row_does_not_depend_on_the_others() -> None:
    model, sampling, given = several_ends(student()), Sampling(max_tokens=16), asked()
    whole = written(model, given, sampling)
    assert len(set(map(tuple, whole))) > 30
    order = random.Random(1).sample(range(len(given)), len(given))
    mixed = written(model, [given[i] for i in order], sampling, order)
    assert [mixed[order.index(i)] for i in range(len(given))] == whole
    assert [written(model, [given[i]], sampling, [i])[0] for i in range(8)] == whole[:8]
    rows = [(i, given[i]) for i in (4, 4, 9)]
    one, two = (roll(model, part, sampling, (1,), ContinuousBatching()) for part in (rows, [(7, given[7]), *rows[:2]]))
    assert [r.ids for r in one[:2]] == [r.ids for r in two[1:]]
    assert one[0].ids != one[1].ids  # samples of one example differ
    torch.manual_seed(5)
    before = torch.get_rng_state()
    written(model, given[:3], sampling)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(0.5), Sampling(1.6, 0.8, 20), Sampling(top_k=3), Sampling(top_p=0.3)]
)
def test_a_token_is_drawn_as_often_as_transformers_says(sampling: Sampling) -> None:
    """Numbers on an even grid: each token comes as often as its probability, by the processors of transformers."""
    grid, logits = 4000, torch.randn(1, 30, generator=torch.Generator().manual_seed(3)) * 2
    steps: list[Any] = [TemperatureLogitsWarper(sampling.temperature)]
    steps += [TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    steps += [TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    warped: Any = LogitsProcessorList(steps)
    p = warped(torch.zeros(1, 1, dtype=torch.int64), logits.clone()).softmax(-1)[0]
    drawn = sampling.draw(logits.expand(grid, -1), (torch.arange(grid) + 0.5) / grid)
    shares = torch.bincount(drawn, minlength=30) / grid
    assert (shares - p).abs().max() <= 1 / grid + 1e-6
    assert (shares[p == 0] == 0).all()


def test_progress_counts_rows_as_they_end() -> None:
    said = list[tuple[int, float]]()
    model, given = several_ends(student()), asked(12)
    rows = continuous_batching.RowPrompts(given, torch.arange(12), (0,))
    found = continuous_batching.write(
        model, rows, Sampling().draw, 8, ends(model), lambda n, begun: said.append((n, begun))
    )
    assert sum(count for count, _ in said) == len(found) == 12
    assert all(0 <= begun <= 5 for _, begun in said)
    assert said[-1][1] == 0
    counted = WritingProgress(None, "it writes", 12, ContinuousBatching())
    roll(model, list(enumerate(given)), Sampling(max_tokens=8), (0,), counted)
    assert counted.done == 12


def test_a_run_that_was_cut_goes_on_with_the_same_samples(tmp_path: Path) -> None:
    def run(out: Path | None = None, **more: Any) -> Any:
        method = sdft(rate=0.3, max_tokens=6)
        return fit(lambda: student(4), prompts(30), method, out=out, device="cpu", engine=ContinuousBatching(),
                   steps=4, batch_size=6, max_tokens=6, lr=1e-2, **more)  # fmt: skip

    def cut(clock: Any, figures: dict[str, float]) -> None:
        if clock.step == 3:
            raise KeyError

    whole = run()
    with pytest.raises(KeyError):
        run(tmp_path, save_steps=2, progress=cut)
    again = run(tmp_path, resume=True)
    assert again.history == whole.history
    for name, weight in whole.generations[0].weights.items():
        assert torch.equal(again.generations[0].weights[name], weight)


def test_the_engine_is_asked_for_by_name_and_for_prompts_alone() -> None:
    request = Request(data="reasoning-gym:chain_sum", engine="continuous", method="ssd()")
    assert TASK_TYPES.of_request(request).name == "language"
    for data in ("digits", "gym:CartPole-v1"):
        with pytest.raises(DataError, match="--engine continuous has a meaning for prompts alone; leave it out"):
            TASK_TYPES.of_request(replace(request, data=data, method=None))
    with pytest.raises(DataError, match="--engine has a meaning for environments"):
        TASK_TYPES.of_request(replace(request, engine="ppo"))
