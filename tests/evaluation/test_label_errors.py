"""Label errors: the scores of a run against the labels that were made wrong on purpose."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from selfdistill import fit
from selfdistill.data.dataset import Data, load
from selfdistill.errors import CheckpointError, DataError
from selfdistill.evaluation.label_errors import (
    LabelError,
    auroc,
    estimate,
    examine,
    list_errors,
    read_label_errors,
)
from selfdistill.methods import recipes
from selfdistill.models.registry import parse
from selfdistill.report.data_sections import doubtful_labels
from tests.terminal import passed, refused

NOISE = 0.4


@pytest.fixture(scope="module")
def digits() -> Data:
    return load("digits", label_noise=NOISE)


def trained(name: str, data: Data, steps: int = 150) -> tuple[list[LabelError], dict[str, Any]]:
    result = fit(parse("mlp", data.shape, data.outputs), data, recipes()[name](), steps=steps)
    examined = examine(result, data)
    noise, summary = estimate(examined, data.noisy)
    return list_errors(examined, noise), summary


@pytest.mark.parametrize(
    ("name", "source"),
    [("elr", "memory"), ("self_adaptive", "memory"), ("selc", "memory"), ("plain", "generations"),
     ("mutual", "generations")],
)  # fmt: skip
def test_wrong_labels_have_the_highest_scores(name: str, source: str, digits: Data) -> None:
    """Four in ten digits have a wrong label: one of them scores above a right one in at least 95 of 100 pairs."""
    found, summary = trained(name, digits)
    assert summary["source"] == source
    assert summary["examined"] == len(found) == 1797
    assert {name: part["examined"] for name, part in summary["splits"].items()} == {
        "train": 1097, "validation": 200, "test": 500,
    }  # fmt: skip
    assert float(summary["auroc"]) > 0.95
    wrong = digits.noisy[torch.tensor([one.row - 1 for one in found[:200]])]
    assert float(wrong.float().mean()) > 0.95


def test_scores_do_not_know_which_labels_are_wrong(digits: Data) -> None:
    """The same run on data that claim other rows to be noisy has the same scores."""
    from dataclasses import replace

    lying = replace(digits, noisy=~digits.noisy)
    first, told = trained("elr", digits, steps=60)
    second, lied = trained("elr", lying, steps=60)
    assert first == second
    assert float(lied["auroc"]) == pytest.approx(1 - float(told["auroc"]), abs=2e-4)


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    generator = torch.Generator().manual_seed(0)
    score, wrong = torch.randint(0, 5, (40,), generator=generator).float(), torch.rand(40, generator=generator) < 0.3
    pairs = [(float(a), float(b)) for a in score[wrong] for b in score[~wrong]]
    wanted = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / len(pairs)
    assert auroc(score, wrong) == pytest.approx(wanted)
    assert auroc(score, torch.zeros(40, dtype=torch.bool)) is None


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("label_errors") / "run"
    passed(
        "run",
        "digits",
        "--label-noise",
        NOISE,
        "--steps",
        60,
        "--method",
        "elr()",
        "--no-control",
        "--quiet",
        "--out",
        folder,
    )
    return folder


def test_the_command_lists_the_highest_score_first(run: Path) -> None:
    lines = list(csv.DictReader((run / "label_errors.csv").open()))
    scores = [float(line["score"]) for line in lines]
    assert scores == sorted(scores, reverse=True)
    assert len({line["row"] for line in lines}) == len(lines) == 1797
    assert [int(line["rank"]) for line in lines] == list(range(1, 1798))
    assert {line["split"] for line in lines} == {"train", "validation", "test"}
    text = passed("label-errors", run, "--top", 3).stdout
    assert text.splitlines()[0].split() == ["row", "(from", "1)", "split", "label", "suggested", "error", "score"]
    assert text.splitlines()[1].split()[0] == lines[0]["row"]
    assert "of 1797 may be wrong" in text
    assert "Estimated noise rate: " in text
    assert "adjusted for label noise" in text
    found = json.loads(passed("label-errors", run, "--top", 3, "--json").stdout)
    assert [one["row"] for one in found["labels"]] == [int(line["row"]) for line in lines[:3]]
    assert found["likely"] == sum(float(line["score"]) > 0.5 for line in lines)
    assert read_label_errors(run)["labels"][:3] == found["labels"]
    few = run.parent / "few"
    few.mkdir()
    (few / "run.json").write_text((run / "run.json").read_text())
    wrong, right = lines[0], lines[-1]
    with (few / "label_errors.csv").open("w") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows([wrong, right])
    shown = "".join(doubtful_labels({"label_errors": {"source": "history"}, "data": {}}, few, {}))
    assert f"row {wrong['row']}<" in shown
    assert f"row {right['row']}<" not in shown, "a label that is likely right is not listed"
    assert "--top" in passed("label-errors", "--help").stdout


def test_what_has_no_scores_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    assert "no sub-folder with images" in refused("label-errors", tmp_path)
    with pytest.raises(DataError, match="from 1 on"):
        read_label_errors(run, 0)
    saved = (run / "label_errors.csv").read_text()
    try:
        (run / "label_errors.csv").write_text(saved.replace("row,split", "row;split"))
        assert "is damaged" in refused("label-errors", run)
        (run / "label_errors.csv").unlink()
        with pytest.raises(CheckpointError, match="made by an older version"):
            read_label_errors(run)
    finally:
        (run / "label_errors.csv").write_text(saved)


def test_rows_are_counted_as_by_predict(run: Path) -> None:
    """Each label read back belongs to the row that has its number, the first being 1."""
    data, new = load("digits", label_noise=NOISE), read_label_errors(run)["labels"]
    assert all(data.classes[int(data.y[one["row"] - 1])] == one["given"] for one in new)
    assert all(
        "first row of data is 1" in " ".join(passed(c, "--help").stdout.split()) for c in ("label-errors", "predict")
    )


def test_values_are_scored_by_the_size_of_their_error(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(160, 3, generator=generator)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.05 * torch.randn(160, generator=generator)
    y[:5] += torch.tensor([9.0, -9.0, 9.0, -9.0, 9.0])
    rows = [",".join(f"{v:.5f}" for v in (*a.tolist(), b.item())) for a, b in zip(x, y, strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,c,target", *rows]) + "\n")
    folder = tmp_path / "run"
    options = ["--model", "mlp", "--method", "plain()", "--steps", 150, "--quiet", "--out", folder]
    passed("run", tmp_path / "t.csv", "--target", "target", *options)
    found = read_label_errors(folder)["labels"]
    assert {one["row"] for one in found[:5]} == set(range(1, 6)), "the rows of all splits are examined"
    assert all(one["p_given"] is None for one in found)


def test_a_learner_examines_every_row_of_a_table_too(tmp_path: Path) -> None:
    """Labels of a table that were flipped in all splits are likely errors, and the noise rate is about theirs."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(240, 3, generator=generator)
    y = (x[:, 0] > 0).long()
    wrong = torch.randperm(240, generator=generator)[:36]
    y[wrong] = 1 - y[wrong]
    rows = [",".join(str(v) for v in (*a.tolist(), ["no", "yes"][b])) for a, b in zip(x, y.tolist(), strict=True)]
    (tmp_path / "t.csv").write_text("\n".join(["a,b,c,target", *rows]) + "\n")
    folder = tmp_path / "run"
    options = ["--model", "forest", "--method", "plain()", "--quiet", "--out", folder]
    text = passed("run", tmp_path / "t.csv", "--target", "target", *options).stdout
    assert "adjusted for label noise" in " ".join(text.split())
    found = read_label_errors(folder)
    assert found["source"] == "learner"
    assert found["examined"] == 240
    likely = {one["row"] - 1 for one in found["labels"] if one["score"] > 0.5}
    assert len(likely & set(wrong.tolist())) >= 30
    assert abs(found["noise"]["rate"] - 0.15) < 0.05
    assert found["adjusted"]["adjusted"] > found["adjusted"]["raw"] + 0.05
    assert found["matrix"]["classes"] == ["no", "yes"]
    stored = np.load(folder / "probabilities.npz", allow_pickle=False)
    assert stored["pred_probs"].shape == (240, 2)
    assert stored["ids"].tolist() == list(range(240))


