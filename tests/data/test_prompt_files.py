"""Files of prompts: the formats that people have, read alike, and every damage told with its line."""

import gzip
import json

import pytest

from selfdistill.data import prompt_files
from selfdistill.data.examples import read_rows
from selfdistill.data.prompts import load_prompts
from selfdistill.errors import DataError
from tests.data.asking import ask

ROWS = [ask(f"what, is {i}?\n", demonstration=f'"{i}"', answer=f"0{i}") for i in range(6)]


def as_csv(path, delimiter=","):
    import csv

    with path.open("w", newline="", encoding="utf-8-sig") as opened:
        writer = csv.DictWriter(opened, ROWS[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def as_table(path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(ROWS)
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_feather(path)


WRITERS = {
    "x.jsonl": lambda path: path.write_text("".join(json.dumps(row) + "\r\n\r\n" for row in ROWS)),
    "x.ndjson": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
    "x.jsonl.gz": lambda path: path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode())),
    "list.json": lambda path: path.write_text("\ufeff" + json.dumps(ROWS, indent=1), encoding="utf-8"),
    "lines.json": lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in ROWS)),
    "x.csv": as_csv,
    "semicolons.csv": lambda path: as_csv(path, ";"),
    "x.tsv": lambda path: as_csv(path, "\t"),
    "x.parquet": as_table,
    "x.feather": as_table,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(tmp_path, name):
    WRITERS[name](tmp_path / name)
    found = [row.example for row in read_rows(tmp_path / name)]
    assert [(row.prompt, row.demonstration, row.answer) for row in found] == [tuple(row.values()) for row in ROWS]
    assert sorted(row.line for row in found) == [row.line for row in found]
    assert name.endswith(".gz") or set(prompt_files.columns(str(tmp_path / name))) in (set(ROWS[0]), set())
    assert len(load_prompts(str(tmp_path / name)).rows) == len(ROWS)


def test_a_saved_data_set_keeps_its_splits(tmp_path):
    datasets = pytest.importorskip("datasets")
    parts = {name: [ask(f"{name} {i}", messages=None) for i in range(3)] for name in ("train", "validation", "test")}
    whole = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in parts.items()})
    whole.save_to_disk(tmp_path / "set")
    loaded = load_prompts(str(tmp_path / "set"))
    assert [loaded.rows[i].prompt for i in loaded.audit.tolist()] == [f"validation {i}" for i in range(3)]
    assert prompt_files.columns(str(tmp_path / "set")) == ("prompt", "messages")
    whole["train"].save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": whole["train"]}).save_to_disk(tmp_path / "alone")
    for name in ("one", "alone"):  # a split without others is the whole, of which some test
        assert {row.split for row in read_rows(tmp_path / name)} == {None}
    (stream,) = (tmp_path / "one").glob("*.arrow")
    assert [row.example.prompt for row in read_rows(stream)] == [f"train {i}" for i in range(3)]
    datasets.DatasetDict({"train_sft": whole["train"]}).save_to_disk(tmp_path / "odd")
    with pytest.raises(
        DataError, match="the splits of a data set are train, validation and test, and it has train_sft"
    ):
        read_rows(tmp_path / "odd")


def test_messages_of_nested_formats(tmp_path):
    pandas = pytest.importorskip("pandas")
    talk = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    frame = pandas.DataFrame({"messages": [talk] * 3})
    frame.to_parquet(tmp_path / "x.parquet")
    frame.assign(messages=[json.dumps(talk)] * 3).to_csv(tmp_path / "x.csv", index=False)
    for name in ("x.parquet", "x.csv"):
        assert {(row.example.prompt, row.example.demonstration) for row in read_rows(tmp_path / name)} == {("Q", "A")}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", '[{"prompt": "a"},\n\n {"prompt": 3}]', r'x.json:3: the field "prompt" is a number'),
        ("x.json", '[{"prompt": "a"},\n {"prompt" "b"}]', r"x.json:2: not JSON"),
        ("x.json", '[{"prompt": "a"}', r"x.json:1: the list is not closed"),
        ("x.json", '[{"prompt": "a"},\n 3]', r"x.json:2: a number instead of an object"),
        ("x.csv", 'prompt,answer\na,1\n\n"b\nc",2\nd\n', r"x.csv:6: 1 cell, and the header has 2"),
        ("x.csv", "prompt,prompt\na,1\n", r'x.csv:1: two columns are called "prompt"'),
        ("x.csv", 'prompt\na\n"b" c\n', r"x.csv:3: no row of a table"),
        ("x.csv", "prompt\na\n \n", r'x.csv:3: no prompt; add the field "prompt"'),
        ("x.csv", "prompt,id\na,1\nb\0,2\n", r"x.csv:3: the field \"prompt\" has the character NUL"),
        ("x.csv", b"prompt\na\n\xff\n", r"x.csv:3: byte 0xff is not UTF-8"),
        ("x.parquet", b"PAR1 and no more", r"x.parquet: cannot be read .*; write the file again"),
        ("x.feather", b"ARROW", r"x.feather: cannot be read"),
        ("x.jsonl.gz", b"no gzip", r"x.jsonl.gz: cannot be read"),
    ],
)
def test_damage_is_told_with_its_place(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        load_prompts(str(path))
    assert "\n" not in str(caught.value)


def test_a_missing_table_is_told(tmp_path):
    for name in ("x.csv", "x.parquet", "x.json"):
        with pytest.raises(DataError, match=r"no prompts called '.*'; give the path of a \.\w+ file"):
            load_prompts(str(tmp_path / name))


def test_columns_of_what_cannot_be_read_are_none(tmp_path):
    (tmp_path / "x.json").write_text("[3")
    for name in ("x.json", "missing.csv", "missing.parquet"):
        assert prompt_files.columns(str(tmp_path / name)) == ()
