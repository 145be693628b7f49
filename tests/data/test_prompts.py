"""The data door of language models: rows, splits, checkers of rows, suites, and every refusal in one line."""

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from selfdistill.data import examples as examples_module
from selfdistill.data import prompts
from selfdistill.data.dataset import from_tensors
from selfdistill.data.examples import FIELDS, Example, field_names, tell_prompts, write_rows
from selfdistill.data.prompts import load_prompts, load_seeds, of_examples
from selfdistill.errors import DataError
from tests.data.asking import ask, many


def asked(loaded, split):
    return {loaded.rows[i].user_text for i in getattr(loaded, split).tolist()}


SPLITS = ("labelled", "audit", "test")


# ---- rows ------------------------------------------------------------------------------------------


def test_a_row_has_what_its_line_says(file):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}]
    path = file(
        ask("1 + 1 = ?", demonstration="2, of course", answer="2", checker="numeric", feedback="no", wrong="3"),
        "",
        {"messages": chat, "id": 7},
        {"prompt": [{"role": "user", "content": "Bye?"}], "demonstration": None},
    )
    loaded = load_prompts(path)
    first, second, third = loaded.rows
    assert first == Example((("user", "1 + 1 = ?"),), "2, of course", "2", "numeric", "no", "3", line=1)
    assert second == Example((("system", "Be brief."), ("user", "Hi?")), line=3)
    assert (third.prompt, third.demonstration, third.line) == ("Bye?", None, 4)
    assert (loaded.name, loaded.extra) == ("x.jsonl", ("id",))


def test_only_a_line_feed_ends_a_line(tmp_path):
    """JSON text may hold the other separators of lines that Unicode knows."""
    path = tmp_path / "x.jsonl"
    text = "a\u2028b\x85c"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(f'{{"prompt": "{text}{i}"}}' for i in range(3)).encode())
    assert [row.prompt for row in load_prompts(str(path)).rows] == [f"{text}{i}" for i in range(3)]


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=8).filter(
    str.strip
)
maybe = st.none() | words
turns = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.just("") | words), max_size=2)
examples = st.builds(
    lambda before, last, *known: Example((*before, ("user", last)), *known), turns, words, maybe, maybe, maybe, maybe
)


@given(rows=st.lists(examples, max_size=4))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read_back(rows, tmp_path):
    path = tmp_path / "x.jsonl"
    write_rows(rows, path, ["train"] * len(rows))
    found = examples_module.read_rows(path)
    assert [row.example.__dict__ | {"line": 0} for row in found] == [row.__dict__ for row in rows]
    assert [(row.split, row.extra) for row in found] == [("train", ())] * len(rows)


def test_a_record_of_reasoning_gym_travels_with_its_row(file, tmp_path):
    made = load_prompts("reasoning-gym:graph_color(size=3)")
    write_rows(made.rows, tmp_path / "x.jsonl")
    read = load_prompts(str(tmp_path / "x.jsonl"))
    assert [row.entry for row in read.rows] == [json.loads(json.dumps(row.entry)) for row in made.rows]
    assert len(read.has("checker")) == 3


def test_examples_are_values():
    one = Example((("user", "?"),), answer="1", entry={"a": []})
    assert one == Example((("user", "?"),), answer="1", entry=None)
    assert len({one, Example((("user", "?"),), answer="2")}) == 2


# ---- the fields of other tools ------------------------------------------------------------------------

TALK = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


