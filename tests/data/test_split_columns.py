"""Splits that a person chooses for a table: groups, time, a split column, files of test and validation rows."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from selfdistill.cli import main
from selfdistill.data import dataset, frames
from selfdistill.data.split_columns import SplitRequest
from selfdistill.errors import DataError

ROWS = 120


def rows(seed=0, count=ROWS):
    g = np.random.default_rng(seed)
    frame = pd.DataFrame(g.normal(size=(count, 3)), columns=list("abc"))
    frame["patient"] = [f"{k:03d}" for k in g.integers(0, 30, count)]
    frame["day"] = pd.date_range("2024-01-01", periods=count).strftime("%d.%m.%Y")
    frame["t"] = np.where(frame.a + 0.3 * g.normal(size=count) > 0, "yes", "no")
    return frame.sample(frac=1, random_state=seed).reset_index(drop=True)


@pytest.fixture
def table(tmp_path):
    def write(frame, name="d.csv"):
        frame.to_csv(tmp_path / name, index=False)
        return str(tmp_path / name)

    return write


def command(*args):
    run = CliRunner().invoke(main, [str(a) for a in args])
    assert run.exception is None or isinstance(run.exception, SystemExit), run.exception
    return run.exit_code, run.stdout, run.stderr


def test_rows_of_a_group_share_a_split_and_the_column_is_no_feature(table):
    frame = rows()
    data = dataset.load(table(frame), target="t", groups="patient")
    owners = [set(frame.patient[ids.numpy()]) for ids in (data.labelled, data.audit, data.test)]
    assert not (owners[0] & owners[1])
    assert not (owners[0] & owners[2])
    assert not (owners[1] & owners[2])
    assert 15 <= len(data.test) <= 32
    assert "patient" not in " ".join(data.preprocessor.feature_names_in_)
    assert "groups the rows" in data.note
    learners = frames.load(table(frame), target="t", request=SplitRequest(groups="patient"))
    assert not set(frame.patient[learners.labelled]) & set(frame.patient[learners.test])
    assert "patient" not in learners.sample.columns


def test_the_latest_rows_test(table):
    frame = rows()
    day = pd.to_datetime(frame.day, format="%d.%m.%Y").to_numpy()
    data = dataset.load(table(frame), target="t", time="day")
    parts = [day[ids.numpy()] for ids in (data.labelled, data.audit, data.test)]
    assert parts[0].max() < parts[1].min()
    assert parts[1].max() < parts[2].min()
    learners = frames.load(table(frame), target="t", request=SplitRequest(time="day"))
    assert day[learners.labelled].max() < day[learners.test].min()
    assert learners.time is not None


def test_a_split_column_is_taken(table):
    frame = rows().drop(columns=["patient", "day"])
    frame["split"] = ["train"] * 80 + ["Val"] * 15 + ["test"] * 20 + [None] * 5
    data = dataset.load(table(frame), target="t")
    assert data.audit.tolist() == list(range(80, 95))
    assert data.test.tolist() == list(range(95, 115))
    assert set(range(115, 120)) <= set(data.labelled.tolist())
    assert data.shape == (3,)
    assert "names the split of each row: 20 test, 15 validation" in data.note
    frame["split"] = ["train", "other"] * 60  # other words are a feature as any column
    assert dataset.load(table(frame), target="t").shape == (5,)
    learners = frames.load(table(frame.assign(split=["train", "validation", "test"] * 40)), target="t")
    assert len(learners.test) == 40
    assert learners.time is not None
    assert learners.time[learners.labelled].tolist() == [0.0, 1.0] * 40


def test_files_of_test_and_validation_rows_are_taken(table):
    frame = rows().drop(columns=["patient", "day"])
    train, test, check = (
        table(frame[:90]),
        table(pd.concat([frame[90:], frame[:10]]), "test.csv"),
        table(frame[20:30], "v.csv"),
    )
    data = dataset.load(train, target="t", test=test, audit=check)
    assert data.test.tolist() == list(range(90, 130))
    assert data.audit.tolist() == list(range(130, 140))
    assert data.copies.across.tolist() == list(range(120, 130))
    assert data.copies.validated == 10
    assert data.y[data.test].tolist() == [data.classes.index(label) for label in [*frame.t[90:], *frame.t[:10]]]
    assert dataset.load(train, target="t", test=test, seed=3).fingerprint != data.fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": "nope"}, r"no column is called 'nope' \(--groups\)"),
        ({"groups": "t"}, "'t' is used otherwise"),
        ({"time": "word"}, "--time takes numbers or dates"),
        ({"time": "gap"}, "row 3 .*--time needs a value"),
        ({"groups": "gap"}, "row 3 .*--groups needs a value"),
        ({"test": "missing.csv"}, "no such table"),
        ({"test": "wide.csv"}, "no column is called 't'"),
        ({"test": "bare.csv"}, r"bare.csv: row 4 \(the first is 1\) has no 't'"),
    ],
)
def test_what_cannot_be_split_so_gets_one_line(options, message, table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = rows()
    table(frame.drop(columns="t"), "wide.csv")
    table(frame[:9].assign(t=[*frame.t[:3], None, *frame.t[4:9]]), "bare.csv")
    frame["word"] = np.array(["x", "y", "z"])[np.arange(ROWS) % 3]
    frame["gap"] = np.where(np.arange(ROWS) == 2, np.nan, np.arange(ROWS))
    with pytest.raises(DataError, match=message) as refused:
        dataset.load(table(frame), target="t", **options)
    assert "\n" not in str(refused.value)


def test_named_data_and_folders_have_no_columns(tmp_path):
    refused: list[dict[str, Any]] = [{"groups": "a"}, {"test": "t.csv"}]
    for options in refused:
        with pytest.raises(DataError, match=r"leave (groups|test) out"):
            dataset.load("digits", **options)


def test_python_takes_groups_and_times_of_tensors():
    import torch

    x, y = torch.randn(90, 2), torch.arange(90) % 2
    owner = [f"p{i // 6}" for i in range(90)]
    data = dataset.from_tensors(x, y, groups=owner)
    assert not {owner[i] for i in data.labelled.tolist()} & {owner[i] for i in data.test.tolist()}
    days = np.datetime64("2024-01-01") + np.arange(90)
    assert dataset.from_tensors(x, y, time=days).test.tolist() == list(range(72, 90))
    for options, message in (
        ({"groups": owner[:5]}, "give one value for each"),
        ({"groups": [None, *owner[1:]]}, r"row 0 \(from 0\) has none"),
        ({"time": np.where(np.arange(90) == 4, np.nan, np.arange(90))}, "row 4"),
        ({"time": ["soon"] * 90}, "is no time"),
    ):
        with pytest.raises(DataError, match=message):
            dataset.from_tensors(x, y, **options)


def test_a_run_records_its_splits_and_scores_the_test_with_and_without_copies(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    frame = rows()
    frame.loc[5, ["a", "b", "c", "patient", "day"]] = frame.loc[3, ["a", "b", "c", "patient", "day"]].to_numpy()
    frame.loc[[3, 5], "t"] = ["yes", "no"]
    table(frame[:90], "tr.csv")
    table(pd.concat([frame[90:], frame[10:20]]), "te.csv")
    usual = ["--target", "t", "--test", "te.csv", "--json", "--quiet"]
    trained: dict[str, list[Any]] = {
        "n": ["--model", "mlp", "--method", "elr()", "--steps", 4, "--no-control"],
        "l": ["--model", "linear", "--method", "plain()"],
    }
    for name, options in trained.items():
        code, out, err = command("run", "tr.csv", *usual, *options, "--out", name)
        assert code == 0, err
        result = json.loads(out.splitlines()[-1])
        assert result["data"]["copies"]["across"] == 10
        assert result["without_copies"]["rows"] == 30
        assert result["without_copies"]["test"] != result["test"]
        assert json.loads((tmp_path / name / "run.json").read_text())["request"]["test"] == "te.csv"
        assert json.loads((tmp_path / name / "model" / "data.json").read_text())["copies"]["conflicting"] == 2
        assert "without copies" in (tmp_path / name / "README.md").read_text()
        assert "copies of others with another label" in (tmp_path / name / "report.html").read_text()
        code, out, err = command("label-errors", name)
        assert code == 0, err
        assert "rows 4 (label 'yes') and 6 (label 'no')" in out
        assert command("run", "tr.csv", *usual, *options, "--out", name)[0] == 0
