"""Two tokenizers over one text: the bytes that tokens spell, the spans at whose ends both agree, and shared tokens."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import DataError

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


#: Decoders that change what tokens spell by their neighbours.
_UNSPELLED = frozenset({"WordPiece", "CTC", "BPEDecoder"})


@lru_cache(maxsize=1)
def _byte_of_letter() -> dict[str, int]:
    """The byte that each letter of a byte-level tokenizer stands for: printable ones for themselves, others above."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _nodes(decoder: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if decoder:
        yield decoder
        for inner in decoder.get("decoders", ()):
            yield from _nodes(inner)


def spellings(tokenizer: Any, who: str) -> dict[int, bytes]:
    """The bytes that each token spells, by its id; special tokens spell nothing and are left out.

    Byte-level tokenizers, SentencePiece's with or without bytes for unknown letters, and plain ones are read.

    Args:
        tokenizer: A fast tokenizer of transformers.
        who: Whose it is, for errors.

    Raises:
        DataError: It is no fast tokenizer, or its tokens spell nothing on their own, as WordPiece's.
    """
    backend = vars(tokenizer).get("_tokenizer")
    if backend is None:
        raise DataError(
            f"the {who}'s tokenizer ({type(tokenizer).__name__}) does not say what its tokens spell; give a model "
            "with a tokenizer.json"
        )
    nodes = list(_nodes(json.loads(backend.to_str()).get("decoder")))
    kinds = {str(node["type"]) for node in nodes}
    if found := sorted(kinds & _UNSPELLED):
        raise DataError(
            f"the {who}'s tokenizer decodes by {found[0]}, whose tokens have no bytes of their own; give a model "
            "with a byte-level or SentencePiece tokenizer"
        )
    letters, added = _byte_of_letter(), tokenizer.added_tokens_decoder
    special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    spaced = "Metaspace" in kinds or any("▁" in str(node.get("pattern")) for node in nodes if node["type"] == "Replace")

    def spelled(token: str) -> bytes:
        if "ByteLevel" in kinds:
            return b"".join(bytes([letters[c]]) if c in letters else c.encode() for c in token)
        if "ByteFallback" in kinds and (byte := _BYTE.fullmatch(token)):
            return bytes([int(byte[1], 16)])
        return (token.replace("▁", " ") if spaced else token).encode()

    return {
        i: (token.encode() if i in added else spelled(token))
        for token, i in tokenizer.get_vocab().items()
        if i not in special
    }


def span_numbers(ends: Sequence[int], others: Sequence[int]) -> list[int]:
    """The span of each token: one begins after each place where tokens of both sides end; -1 after the last of them.

    Args:
        ends: Where each token ends in the text, ascending.
        others: Where each token of the other side ends.

    >>> span_numbers([2, 3, 7], [1, 3, 5, 7]), span_numbers([1, 3, 5, 7], [2, 3, 7])
    ([0, 0, 1], [0, 0, 1, 1])
    """
    common = sorted({*ends} & {*others})
    return [place if (place := bisect_left(common, end)) < len(common) else -1 for end in ends]


class SharedTokens(NamedTuple):
    """The ids of tokens that two vocabularies share, in one order, and the ids of those that each has alone."""

    student: Tensor
    teacher: Tensor
    student_rest: Tensor
    teacher_rest: Tensor

    @classmethod
    def of(cls, pairs: Mapping[int, int], sizes: tuple[int, int]) -> SharedTokens:
        """From the teacher's id of each shared id of the student, and the sizes of the two vocabularies."""
        mine, theirs = sorted(pairs), set(pairs.values())
        return cls(
            torch.tensor(mine, dtype=torch.int64),
            torch.tensor([pairs[i] for i in mine], dtype=torch.int64),
            torch.tensor([i for i in range(sizes[0]) if i not in pairs], dtype=torch.int64),
            torch.tensor([i for i in range(sizes[1]) if i not in theirs], dtype=torch.int64),
        )


class SpanReading(NamedTuple):
    """A completion in the teacher's tokens, and the span of each token of the student and of the teacher."""

    ids: list[int]
    student: list[int]
    teacher: list[int]


