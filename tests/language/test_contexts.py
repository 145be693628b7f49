"""Prompt pairs: what a broken context does is found out before step 0, and said with the line of the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from selfdistill.core.parts import Teacher
from selfdistill.data.examples import Example
from selfdistill.errors import DataError, SelfdistillError, VitalsError
from selfdistill.language.completions import CONTEXT, Language, OncePerGeneration, OnPolicy
from selfdistill.language.contexts import (
    Demonstration,
    Hindsight,
    Hint,
    Instruction,
    NoContext,
    Preface,
    Revision,
    Rollout,
    ShortContext,
    SiblingAttempts,
    WrongSolution,
    begins_thought,
    difference,
    filled,
    paired,
    rendered,
    spoken,
    suffix,  # fmt: skip
)
from selfdistill.language.recipes import context_distillation, gkd, sdft, sdpo, ssd
from selfdistill.language.sampling import RewardCheckers, Sampling
from selfdistill.language.trainer import LanguageTask, fit
from selfdistill.teachers import CurrentStudent, Ema, Frozen
from selfdistill.teachers.weights import GeometricMixture
from selfdistill.training.settings import Settings
from selfdistill.training.trainer import Trainer
from tests.language.tiny import TEMPLATE, distil, label, prompts, student, tokenizer

LIVE = CurrentStudent(CONTEXT)
EXAMPLE = Example((("system", "S"), ("user", "Why?")), demonstration="So.", answer="42", wrong="No.", line=7)
OTHER = TEMPLATE.replace("<a>{% endif %}", "<a>{% if 'think' in messages[-1]['content'] %}##{% endif %}{% endif %}")
Build = Callable[..., Any]


def roll(reward: float | None = None, text: str = "abc", feedback: str | None = None) -> Rollout:
    return Rollout(0, (1, 2), (3,), text, reward, feedback)


def tried(method: Language, build: Build = student, rows: int = 20, **more: Any) -> Any:
    options: dict[str, Any] = {"steps": 1, "batch_size": 4, "max_tokens": 4, "vitals": True} | more
    return fit(build, prompts(rows), method, device="cpu", **options)


def one_line(error: SelfdistillError, line: int | None = None) -> None:
    assert "\n" not in str(error)
    assert line is None or f"line {line}" in str(error)


def first_line() -> int:
    data = prompts(20)
    return data.rows[int(data.labelled[0])].line


def only_on(line: int, broken: Callable[[], Any]) -> Any:
    """A context that works but for one line of the file."""

    def context(example: Example, rollouts: Sequence[Rollout], own: int) -> Any:
        return broken() if example.line == line else [("user", f"{example.prompt} {example.demonstration}")]

    return context


def raises() -> Any:
    raise KeyError("answer")


NONSENSE: dict[str, Callable[[], Any]] = {
    "raises": raises,
    "a string": lambda: "what?",
    "nothing in it": list,
    "strings": lambda: ["us", "er"],
    "three parts": lambda: [("user", "a", "b")],
    "numbers": lambda: [("user", 3)],
    "no role": lambda: [("teacher", "a")],
    "the assistant's turn": lambda: [("user", "a"), ("assistant", "b")],
    "an int": lambda: 3,
}


@pytest.mark.parametrize("kind", NONSENSE)
@pytest.mark.parametrize("once", [False, True])
def test_a_broken_context_stops_before_step_0(kind: str, once: bool) -> None:
    line = prompts(20).rows[int(prompts(20).labelled[-1])].line
    context, sampling, asked = only_on(line, NONSENSE[kind]), Sampling(max_tokens=4), []

    def engine(*given: Any) -> Any:
        asked.append(given)
        raise AssertionError("a completion was written first")

    source = OncePerGeneration(1, sampling, context) if once else OnPolicy(1, sampling)
    terms: dict[str, Any] = {"label": label()} if once else {"distil": distil()}
    with pytest.raises(DataError, match="context context fails on line") as found:
        tried(Language(terms, source=source, context=NoContext() if once else context), engine=engine)
    one_line(found.value, line)
    assert not asked


def test_another_ending_of_the_template_is_refused() -> None:
    line = prompts(20).rows[int(prompts(20).labelled[-1])].line
    context = only_on(line, lambda: [("user", "think well")])
    method = replace(sdft(max_tokens=4), context=context)
    tried(method)  # by a template that ends all prompts alike it is right
    with pytest.raises(VitalsError, match="template-mismatch") as found:
        tried(method, lambda: student(template=OTHER))
    one_line(found.value, line)
    assert found.value.vital == "template-mismatch"


def test_a_prompt_too_long_names_its_line() -> None:
    data = prompts(20)
    long = int(data.labelled[-1])
    rows = tuple(replace(r, demonstration="x" * 200) if i == long else r for i, r in enumerate(data.rows))
    for method in (
        sdft(max_tokens=4),
        context_distillation(max_tokens=4),
        gkd(max_tokens=4),
        gkd(share=0.0, max_tokens=4),
    ):
        with pytest.raises(DataError, match="more than the model's context of 200") as found:
            fit(lambda: student(context=200), replace(data, rows=rows), method, device="cpu", steps=4, max_tokens=4)
        one_line(found.value, rows[long].line)


def test_feedback_too_long_teaches_nobody_and_is_told() -> None:
    """How long it will be is not known before; the run goes on, and every such row is counted."""
    warned = list[str]()
    data = prompts(20, checker="tests.language.test_contexts:verbose")
    method = sdpo(samples=2, k=3, max_tokens=4)
    fit(
        lambda: student(context=150),
        data,
        method,
        device="cpu",
        steps=1,
        batch_size=4,
        max_tokens=4,
        warn=warned.append,
    )
    assert [line for line in warned if line.startswith("warning: 6 solutions or feedbacks of generation 0 did not fit")]
    assert all("\n" not in line for line in warned)


def verbose(completion: str, answer: str) -> tuple[float, str]:
    return 0.0, "x" * 100


@pytest.mark.parametrize("options", [{"memory_dtype": "float16"}, {"memory_top": 5}])
def test_a_precision_of_memories_is_refused_where_no_recipe_has_one(options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="leave memory_dtype and memory_top out"):
        fit(student, prompts(20), ssd(max_tokens=4), device="cpu", **options)


def test_audit_prompts_must_fit_too() -> None:
    data = prompts(20)
    long = int(data.audit[-1])
    rows = tuple(replace(r, messages=(("user", "x" * 60),)) if i == long else r for i, r in enumerate(data.rows))
    with pytest.raises(DataError, match=f"^prompts:{rows[long].line}: the prompt") as found:
        fit(lambda: student(context=60), replace(data, rows=rows), ssd(max_tokens=4), device="cpu", max_tokens=4)
    one_line(found.value)


# is there a signal?


@dataclass(frozen=True)
class Same:
    """A context that takes pains to add nothing."""

    def __call__(self, example: Example, rollouts: Sequence[Rollout], own: int) -> Any:
        return list(example.messages)


@pytest.mark.parametrize("context", [NoContext(), Same()])
@pytest.mark.parametrize(
    "teacher", [LIVE, Frozen(CONTEXT), Ema(0.9, CONTEXT, warm_up=False), GeometricMixture(Frozen(CONTEXT), LIVE, 0.5)]
)
def test_a_teacher_that_is_the_student(context: Any, teacher: Teacher) -> None:
    warned = list[str]()
    method = Language({"distil": distil(teacher)}, source=OnPolicy(1, Sampling(max_tokens=4)), context=context)
    if teacher == LIVE:
        with pytest.raises(VitalsError, match="teacher-is-student") as found:
            tried(method)
        one_line(found.value)
    else:  # a control that may be wanted: the student moves away from it
        tried(method, warn=warned.append)
        assert [line for line in warned if "adds nothing" in line]


def test_a_context_that_helps_one_row_is_no_dead_signal() -> None:
    line, warned = first_line(), list[str]()

    def context(example: Example, rollouts: Sequence[Rollout], own: int) -> Any:
        return [("user", "other")] if example.line == line else example.messages

    for teacher in (LIVE, Frozen(CONTEXT)):
        method = Language({"distil": distil(teacher)}, source=OnPolicy(1, Sampling(max_tokens=4)), context=context)
        tried(method, warn=warned.append)
    assert not warned


def test_no_recipe_is_taken_for_dead() -> None:
    warned = list[str]()
    for method in (sdft(max_tokens=4), sdpo(samples=2, k=3, max_tokens=4), gkd(max_tokens=4)):
        tried(method, warn=warned.append)
    assert not warned


def test_a_checker_that_raises_is_told_and_never_fatal() -> None:
    warned = list[str]()
    data = prompts(30, checker="tests.language.test_contexts:fragile")
    method = replace(ssd(max_tokens=4), generations=2)
    fit(student, data, method, device="cpu", steps=1, batch_size=4, max_tokens=4, warn=warned.append)
    told = [line for line in warned if "checker" in line]
    assert told
    assert all("ZeroDivisionError" in line and "\n" not in line for line in told)
    assert len(told) <= 3  # before step 0, and once a generation


def fragile(completion: str, answer: str) -> float:
    return 1.0 / (len(completion) - len(completion))


# what the contexts say


def test_demonstration_and_hint() -> None:
    assert Demonstration("{prompt}|{demonstration}")(EXAMPLE, [], 0) == [("system", "S"), ("user", "Why?|So.")]
    assert Demonstration()(replace(EXAMPLE, demonstration=None), [], 0) is None
    assert Hint("{prompt}|{answer}")(EXAMPLE, [], 0) == [("system", "S"), ("user", "Why?|42")]
    assert WrongSolution(Demonstration("{demonstration}"))(EXAMPLE, [], 0) == [("system", "S"), ("user", "No.")]
    assert Instruction("Rhyme.")(EXAMPLE, [], 0) == [("system", "Rhyme.\n\nS"), ("user", "Why?")]


def test_what_is_filled_in_is_never_read_as_a_template() -> None:
    assert filled("{a}{b}{c}", a="{b}", b="") == "{b}{c}"


def test_attempts_show_a_siblings_solution() -> None:
    group = [roll(1.0, "<think>hm</think> mine"), roll(0.0, "bad", "wrong!"), roll(1.0, "<think>x\ny</think>\nyours")]
    said = [SiblingAttempts()(EXAMPLE, group, own) for own in range(3)]
    texts = [None if s is None else s[-1][1] for s in said]
    end = "\n\nCorrectly solve the original question."
    assert texts == [
        "Why?\n\nCorrect solution:\n\nyours" + end,
        "Why?\n\nCorrect solution:\n\nmine" + end,
        "Why?\n\nCorrect solution:\n\nmine" + end,  # not its own
    ]
    alone = SiblingAttempts()(EXAMPLE, [roll(0.0, "bad", "wrong!")], 0)
    told = "\n\nThe following is feedback from your unsuccessful earlier attempt:\n\nwrong!"
    assert alone == [("system", "S"), ("user", f"Why?{told}{end}")]
    assert SiblingAttempts()(EXAMPLE, [roll(1.0)], 0) is None  # solved, and nobody else did
    assert SiblingAttempts()(EXAMPLE, [roll(0.0), roll(0.0)], 0) is None
    both = SiblingAttempts(both=True)(EXAMPLE, group, 1)
    assert both is not None
    assert both[-1][1] == f"Why?\n\nCorrect solution:\n\nmine{told}{end}"


@pytest.mark.parametrize(
    ("text", "thinking", "answer"),
    [
        ("plain", False, "plain"),
        ("<think>a</think>\n b <think>c</think>d", False, "b d"),
        ("a</think>\n\nb", True, "b"),
        ("a</think>b", False, "b"),  # the opening tag is lost, whatever the prompt ends with
        ("a thought that was cut off", True, ""),
        ("b <think> cut", False, "b"),
    ],
)
def test_an_answer_has_no_thoughts(text: str, thinking: bool, answer: str) -> None:
    assert Rollout(0, (), (), text, thinking=thinking).answer == answer


def test_a_sibling_is_shown_without_thoughts_that_the_prompt_begins() -> None:
    group = [
        roll(0.0, "no</think> 3"),
        replace(roll(1.0, "it is 4"), thinking=True),
        replace(roll(1.0, "hm</think> 4"), thinking=True),
    ]
    said = SiblingAttempts()(EXAMPLE, group, 0)
    assert said is not None
    assert "Correct solution:\n\n4\n\n" in said[-1][1]  # the first one never came to an answer
    assert SiblingAttempts()(EXAMPLE, group[:2], 0) is None


@pytest.mark.parametrize("special", [True, False])
def test_a_prompt_that_begins_a_thought_is_told_and_its_tags_stay_in_the_text(special: bool) -> None:
    words = tokenizer(template=TEMPLATE.replace("<a>{% endif %}", "<a><think>\n{% endif %}"))
    words.add_tokens(["<think>", "</think>"], special_tokens=special)
    assert begins_thought(words, rendered(words, EXAMPLE.messages))
    assert not begins_thought(words, [*rendered(words, EXAMPLE.messages), *words("a")["input_ids"]])
    assert not begins_thought(tokenizer(), rendered(tokenizer(), EXAMPLE.messages))
    said = words("hm</think>4<eos>", add_special_tokens=False)["input_ids"]
    assert spoken(words, said) == "hm</think>4"


def test_answers_are_checked_without_their_thoughts_but_by_functions_of_ones_own() -> None:
    rollout = Rollout(0, (), (), "7 or 4</think>4", thinking=True)
    for spec, reward in {"exact": 1.0, "numeric": 1.0, "regex:7": 0.0, f"{__name__}:thought": 1.0}.items():
        example = Example((("user", "?"),), answer="4", checker=spec)
        assert RewardCheckers()(rollout, example).reward == reward, spec


def thought(completion: str, answer: str) -> bool:
    return "7 or" in completion


def test_prompts_are_rendered_with_the_assistants_turn_begun() -> None:
    words = tokenizer()
    assert words.decode(rendered(words, EXAMPLE.messages)) == "<s>S<u>Why?<a>"
    assert suffix(words) == words("<a>", add_special_tokens=False)["input_ids"]
    bare = tokenizer(template=None)
    assert bare.decode(rendered(bare, EXAMPLE.messages)) == "S\nWhy?\n"


def test_a_pair_shares_its_completion() -> None:
    words = tokenizer()
    plain = tuple(rendered(words, EXAMPLE.messages))
    prompt = paired(words, Demonstration("{prompt} {demonstration}"), EXAMPLE, [Rollout(0, plain, (9, 9))], 0)
    assert prompt == rendered(words, [("system", "S"), ("user", "Why? So.")])


def test_the_difference_is_shown() -> None:
    shown = difference(Demonstration("{prompt}\n{demonstration}"), EXAMPLE, [roll()], 0)
    assert shown == ["  system: S", "  user: Why?", "+ user: So."]
    assert difference(SiblingAttempts(), EXAMPLE, [roll(1.0)], 0) == ["(this context has nothing to add here)"]


def begun(method: Language, rows: int = 20, **more: Any) -> tuple[Trainer, LanguageTask]:
    """A training that has begun."""
    task = LanguageTask(student, prompts(rows).sealed(), method, **more)
    trainer = Trainer(task, method, Settings(steps=2, batch_size=8))
    trainer.begin(0)
    trainer.state.model.train()
    return trainer, task


def test_rows_of_an_example_need_not_stand_together() -> None:
    """The teacher's tokens follow the order of the student's rows, also where siblings are apart."""
    from selfdistill.language.completions import views

    _, task = begun(replace(sdft(max_tokens=4)))
    ids = task.data.labelled[:2].tolist()
    rolls = task.writer.roll([ids[0], ids[1], ids[0]], Sampling(max_tokens=4), (0, "apart"))
    pairs, rows = views(task.writer, rolls)["context"]
    assert rows.tolist() == [0, 1, 2]
    assert [tuple(said) for _, said in pairs] == [r.ids for r in rolls]


def test_empty_completions_teach_nobody() -> None:
    """An engine may return nothing; such rows are left out, and a generation keeps no completion without text."""

    def engine(model: Any, asked: Sequence[Any], sampling: Sampling, seed: int) -> Any:
        return [([], None) if i % 2 else ([20, 21, 1], None) for i in range(len(asked))]

    trainer, task = begun(sdft(max_tokens=4), engine=engine)
    (batch,) = task.batches(trainer.state)
    assert len(batch["x"].x) == len(batch["context"].x) == 3
    _, task = begun(ssd(max_tokens=4), engine=lambda m, a, s, k: [([1], None) if i % 2 else ([20, 1], None) for i in range(len(a))])  # fmt: skip  # noqa: E501
    assert {r.ids for r in task.rollouts} == {(20, 1)}
    with pytest.raises(DataError, match="worth keeping"):
        begun(ssd(max_tokens=4), engine=lambda m, a, s, k: [([1], None)] * len(a))
    trainer, _ = begun(sdft(max_tokens=4), engine=lambda m, a, s, k: [([], None)] * len(a))
    with pytest.raises(DataError, match="are empty"):
        trainer.step()


def test_a_context_that_was_written_after_is_not_corrected_for() -> None:
    """Completions drawn with a context come from another distribution on purpose."""

    def engine(model: Any, asked: Sequence[Any], sampling: Sampling, seed: int) -> Any:
        return [([20, 21, 1], (-1.0, -1.0, -1.0)) for _ in asked]

    on_policy, task = begun(sdft(max_tokens=4), engine=engine)
    assert "log_prob" in task.batches(on_policy.state)[0]["x"].extra
    once, task = begun(context_distillation(max_tokens=4), engine=engine)
    assert "log_prob" not in task.batches(once.state)[0]["x"].extra


def test_accumulation_has_the_loss_of_one_batch() -> None:
    """In the trainer: the same rollouts in two micro-batches, split between prompts and never within one."""
    losses, weights = list[float](), list[dict[str, torch.Tensor]]()
    for parts in (1, 3):
        method = sdpo(samples=2, k=5, grpo=0.5, max_tokens=6)
        data = prompts(30, checker="tests.language.test_recipes:lenient")
        result = fit(
            student, data, method, device="cpu", steps=2, batch_size=6, accumulate=parts, max_tokens=4, lr=1e-3
        )
        losses.append(result.history[-1]["loss"])
        weights.append(result.generations[0].weights)
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-5, rtol=1e-4, msg=name)


def test_contexts_of_2026() -> None:
    row = replace(prompts(20).rows[0], feedback="Shorter!", privileged_context="the part")
    mine = [Rollout(0, (), (), "my answer", 0.0), Rollout(0, (), (), "right", 1.0)]
    assert Preface("Be brief.")(row, mine, 0) == [("user", f"Be brief.\n\n{row.prompt}")]
    (turn,) = Hindsight()(row, mine, 0) or []
    assert "Shorter!" in turn[1]
    assert row.prompt in turn[1]
    assert Hindsight()(replace(row, feedback=None), mine, 0) is None
    wrong, right = (Revision()(row, mine, own) or [] for own in (0, 1))
    assert wrong[-2:] == [("assistant", "my answer"), ("user", Revision.wrong)]
    assert right[-2:] == [("assistant", "right"), ("user", Revision.right)]
    assert Revision()(row, [replace(mine[0], text=" ")], 0) is None
    long = replace(row, messages=(("system", "all of it"), ("user", "what?")))
    assert ShortContext()(long, mine, 0) == [("system", "the part"), ("user", "what?")]
    assert ShortContext()(row, mine, 0) == [("user", "the part")]
    assert ShortContext()(replace(row, privileged_context=None), mine, 0) is None
    failed = SiblingAttempts(failed=True)
    assert failed(row, mine, 1) is None
    assert failed(row, mine, 0) is not None
