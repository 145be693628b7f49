"""Teachers with another tokenizer: what tokens spell, the spans of two tokenizers, shared tokens, and a toy."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from selfdistill.errors import DataError
from selfdistill.language.cross_tokenizer import gold, uld
from selfdistill.language.recipes import gkd
from selfdistill.language.sampling import export
from selfdistill.language.trainer import fit
from selfdistill.losses.cross_vocabulary import SharedDivergence, SortedDistance
from selfdistill.models.causal_lm import OtherTokenizer
from selfdistill.models.token_spans import SharedTokens, TokenPairing, span_numbers, spellings
from tests.language.tiny import EOS, foreign_tokenizer, foreigner, prompts, student, tokenizer, write_prompts
from tests.terminal import refused

GIVEN: dict[str, Any] = {"device": "cpu", "steps": 1, "batch_size": 4, "max_tokens": 4, "audit": "off", "vitals": False}


def pieces() -> PreTrainedTokenizerFast:
    """A tokenizer as SentencePiece's: a space before the text, and bytes for unknown letters."""
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "ab", "▁ab"]
    merges = [("▁", "a"), ("a", "b"), ("▁", "ab")]
    made = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("words", [foreign_tokenizer(), pieces(), tokenizer()], ids=["bytes", "pieces", "letters"])
def test_what_tokens_spell_is_the_text(words: PreTrainedTokenizerFast) -> None:
    spelled, chance = spellings(words, "student"), random.Random(0)
    letters = "ab " if words.get_vocab().get("é") is None and len(words) < 200 else "ab é漢🎈"
    for _ in range(50):
        text = "".join(chance.choice(letters) for _ in range(8)) + "a"
        joined = b"".join(spelled[i] for i in words(text, add_special_tokens=False)["input_ids"])
        assert joined in (text.encode(), b" " + text.encode())


def test_tokens_that_spell_nothing_are_refused() -> None:
    made = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    made.decoder = decoders.WordPiece()
    with pytest.raises(DataError, match="decodes by WordPiece"):
        spellings(PreTrainedTokenizerFast(tokenizer_object=made), "teacher")


def test_spans_end_where_tokens_of_both_sides_end() -> None:
    chance = random.Random(1)
    for _ in range(200):
        ends = [sorted({*chance.sample(range(1, 12), chance.randint(0, 8)), 12}) for _ in range(2)]
        found = span_numbers(ends[0], ends[1]), span_numbers(ends[1], ends[0])
        spans = max(found[0]) + 1
        assert spans == max(found[1]) + 1 == len({*ends[0]} & {*ends[1]})
        for span in range(spans):  # both sides end a span at the same place
            last = [max(e for e, n in zip(side, numbers, strict=True) if n == span)
                    for side, numbers in zip(ends, found, strict=True)]  # fmt: skip
            assert last[0] == last[1]


def test_a_completion_is_read_as_the_teacher_writes_it() -> None:
    mine, theirs = tokenizer(), foreign_tokenizer()
    pairing = TokenPairing(mine, theirs)
    ids = mine("abcd x", add_special_tokens=False)["input_ids"]
    found = pairing.read([*ids, EOS], [EOS], theirs.eos_token_id)
    assert found is not None
    assert theirs.decode(found.ids) == "abcd x<|end|>"
    assert found.student[-1] == found.teacher[-1] == max(found.teacher)  # the end is a span of its own
    assert (
        found.student[:4] == [0, 0, 0, 0] if len(theirs("abcd", add_special_tokens=False)["input_ids"]) == 1 else True
    )
    cut = pairing.read([*ids[:2], 2, *ids[2:], EOS], [EOS], theirs.eos_token_id)  # a special token in its midst
    assert cut is not None
    assert (theirs.decode(cut.ids), cut.student[2:]) == ("ab", [-1] * 6)
    assert pairing.read([EOS], [EOS], theirs.eos_token_id) == ([0], [0], [0])
    assert pairing.read([2, *ids], [EOS], theirs.eos_token_id) is None
    by_place = pairing.read([*ids, EOS], [EOS], theirs.eos_token_id, positions=True)
    assert by_place is not None
    assert by_place.teacher == list(range(len(by_place.ids)))
    assert by_place.student == [*by_place.teacher, *[-1] * (7 - len(by_place.ids))]