@pytest.mark.parametrize(
    ("row", "fields", "renamed"),
    [
        ({"prompt": "Q", "completion": "A"}, {"demonstration": "A"}, [("completion", "demonstration")]),
        ({"prompt": TALK[1:2], "completion": TALK[2:]}, {"demonstration": "A"}, [("completion", "demonstration")]),
        ({"question": "Q", "answer": "A"}, {"answer": "A"}, [("question", "prompt")]),
        ({"problem": "Q", "ground_truth": "A"}, {"answer": "A"}, [("problem", "prompt"), ("ground_truth", "answer")]),
        (
            {"prompt": "Q", "chosen": "A", "rejected": "B"},
            {"demonstration": "A", "wrong": "B"},
            [("chosen", "demonstration"), ("rejected", "wrong")],
        ),
        (
            {"instruction": "Q", "input": "", "output": "A"},
            {"demonstration": "A"},
            [("instruction", "prompt"), ("input", "prompt"), ("output", "demonstration")],
        ),
        ({"messages": TALK[1:]}, {"demonstration": "A"}, [("the last turn of messages", "demonstration")]),
        (
            {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
            {"demonstration": "A"},
            [("conversations", "messages"), ("the last turn of messages", "demonstration")],
        ),
        ({"prompt": "Q", "privileged_context": "P"}, {"privileged_context": "P"}, []),
        ({"prompt": TALK[1:2], "privileged_context": TALK[1:2]}, {"privileged_context": "Q"}, []),
        (
            {"prompt": "Q", "completion": "A", "label": True},
            {"demonstration": "A"},
            [("completion with label true", "demonstration")],
        ),
        (
            {"prompt": "Q", "completion": "A", "label": False},
            {"wrong": "A"},
            [("completion with label false", "wrong")],
        ),
        (
            {"prompt": "Q", "chosen": TALK[1:], "rejected": [TALK[1], {"role": "assistant", "content": "B"}]},
            {"demonstration": "A", "wrong": "B"},
            [("chosen", "demonstration"), ("rejected", "wrong")],
        ),
        (
            {"chosen": TALK[1:], "rejected": [TALK[1], {"role": "assistant", "content": "B"}]},
            {"demonstration": "A", "wrong": "B"},
            [("the first turns of chosen", "messages"), ("chosen", "demonstration"), ("rejected", "wrong")],
        ),
    ],
)
def test_fields_of_other_tools_are_read_by_their_meaning(file, row, fields, renamed):
    loaded = load_prompts(file(*many(3), row))
    last = loaded.rows[-1]
    assert last.messages == (("user", "Q"),)
    assert {name: getattr(last, name) for name in FIELDS if getattr(last, name) is not None} == fields
    assert list(loaded.renamed) == renamed
    assert loaded.extra == ()


def test_an_own_field_comes_before_another_tools_and_what_is_not_read_is_named(file):
    talk = [{"role": "user", "content": "Q", "name": "me", "tool_calls": None}]
    loaded = load_prompts(file(*many(3), {"messages": talk, "question": "?", "demonstration": "A", "output": "B"}))
    assert (loaded.rows[-1].demonstration, loaded.renamed) == ("A", ())
    assert loaded.extra == ("messages[].name", "output", "question")


@pytest.mark.parametrize(
    ("value", "text"), [(42, "42"), (-3, "-3"), (2.5, "2.5"), (4.0, "4"), (10**30, "1" + "0" * 30), (1e30, "1e+30")]
)
def test_an_answer_may_be_a_number(file, value, text):
    loaded = load_prompts(file(*many(3), ask("a", answer=value, checker="numeric")))
    assert loaded.rows[-1].answer == text


def test_a_text_before_the_conversation_may_have_a_field_of_its_own(file):
    given = [
        {"system": "S", "instruction": "Q", "output": "A"},
        {"system": "S", "messages": TALK},
        {"system": "", **ask("Q")},
    ]
    loaded = load_prompts(file(*many(3), *given))
    assert [row.messages for row in loaded.rows[3:]] == [(("system", "S"), ("user", "Q"))] * 2 + [(("user", "Q"),)]
    assert loaded.extra == ("system",)  # of the second row, whose messages begin with one of their own


def test_columns_that_are_named_are_read_as_fields(file):
    rows = [{"q": f"{i}?", "solution": str(i), "answer": "x", "prompt": "old"} for i in range(6)]
    loaded = load_prompts(file(*rows), columns=field_names("prompt=q, answer=solution"))
    assert [(row.prompt, row.answer) for row in loaded.rows] == [(f"{i}?", str(i)) for i in range(6)]
    assert loaded.extra == ("answer", "prompt")
    assert dict(loaded.renamed) == {"q": "prompt", "solution": "answer"}
    with pytest.raises(
        DataError, match=r'no row has the column "solutoin" \(nearest: "solution"\), which is to be the an'
    ):
        load_prompts(file(*rows), columns=(("answer", "solutoin"),))
    with pytest.raises(DataError, match="the rows of a task have no groups, no time and no columns"):
        load_prompts("reasoning-gym:chain_sum(size=5)", columns=(("answer", "x"),))


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ("prompt", "'prompt' is no FIELD=COLUMN; write columns as in prompt=question"),
        ("promt=a", "'promt' is no field of prompts; nearest: prompt; the fields are prompt, messages, split, demo"),
        ("prompt=a,prompt=b", "'prompt' is given twice as a field or column"),
        ("prompt=a,answer=a", "'a' is given twice"),
    ],
)
def test_columns_that_are_none_are_refused(pairs, message):
    with pytest.raises(DataError, match=message):
        field_names(pairs)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ("prompt id", True), ("conversations id", True), ("instruction input output text", True),
        ("question answer", True), ("problem ground_truth", True), ("question age", False), ("output input", False),
    ],
)  # fmt: skip
def test_a_table_of_prompts_is_told_by_its_columns(names, told):
    assert tell_prompts(names.split()) is told


