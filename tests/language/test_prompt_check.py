"""Before a model is loaded: what does not fit or is refused by the chat template is told, or left out and counted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from selfdistill.errors import DataError
from selfdistill.experiments.task_types import TASK_TYPES
from selfdistill.io.run_record import Request
from selfdistill.language import run as run_module
from selfdistill.language.completions import Writer, views
from selfdistill.language.contexts import NoContext, completed, rendered, template_notes, turn_end
from selfdistill.language.evaluation import check_teachers
from selfdistill.language.prompt_check import check_prompts, long_prompts, without
from selfdistill.language.recipes import context_distillation, opcd, sdft, sdpo, sft, ssd
from selfdistill.language.sampling import Sampling, ends, export
from selfdistill.models import causal_lm
from selfdistill.models.causal_lm import Pretrained, Reader
from selfdistill.models.chat_options import with_options
from tests.language.tiny import EOS, TEMPLATE, prompts, student, tokenizer

STRICT = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "<u>{{ m['content'] }}<eos>{% endfor %}<a>"
)


def rows(count: int = 10, **more: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{i}+1?", **more} for i in range(count)]


def reader(longest: int | None = 80, template: str | None = TEMPLATE) -> Reader:
    return Reader(tokenizer(template=template), longest)


@pytest.mark.parametrize("method", [sft(), ssd(), sdft(turns=True), sdpo()])
@pytest.mark.parametrize("split", ["labelled", "audit", "test"])
def test_a_long_prompt_of_any_split_is_named_and_can_be_left_out(method: Any, split: str) -> None:
    data = prompts(20)
    i = int(getattr(data, split)[1])
    rows = list(data.rows)
    rows[i] = type(rows[i])((("user", "a" * 290),), "b", "b", "exact", line=i + 1)
    data = type(data)(data.name, tuple(rows), data.labelled, data.audit, data.test)
    method = method.drawing(lambda sampling: type(sampling)(max_tokens=4))
    assert list(long_prompts(reader(200), method, prompts(20), 4)) == []
    with pytest.raises(
        DataError, match=rf"^prompts:{i + 1}: the prompt \(line {i + 1}\) has 29\d tokens .*--skip-long"
    ):
        check_prompts(reader(200), method, data, None, 4)
    assert i in long_prompts(reader(200), method, data, 4)
    rest = without(data, [i])
    assert (len(getattr(rest, split)), rest.left_out) == (len(getattr(data, split)) - 1, 1)
    assert rest.describe()["left_out"] == 1
    assert rest.fingerprint != data.fingerprint


def test_a_demonstration_that_is_too_long_is_named() -> None:
    with pytest.raises(DataError, match=r"has 8 tokens and its demonstration 71, more than the model's context of 60"):
        check_prompts(reader(60), sft(), prompts(20, demonstration="a" * 70), None, 4)


def test_a_split_of_long_prompts_alone_is_refused() -> None:
    data = prompts(20)
    with pytest.raises(DataError, match="all 4 rows of the test split are too long"):
        without(data, data.test.tolist())


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (
            ("system", "user"),
            r"refuses the turns system, user \(System role not supported\); move the system text into",
        ),
        (("user", "user"), r"refuses the turns user, user \(roles must alternate\); join neighbouring turns"),
        (
            ("assistant", "user"),
            r"refuses the turns assistant, user \(roles must alternate\); write turns that it takes",
        ),
    ],
)
def test_turns_that_a_template_refuses_are_told_with_line_and_remedy(roles: tuple[str, ...], message: str) -> None:
    data = prompts(20)
    i = int(data.labelled[0])
    rows = list(data.rows)
    rows[i] = type(rows[i])(tuple((role, "a") for role in roles), "b", "b", "exact", line=i + 1)
    data = type(data)(data.name, tuple(rows), data.labelled, data.audit, data.test)
    with pytest.raises(DataError, match=rf"^prompts:{i + 1}: the model's chat template {message}"):
        check_prompts(reader(None, STRICT), sft(), data, None, 4)


@pytest.mark.parametrize("method", [opcd("Be brief."), context_distillation("Be brief.")])
def test_a_context_that_a_template_refuses_is_told(method: Any) -> None:
    with pytest.raises(DataError, match=r"^prompts:\d+: context Instruction, line \d+: .*System role not supported"):
        check_prompts(reader(None, STRICT), method, prompts(20), None, 4)


def test_a_completion_ends_as_the_template_ends_a_turn() -> None:
    words = tokenizer()
    assert (turn_end(words), completed(words, "ab")[-1], template_notes(words)) == (EOS, EOS, [])
    words.eos_token = "<s>"
    start = int(words.convert_tokens_to_ids("<s>"))  # type: ignore[arg-type]
    assert (words.eos_token_id, completed(words, "ab")[-1]) == (start, EOS)
    assert "ends a turn with '<eos>' and the tokenizer calls '<s>' the end" in template_notes(words)[0]
    assert template_notes(words, [start, EOS]) == []  # as Gemma: the generation config ends answers there too
    assert template_notes(words, [start]) == template_notes(words)
    bare = tokenizer(template=None)
    assert (turn_end(bare), template_notes(bare)[0][:31]) == (EOS, "the model has no chat template:")
    lines = tokenizer(template="{% for m in messages %}# {{ m['role'] }}\n{{ m['content'] }}\n{% endfor %}")
    assert turn_end(lines) == EOS
    notes = template_notes(lines)
    assert notes[0].startswith("the chat template ends a turn with no token that could end an answer; demonstrations")
    assert "does not begin the assistant's turn" in notes[1]


@pytest.mark.parametrize(
    ("closing", "ids", "note"),
    [
        ("<eos>", ["<eos>"], None),
        (" \n<eos>\n", [" ", "\n", "<eos>"], None),
        (
            " end\n<u>",
            ["<eos>"],
            "the chat template ends a turn with 'end <u>', which is no token that could end an answer",
        ),
        (
            " /end",
            ["<eos>"],
            "ends a turn with '/end', which is no token that could end an answer; .* stop, at '<eos>'",
        ),
        ("<s>", ["<s>"], "ends a turn with '<s>' and the tokenizer calls '<eos>' the end; .* stop, at '<s>'"),
    ],
)
def test_the_end_of_a_turn_is_that_of_the_template(closing: str, ids: list[str], note: str | None) -> None:
    words = tokenizer(template=TEMPLATE.replace("<eos>", closing))
    assert words.convert_ids_to_tokens(completed(words, "ab")) == ["a", "b", *ids]
    notes = template_notes(words)
    assert len(notes) == (note is not None)
    assert note is None or re.search(note, notes[0])


def test_what_ends_an_answer_is_read_from_the_generation_config(tmp_path: Path) -> None:
    model = student()
    model.plain.generation_config.eos_token_id = [0, EOS]
    model.tokenizer.eos_token = "<s>"
    model.plain.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    reader = Pretrained(str(tmp_path)).check()
    assert reader.ends == (0, EOS)
    assert template_notes(reader.tokenizer, reader.ends) == []
    (tmp_path / "generation_config.json").unlink()
    assert Pretrained(str(tmp_path)).check().ends == (EOS,)  # as the model's config says


def test_answers_stop_at_the_end_of_a_turn_also_in_plain_transformers(tmp_path: Path) -> None:
    model = student()
    model.tokenizer.eos_token = "<s>"
    model.plain.generation_config.eos_token_id = start = model.tokenizer.convert_tokens_to_ids("<s>")
    assert ends(model) == sorted([EOS, start])
    export(model, tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert saved["eos_token_id"] == sorted([EOS, start])
    assert model.plain.generation_config.eos_token_id == start


# ---- what is told before a run -----------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path) -> str:
    export(student(), tmp_path / "model")
    return str(tmp_path / "model")


def prepared(folder: Path, model: str, rows: list[dict[str, Any]], **more: Any) -> Any:
    path = folder / "p.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run_module.prepare(Request(data=str(path), model=model, max_tokens=4, **more))


def test_the_fields_that_are_read_and_those_that_are_not_are_told(tmp_path: Path, model: str) -> None:
    note = prepared(tmp_path, model, rows(completion="ab", wrong="c", id=3), method="sdft()").note.splitlines()
    assert note == [
        "p.jsonl: 10 prompts, demonstration (10), wrong (10); read completion as demonstration",
        "fields not used by sdft(): wrong, id",
    ]
    note = prepared(tmp_path, model, rows(completion="ab")).note.splitlines()
    assert note[1:] == [
        "method: sdft(), as 10 of 10 prompts have a demonstration or privileged context, and 0 a checker"
    ]
    note = prepared(tmp_path, model, rows(answer=1), method="ssd()").note.splitlines()
    assert note[-1].startswith("answers are not compared, as no row has a checker; add the field checker, or --checker")
    assert "fields not used by ssd(): answer" in note
    ready = prepared(tmp_path, model, rows(answer=1), checker="exact")
    assert (ready.expression, len(ready.data.has("checker"))) == ("sdpo()", 10)
    assert (
        prepared(tmp_path, model, rows(feedback="no", answer="1"), method="ssd()", control=False).note.count("\n") == 2
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            rows(demonstration="a", wrong="c", id=3),
            "the fields wrong, id are not used by sdft\\(\\), which the others sug",
        ),
        (rows(answer="1"), "the field answer is not used by ssd.* or compare the answers by --checker exact$"),
        (rows(solution="1"), "the field solution is not used .* as in --method 'ssd\\(\\)', or name columns"),
        ([*rows(9, demonstration="a"), {"prompt": "last"}], "the field demonstration is not used by ssd"),
        (
            [{"prompt": [{"role": "user", "content": f"{i}?", "tool_calls": []}]} for i in range(9)],
            r"prompt\[\].tool_calls",
        ),
    ],
)
def test_no_recipe_is_chosen_by_itself_while_fields_are_left_aside(
    tmp_path: Path, model: str, given: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(DataError, match=f"^p.jsonl: .*{message}"):
        prepared(tmp_path, model, given)
    prepared(tmp_path, model, given, method="ssd()")


def test_columns_of_another_name_make_prompts(tmp_path: Path, model: str) -> None:
    given = [{"q": f"{i}+1?", "a": "ab"} for i in range(10)]
    ready = prepared(tmp_path, model, given, fields=(("demonstration", "a"), ("prompt", "q")))
    assert ready.expression == "sdft()"
    assert ready.note.splitlines()[0].endswith("read a as demonstration, q as prompt")
    (tmp_path / "t.csv").write_text("q,a\n" + "".join(f"{i}+1?,ab\n" for i in range(10)))
    request = Request(data=str(tmp_path / "t.csv"), model=model, fields=(("demonstration", "a"), ("prompt", "q")))
    assert Request.from_json(json.loads(json.dumps(request.to_json()))) == request
    assert TASK_TYPES.of_request(request).name == "language"


def test_a_privileged_context_teaches_and_is_no_demonstration(tmp_path: Path, model: str) -> None:
    ready = prepared(tmp_path, model, rows(privileged_context="the rule is x"))
    assert ready.expression == "sdft()"
    messages = ready.method.context(ready.data.rows[0], [], 0)
    assert "the rule is x" in messages[-1][1]
    assert len(rendered(tokenizer(), messages)) > 20
    with pytest.raises(DataError, match="sft\\(\\) needs a demonstration on each prompt"):
        prepared(tmp_path, model, rows(privileged_context="x"), method="sft()")


def test_long_rows_are_left_out_when_asked_for(tmp_path: Path, model: str) -> None:
    given = [*rows(), {"prompt": "a" * 600}]
    with pytest.raises(DataError, match=r"p.jsonl:11: the prompt \(line 11\) has 602 tokens"):
        prepared(tmp_path, model, given, method="ssd()")
    ready = prepared(tmp_path, model, given, method="ssd()", skip_long=True)
    assert "1 of 11 rows are longer than the model's context and are left out" in ready.note


def test_what_a_run_needs_is_told_before_the_model_is_loaded(
    tmp_path: Path, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = list[str]()
    monkeypatch.setattr(causal_lm, "causal", loaded.append)
    monkeypatch.setattr(causal_lm, "parameter_count", lambda config: 10**15)
    with pytest.raises(DataError, match=r"1e\+06 billion parameters, which need \d+ GiB .*or --lora 16$"):
        prepared(tmp_path, model, rows(), method="ssd()")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"^LoRA needs peft: pip install 'selfdistill\[language\]', or give --lora 0"):
        prepared(tmp_path, model, rows(), method="ssd()", lora=4)
    assert not loaded


@pytest.mark.parametrize(
    "option", [{"max_tokens": 4}, {"lora": 4}, {"checker": "exact"}, {"group_lengths": True}, {"alarms": "warn"}]
)
def test_options_of_prompts_are_refused_for_other_data(option: dict[str, Any]) -> None:
    request = Request(data="digits", **option)
    name = next(iter(option)).replace("_", "-")
    with pytest.raises(DataError, match=f"^--{name} has a meaning for prompts alone; leave it out$"):
        TASK_TYPES.of_request(request)


# ---- templates of student and teacher ----------------------------------------------------------------

BRIEF = TEMPLATE.replace("<a>{% endif %}", "<a>{% if brief %}:{% endif %}{% endif %}")


def test_student_and_teacher_have_options_of_their_own(tmp_path: Path) -> None:
    export(student(template=BRIEF), tmp_path / "model")
    given, where = rows(demonstration="ab"), str(tmp_path / "model")

    def prompts_of(**options: str) -> tuple[str, str]:
        ready = prepared(tmp_path, where, given, method="sdft(turns=True)", **options)
        writer = Writer(ready.method, ready.data, max_tokens=4)
        writer.model = ready.build()
        (rollout,) = writer.roll([0], Sampling(max_tokens=3), (0, "x"))
        seen, words = views(writer, [rollout])["context"][0][0], writer.tokenizer
        assert seen[1] == rollout.ids
        return words.decode(rollout.prompt), words.decode(seen[0])

    assert prompts_of() == ("<u>0+1?<a>", "<u>0+1?<a>ab<eos><u>0+1?<a>")
    assert prompts_of(student_template="brief=true") == ("<u>0+1?<a>:", "<u>0+1?<a>ab<eos><u>0+1?<a>:")
    assert prompts_of(teacher_template="brief=true") == ("<u>0+1?<a>", "<u>0+1?<a>ab<eos><u>0+1?<a>:")
    apart = prompts_of(student_template="brief=true", teacher_template="brief=false")
    assert apart == ("<u>0+1?<a>:", "<u>0+1?<a>ab<eos><u>0+1?<a>")
    with pytest.raises(DataError, match=r"^--teacher-template: .* has no option 'breif' \(nearest: brief"):
        prepared(tmp_path, where, given, method="ssd()", teacher_template="breif=true")
    note = prepared(tmp_path, where, given, method="sft()", teacher_template="brief=true").note
    assert "--teacher-template changes nothing: nothing of sft() is read with a context" in note


def test_a_teacher_without_a_context_may_differ_by_its_template_alone() -> None:
    model, method = student(template=BRIEF), sdft()
    method = type(method)(**{**vars(method), "context": NoContext()})
    writer = Writer(method, prompts(20))
    writer.model = model
    warned = list[str]()
    check_teachers(writer, warned.append)
    assert "adds nothing to any" in warned[0]
    model.teacher_template = with_options(BRIEF, "brief=true", "x")
    check_teachers(writer, warned.append)
    assert len(warned) == 1