def test_cleanlab_reads_the_probabilities(run: Path) -> None:
    filters = pytest.importorskip("cleanlab.filter")
    stored = np.load(run / "probabilities.npz", allow_pickle=False)
    issues = filters.find_label_issues(stored["labels"], stored["pred_probs"], n_jobs=1)
    wrong = load("digits", label_noise=NOISE).noisy.numpy()[stored["ids"]]
    assert wrong[issues].mean() > 0.8  # of 60 steps


def test_data_are_examined_by_folds_and_cleaned(tmp_path: Path) -> None:
    """Every row of a table is left out once; the copy has no likely error, and the original stays."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(120, 2, generator=generator)
    x[:, 0] += x[:, 0].sign()
    rows = [f"{a:.4f},{b:.4f},{'yes' if (a > 0) != (i < 12) else 'no'}" for i, (a, b) in enumerate(x.tolist())]
    text = "\n".join(["a,b,target", *rows]) + "\n"
    (tmp_path / "t.csv").write_text(text)
    command = ["label-errors", tmp_path / "t.csv", "--target", "target", "--model", "mlp", "--steps", 60, "--quiet"]
    command += ["--folds", 3, "--out", tmp_path / "r"]
    passed(*command, "--write", tmp_path / "c.csv")
    found = read_label_errors(tmp_path / "r")
    assert (found["source"], found["examined"]) == ("folds", 120)
    assert not (tmp_path / "r" / "label_folds").exists()
    likely = [one for one in found["labels"] if one["score"] > 0.5]
    assert len({one["row"] for one in likely} & set(range(1, 13))) >= 9
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 121 - len(likely)
    assert (tmp_path / "t.csv").read_text() == text
    again = [tmp_path / "s" if part == tmp_path / "r" else part for part in command]
    assert "it exists" in refused(*again, "--write", tmp_path / "c.csv")
    assert not (tmp_path / "s").exists(), "it is refused before anything is trained"
    assert "--steps is for DATA" in refused("label-errors", tmp_path / "r", "--steps", 3)