def test_bytes_that_are_no_text_and_spaces_before_it_are_left_aside() -> None:
    mine, theirs = foreign_tokenizer(), pieces()
    pairing = TokenPairing(mine, theirs)
    ids = mine("ab é", add_special_tokens=False)["input_ids"]
    whole, cut = pairing.read(ids, [0], 1), pairing.read(ids[:-1], [0], 1)
    assert whole is not None
    assert cut is not None
    assert theirs.decode(whole.ids) == "ab é"
    assert str(theirs.decode(cut.ids)).strip() == "ab"  # half a letter is none
    assert cut.student[-1] == -1
    back = TokenPairing(theirs, mine).read(theirs("ab é", add_special_tokens=False)["input_ids"], [1], 0)
    assert back is not None
    assert mine.decode(back.ids) == "ab é"
    assert back.student[0] == back.teacher[0] == 0


def test_shared_tokens_spell_the_same_and_ends_are_one_token() -> None:
    mine, theirs = student(), foreigner()
    other = mine.external(None, theirs, same_tokens=False)
    assert isinstance(other, OtherTokenizer)
    shared = other.shared
    names = {
        mine.tokenizer.decode([i]): theirs.tokenizer.decode([j])
        for i, j in zip(shared.student.tolist(), shared.teacher.tolist(), strict=True)
    }
    assert names.pop("<eos>") == "<|end|>"
    assert all(one == another for one, another in names.items())
    assert {"a", "z", " ", "\n", "<pad>"} <= {*names}
    assert len(shared.student) + len(shared.student_rest) == mine.vocabulary
    assert len(shared.teacher) + len(shared.teacher_rest) == theirs.vocabulary


def test_with_equal_vocabularies_it_is_the_divergence_itself() -> None:
    torch.manual_seed(0)
    p, q = torch.randn(5, 9).softmax(-1), torch.randn(5, 9).softmax(-1)
    same = SharedTokens.of({i: i for i in range(9)}, (9, 9))
    m = 0.3 * q + 0.7 * p
    wanted = (0.3 * q * (q / m).log() + 0.7 * p * (p / m).log()).sum(-1)
    torch.testing.assert_close(SharedDivergence(0.3)(p, q, same), wanted)
    kl: Tensor = (q * (q / p).log()).sum(-1)
    torch.testing.assert_close(SharedDivergence(0.0)(p, q, same), kl)
    shuffled = q[:, torch.randperm(9)]
    torch.testing.assert_close(SortedDistance()(p, q, same), SortedDistance()(p, shuffled, same))
    assert float(SortedDistance()(q, shuffled, same).abs().max()) < 1e-6


def test_micro_batches_add_up(tmp_path: Path) -> None:
    """A step in pieces has the loss of the whole, though completions have spans of different numbers."""
    export(foreigner(), tmp_path)
    method = gold(str(tmp_path), share=0.0, max_tokens=5)
    losses = [fit(student, prompts(), method, accumulate=n, **GIVEN).history[0]["loss"] for n in (1, 3)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_other_tokens_are_refused_where_ids_are_compared_and_a_teacher_must_be_named(tmp_path: Path) -> None:
    export(foreigner(), tmp_path / "other")
    with pytest.raises(DataError, match=r"another tokenizer .* or take gold\(\) or uld\(\)"):
        fit(student, prompts(), gkd(str(tmp_path / "other")), **GIVEN)
    write_prompts(tmp_path)
    asked = [tmp_path / "p.jsonl", "--model", tmp_path / "tiny", "--lora", 0, "--device", "cpu"]
    assert "has no teacher; name one, as in gold('FOLDER')" in refused(
        "run", *asked, "--method", "gold()", "--out", tmp_path / "run"
    )


def test_a_teacher_whose_template_refuses_a_prompt_is_named_before_training(tmp_path: Path) -> None:
    other = foreigner()
    other.tokenizer.chat_template = "{{ raise_exception('no turns') }}"
    export(other, tmp_path)
    with pytest.raises(DataError, match=r":\d+: what the teacher .* reads: .*refuses"):
        fit(student, prompts(), uld(str(tmp_path)), **GIVEN)


@pytest.mark.parametrize("recipe", [gold, uld])
def test_a_student_comes_nearer_to_a_teacher_of_another_tokenizer(recipe: Any, tmp_path: Path) -> None:
    """The distance alone falls over the epochs, and not only the likelihood of demonstrations beside it."""
    export(foreigner(), tmp_path)
    method = recipe(str(tmp_path), **({"share": 0.0} if recipe is gold else {}))
    options: dict[str, Any] = {**GIVEN, "max_tokens": 4} | {"steps": None, "epochs": 8, "lr": 1e-2, "batch_size": 8}
    method = replace(method, terms={"distil": method.terms["distil"]}).drawing(lambda s: replace(s, max_tokens=4))
    lines = fit(student, prompts(), method, **options).history
    print(recipe.__name__, [round(line["loss"], 3) for line in lines])
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