def test_an_instruction_is_followed_by_its_input(file):
    loaded = load_prompts(file(*many(3), {"instruction": "Add.", "input": "1 1", "output": "2"}))
    assert loaded.rows[-1].prompt == "Add.\n\n1 1"


def test_names_of_the_validation_split(file):
    names = ["train"] * 3 + ["audit", "validation", "val", "valid", "dev", "test"]
    loaded = load_prompts(file(*[ask(f"{i}", split=name) for i, name in enumerate(names)]))
    assert [len(getattr(loaded, split)) for split in SPLITS] == [3, 5, 1]


# ---- splits ----------------------------------------------------------------------------------------


def test_shares_and_caps():
    def sizes(count):
        loaded = of_examples(Example((("user", f"{i}"),)) for i in range(count))
        return tuple(len(getattr(loaded, split)) for split in SPLITS)

    assert sizes(100) == (64, 16, 20)
    assert sizes(3) == (1, 1, 1)
    assert sizes(4000) == (3300, 200, 500)


@given(st.lists(st.integers(0, 12), min_size=6, max_size=60).filter(lambda ids: len(set(ids)) >= 3), st.integers(0, 3))
def test_a_prompt_is_in_one_split_and_every_row_in_one(ids, seed):
    rows = [Example((("user", f"what is  {i} ?" if n % 2 else f"what is {i} ?"),)) for n, i in enumerate(ids)]
    loaded = of_examples(rows, seed=seed)
    assert sorted(torch.cat([getattr(loaded, split) for split in SPLITS]).tolist()) == list(range(len(ids)))
    groups = [asked(loaded, split) for split in SPLITS]
    assert all(groups)
    assert not (groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2])
    again = of_examples(rows, seed=seed + 1)
    assert loaded.test.equal(again.test)


@given(st.permutations(range(30)))
def test_splits_do_not_depend_on_the_order_of_rows(order):
    plain = of_examples(Example((("user", f"{i}"),)) for i in range(30))
    mixed = of_examples(Example((("user", f"{i}"),)) for i in order)
    assert [asked(plain, split) for split in SPLITS] == [asked(mixed, split) for split in SPLITS]


def test_seeds_change_the_audit():
    rows = [Example((("user", f"{i}"),)) for i in range(100)]
    assert len({tuple(of_examples(rows, seed=seed).audit.tolist()) for seed in range(5)}) == 5


def test_seeds_that_are_loaded_together_are_read_once_and_are_those_loaded_alone(file, monkeypatch):
    path, read, reads = file(*many(40, answer="1")), examples_module.read_rows, list[Any]()
    alone = [load_prompts(path, seed=seed, labels=9) for seed in (3, 0, 5)]

    def counting(place, *names):
        reads.append(place)
        return read(place, *names)

    monkeypatch.setattr(prompts, "read_rows", counting)
    together = load_seeds(path, (3, 0, 5), labels=9)
    assert [data.fingerprint for data in together] == [data.fingerprint for data in alone]
    assert len({data.fingerprint for data in alone}) == 3
    assert len(reads) == 1


