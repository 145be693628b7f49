"""Label errors: the scores of a run against the labels that were made wrong on purpose."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill import fit
from selfdistill.data.dataset import Data, load
from selfdistill.errors import CheckpointError, DataError
from selfdistill.evaluation.label_errors import (
    LabelError,
    auroc,
    class_scores,
    read_label_errors,
    score_labels,
    value_scores,
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
    return score_labels(result, data)


@pytest.mark.parametrize(
    ("name", "source"),
    [("elr", "memory"), ("self_adaptive", "memory"), ("selc", "memory"), ("plain", "generations"),
     ("mutual", "generations")],
)  # fmt: skip
def test_wrong_labels_have_the_highest_scores(name: str, source: str, digits: Data) -> None:
    """Four in ten digits have a wrong label: one of them scores above a right one in at least 95 of 100 pairs."""
    found, summary = trained(name, digits)
    assert summary["source"] == source
    assert summary["rows"] == len(found) == len(digits.labelled)
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


def test_scores_by_hand() -> None:
    q = torch.tensor([[0.7, 0.3], [0.25, 0.75]])
    assert class_scores(q, torch.tensor([1, 1])).tolist() == pytest.approx([0.7, 0.25])
    m, y = torch.zeros(3), torch.tensor([1.0, -2.0, 0.5])
    normal = torch.distributions.Normal(0.0, 1.4826)
    wanted = [2 * float(normal.cdf(e)) - 1 for e in y.abs()]
    assert value_scores(m, y).tolist() == pytest.approx(wanted, abs=1e-5)
    assert value_scores(torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])).tolist() == [0, 0, 1]


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
    assert len({line["row_from_1"] for line in lines}) == len(lines) == 1097
    text = passed("label-errors", run, "--top", 3).stdout
    assert text.splitlines()[0].split() == ["row", "(from", "1)", "label", "suggested", "error", "score"]
    assert text.splitlines()[1].split()[0] == lines[0]["row_from_1"]
    assert "of 1097 training labels contradict the model" in text
    found = json.loads(passed("label-errors", run, "--top", 3, "--json").stdout)
    assert [one["row"] for one in found["labels"]] == [int(line["row_from_1"]) for line in lines[:3]]
    assert found["errors"] == sum(line["label"] != line["suggested"] for line in lines)
    assert read_label_errors(run)["labels"][:3] == found["labels"]
    few = run.parent / "few"
    few.mkdir()
    (few / "run.json").write_text((run / "run.json").read_text())
    wrong, right = (next(x for x in lines if (x["label"] != x["suggested"]) is likely) for likely in (True, False))
    with (few / "label_errors.csv").open("w") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows([wrong, right])
    shown = "".join(doubtful_labels({"label_errors": {"source": "history"}, "data": {}}, few, {}))
    assert f"row {wrong['row_from_1']}<" in shown
    assert f"row {right['row_from_1']}<" not in shown, "a label that the model predicts too is not listed"
    assert "--top" in passed("label-errors", "--help").stdout


def test_what_has_no_scores_is_refused_in_one_line(run: Path, tmp_path: Path) -> None:
    assert "has no run.json" in refused("label-errors", tmp_path)
    with pytest.raises(DataError, match="from 1 on"):
        read_label_errors(run, 0)
    saved = (run / "label_errors.csv").read_text()
    try:
        (run / "label_errors.csv").write_text(saved.replace("row_from_1,name", "row;name"))
        assert "is damaged" in refused("label-errors", run)
        (run / "label_errors.csv").unlink()
        with pytest.raises(CheckpointError, match="made by an older version"):
            read_label_errors(run)
    finally:
        (run / "label_errors.csv").write_text(saved)


def test_rows_are_counted_as_by_predict(run: Path) -> None:
    """Each label read back belongs to the row that has its number, the first being 1."""
    data, new = load("digits", label_noise=NOISE), read_label_errors(run)["labels"]
    assert all(data.classes[int(data.y[one["row"] - 1])] == one["label"] for one in new)
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
    taught = {one["row"] for one in found}
    assert {one["row"] for one in found[: len(taught & set(range(1, 6)))]} == taught & set(range(1, 6))
    assert len(taught & set(range(1, 6))) >= 2
