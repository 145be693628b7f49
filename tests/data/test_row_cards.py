"""Cards: what a person sees of rows, from pixels, files and tables."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from selfdistill.data.row_cards import RowCard, picture_cards, read_cards, table_cards, write_cards
from selfdistill.errors import CheckpointError


def opened(card: RowCard) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(card.picture.partition(",")[2])))


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_come_back_exactly(channels: int) -> None:
    x = torch.randint(0, 256, (3, channels, 9, 7), dtype=torch.uint8)
    cards = picture_cards(x, (), [0, 2])
    assert sorted(cards) == [0, 2]
    for row, card in cards.items():
        pixels = torch.tensor(list(opened(card).tobytes()), dtype=torch.uint8).view(9, 7, channels)
        assert pixels.equal(x[row].permute(1, 2, 0))
    shades = picture_cards(torch.full((1, 1, 2, 2), 16, dtype=torch.uint8), (), [0], white=16)
    assert opened(shades[0]).tobytes() == b"\xff" * 4


def test_a_file_gives_a_small_picture_and_pixels_stand_in_where_it_is_gone(tmp_path: Path) -> None:
    Image.new("RGB", (400, 200), (200, 30, 30)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    x = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    names = [str(tmp_path / name) for name in ("a.png", "b.png", "gone.png")]
    cards = picture_cards(x, names, [0, 1, 2])
    assert [opened(cards[row]).size for row in range(3)] == [(96, 48), (8, 8), (8, 8)]
    assert opened(picture_cards(x, names, [0], side=200)[0]).size == (200, 100)


def test_cells_are_those_of_the_file_without_the_target(tmp_path: Path) -> None:
    first, more = tmp_path / "t.csv", tmp_path / "more.csv"
    first.write_text("id,size,note,kind\nx1,1.50,=a <b>,cat\nx2,,two,dog\n")
    more.write_text("id,size,note\nx3,3,three\n")
    counts = [(str(first), 2), (str(more), 1)]
    cards = table_cards(str(first), counts, [0, 1, 2], target="kind")
    assert [list(card.cells) for card in cards.values()] == [
        [("id", "x1"), ("size", "1.5"), ("note", "=a <b>")],
        [("id", "x2"), ("note", "two")],
        [("id", "x3"), ("size", "3"), ("note", "three")],
    ]
    text = table_cards(str(first), counts, [0], text="note", target="kind")[0]
    assert (text.text, list(text.cells)) == ("=a <b>", [("id", "x1"), ("size", "1.5")])
    assert table_cards(str(first), [(str(first), 3)], [0]) == {}, "the file has changed"
    assert table_cards(str(first), counts, [0], largest=3) == {}, "it is too large to be read again"
    first.unlink()
    assert sorted(table_cards(str(first), counts, [0, 2])) == [2]


def test_cards_come_back_and_foreign_ones_are_refused(tmp_path: Path) -> None:
    assert read_cards(tmp_path) == {}
    cards = {0: RowCard("data:image/png;base64,AAAA"), 4: RowCard(text="two\nlines", cells=(("a", "<b>"),))}
    write_cards(tmp_path, cards)
    assert read_cards(tmp_path) == {1: cards[0], 5: cards[4]}
    saved = json.loads((tmp_path / "cards.json").read_text())
    for change in (
        {"picture": "http://evil.example/a.png"},
        {"picture": 3},
        {"cells": [["a"]]},
        {"cells": [["a", "b", "c"]]},
    ):
        saved["rows"]["1"] = {"picture": "", "text": "", "cells": [], **change}
        (tmp_path / "cards.json").write_text(json.dumps(saved))
        with pytest.raises(CheckpointError, match="damaged or foreign"):
            read_cards(tmp_path)