def test_the_same_question_under_another_system_prompt_stays_in_its_split():
    rows = [Example((("system", s), ("user", f"{i}"))) for i in range(20) for s in ("a", "b")]
    loaded = of_examples(rows)
    assert all(
        set(Counter(loaded.rows[i].user_text for i in getattr(loaded, s).tolist()).values()) == {2} for s in SPLITS
    )


def test_a_prompt_that_is_most_of_the_file_teaches():
    rows = [Example((("user", "again"),))] * 90 + [Example((("user", f"{i}"),)) for i in range(10)]
    loaded = of_examples(rows)
    assert asked(loaded, "labelled") == {"again"}


def test_labels_limit_what_teaches_and_what_judges():
    rows = [Example((("user", f"{i}"),)) for i in range(100)]
    whole, few = of_examples(rows), of_examples(rows, labels=5)
    assert (len(few.labelled), len(few.audit), few.test.tolist()) == (5, 5, whole.test.tolist())
    assert set(few.labelled.tolist()) < set(whole.labelled.tolist())
    assert set(few.audit.tolist()) < set(whole.audit.tolist())
    assert few.labelled.tolist() != of_examples(rows, labels=5, seed=1).labelled.tolist()


def test_no_share_no_split():
    rows = [Example((("user", f"{i}"),)) for i in range(10)]
    loaded = of_examples(rows, audit=0, test=0)
    assert [len(getattr(loaded, split)) for split in SPLITS] == [10, 0, 0]
    assert [len(getattr(of_examples(rows, audit=0), split)) for split in SPLITS] == [8, 0, 2]


def test_a_file_that_names_its_splits_is_obeyed(file):
    named = ["train"] * 3 + ["audit"] * 2 + ["test"]
    path = file(*[ask(f"{i}", split=split) for i, split in enumerate(named)])
    loaded = load_prompts(path)
    assert [getattr(loaded, split).tolist() for split in SPLITS] == [[0, 1, 2], [3, 4], [5]]


def test_rows_that_name_no_split_are_shared_out(file):
    path = file(*[ask(f"{i}", split="test") for i in range(4)], *[ask(f"{i}") for i in range(3, 20)])
    loaded = load_prompts(path)
    assert loaded.test.tolist() == [0, 1, 2, 3, 4]  # the fifth row asks what the fourth asks
    assert (len(loaded.audit), len(loaded.labelled)) == (3, 13)


# ---- what the trainer reads ------------------------------------------------------------------------


def test_prompts_have_what_the_trainer_reads_of_data():
    loaded = load_prompts("reasoning-gym:chain_sum(size=20)")
    plain = from_tensors(torch.rand(20, 2), torch.arange(20) % 2)
    shared = "name kind task classes shape labelled unlabelled audit test flips augment noisy center scale y targets"
    for name in shared.split():
        assert type(getattr(loaded, name)) is type(getattr(plain, name)), name
    assert (len(loaded.y), len(loaded.targets), len(loaded.noisy), len(loaded.unlabelled)) == (20, 20, 20, 0)
    assert (loaded.kind, loaded.task, loaded.center, loaded.scale) == ("prompts", "generate", 0.0, 1.0)
    described = loaded.describe()
    assert set(described) == {*plain.describe(), "fields"}
    assert json.loads(json.dumps(described)) == described
    assert described["fields"] == {"demonstration": 0, "answer": 20, "checker": 20}


def test_has_gives_ids(file):
    loaded = load_prompts(file(*many(3), *[ask(f"more {i}", answer="1") for i in range(2)]))
    assert loaded.has("answer").tolist() == [3, 4]
    assert loaded.has("wrong").tolist() == []


