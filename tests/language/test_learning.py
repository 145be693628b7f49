"""What the methods promise, on a model that is trained here in seconds: seeds of a claim were not used to choose it.

Steps, learning rates and clips were chosen on model, prompts and runs of seed 0; the model here has seed 3, and the
prompts and runs the seeds that are named.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor

from selfdistill.evaluation import statistics
from selfdistill.language.completions import Language
from selfdistill.language.contexts import Demonstration, SiblingAttempts
from selfdistill.language.recipes import opsd, sdft, sdpo, sft, ssd
from selfdistill.language.sampling import Sampling, roll
from selfdistill.language.trainer import fit
from selfdistill.models.causal_lm import Causal, of_model
from tests.language.tiny import batch_of, label, student

toys = pytest.importorskip("selfdistill.testing.toys")

LEARNT = Demonstration("{prompt}\nExample: {demonstration}")
SOLVED = Demonstration("{prompt}\nExample: {demonstration}.")
SIBLING = SiblingAttempts(solution="\nExample: {solution}.", feedback="", closing="")
TOKENS = 8


class Able(NamedTuple):
    """A model that knows the toys, and how well."""

    lm: Any
    tokens: Any

    def build(self) -> Causal:
        return of_model(copy.deepcopy(self.lm), self.tokens)


@pytest.fixture(scope="module")
def able() -> Able:
    return Able(*toys.train_tiny(seed=3))


class Score(NamedTuple):
    """Shares of right answers, drawn at temperature 1: on test prompts, and on what the model could do before."""

    test: float
    kept: float


def scored(lm: Any, able: Able, data: Any) -> Score:
    test = [data.rows[i] for i in data.test.tolist()]
    kept = list(toys.suite(rows=50).rows)
    return Score(*(toys.accuracy(lm, able.tokens, rows, temperature=1.0) for rows in (test, kept)))


def trained(able: Able, method: Language, toy: Any, seed: int, **more: Any) -> Score:
    data = toys.prompts(toy, 300, seed=seed)
    data = replace(data, audit=data.audit[:0])
    options: dict[str, Any] = {"device": "cpu", "audit": "off", "batch_size": 32, "lr": 3e-4, "max_tokens": TOKENS}
    result = fit(able.build, data, method, seed=seed, **(options | more))
    return scored(cast(Causal, result.model).lm, able, data)


def before(able: Able, toy: Any, seed: int) -> Score:
    return scored(able.lm, able, toys.prompts(toy, 300, seed=seed))


SDFT = replace(sdft(skip=0, max_tokens=TOKENS), context=LEARNT)  # answers have six tokens: none is skipped


def sdft_and_sft(able: Able, seed: int) -> tuple[Score, Score]:
    return tuple(trained(able, m, toys.NEW, seed, steps=60) for m in (SDFT, sft()))  # type: ignore[return-value]


@pytest.mark.slow  # on one kind of processor seed 1 ends at 0 (sdft keeps 0.2 of the prior tasks): cause not found yet
def test_sdft_learns_a_new_task_and_forgets_less(able: Able) -> None:
    start, (ours, theirs) = before(able, toys.NEW, 1), sdft_and_sft(able, 1)
    assert start.test < 0.05
    assert start.kept > 0.9
    assert ours.test > start.test + 0.4
    assert ours.kept > theirs.kept


@pytest.mark.slow
def test_sdft_forgets_less_than_sft_over_five_seeds(able: Able) -> None:
    pairs = [sdft_and_sft(able, seed) for seed in range(1, 6)]
    learnt, around = statistics.interval([ours.test for ours, _ in pairs])
    less, half = statistics.interval([ours.kept - theirs.kept for ours, theirs in pairs])
    print(f"sdft learns {learnt:.3f} ± {around:.3f}; keeps {less:.3f} ± {half:.3f} more than sft", pairs)
    assert learnt - around > 0.4
    assert less - half > 0


def test_sdpo_raises_accuracy(able: Able) -> None:
    start = before(able, toys.PICK, 1)
    method = replace(sdpo(samples=4, k=20, max_tokens=TOKENS), context=SIBLING)
    end = trained(able, method, toys.PICK, 1, steps=20, batch_size=8, lr=1e-3)
    print("sdpo", start, end)
    assert start.test < 0.7
    assert end.test > start.test + 0.2


def test_opsd_raises_accuracy(able: Able) -> None:
    """With entries cut at 1 nat: where the model is torn between two answers the entry that counts has 0.7, and one
    that is cut has no gradient."""
    start = before(able, toys.PICK, 1)
    end = trained(able, replace(opsd(clip=1.0, max_tokens=TOKENS), context=SOLVED), toys.PICK, 1, steps=40)
    print("opsd", start, end)
    assert start.test < 0.7
    assert end.test > start.test + 0.2


# simple self-distillation: truncation and temperature are all that is learnt


def drawn_gradients(model: Causal, sampling: Sampling, batches: int) -> Tensor:
    """(batches, weights): of the summed loss on fresh samples of the model itself, as `ssd` learns them."""
    prompts, found = [[10, 11], [12], [13, 14, 15]], []
    objective = Language({"label": label()}).bind(model, vitals=False)
    for number in range(batches):
        asked = [(i, p) for i, p in enumerate(prompts) for _ in range(20)]
        rolls = roll(model, asked, sampling, (11, "ssd", number))
        model.zero_grad()
        objective.measure(batch_of([(r.prompt, r.ids) for r in rolls]))["label"].tally.total.backward()
        objective._steps.clear()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]) / len(rolls))
    return torch.stack(found)


def squared(gradients: Tensor) -> tuple[float, float]:
    """|E g|^2 without bias, from products of two independent batches each, and its standard error."""
    products = (gradients[0::2] * gradients[1::2]).sum(1)
    return float(products.mean()), float(products.std()) / len(products) ** 0.5


def test_ssd_at_temperature_1_learns_nothing_in_expectation() -> None:
    model = student(initializer_range=0.1)
    model.train()
    plain, sharp = ssd(temperature=1.0, top_k=0, top_p=1.0, max_tokens=6), ssd(max_tokens=6)
    assert plain.sampling is not None
    assert sharp.sampling is not None
    nothing, something = (drawn_gradients(model, s, 60) for s in (plain.sampling, sharp.sampling))
    (zero, error), (size, other) = squared(nothing), squared(something)
    direction = something[:30].mean(0) / something[:30].mean(0).norm()
    (still, by), (moved, around) = (
        (float(v.mean()), float(v.std()) / len(v) ** 0.5) for v in (nothing @ direction, something[30:] @ direction)
    )
    print(f"|E g|^2: temperature 1 {zero:.4f} ± {error:.4f}; temperature 1.6 {size:.4f} ± {other:.4f}")
    print(f"along the second: {still:.4f} ± {by:.4f}; {moved:.4f} ± {around:.4f}")
    assert abs(zero) < 3 * error
    assert size > 5 * other
    assert abs(still) < 3 * by
    assert moved > 20 * around
    assert moved > 20 * abs(still)
