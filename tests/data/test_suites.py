"""Prompts that are only asked, and what a recipe needs of those that teach."""

import pytest

from selfdistill.data.prompts import load_prompts, load_suite, need
from selfdistill.errors import DataError
from tests.data.asking import ask, many

# ---- suites ----------------------------------------------------------------------------------------


def test_a_suite_is_all_test_rows_that_can_be_checked(file):
    suite = load_suite(file(ask("a", answer="1", checker="exact"), ask("b"), ask("c", answer="1", checker="numeric")))
    assert (suite.test.tolist(), len(suite.labelled), len(suite.audit)) == ([0, 2], 0, 0)
    assert len(load_suite("reasoning-gym:chain_sum(size=7)").test) == 7


def test_a_suite_without_anything_to_check_is_refused(file):
    path = file(ask("a", answer="1"))
    with pytest.raises(DataError, match=r'x.jsonl: none of its 1 rows can be checked; add the fields "answer" and'):
        load_suite(path)
    assert load_suite(path, checker="exact").test.tolist() == [0]


# ---- needs -----------------------------------------------------------------------------------------


def test_need_names_recipe_field_rows_and_line(file):
    loaded = load_prompts(file(*many(8, demonstration="so"), *[ask("x"), ask("y")]), audit=0, test=0)
    with pytest.raises(DataError) as caught:
        need(loaded, "demonstration", "sdft")
    assert str(caught.value) == (
        "sdft needs a demonstration on each prompt and 2 of 10 rows of x.jsonl have none (first: line 9); "
        'add the field "demonstration", or use ssd, which needs none'
    )
    with pytest.raises(DataError, match=r"opsd needs an answer on each prompt and 10 of 10 .*, or use sft$"):
        need(loaded, "answer", "opsd", "use sft")


def test_need_asks_only_the_rows_that_teach(file):
    named = [ask("x", split="test"), ask("y", split="audit"), *many(3, demonstration="so", split="train")]
    need(load_prompts(file(*named)), "demonstration", "sdft")


def test_need_tells_fields_that_were_not_read(file):
    loaded = load_prompts(file(*many(5, demonstation="so", id="1")))
    with pytest.raises(DataError, match=r'add the field "demonstration" \(not read: demonstation\), or'):
        need(loaded, "demonstration", "sdft")
    loaded = load_prompts(file(*many(5, reply="so", id="1")))
    with pytest.raises(DataError, match=r"\(not read: id, reply\)"):
        need(loaded, "demonstration", "sdft")
