"""Several annotators: a simulated panel in which one is bad, by the function and by the commands."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from selfdistill.evaluation.annotator_noise import find_consensus_errors
from tests.data.test_annotators import simulate
from tests.terminal import passed, refused

NAMES = ("ant", "bee", "cow")
NOISE = [0.05, 0.15, 0.2, 0.75]


def test_a_bad_annotator_is_found_and_the_consensus_errors_are_those_of_the_truth() -> None:
    """The shares of right labels, the matrices, and the noise rate, against the simulation."""
    random = np.random.default_rng(102)
    q = random.dirichlet(np.full(3, 0.2), 1200)  # a calibrated model
    true, votes = simulate(1200, NOISE, seed=101, true=np.array([random.choice(3, p=row) for row in q]))
    kept = (votes >= 0).any(axis=1)
    true, votes, q = true[kept], votes[kept], q[kept]
    first = votes[np.arange(len(votes)), (votes >= 0).argmax(axis=1)]  # a poor consensus: who came first
    noise, panel = find_consensus_errors(first, votes, q, list("abcd"))
    for a, one in enumerate(panel):
        given = votes[:, a] >= 0
        right = (votes[given, a] == true[given]).mean()
        assert one.agreement.rate == pytest.approx(right, abs=0.02)
        assert one.agreement.low <= right <= one.agreement.high
        counts = np.array([[((true[given] == z) & (votes[given, a] == v)).sum() for v in range(3)] for z in range(3)])
        assert np.abs(one.matrix - counts / counts.sum(axis=1, keepdims=True)).max() < 0.06
        assert one.rows == given.sum()
    assert [one.rank for one in panel] == [1, 2, 3, 4]
    known = q.copy()  # with the rates of the simulation, which are the best that there are to know
    for a, p in enumerate(NOISE):
        for i in np.flatnonzero(votes[:, a] >= 0):
            known[i] *= np.where(np.arange(3) == votes[i, a], 1 - p, p / 2)
    best, wrong = (known.argmax(axis=1) == true).mean(), first != true
    assert noise.noise.low - 0.01 <= wrong.mean() <= noise.noise.high + 0.01
    assert (noise.suggested == true).mean() > max(best - 0.005, (first == true).mean() + 0.04)
    share = noise.scores[noise.likely].mean()  # a probability: within three standard errors of the precision
    assert abs(wrong[noise.likely].mean() - share) < 3 * np.sqrt(share * (1 - share) / noise.likely.sum())


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A table of three classes in six numbers with four annotators, the last of whom is bad."""
    folder = tmp_path_factory.mktemp("panel")
    true, votes = simulate(400, NOISE, seed=103)
    random = np.random.default_rng(104)
    x = random.normal(size=(3, 6))[true] * 1.8 + random.normal(size=(400, 6))
    rows = [
        {**{f"x{j}": round(float(x[i, j]), 4) for j in range(6)}, "note": "n" if i % 2 else "m"}
        | {name: NAMES[vote] if vote >= 0 else "" for name, vote in zip("abcd", votes[i], strict=True)}
        for i in range(len(true))
    ]
    with (folder / "panel.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    lines = [json.dumps({name: cell or None for name, cell in row.items()}) for row in rows]
    (folder / "panel.jsonl").write_text("\n".join(lines) + "\n")
    return folder, true


def test_commands_find_the_bad_annotator_and_write_the_consensus(panel: tuple[Path, np.ndarray]) -> None:
    """A learner on a table: the list, the record, the report, and a copy with one column of labels."""
    folder, true = panel
    run, copy = folder / "run", folder / "cleaned.csv"
    told = passed(
        "label-errors", folder / "panel.csv", "--annotators", "a,b,c,d", "--model", "linear", "--method", "plain()",
        "--out", run, "--quiet", "--write", copy, "--action", "relabel",
    ).stdout  # fmt: skip
    assert "\n4. d: " in told
    assert "consensus label" in told
    found = json.loads((run / "run.json").read_text())["result"]["label_errors"]
    assert [one["rank"] for one in found["annotators"]] == [1, 2, 3, 4]
    assert found["annotators"][3]["agreement"]["high"] < 0.4
    assert np.asarray(found["annotators"][0]["matrix"]["rates"]).shape == (3, 3)
    truth = {i + 1: NAMES[z] for i, z in enumerate(true)}
    errors = list(csv.DictReader((run / "label_errors.csv").open()))
    likely = [row for row in errors if float(row["score"]) > 0.5]
    assert sum(truth[int(row["row"])] != row["given"] for row in likely) > 0.7 * len(likely) > 0
    assert sum(truth[int(row["row"])] == row["suggested"] for row in errors) > sum(
        truth[int(row["row"])] == row["given"] for row in errors
    )
    page = (run / "report.html").read_text()
    assert "<h2>Annotators</h2>" in page
    assert "labels that are right" in page
    with np.load(run / "probabilities.npz") as stored:
        assert stored["votes"].shape == (len(errors), 4)
        assert stored["annotators"].tolist() == list("abcd")
    lines = list(csv.DictReader(copy.open()))
    assert list(lines[0]) == [*(f"x{j}" for j in range(6)), "note", "consensus"]
    suggested = {int(row["row"]): row["suggested"] if float(row["score"]) > 0.5 else row["given"] for row in errors}
    assert all(lines[row - 1]["consensus"] == label for row, label in suggested.items())
    assert "with other settings" in refused(
        "label-errors", folder / "panel.csv", "--annotators", "a,b,c", "--model", "linear", "--method", "plain()",
        "--out", run,
    )  # fmt: skip


def test_a_network_learns_the_consensus_of_lines_of_json(panel: tuple[Path, np.ndarray]) -> None:
    folder, _ = panel
    run = folder / "network"
    passed(
        "run", folder / "panel.jsonl", "--annotators", "a,b,c,d", "--model", "mlp", "--method", "elr()", "--steps", 60,
        "--no-control", "--quiet", "--out", run,
    )  # fmt: skip
    record = json.loads((run / "run.json").read_text())
    assert record["data"]["annotators"] == list("abcd")
    assert record["data"]["shape"] == [8], "six numbers and the two words of a column"
    worst = max(record["result"]["label_errors"]["annotators"], key=lambda one: one["rank"])
    assert worst["name"] == "d"
    answers = passed("predict", run, folder / "panel.jsonl").stdout
    assert len(answers.splitlines()) == 401