def test_the_fingerprint_sees_every_field_and_split():
    rows = [Example((("user", f"{i}"),)) for i in range(10)]
    known: list[dict[str, Any]] = [{name: "1"} for name in FIELDS]
    variants = [
        rows,
        *([replace(rows[0], **more), *rows[1:]] for more in known),
        [Example((("system", "0"), ("user", "0"))), *rows[1:]],
    ]
    seen = {of_examples(variant).fingerprint for variant in variants}
    seen |= {of_examples(rows, test=0).fingerprint, of_examples(rows, audit=0).fingerprint}
    seen |= {of_examples(rows, labels=2).fingerprint, of_examples(rows, seed=1).fingerprint}
    assert len(seen) == len(variants) + 4
    assert of_examples(rows).fingerprint == of_examples(rows).fingerprint


def test_sealed_prompts_hide_the_test_rows():
    whole = load_prompts("reasoning-gym:chain_sum(size=20)")
    kept = whole.sealed()
    assert (len(kept.test), kept.fingerprint) == (0, whole.fingerprint)
    assert kept.sealed().fingerprint == whole.fingerprint
    for i, row in enumerate(whole.rows):
        hidden = i in whole.test.tolist()
        assert (kept.rows[i] == row) != hidden
        assert not hidden or (kept.rows[i].answer, kept.rows[i].entry) == (None, None)


# ---- checkers of rows ------------------------------------------------------------------------------


def test_the_usual_checker_is_for_rows_that_name_none_and_can_be_judged(file):
    path = file(ask("a", answer="1"), ask("b", answer="2", checker="exact"), ask("c"), ask("d", answer="many"))
    assert [row.checker for row in load_prompts(path, checker="numeric").rows] == ["numeric", "exact", None, None]
    assert [row.checker for row in load_prompts(path).rows] == [None, "exact", None, None]
    task = load_prompts("reasoning-gym:chain_sum(size=3)", checker="numeric")
    assert {row.checker for row in task.rows} == {"numeric"}


def test_a_task_makes_600_rows_whatever_the_seed():
    rows = load_prompts("reasoning-gym:chain_sum")
    other = load_prompts("reasoning-gym:chain_sum", seed=3)
    assert len(rows.rows) == 600
    assert rows.rows == other.rows
    assert rows.test.equal(other.test)
    assert not rows.audit.equal(other.audit)


# ---- refusals --------------------------------------------------------------------------------------

