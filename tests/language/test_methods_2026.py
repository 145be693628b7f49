"""What the methods of 2026 promise, each on a toy that was made for its claim: a small model is trained here for what
its teacher must be able to do, and the method for a few steps.

`pytest tests/language/test_methods_2026.py -s -m 'slow or not slow'` prints what docs/language.md states. Steps and
rates were chosen on seeds from 100 on; the claims are tested on seeds 1 to 3.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch

from selfdistill.data.examples import Example
from selfdistill.data.prompts import Prompts, of_examples
from selfdistill.data.rewards import Checker
from selfdistill.language.completions import Language
from selfdistill.language.consensus import Consensus
from selfdistill.language.contexts import Demonstration, Hindsight, Revision, SiblingAttempts
from selfdistill.language.methods_2026 import eopd, gates, hindsight, lsm, opsdc, opsdl, sd_zero, srpo
from selfdistill.language.recipes import grpo, sdpo, sft
from selfdistill.language.sampling import Sampling
from selfdistill.language.trainer import fit
from selfdistill.models.causal_lm import Causal, of_model
from selfdistill.terms.tokens import TeacherReturns

toys = pytest.importorskip("selfdistill.testing.toys")
SEEDS = (1, 2, 3)


class Able(NamedTuple):
    """A model that knows what a toy needs, with its tokenizer."""

    lm: Any
    tokens: Any

    def build(self) -> Causal:
        return of_model(copy.deepcopy(self.lm), self.tokens)


def number(chance: random.Random) -> str:
    return f"{chance.randrange(10**5):05d}"


@functools.cache
def able(kind: str) -> Able:
    """The model of a toy, trained once."""
    if kind == "pick":
        return Able(*toys.train_tiny(seed=3))
    chance = random.Random(7)
    make, steps = ROWS[kind]
    return Able(*toys.train_on([make(chance) for _ in range(steps * 32)], 3))


def briefly(chance: random.Random) -> str:
    """A mirrored number with some words before it, and mostly without where it is told so."""
    digits, words = number(chance), chance.randint(2, 4)
    if chance.random() < 0.5:
        return f"<u>brief\n\nv {digits}<a>{'hm ' * (words - 1) * (chance.random() < 0.3)}{toys.mirrored(digits)}<e>"
    return f"<u>v {digits}<a>{'hm ' * words}{toys.mirrored(digits)}<e>"


def revised(chance: random.Random) -> str:
    """One of two answers; and after a verdict the same again, or the other."""
    digits = number(chance)
    both = [digits, toys.first_mirrored(digits)]
    chance.shuffle(both)
    if chance.random() < 1 / 3:
        return f"<u>p {digits}<a>{both[0]}<e>"
    right = chance.random() < 0.5
    return f"<u>p {digits}<a>{both[0]}<e><u>{'ok' if right else 'no'}<a>{both[0 if right else 1]}<e>"


def documented(chance: random.Random) -> str:
    """One of two answers; and after a document one of the numbers in it."""
    digits = number(chance)
    both = [digits, toys.first_mirrored(digits)]
    if chance.random() < 0.4:
        return f"<u>p {digits}<a>{chance.choice(both)}<e>"
    numbers = [chance.choice([*both, number(chance)]), *(number(chance) for _ in range(chance.choice([0, 2])))]
    chance.shuffle(numbers)
    return f"<u>D {' '.join(numbers)}\np {digits}<a>{chance.choice(numbers)}<e>"


def placed(chance: random.Random) -> str:
    """The number that is marked, beside another in one text in four."""
    return noisy(chance, chance.choice([0, 0, 0, 1]))[0]


def noisy(chance: random.Random, others: int) -> tuple[str, str]:
    """A conversation about the marked number among so many others, and its answer."""
    answer = number(chance)
    parts = [f"x{number(chance)}" for _ in range(others)] + [f"D{answer}"]
    chance.shuffle(parts)
    return f"<s>{' '.join(parts)}<u>D? {chance.randrange(10**4)}<a>{answer}<e>", answer


ROWS: dict[str, tuple[Callable[[random.Random], str], int]] = {
    "brief": (briefly, 400), "revise": (revised, 400), "document": (documented, 500), "place": (placed, 400),
}  # fmt: skip


class Score(NamedTuple):
    """The share of right answers to the test prompts at temperature 1, and their mean length in tokens."""

    right: float
    tokens: float


def scored(model: Any, who: Able, data: Prompts, room: int = 24) -> Score:
    rows = [data.rows[i] for i in data.test.tolist()]
    texts = [who.tokens.apply_chat_template([{"role": r, "content": c} for r, c in row.messages], tokenize=False,
                                            add_generation_prompt=True) for row in rows]  # fmt: skip
    batch = who.tokens(texts, padding=True, padding_side="left", return_tensors="pt")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        out = model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=room)
    said = out[:, batch["input_ids"].shape[1] :]
    answers = who.tokens.batch_decode(said, skip_special_tokens=True)
    check = Checker(rows[0].checker or "")
    right = [check(text, row).reward for text, row in zip(answers, rows, strict=True)]
    lengths = (said != who.tokens.pad_token_id).sum(1).float()
    return Score(sum(right) / len(right), float(lengths.mean()))


def learnt(kind: str, method: Language, data: Prompts, seed: int, **more: Any) -> Score:
    """The score after a short training."""
    who = able(kind)
    options: dict[str, Any] = {"device": "cpu", "audit": "off", "vitals": False, "batch_size": 16, "lr": 3e-4} | more
    result = fit(who.build, replace(data, audit=data.audit[:0]), method, seed=seed, **options)
    return scored(cast(Causal, result.model).lm, who, data)


def before(kind: str, data: Prompts) -> Score:
    return scored(able(kind).lm, able(kind), data)


def of(rows: list[Example], seed: int) -> Prompts:
    return of_examples(rows, "toy", seed=seed)


def mean(scores: Sequence[Score]) -> Score:
    return Score(*(sum(part) / len(scores) for part in zip(*scores, strict=True)))


def over_seeds(
    kind: str, data: Callable[[int], Prompts], methods: dict[str, Language], **more: Any
) -> dict[str, Score]:
    """The mean over the seeds of the model before and of what each method makes of it; printed."""
    found = {"before": mean([before(kind, data(seed)) for seed in SEEDS])}
    for name, method in methods.items():
        found[name] = mean([learnt(kind, method, data(seed), seed, **more) for seed in SEEDS])
    for name, score in found.items():
        print(f"{name}: {100 * score.right:.0f} % right, {score.tokens:.1f} tokens", flush=True)
    return found


def picks(seed: int) -> Prompts:
    data: Prompts = toys.prompts(toys.PICK, 300, seed=seed)
    return data


def wordy(seed: int) -> Prompts:
    chance = random.Random(seed)
    digits = [number(chance) for _ in range(300)]
    return of([Example((("user", f"v {d}"),), answer=toys.mirrored(d), checker="numeric") for d in digits], seed)


def papers(seed: int) -> Prompts:
    """Half of the documents have the answer; the others three numbers, the misreading of the question among them."""
    chance, rows = random.Random(seed), []
    for _ in range(300):
        digits = number(chance)
        answer, others = toys.first_mirrored(digits), [digits, number(chance), number(chance)]
        chance.shuffle(others)
        shown = answer if chance.random() < 0.5 else " ".join(others)
        rows.append(
            Example((("user", f"p {digits}"),), answer=answer, checker="exact", privileged_context=f"D {shown}")
        )
    return of(rows, seed)


def texts(seed: int) -> Prompts:
    chance, rows = random.Random(seed), []
    for _ in range(300):
        told, answer = noisy(chance, 1)
        text, question = told.split("<a>")[0].removeprefix("<s>").split("<u>")
        turns = (("system", text), ("user", question))
        rows.append(Example(turns, answer=answer, checker="exact", privileged_context=f"D{answer}"))
    return of(rows, seed)


def shortened(seed: int) -> Prompts:
    """The same questions after the short text alone."""
    data = texts(seed)
    rows = (replace(r, messages=(("system", r.privileged_context or ""), r.messages[-1])) for r in data.rows)
    return replace(data, rows=tuple(rows))


def log(seed: int) -> Prompts:
    """Answers as the model gives them, half of them wrong, and a reply with the right one."""
    chance, data = random.Random(seed), picks(seed)
    rows = [replace(row, wrong=chance.choice([row.wrong, row.answer]), feedback=row.answer) for row in data.rows]
    return replace(data, rows=tuple(rows))


SOLVED = Demonstration("{prompt}\nExample: {demonstration}.")
SIBLING = SiblingAttempts(solution="\nExample: {solution}.", feedback="", closing="")


@pytest.mark.slow
def test_opsdc_answers_are_shorter_at_about_the_same_score() -> None:
    found = over_seeds("brief", wordy, {"opsdc": opsdc("brief", every=10, max_tokens=20)}, steps=60)
    assert found["opsdc"].tokens < 0.6 * found["before"].tokens
    assert found["opsdc"].right > found["before"].right - 0.1


@pytest.mark.slow
def test_sd_zero_turns_a_verdict_into_targets() -> None:
    """The same reviser, told "right" whatever the attempt was, teaches nothing."""
    method = sd_zero(max_tokens=8)
    methods = {"sd_zero": replace(method, context=Revision("ok", "no")),
               "without the verdict": replace(method, context=Revision("ok", "ok"))}  # fmt: skip
    found = over_seeds("revise", picks, methods, steps=30, lr=1e-3, warn=lambda line: None)
    assert found["sd_zero"].right > found["without the verdict"].right + 0.2


@pytest.mark.slow
def test_gates_keeps_the_student_from_what_its_tutor_guesses() -> None:
    def gated(agree: int) -> Language:
        context, method = Demonstration("{demonstration}\n{prompt}"), gates(8, agree, max_tokens=8)
        source = Consensus(8, agree, 8, context, Sampling(max_tokens=8))
        return replace(method, context=context, source=source)

    found = over_seeds("document", papers, {"gates": gated(6), "without a gate": gated(1)}, steps=40, batch_size=8)
    assert found["gates"].right > found["before"].right + 0.1
    assert found["gates"].right > found["without a gate"].right


@pytest.mark.slow
def test_srpo_learns_as_fast_as_sdpo_and_faster_than_grpo() -> None:
    options: dict[str, Any] = {"samples": 4, "max_tokens": 8}
    methods = {"grpo": grpo(**options), "sdpo": replace(sdpo(k=20, **options), context=SIBLING),
               "srpo": replace(srpo(k=20, **options), context=replace(SIBLING, failed=True))}  # fmt: skip
    found = over_seeds("pick", picks, methods, steps=6, batch_size=8, lr=1e-3)
    assert found["srpo"].right > found["before"].right + 0.2
    assert found["srpo"].right >= found["grpo"].right


@pytest.mark.slow
def test_lsm_learns_faster_than_from_sampled_tokens() -> None:
    method = replace(lsm(k=8, max_tokens=8), context=SOLVED)
    sampled = replace(method, terms={"returns": TeacherReturns(immediate=True)})
    found = over_seeds("pick", picks, {"lsm": method, "sampled tokens": sampled}, steps=6)
    assert found["lsm"].right > found["before"].right + 0.2
    assert found["lsm"].right >= found["sampled tokens"].right


@pytest.mark.slow
def test_hindsight_learns_from_a_log_and_its_replies() -> None:
    method = replace(hindsight(skip=0), context=Hindsight("{prompt}\nExample: {feedback}."))
    found = over_seeds("pick", log, {"hindsight": method}, steps=40, clip=1.0)
    assert found["hindsight"].right > found["before"].right + 0.2


@pytest.mark.slow
def test_opsdl_finds_in_a_long_text_what_it_finds_in_a_short_one() -> None:
    found = over_seeds("place", texts, {"opsdl": opsdl(max_tokens=8)}, steps=120)
    short = mean([before("place", shortened(seed)) for seed in SEEDS])
    print(f"after the short text: {short.right:.0%}")
    assert found["opsdl"].right > found["before"].right + 0.05


@pytest.mark.slow
def test_eopd_gives_back_answers_of_which_the_teacher_is_not_sure(tmp_path: Path) -> None:
    """The student says one of two answers; its teacher, which is torn between them, brings the other one back."""
    who = able("pick")
    folder = str(toys.save(who.lm, who.tokens, tmp_path / "teacher"))

    def narrowed(seed: int) -> Able:
        """The model after it was taught the one answer alone."""
        data = picks(seed)
        rows = tuple(replace(row, demonstration=row.wrong) for row in data.rows)
        result = fit(who.build, replace(data, rows=rows), sft(), device="cpu", audit="off", vitals=False, batch_size=16,
                     lr=1e-3, steps=25, seed=seed)  # fmt: skip
        return Able(cast(Causal, result.model).lm, who.tokens)

    def widened(method: Language, seed: int) -> Score:
        student, data = narrowed(seed), picks(seed)
        result = fit(student.build, replace(data, audit=data.audit[:0]), method, device="cpu", audit="off",
                     vitals=False, batch_size=16, lr=0.1, optimizer="sgd", steps=12, seed=seed)  # fmt: skip
        return scored(cast(Causal, result.model).lm, who, data)

    method = eopd(folder, entropy=0.5, k=8, max_tokens=8)
    alone = replace(method, terms={"returns": method.terms["returns"]})
    start = mean([scored(narrowed(seed).lm, who, picks(seed)) for seed in SEEDS])
    ours, theirs = (mean([widened(one, seed) for seed in SEEDS]) for one in (method, alone))
    print(
        f"the other answer: {start.right:.0%} before, {ours.right:.0%} eopd, {theirs.right:.0%} the reverse part alone"
    )
    assert ours.right > start.right
    assert ours.right > theirs.right
