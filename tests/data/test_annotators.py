"""Labels of several annotators: the consensus against a second implementation, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from selfdistill.data.annotators import confusion_matrices, read_names
from selfdistill.data.dataset import load
from selfdistill.errors import DataError
from tests.terminal import refused


def simulate(
    rows: int, noise: list[float], classes: int = 3, seed: int = 100, true: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """True classes, and the labels of annotators who are wrong so often and leave three rows in ten out."""
    random = np.random.default_rng(seed)
    true = random.integers(0, classes, rows) if true is None else true
    votes = np.stack(
        [np.where(random.random(rows) < p, (true + random.integers(1, classes, rows)) % classes, true) for p in noise],
        axis=1,
    )
    votes[random.random(votes.shape) < 0.3] = -1
    return true, votes


def dawid_skene(votes: list[list[int]], classes: int, steps: int) -> list[list[float]]:
    """The same model in plain loops."""
    probable, counts = list[list[float]](), list[float]()
    for row in votes:
        counts = [sum(vote == z for vote in row) for z in range(classes)]
        probable.append([c / sum(counts) if sum(counts) else 1 / classes for c in counts])
    for _ in range(steps):
        seen = [i for i, row in enumerate(votes) if any(v >= 0 for v in row)]
        prior = [1 + sum(probable[i][z] for i in seen) for z in range(classes)]
        matrix = {}
        for a in range(len(votes[0])):
            for z in range(classes):
                counts = [
                    (v == z) + sum(probable[i][z] for i, row in enumerate(votes) if row[a] == v) for v in range(classes)
                ]
                for v in range(classes):
                    matrix[a, z, v] = counts[v] / sum(counts)
        for i in seen:
            joint = [
                prior[z] / sum(prior) * math.prod(matrix[a, z, v] for a, v in enumerate(votes[i]) if v >= 0)
                for z in range(classes)
            ]
            probable[i] = [one / sum(joint) for one in joint]
    return probable


def test_the_consensus_is_that_of_plain_loops_and_outvotes_bad_annotators() -> None:
    true, votes = simulate(300, [0.05, 0.3, 0.8, 0.8, 0.8])
    probable, matrices = confusion_matrices(votes, 3)
    wanted = np.array(dawid_skene(votes.tolist(), 3, 100))
    assert np.abs(probable - wanted).max() < 1e-3
    shares = np.stack([(votes == z).sum(axis=1) for z in range(3)], axis=1)
    labelled = shares.sum(axis=1) > 0
    right = (probable.argmax(axis=1) == true)[labelled].mean()
    assert right > (shares.argmax(axis=1) == true)[labelled].mean() + 0.1
    assert np.abs(matrices.sum(axis=2) - 1).max() < 1e-9
    assert np.trace(matrices[0]) / 3 > 0.9
    assert np.trace(matrices[4]) / 3 < 0.35


def table(folder: Path, lines: list[str]) -> str:
    place = folder / "panel.csv"
    place.write_text("\n".join(lines) + "\n")
    return str(place)


HEAD = "x,z,ann,ben,cy"
ROWS = [f"{i},{i % 3},{'pro' if i % 2 else 'con'},{'pro' if i % 2 else 'con'}," for i in range(40)]


def test_columns_of_annotators_are_the_target_and_no_features(tmp_path: Path) -> None:
    place = table(tmp_path, [HEAD, *ROWS[:20], "7,1,,,", "8,1,,,pro", *ROWS[20:]])
    data = load(place, annotators="ann,ben, cy")
    assert data.shape == (2,)
    assert data.classes == ("con", "pro")
    assert data.votes is not None
    assert data.votes.names == ("ann", "ben", "cy")
    assert data.votes.labels[21].tolist() == [-1, -1, 1]
    assert data.y[:4].tolist() == [0, 1, 0, 1]
    assert 20 in data.unlabelled.tolist(), "a row that nobody labelled teaches without a label"
    decided = tmp_path / "decisions.csv"
    row = int(data.labelled[0])
    given = data.classes[int(data.y[row])]
    other = data.classes[1 - int(data.y[row])]
    decided.write_text(f"row,given,suggested,decision,by\n{row + 1},{given},{other},accept,person\n")
    again = load(place, annotators="ann,ben,cy", decisions=decided)
    assert again.votes is not None
    assert again.votes.names[-1] == "decisions"
    assert again.votes.labels[:, -1].unique().tolist() == [-1, 1 - int(data.y[row])]
    assert again.fingerprint != data.fingerprint
    assert torch.equal(again.test, data.test)


def test_names_are_read() -> None:
    assert read_names("a, b") == ("a", "b")
    for text, message in (("a", "one annotator"), ("a,", "one annotator"), ("a,b,a", "'a' twice")):
        with pytest.raises(DataError, match=message):
            read_names(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--annotators", "ann"], "one annotator cannot be compared"),
        (["--annotators", "ann,bem"], "no column is called 'bem' (--annotators); nearest: ben"),
        (["--annotators", "ann,ben", "--target", "cy"], "and so does --target 'cy'; leave one"),
        (["--annotators", "ann,cy"], "column 'cy' is empty in every row; leave this annotator out"),
        (["--annotators", "ann,x"], "column 'x' has numbers and column 'ann' has words"),
        (["--annotators", "x,z"], "40 different numbers, and annotators give classes"),
        (["--annotators", "ann,ben", "--label-noise", "0.2"], "label noise is for one label a row"),
        (["--annotators", "ann,ben", "--column", "ann=numeric"], "is of an annotator, and has classes"),
        (["--annotators", "ann,ben", "--text", "ann"], "is both --text and --annotators"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_in_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert message in refused("run", table(tmp_path, [HEAD, *ROWS]), *arguments, "--out", tmp_path / "run")


def test_images_have_no_columns_of_annotators(tmp_path: Path) -> None:
    assert "annotators" in refused("run", "digits", "--annotators", "a,b", "--out", tmp_path / "run")
