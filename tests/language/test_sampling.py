"""Rollouts: addressed, in their order, ended where the model ends, and by the rules of the sampling alone."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
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
from selfdistill.language.vllm_engine import check_vllm
from selfdistill.models.causal_lm import Causal
from tests.language import vllm_stand_in
from tests.language.tiny import EOS, PADDED, doubled, prompts, shaken, spoken, student, write_prompts
from tests.terminal import refused

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


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls of a stand-in for vLLM."""
    monkeypatch.setitem(sys.modules, "vllm", vllm_stand_in)
    monkeypatch.setattr(vllm_stand_in, "OFF", [0.0])
    vllm_stand_in.CALLS.clear()
    return vllm_stand_in.CALLS


@pytest.mark.parametrize("lora", [0, 4])
def test_vllm_sleeps_and_writes_by_the_weights_of_now(lora: int, vllm: list[str]) -> None:
    """Greedy answers are those of the student, merged, also after it has moved; so are the log-probabilities."""
    model, engine = student(lora), Vllm()
    woken = ["wake weights", "reload_weights", "wake kv_cache", f"generate {len(ASKED)}", "sleep 2"]
    for number in range(3):
        before = len(vllm)
        found = roll(model, ASKED, GREEDY, (number,), engine)
        assert vllm[before:] == (["load", "sleep 2", *woken] if number == 0 else woken)
        for r, (_, prompt) in zip(found, ASKED, strict=True):
            assert r.ids == by_hand(model, prompt, 8)
        said = spoken(doubled(model), [(r.prompt, r.ids) for r in found], len(model.tokenizer) + PADDED)
        for r, log_p in zip(found, said, strict=True):
            assert r.log_probs == pytest.approx(log_p[range(len(r.ids)), list(r.ids)].tolist(), abs=1e-3)
        if number != 1:  # the third call is by the weights of the second
            shaken(model, 0.2)
            if number == 2:
                break
    assert len({r.ids for r in found}) > 1


def test_vllm_draws_by_the_sampling_and_the_address(vllm: list[str]) -> None:
    model, engine = student(), Vllm()
    asked = [(i, [10 + i % 7, 11]) for i in range(60)]  # more than one batch of transformers: one call
    sampling = Sampling(0.7, 0.9, 2, 3)
    one, again, other = (roll(model, asked, sampling, (seed,), engine) for seed in (1, 1, 2))
    assert [r.ids for r in one] == [r.ids for r in again]
    assert [r.ids for r in one] != [r.ids for r in other]
    assert vllm.count("generate 60") == 3
    for r in one:
        log_p = spoken(doubled(model), [(r.prompt, r.ids)], model.vocabulary)[0]
        assert all(int((row > row[i]).sum()) < 2 for row, i in zip(log_p, r.ids, strict=False))
    assert all(
        i < model.vocabulary for r in roll(model, asked, Sampling(9.0, max_tokens=4), (1,), engine) for i in r.ids
    )


def test_its_log_probabilities_weigh_the_loss(vllm: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """exp(0.3) too rare by the sampler: every token counts exp(0.3) times; min(p / p_sampler, 2) is at most 2."""
    means = dict[float | None, float]()
    for off in (None, 0.0, -0.3, -5.0):
        monkeypatch.setattr(vllm_stand_in, "OFF", [off])
        options: dict[str, Any] = {"device": "cpu", "steps": 1, "batch_size": 4, "max_tokens": 4}
        result = fit(student, prompts(20), sdft(skip=0, max_tokens=4), engine=Vllm(), **options)
        means[off] = result.history[-1]["loss"]
    assert means[None] > 0
    assert 1.0 <= means[0.0] / means[None] < 1.3  # the sampler gives something to outputs that are no token
    assert means[-0.3] / means[0.0] == pytest.approx(math.exp(0.3), rel=1e-3)
    assert means[-5.0] / means[None] == pytest.approx(2.0, rel=1e-3)


def test_without_vllm_it_says_so() -> None:
    with pytest.raises(DataError, match="vLLM is not installed"):
        Vllm()(student(), [[5]], GREEDY, 0)


def test_the_command_refuses_vllm_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_prompts(tmp_path)
    usual = ["run", tmp_path / "p.jsonl", "--model", tmp_path / "tiny", "--engine", "vllm", "--out", tmp_path / "run"]
    assert "--engine vllm needs vLLM" in refused(*usual)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: name)
    assert "--engine vllm needs a CUDA device" in refused(*usual, "--device", "cpu")
    assert not (tmp_path / "run" / "checkpoints").exists()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with pytest.raises(DataError, match="leave one of them out"):
        check_vllm(None, load_in_4bit=True)
    check_vllm("cuda")
    assert "--engine vllm has a meaning for prompts alone" in refused("run", "digits", "--engine", "vllm")


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