GOOD = many(3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'prompt': 1}", r"not JSON \(Expecting property name enclosed in double quotes at column 2\); write one obj"),
        ("prompt,answer", r"not JSON \(Expecting value at column 1\)"),
        ('{"prompt": "a"} {"prompt": "b"}', r"not JSON \(Extra data at column 17\)"),
        ('{"prompt": "a"', r"not JSON"),
        ("9" * 5000, r"not JSON"),
        ("[" * 100_000, r"nested too deeply"),
        ([GOOD], r"a list instead of an object; write one a line"),
        ("null", r"null instead of an object"),
        ({}, r'no prompt; add the field "prompt"'),
        ({"promt": "a"}, r'no prompt \(it has "promt"\)'),
        ({"prompt": None}, r"no prompt"),
        ({"prompt": "a", "messages": []}, r'both "prompt" and "messages"'),
        (ask(3), r'the field "prompt" is a number and not text; write "3"'),
        (ask(True), r'the field "prompt" is true or false and not text; write it as text'),
        (ask({}), r'the field "prompt" is an object and not text'),
        (ask("  \n"), r"the prompt is empty"),
        (ask([]), r"a prompt ends with the user's turn, and there is no turn"),
        (
            {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            r"the last turn is the assistant's; move what comes after it to the field \"demonstration\"",
        ),
        (
            {"messages": [{"role": "human", "content": "a"}]},
            r'message 1 of "messages" has the role "human"; use system',
        ),
        ({"messages": [{"role": ["user"], "content": "a"}]}, r"has the role \[\"user\"\]"),
        ({"messages": ["a"]}, r'message 1 of "messages" is not of the form'),
        ({"messages": [{"role": "user"}]}, r"is not of the form"),
        ({"messages": [{"role": "user", "content": [1]}]}, r'the content of message 1 of "messages" is a list and not'),
        ('{"prompt": "a", "prompt": "b"}', r'the key "prompt" is there twice in one object; keep one'),
        ('{"messages": [{"role": "user", "role": "user", "content": "a"}]}', r'the key "role" is there twice'),
        ('{"prompt": "a\\u0000b"}', r"has the character NUL in it; remove it"),
        ('{"prompt": "a\x00b"}', r"not JSON \(Invalid control character at"),
        ({"text": "a", "id": 3}, r'no prompt \(it has "text", "id"\); add the field "prompt"'),
        (
            ask("a", completion=[{"role": "user", "content": "b"}]),
            r'the field "demonstration" ends with a turn of the user; give',
        ),
        (ask("a", demonstration={"role": "assistant"}), r'the field "demonstration" is an object and not text'),
        ({"messages": "[{'role': 'user'}]"}, r'the field "messages" is a text that is not JSON; write a list'),
        ('{"prompt": "\\ud800"}', r"half a character, '\\ud800'; remove it"),
        ('{"prompt": "a", "answer": NaN}', r'the field "answer" is nan, which is no number; write it'),
        (ask("a", answer=True), r'the field "answer" is true or false and not text; write it as text'),
        (ask("a", demonstration=42), r'the field "demonstration" is a number and not text; write "42"'),
        (
            ask("a", chosen=[{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]),
            r"\"demonstration\" "
            r"has 2 messages that do not repeat the prompt; give the last alone",
        ),
        (ask("a", wrong=["b"]), r'the field "wrong" is a list and not text'),
        (ask("a", demonstration=" "), r"empty completion: the demonstration has no text; write it, or leave the field"),
        (ask("a", answer=""), r'the field "answer" has no text'),
        (ask("a", checker="exact"), r'the checker exact has no answer to compare with; add the field "answer"'),
        (ask("a", answer="1", checker="exat"), r"unknown checker 'exat'; nearest: exact"),
        (ask("a", answer="one", checker="numeric"), r"finds no number in the answer 'one'"),
        (ask("a", answer="(", checker="regex"), r"'\(' is no regular expression"),
        (ask("a", split="holdout"), r'the split is "holdout"; use "train", "validation" or "test"'),
        (ask("a", split=[1]), r"the split is \[1\]"),
        (ask("a", entry="x"), r'the field "entry" is text; give the object'),
    ],
)
def test_a_bad_line_is_told_with_file_line_and_remedy(file, line, message):
    path = file(*GOOD, "", line, *GOOD)
    with pytest.raises(DataError, match=message) as caught:
        load_prompts(path)
    assert f"{path}:5: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_that_is_no_text_is_told_with_its_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "caf\xe9"}\n')
    with pytest.raises(DataError, match=r"x.jsonl:2: byte 0xe9 is not UTF-8; save the file as UTF-8"):
        load_prompts(str(path))
    path.write_text('{"prompt": "a"}\n', encoding="utf-16")
    with pytest.raises(DataError, match=r"x.jsonl:1: byte 0xff is not UTF-8"):
        load_prompts(str(path))


@pytest.mark.parametrize("name", ["x.txt", "x.yaml", "folder.jsonl", "x"])
def test_a_file_of_another_kind_is_refused(file, tmp_path, name):
    (tmp_path / "folder.jsonl").mkdir()
    path = str(tmp_path / name) if name.startswith("folder") else file(*GOOD, name=name)
    with pytest.raises(DataError, match=r"prompts are read from a \.jsonl file, one JSON object a line"):
        load_prompts(path)