class TokenPairing:
    """A student's tokenizer and a teacher's.

    Args:
        student: The student's tokenizer.
        teacher: The teacher's.

    Raises:
        DataError: Tokens of one of them spell nothing on their own.
    """

    def __init__(self, student: Any, teacher: Any) -> None:
        self.student, self.teacher = student, teacher
        self.mine, self.theirs = spellings(student, "student"), spellings(teacher, "teacher")

    def pairs(self, sizes: tuple[int, int]) -> dict[int, int]:
        """The teacher's id of each shared id of the student: tokens that spell the same bytes, and special tokens of
        the same name; of several such ids the smallest.

        Args:
            sizes: Outputs of the two models; ids beyond them are no tokens.
        """
        names = [
            {f"special {name}": i for name, i in words.get_vocab().items() if i not in spelled}
            for words, spelled in ((self.student, self.mine), (self.teacher, self.theirs))
        ]
        tables = list[dict[bytes | str, int]]()
        for spelled, special, size in zip((self.mine, self.theirs), names, sizes, strict=True):
            known: dict[bytes | str, int] = {}
            keys: dict[int, bytes | str] = {i: name for name, i in special.items()} | dict(spelled)
            for i in sorted(keys):
                if i < size:
                    known.setdefault(keys[i], i)
            tables.append(known)
        return {i: tables[1][key] for key, i in tables[0].items() if key in tables[1]}

    def read(
        self, ids: Sequence[int], stop: Sequence[int], end: int | None, positions: bool = False
    ) -> SpanReading | None:
        """A completion of the student as the teacher reads it; None where there is nothing that both can say.

        It is read up to the first special token, and up to the first bytes that are no text. What ends it, if it is
        ended, is a span of its own. Ends of tokens are counted from the end of the text: a tokenizer may put a space
        before it.

        Args:
            ids: Of the student.
            stop: Tokens that end a completion of the student.
            end: The token that ends one of the teacher.
            positions: Tokens are paired by their positions, whatever they spell.
        """
        content = next((n for n, i in enumerate(ids) if i not in self.mine), len(ids))
        ended = content < len(ids) and ids[content] in stop and end is not None
        raw = b"".join(self.mine[i] for i in ids[:content])
        text, ended = _readable(raw, ended)
        if raw and self.student.decode(ids[:content], clean_up_tokenization_spaces=False) == text[1:] != text:
            text = text[1:]  # a space that stands for the beginning
        theirs = list(self.teacher(text, add_special_tokens=False)["input_ids"]) if text else []
        spelled = [self.theirs.get(i) for i in theirs]
        joined = b"".join(b or b"" for b in spelled)
        if None in spelled or joined.removeprefix(b" ") != text.encode().removeprefix(b" "):
            return None
        mine_ends = _ends([self.mine[i] for i in ids[:content]], len(text.encode()) + _before(raw, text))
        their_ends = _ends([b or b"" for b in spelled], len(joined))
        if ended and end is not None:
            theirs, mine_ends, their_ends = [*theirs, end], [*mine_ends, 1], [*their_ends, 1]
        if positions:
            common = min(sum(e <= int(ended) for e in mine_ends), len(their_ends))
            student, teacher = ([n if n < common else -1 for n in range(len(e))] for e in (mine_ends, their_ends))
        else:
            student, teacher = span_numbers(mine_ends, their_ends), span_numbers(their_ends, mine_ends)
        student += [-1] * (len(ids) - len(student))
        return SpanReading(theirs, student, teacher) if max(student, default=-1) >= 0 else None


def _readable(raw: bytes, ended: bool) -> tuple[str, bool]:
    """Bytes as text up to the first ones that are none, and whether the text is whole and ended."""
    try:
        return raw.decode(), ended
    except UnicodeDecodeError as error:
        return raw[: error.start].decode(), False


def _before(raw: bytes, text: str) -> int:
    """Bytes before the text in what the tokens spell: a space or none."""
    return int(raw[:1] == b" " and not raw.startswith(text.encode()))


def _ends(pieces: Sequence[bytes], length: int) -> list[int]:
    """Where each piece ends, counted from the end of a text of this length."""
    found, end = list[int](), -length
    for piece in pieces:
        end += len(piece)
        found.append(end)
    return found
