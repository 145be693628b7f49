"""Files of lines: added to by several processes, and whole again after one of them was cut off."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest

from selfdistill.errors import DataError
from selfdistill.io.files import append_line, csv_text, escape_formula, read_lines, unescape_formula


def _append(path: Path, mark: str) -> None:
    for number in range(50):
        append_line(path, f"{mark}{number} " + mark * 20_000)


def test_two_processes_append_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lines.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_append, args=(path, mark)) for mark in "ab"]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    lines, torn = read_lines(path)
    assert not torn
    assert sorted(lines) == sorted(f"{mark}{number} " + mark * 20_000 for mark in "ab" for number in range(50))


@pytest.mark.parametrize("rest", [b"{", b"\xc3", b'{"whole": 1}'])
def test_a_cut_line_is_left_out_and_removed_by_the_next_writer(tmp_path: Path, rest: bytes) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"one\n" + rest)
    assert read_lines(path) == (["one"], True)
    append_line(path, "two")
    assert path.read_bytes() == b"one\ntwo\n"


def test_what_cannot_be_read_or_written_is_told_in_a_line(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none.jsonl") == ([], False)
    with pytest.raises(ValueError, match="line break"):
        append_line(tmp_path / "lines.jsonl", "one\ntwo")
    with pytest.raises(DataError, match=r"cannot be written \(Is a directory\); give another --out"):
        append_line(tmp_path, "one")
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        read_lines(tmp_path)
    (tmp_path / "lines.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="not UTF-8"):
        read_lines(tmp_path / "lines.jsonl")


@pytest.mark.parametrize("text", ["=1+1", "+cmd|x", "-2+3", "@x", "\tx", "\r=x", "'=1", "''@", "=\nx"])
def test_formulas_are_escaped_and_come_back(text: str) -> None:
    assert escape_formula(text) == f"'{text}"
    assert unescape_formula(escape_formula(text)) == text
    assert csv_text([[text]], raw=True) != csv_text([[text]])


@pytest.mark.parametrize("text", ["-1.5", "+3", "1e-3", "-inf", "+", "-", "", "plain", "p(=1)", "it's", "'x"])
def test_numbers_and_other_texts_stay_as_they_are(text: str) -> None:
    assert escape_formula(text) == text == unescape_formula(text)
