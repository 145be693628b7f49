"""Rollouts: addressed, in their order, ended where the model ends, and by the rules of the sampling alone."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill import rng
from selfdistill.data.examples import Example
from selfdistill.errors import DataError, RecipeError
from selfdistill.language import sampling as sampling_module
from selfdistill.language.contexts import Rollout
from selfdistill.language.recipes import sdft
from selfdistill.language.sampling import (
    CompletionFile,
    RewardCheckers,
    Sampling,
    Vllm,
    by_transformers,
    distinct,
    ends,
    export,
    roll,
)
from selfdistill.language.trainer import fit
from selfdistill.models.causal_lm import Causal
from tests.language.tiny import EOS, doubled, prompts, shaken, spoken, student

ASKED = [(7, [10, 11, 12, 13, 14]), (3, [15]), (5, [16, 17, 18]), (9, [19, 20, 21, 22])]
GREEDY = Sampling(0.0, max_tokens=8)


def by_hand(model: Causal, prompt: Sequence[int], most: int) -> tuple[int, ...]:
    """The most probable token again and again, without a cache and without padding, in float64."""
    lm, ids = doubled(model), list(prompt)
    for _ in range(most):
        logits = lm(input_ids=torch.tensor([ids])).logits[0, -1, : model.vocabulary]
        ids.append(int(logits.argmax()))
        if ids[-1] == EOS:
            break
    return tuple(ids[len(prompt) :])


@pytest.mark.parametrize("lora", [0, 4])
def test_greedy_is_argmax(lora: int) -> None:
    model = shaken(student(lora), 0.2)
    found = roll(model, ASKED, GREEDY, (0,))
    assert [r.example for r in found] == [7, 3, 5, 9]
    assert [r.prompt for r in found] == [tuple(p) for _, p in ASKED]
    for r, (_, prompt) in zip(found, ASKED, strict=True):
        assert r.ids == by_hand(model, prompt, 8)
    assert len({r.ids for r in found}) > 1


def test_what_is_drawn_depends_on_the_address_alone() -> None:
    model, sampling = student(), Sampling(max_tokens=8)
    one = roll(model, ASKED, sampling, (1, "a"))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert roll(model, ASKED, sampling, (1, "a")) == one
    assert torch.equal(torch.get_rng_state(), before)
    assert [r.ids for r in roll(model, ASKED, sampling, (2, "a"))] != [r.ids for r in one]
    assert [r.ids for r in roll(model, ASKED, sampling, (1, "b"))] != [r.ids for r in one]
    assert model.training  # as it was


def test_batches_of_similar_length_and_answers_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_module, "CHUNK", 3)
    seen = list[tuple[list[list[int]], int]]()

    def engine(model: Causal, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int) -> Any:
        seen.append(([list(p) for p in prompts], seed))
        return [([p[-1]], None) for p in prompts]

    found = roll(student(), ASKED, GREEDY, (4, "x"), engine)
    assert [(r.example, r.ids) for r in found] == [(i, (p[-1],)) for i, p in ASKED]
    assert [[len(p) for p in batch] for batch, _ in seen] == [[1, 3, 4], [5]]
    assert [seed for _, seed in seen] == [rng.seed(4, "x", 0), rng.seed(4, "x", 1)]


def test_a_completion_ends_with_its_first_end() -> None:
    model = student()
    said = [5, 6, EOS, 7, EOS]
    assert sampling_module._until(said, ends(model)) == [5, 6, EOS]
    assert sampling_module._until([5, 6], ends(model)) == [5, 6]
    with torch.no_grad():  # the end is by far the most probable token after anything
        model.plain.model.norm.weight.zero_()
    sampled = roll(model, ASKED * 30, Sampling(max_tokens=30), (0,))  # all tokens alike
    for r in sampled:
        assert EOS not in r.ids[:-1]
        assert len(r.ids) == 30 or r.ids[-1] == EOS
        assert r.text == model.tokenizer.decode([i for i in r.ids if i > 4])
    assert any(len(r.ids) < 30 for r in sampled)


def test_several_tokens_may_end_it() -> None:
    model = student()
    model.plain.generation_config.eos_token_id = [20, 21]
    assert ends(model) == [EOS, 20, 21]
    with torch.no_grad():
        model.plain.model.norm.weight.zero_()
    found = roll(model, ASKED * 30, Sampling(max_tokens=40), (0,))
    assert all(not {EOS, 20, 21} & set(r.ids[:-1]) for r in found)
    assert {r.ids[-1] for r in found} >= {EOS, 20, 21}


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.5), Sampling(1.6, 0.8, 20), Sampling(top_k=3)])
def test_tokens_are_drawn_from_the_distribution_that_is_asked_for(sampling: Sampling) -> None:
    model, prompt, sampling = student(), [10, 11], replace(sampling, max_tokens=1)
    (log_p,) = spoken(doubled(model), [(prompt, [0])], model.vocabulary)
    p = torch.softmax(log_p[0].detach() / sampling.temperature, -1)
    order = p.argsort(descending=True)[: sampling.top_k or len(p)]
    kept = p[order] / p[order].sum()
    before = kept.cumsum(0) - kept
    order = order[before < sampling.top_p]  # the fewest that make up top_p
    wanted = {int(i): float(p[i] / p[order].sum()) for i in order}
    drawn = 4000
    found = Counter(r.ids[0] for r in roll(model, [(0, prompt)] * drawn, sampling, (8,)))
    assert set(found) <= set(wanted)
    cells = [(found[i], drawn * w) for i, w in wanted.items() if drawn * w >= 5]
    chi = sum((f - w) ** 2 / w for f, w in cells)
    assert chi < len(cells) + 4 * math.sqrt(2 * len(cells))  # four deviations


def test_the_models_own_generation_config_changes_nothing() -> None:
    plain, odd = student(), student()
    config = odd.plain.generation_config
    config.suppress_tokens, config.no_repeat_ngram_size, config.min_p = list(range(10, 60)), 1, 0.5
    config.repetition_penalty, config.temperature, config.top_k, config.max_length = 3.0, 0.1, 1, 3
    for sampling in (Sampling(max_tokens=12), GREEDY):
        assert roll(odd, ASKED, sampling, (1,)) == roll(plain, ASKED, sampling, (1,))
    assert odd.plain.generation_config is config


def test_outputs_that_are_no_token_are_not_drawn() -> None:
    model = student()
    with torch.no_grad():
        model.plain.model.norm.weight.zero_()
    found = roll(model, ASKED * 100, Sampling(2.0, max_tokens=10), (0,))
    assert max(i for r in found for i in r.ids) == model.vocabulary - 1


def test_a_sampling_that_draws_nothing_is_refused() -> None:
    for bad in ({"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"max_tokens": 0}):
        with pytest.raises(RecipeError, match="no tokens can be drawn"):
            Sampling(**bad)


def test_distinct_keeps_the_first() -> None:
    rows = [Rollout(0, (1,), (2, 3), "first"), Rollout(0, (1,), (2, 3), "again"), Rollout(0, (1,), (2,)),
            Rollout(1, (1,), (2, 3)), Rollout(0, (9,), (2, 3))]  # fmt: skip
    assert distinct(rows) == [rows[0], rows[2], rows[3], rows[4]]


# what is written down


ROWS = [[Rollout(0, (1, 2), (3,), "a\u2028\n", 1.0, "ok", (-0.5,))], [], [Rollout(2, (1,), (4, 1), "b")]]


def written(path: Path, made: list[int], of: str = "run") -> list[Rollout]:
    def make(part: int) -> list[Rollout]:
        made.append(part)
        return ROWS[part]

    return CompletionFile(path, of).made(3, make)


def test_rollouts_are_read_back_as_they_were(tmp_path: Path) -> None:
    made = list[int]()
    everything = [r for part in ROWS for r in part]
    assert written(tmp_path / "a/0.jsonl", made) == everything
    assert written(tmp_path / "a/0.jsonl", made) == everything
    assert made == [0, 1, 2]


@pytest.mark.parametrize(
    "damage", [b"{", b"", b"[1]", b'"x"', b"\xff\xfe\x00", b'{"of": "run", "part": 2, "rollouts": [3]}']
)
def test_a_damaged_part_is_written_anew(damage: bytes, tmp_path: Path) -> None:
    made, path = list[int](), tmp_path / "0.jsonl"
    whole = written(path, made)
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], lines[1], damage]))
    assert written(path, made) == whole
    assert made == [0, 1, 2, 2]
    assert [json.loads(line)["part"] for line in path.read_text().splitlines()] == [0, 1, 2]


def test_parts_of_another_run_are_written_anew(tmp_path: Path) -> None:
    made = list[int]()
    written(tmp_path / "0.jsonl", made)
    written(tmp_path / "0.jsonl", made, "another")
    assert made == [0, 1, 2, 0, 1, 2]


def test_a_referee_counts_what_fails() -> None:
    referee = RewardCheckers()
    example = Example((("user", "?"),), answer="x", checker="tests.language.test_contexts:fragile", line=4)
    judged = referee(Rollout(0, (1,), (2,), "x"), example)
    assert judged.reward == 0.0
    assert "failed on 1 of 1" in (referee.trouble() or "")
    right = referee(Rollout(0, (1,), (2,), "x"), Example((("user", "?"),), answer="x", checker="exact"))
    assert right.reward == 1.0
    assert referee(Rollout(0, (1,), (2,), "x"), Example((("user", "?"),))).reward is None


# another engine


@dataclass
class At:
    logprob: float


@dataclass
class Output:
    token_ids: list[int]
    logprobs: list[dict[int, At]]


@dataclass
class Answer:
    outputs: list[Output]


class Fake:
    """What vLLM would answer: the model of the folder, whose log-probabilities are a little off."""

    loads: list[str]

    def __init__(self, off: float = -0.3) -> None:
        self.loads, self.off, self.asked = [], off, list[dict[str, Any]]()

    def __call__(self, folder: str) -> Fake:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.loads.append(folder)
        self.lm = AutoModelForCausalLM.from_pretrained(folder).eval()
        assert len(AutoTokenizer.from_pretrained(folder)) < self.lm.config.vocab_size
        return self

    def generate(self, asked: Any, options: dict[str, Any]) -> list[Answer]:
        self.asked.append(options)
        found = []
        for one in asked:
            ids = list(one["prompt_token_ids"])
            said = [20, 21, EOS]
            with torch.no_grad():
                log_p = torch.log_softmax(self.lm(input_ids=torch.tensor([ids + said])).logits[0, :, :-3], -1)
            own = log_p[range(len(ids) - 1, len(ids) + 2), said].tolist()
            found.append(
                Answer([Output(said, [{i: At(v + self.off), 5: At(0.0)} for i, v in zip(said, own, strict=True)])])
            )
        return found


@pytest.mark.parametrize("lora", [0, 4])
def test_vllm_loads_weights_when_they_changed(lora: int) -> None:
    model, fake = student(lora), Fake(0.0)
    engine = Vllm(fake)
    sampling = Sampling(0.7, 0.9, 5, 6)
    first = roll(model, ASKED, sampling, (1,), engine)
    roll(model, ASKED, sampling, (2,), engine)
    assert len(fake.loads) == 1
    assert fake.asked[0] == {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_tokens": 6,
                             "seed": rng.seed(1, 0), "logprobs": 0}  # fmt: skip
    shaken(model)
    second = roll(model, ASKED, sampling, (3,), engine)
    assert len(fake.loads) == 2
    assert not any(Path(folder).exists() for folder in fake.loads)
    for found, lm in ((second, doubled(model)),):
        for r, log_p in zip(found, spoken(lm, [(r.prompt, r.ids) for r in found], model.vocabulary), strict=True):
            assert r.log_probs == pytest.approx(log_p[range(3), list(r.ids)].tolist(), abs=1e-4)
    assert first[0].log_probs != second[0].log_probs


def test_its_log_probabilities_weigh_the_loss() -> None:
    """exp(0.3) too rare by the sampler: every token counts exp(0.3) times; the cap is 2."""
    means = dict[float, float]()
    for off in (0.0, -0.3, -5.0):
        options: dict[str, Any] = {"device": "cpu", "steps": 1, "batch_size": 4, "max_tokens": 4}
        result = fit(student, prompts(20), sdft(skip=0, max_tokens=4), engine=Vllm(Fake(off)), **options)
        means[off] = result.history[-1]["loss"]
    assert means[0.0] > 0
    assert means[-0.3] / means[0.0] == pytest.approx(math.exp(0.3), rel=1e-3)
    assert means[-5.0] / means[0.0] == pytest.approx(2.0, rel=1e-3)


def test_without_vllm_it_says_so() -> None:
    with pytest.raises(DataError, match="vLLM is not installed"):
        Vllm()(student(), [[5]], GREEDY, 0)


@pytest.mark.parametrize("lora", [0, 4])
def test_an_export_is_the_model(lora: int, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = shaken(student(lora))
    export(model, tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.suffix in (".bin", ".pt", ".pkl")]
    lm, pairs = AutoModelForCausalLM.from_pretrained(tmp_path).double().eval(), [([5, 6], [7, 8])]
    for mine, theirs in zip(spoken(doubled(model), pairs, 80), spoken(lm, pairs, 80), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert by_transformers(model, [[5, 6]], GREEDY, 0)