def test_a_missing_file_is_told_with_the_nearest(file, tmp_path):
    file(*GOOD, name="prompts.jsonl")
    with pytest.raises(DataError, match=r"no prompts called '.*promts.jsonl' \(did you mean '.*prompts.jsonl'\?\)"):
        load_prompts(str(tmp_path / "promts.jsonl"))
    with pytest.raises(DataError, match=r"no prompts called"):
        load_prompts(str(tmp_path / "nowhere" / "x.jsonl"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test": 1.0}, "test is a share from 0 to below 1, not 1.0; try 0.2"),
        ({"audit": -0.1}, "audit is a share from 0 to below 1, not -0.1"),
        ({"audit": float("nan")}, "audit is a share from 0 to below 1, not nan"),
        ({"labels": 100}, "100 rows were asked for, but 6 can teach; ask for 6 or fewer"),
        ({"labels": 0}, "0 rows were asked for; ask for 1 or more"),
        ({"checker": "exat"}, "unknown checker 'exat'"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(file, options, message):
    with pytest.raises(DataError, match=message):
        load_prompts(file(*many(10)), **options)


def test_too_few_prompts_are_refused(file):
    with pytest.raises(DataError, match=r"x.jsonl: 2 distinct prompts; give 3 or more"):
        load_prompts(file(ask("a"), ask("b"), ask(" a ")))
    with pytest.raises(DataError, match=r"x.jsonl: 0 distinct prompts"):
        load_prompts(file())


def test_named_splits_are_not_asked_for_again_nor_contradicted(file):
    rows = [ask("a", split="test"), ask("b"), ask("c"), ask("d")]
    with pytest.raises(DataError, match=r'its test rows are given by its field "split"; leave test out'):
        load_prompts(file(*rows), test=0.5)
    with pytest.raises(DataError, match=r"no row teaches"):
        load_prompts(file(*[ask(f"{i}", split="test") for i in range(3)]))


# ---- copies, groups and times ------------------------------------------------------------------------


def test_copies_across_named_splits_are_kept_and_counted(file):
    rows = [ask("a", split="test", answer="1"), ask("b"), ask("c"), ask("d"), ask("a", split="train", answer="2")]
    loaded = load_prompts(file(*rows))
    assert loaded.test.tolist() == [0]
    assert 4 in loaded.labelled
    assert loaded.copies.across.tolist() == [0]
    (conflict,) = loaded.copies.conflicts
    assert (conflict.rows, conflict.labels) == ([1, 5], ["1", "2"])
    copies: Any = loaded.describe()["copies"]
    assert copies["conflicting"] == 2


def test_files_of_splits_are_taken(file, tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(ask(f"t{i}")) + "\n" for i in range(3)) + json.dumps(ask("0")) + "\n")
    loaded = load_prompts(file(*[ask(f"{i}") for i in range(10)]), test=str(path))
    assert loaded.test.tolist() == [10, 11, 12, 13]
    assert loaded.copies.across.tolist() == [13]
    assert len(loaded.audit) == 2
    with pytest.raises(DataError, match='its field "split" names test rows'):
        load_prompts(file(*[ask(f"{i}", split="test") for i in range(3)], *[ask("x")]), test=str(path))


def test_prompts_of_a_group_share_a_split(file):
    rows = [ask(f"{i}", user=f"u{i % 9}") for i in range(45)]
    loaded = load_prompts(file(*rows), groups="user")
    sides = [{i % 9 for i in getattr(loaded, split).tolist()} for split in SPLITS]
    assert sum(map(len, sides)) == 9
    assert loaded.extra == ()
    with pytest.raises(DataError, match=r'x.jsonl:1: no field "nobody", which --groups names'):
        load_prompts(file(*rows), groups="nobody")


def test_the_latest_prompts_test(file):
    order = [(7 * i) % 40 for i in range(40)]
    rows = [ask(f"{k}", at=f"2024-01-{k % 28 + 1:02d}" if k < 28 else f"2024-02-{k - 27:02d}") for k in order]
    loaded = load_prompts(file(*rows), time="at")
    parts = [[order[i] for i in getattr(loaded, split).tolist()] for split in SPLITS]
    assert max(parts[0]) < min(parts[1])
    assert max(parts[1]) < min(parts[2])
    assert len(parts[2]) == 8
    again = load_prompts(file(*rows, ask("39", at="2023-12-31")), time="at")
    assert again.copies.left_out == 1
