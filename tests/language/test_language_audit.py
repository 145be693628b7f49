"""The audit: what is worse than the pre-trained start, or forgets, is rolled back, and the product is the start."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch

from selfdistill.data.examples import Example
from selfdistill.data.prompts import Prompts, of_examples
from selfdistill.language.completions import Demonstrations, Language
from selfdistill.language.evaluation import losses
from selfdistill.language.recipes import rest, spin
from selfdistill.language.sampling import RewardCheckers, Sampling
from selfdistill.language.trainer import LanguageTask, fit
from selfdistill.models.causal_lm import Causal
from selfdistill.training.fit import Result
from tests.language.tiny import label, student

WORDS = [a + b for a in "abcdefgh" for b in "abcdefgh"]


def copying(checked: bool = True, wrong: bool = False, rows: int = 64) -> Prompts:
    """Say the word again; or, ``wrong``, learn to say something else while the word is still what is right."""
    made = [Example((("user", w),), demonstration="zz" if wrong else w, answer=w, checker="exact" if checked else None)
            for w in WORDS[:rows]]  # fmt: skip
    data = of_examples(made, audit=0.4)
    if wrong:  # what teaches is wrong, what audits is right
        audit = set(data.audit.tolist()) | set(data.test.tolist())
        data = replace(data, rows=tuple(replace(r, demonstration=r.answer) if i in audit else r
                                        for i, r in enumerate(data.rows)))  # fmt: skip
    return data


def suite_of(data: Prompts) -> Prompts:
    return replace(data, labelled=data.labelled[:0], audit=data.audit[:0], test=torch.arange(len(data.rows)))


@pytest.fixture(scope="module")
def able() -> dict[str, Any]:
    """The weights of a model that can copy two letters."""
    model = student(initializer_range=0.1)
    ids = torch.tensor(model.tokenizer([f"<u>{w}<a>{w}<eos>" for w in WORDS], add_special_tokens=False)["input_ids"])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(80):
        logits = model.lm(input_ids=ids).logits[:, 3:-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 4:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.01
    return {n: p.detach().clone() for n, p in model.learning().items()}


def build(weights: dict[str, Any], lora: int = 0) -> Causal:
    made = student(lora, initializer_range=0.1)
    if lora:
        names = {n.replace("lm.", "", 1): w for n, w in weights.items()}
        missing = made.plain.load_state_dict(
            {n if (own := n) in made.plain.state_dict() else own.replace(".weight", ".base_layer.weight"): w
             for n, w in names.items()}, strict=False)  # fmt: skip
        assert not missing.unexpected_keys
    else:
        made.load_state_dict(weights)
    return made


def spoil(
    able: dict[str, Any], lora: int = 0, generations: int = 1, data: Prompts | None = None, **more: Any
) -> Result:
    method = Language({"label": label()}, source=Demonstrations(), generations=generations)
    options: dict[str, Any] = {"device": "cpu", "steps": 40, "batch_size": 16, "lr": 2e-2, "max_tokens": 4} | more
    return fit(lambda: build(able, lora), data or copying(wrong=True), method, **options)


@pytest.mark.parametrize("lora", [0, 4])
def test_worse_than_the_start_is_rolled_back(able: dict[str, Any], lora: int) -> None:
    said = list[str]()
    result = spoil(able, lora, generations=2, tell=said.append)
    first, second = (g.decision for g in result.generations)
    assert (first["accepted"], second["accepted"], result.final_generation) == (False, False, -1)
    assert "generation 0 rolled back" in first["why"]
    assert "the model before training" in first["why"]
    assert result.generations[0].start == result.generations[1].start or lora  # it begins again from the start
    start, product = build(able, lora), cast(Causal, result.model)
    x = torch.tensor([[[5, 6, 7, 8], [1, 1, 2, 2]]])
    assert torch.equal(start.hidden_states(x), product.hidden_states(x))
    assert not product.training


def test_without_an_audit_the_last_is_the_product(able: dict[str, Any]) -> None:
    result = spoil(able, audit="off")
    assert result.final_generation == 0
    assert result.history[-1]["audit"]["accuracy"] < 0.5


def test_what_is_no_worse_is_accepted(able: dict[str, Any]) -> None:
    result = spoil(able, data=copying(), lr=1e-4)
    assert result.generations[0].decision["accepted"]
    assert result.final_generation == 0


def test_likelihood_audits_where_there_is_no_checker(able: dict[str, Any]) -> None:
    bad = copying(checked=False, wrong=True)
    result = spoil(able, data=bad)
    assert result.final_generation == -1
    assert "nll" in result.history[-1]["audit"]
    assert "nll" in result.generations[0].decision["why"]


ODD = of_examples([Example((("user", f"{w}{w}#"),), demonstration="q", answer="q", checker="exact") for w in WORDS],
                  audit=0.3)  # fmt: skip


@pytest.mark.parametrize("audited", [True, False])
def test_forgetting_is_rolled_back(able: dict[str, Any], audited: bool) -> None:
    """The new task is learnt, and the old one lost: with a suite of the old one the run keeps its start."""
    data = ODD if audited else replace(ODD, audit=ODD.audit[:0])
    free = spoil(able, data=data)
    assert free.final_generation == 0
    kept = spoil(able, data=data, suite=suite_of(copying()))
    assert kept.final_generation == -1
    assert "it forgets what it knew" in kept.generations[0].decision["why"]
    assert len(kept.generations[0].guard) == 64
    if audited:
        assert kept.history[-1]["audit"]["accuracy"] > 0.9
        assert kept.history[-1]["audit"]["kept"] < 0.8
    unaudited = spoil(able, data=data, suite=suite_of(copying()), audit="off")
    assert unaudited.final_generation == 0


def test_what_is_kept_is_accepted(able: dict[str, Any]) -> None:
    result = spoil(able, data=copying(), lr=1e-4, suite=suite_of(copying()))
    assert result.generations[0].decision["accepted"]
    assert result.final_generation == 0


def test_a_suite_is_judged_by_each_generations_own_weights(able: dict[str, Any]) -> None:
    """Without audit rows nobody asks the model at the ends of epochs; it is asked at the end of every generation."""
    data = replace(copying(wrong=True), audit=torch.zeros(0, dtype=torch.int64))
    result = spoil(able, generations=3, data=data, suite=suite_of(copying()), audit_level=0.05, steps=4, lr=3e-3)
    suites = [g.guard for g in result.generations]
    weights = [g.weights["lm.model.norm.weight"] for g in result.generations]
    for i in range(1, 3):
        assert torch.equal(weights[i], weights[i - 1]) == (suites[i] == suites[i - 1])


def test_audits_within_a_generation_roll_back(able: dict[str, Any]) -> None:
    """The weights of the best epoch come back, and what was said of the others counts no more."""
    more: dict[str, Any] = {"steps": None, "epochs": 6, "audit_epochs": 1, "schedule": "constant"}
    result = spoil(able, lr=2e-3, suite=suite_of(copying()), **more)
    assert result.history[-1]["decision"]["restored"]
    done, data, greedy = result.generations[-1], copying(wrong=True), Sampling(0.0, max_tokens=4)
    model, kept = build(done.weights), suite_of(copying())
    assert done.losses == losses(model, data, data.audit.tolist(), greedy, RewardCheckers())
    assert done.guard == losses(model, kept, kept.test.tolist(), greedy, RewardCheckers())
    assert sum(done.losses) < (1 - result.history[-1]["audit"]["accuracy"]) * len(done.losses)  # of what was discarded


def test_generations_go_on_from_the_accepted_one(able: dict[str, Any]) -> None:
    for method in (rest(generations=2, samples=2, max_tokens=4), spin(generations=2, max_tokens=4)):
        result = fit(lambda: build(able), copying(), method, device="cpu", steps=2, batch_size=8, max_tokens=4, lr=1e-4)
        first, second = result.generations
        assert first.decision["accepted"]
        assert second.start != first.start  # digests: the second begins with what the first ended with


def test_base_stays_the_pre_trained_model_in_later_generations(able: dict[str, Any]) -> None:
    from selfdistill.language.recipes import opcd
    from selfdistill.training.settings import Settings
    from selfdistill.training.trainer import Trainer

    method = replace(opcd(k=5, max_tokens=4), generations=2)
    settings = Settings(steps=2, batch_size=8, lr=1e-2, audit="off")
    task = LanguageTask(lambda: build(able), copying().sealed(), method, max_tokens=4)
    trainer = Trainer(task, method, settings)
    trainer.begin(0)
    for _ in range(2):
        trainer.step()
    trainer.end_epoch(trainer.state.objective.clock.at(1))
    trainer.end_generation()
    trainer.begin(1)
    state = trainer.state.objective.states["distil_frozen"]
    held = cast(Any, state).module.weights()
    start = build(able).learning()
    assert all(torch.equal(held[n], start[n]) for n in start)
    assert any(not torch.equal(task.writer.model.learning()[n], start[n]) for n in start)
