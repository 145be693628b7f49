"""Alarms: for each a training that is broken in just this way, which is caught, and one that is sound, which is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from selfdistill.data.examples import Example
from selfdistill.data.prompts import Prompts, of_examples
from selfdistill.errors import DataError, VitalsError
from selfdistill.language.alarms import Reading, alarms, quotes
from selfdistill.language.completions import Demonstrations, Language
from selfdistill.language.trainer import LanguageTask, fit
from selfdistill.models.causal_lm import Causal
from selfdistill.training.fit import Result
from tests.language.tiny import label, student

WORDS = [a + b for a in "abcdefgh" for b in "abcdefgh"]
Say = Callable[[str], str]


def learnt(says: Sequence[tuple[str, str]], steps: int) -> dict[str, Any]:
    """The weights of a model that answers words so."""
    model = student(initializer_range=0.1)
    rows = [model.tokenizer(f"<u>{w}<a>{a}<eos>", add_special_tokens=False)["input_ids"] for w, a in says]
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        logits = model.lm(input_ids=ids).logits[:, 3:-1]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 4:].flatten(), ignore_index=0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {n: p.detach().clone() for n, p in model.learning().items()}


@pytest.fixture(scope="module")
def torn() -> dict[str, Any]:
    """The weights of a model that says the word or the word turned round, each in half of its answers."""
    return learnt([(w, w) for w in WORDS] + [(w, w[::-1]) for w in WORDS], 150)


def data(teach: Say, right: Say, checked: bool = True, **more: Any) -> Prompts:
    """Words to which ``teach`` is the demonstration and ``right`` the answer."""
    made = [
        Example((("user", w),), demonstration=teach(w), answer=right(w), checker="exact" if checked else None, **more)
        for w in WORDS
    ]
    return of_examples(made, audit=0.4)


def trained(weights: dict[str, Any], prompts: Prompts, response: str | None = "warn", **more: Any) -> Result:
    """A training on demonstrations, looked at for alarms."""

    def build() -> Causal:
        made = student(initializer_range=0.1)
        made.load_state_dict(weights)
        return made

    method = Language({"label": label()}, source=Demonstrations())
    options: dict[str, Any] = {"device": "cpu", "steps": 40, "batch_size": 16, "lr": 1e-2, "max_tokens": 24}
    options |= {"audit": "off", "warn": lambda line: None}
    return fit(build, prompts, method, response=response, **(options | more))


def names(result: Result) -> set[str]:
    return {line.split(":")[0] for line in result.history[-1]["alarms"]}


def same(word: str) -> str:
    return word


def test_a_sound_training_is_quiet(torn: dict[str, Any]) -> None:
    """Half of its answers were right, and all are: it is surer, and may be so."""
    result = trained(torn, data(same, same), lr=3e-3)
    before, after = (result.history[-1]["reading"][when] for when in ("before", "after"))
    assert after["right"] > before["right"] + 0.1
    assert after["sure"] > before["sure"]
    assert names(result) == set()


BROKEN: dict[str, tuple[Say, Say]] = {
    "entropy-collapse, over-confidence": (lambda w: "zz", same),
    "length-drift": (lambda w: w * 6, lambda w: w[::-1]),
    "leakage": (lambda w: f"the given answer {w}", lambda w: f"the given answer {w}"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_training_is_caught(name: str, torn: dict[str, Any]) -> None:
    result = trained(torn, data(*BROKEN[name]), steps=80 if name == "leakage" else 40)
    assert set(name.split(", ")) <= names(result), result.history[-1]
    assert result.final_generation == 0  # it was to warn


def test_one_of_two_right_answers_that_is_lost_is_told(torn: dict[str, Any]) -> None:
    """Half of the prompts want the one, half the other: no more are right, and fewer can be found."""
    chosen = {w: w if i % 2 else w[::-1] for i, w in enumerate(WORDS)}
    result = trained(torn, data(same, chosen.__getitem__), lr=3e-3)
    before, after = (result.history[-1]["reading"][when] for when in ("before", "after"))
    assert before["solved"] > after["solved"]
    assert "lost-diversity" in names(result)


def test_without_a_checker_answers_that_differ_are_counted(torn: dict[str, Any]) -> None:
    assert "lost-diversity" in names(trained(torn, data(lambda w: "zz", same, checked=False)))


def test_an_alarm_rolls_back_what_an_audit_accepts(torn: dict[str, Any]) -> None:
    """The score of the greedy answers is as before, since neither is the demonstration; the words are another's."""
    leaking = data(lambda w: f"the given answer {w}", lambda w: "never")
    kept = trained(torn, leaking, None, audit="safe", steps=80)
    assert kept.final_generation == 0
    undone = trained(torn, leaking, "roll-back", audit="safe", steps=80)
    assert undone.final_generation == -1
    assert "rolled back: " in undone.generations[0].decision["why"]
    assert "leakage" in undone.generations[0].decision["why"]


def test_an_alarm_stops_the_run(torn: dict[str, Any]) -> None:
    with pytest.raises(VitalsError, match=r"leakage: \d+% of the answers") as stopped:
        trained(torn, data(*BROKEN["leakage"]), "stop", steps=80)
    assert stopped.value.vital in ("length-drift", "leakage")


def test_a_response_is_one_of_three() -> None:
    with pytest.raises(DataError, match="one of warn, roll-back, stop, not 'panic'"):
        LanguageTask(student, data(same, same), Language({"label": label()}, source=Demonstrations()), response="panic")


def test_nothing_is_compared_unless_it_is_asked_for(torn: dict[str, Any]) -> None:
    assert "alarms" not in trained(torn, data(same, same), None, steps=2).history[-1]


def test_looking_changes_nothing_that_is_learnt(torn: dict[str, Any]) -> None:
    looked, plain = (trained(torn, data(same, same), response, steps=4) for response in ("warn", None))
    mine, theirs = (result.generations[-1].weights for result in (looked, plain))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_style_that_has_most_of_the_divergence_is_told() -> None:
    calm = Reading(length=[5.0] * 8, leaks=[0.0] * 8, distinct=[1.0] * 8, entropy=[1.0] * 8, sure=[0.5] * 8)
    (alarm,) = alarms(calm, calm, {"style": 0.8, "styled": 0.1})
    assert alarm.name == "style-dominance"
    assert "10% of all and have 80%" in str(alarm)
    assert alarms(calm, calm, {"style": 0.8, "styled": 0.5}) == []
    assert alarms(calm, calm, {"style": None}) == []
    few = replace(calm, length=[5.0] * 7)
    assert alarms(few, few, {"style": 0.8, "styled": 0.1}) == []


def test_what_the_prompt_has_may_be_repeated() -> None:
    example = Example(
        (("user", "Was it signed in Paris in 1763?"),), privileged_context="It was signed in Paris in 1763."
    )
    assert not quotes("signed in Paris in 1763", example)
    assert quotes("Yes: it was signed in Paris.", example)
    assert not quotes("It was signed in Paris in 1763.", replace(example, privileged_context=None))
