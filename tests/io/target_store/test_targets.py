"""`run --targets DIR`: a frozen outside teacher is asked once for all runs on the same inputs, and nothing else
changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.models import store
from selfdistill.models.store import load_model
from tests.terminal import contents, passed, refused, report

USUAL = ["digits", "--labels", 60, "--batch-size", 20, "--steps", 6, "--augment", "none", "--model", "mlp(width=8)",
         "--no-control"]  # fmt: skip
ROWS = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers, and a student's run without targets."""
    folder = tmp_path_factory.mktemp("targets")
    for name, seed in (("teacher", 0), ("other", 1)):
        report("run", *USUAL, "--method", "plain()", "--seed", seed, "--out", folder / name)
    student(folder, "without", targets=False)
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of an outside teacher had."""
    rows = list[int]()

    def counting(source: str) -> Any:
        model = load_model(source)
        model.register_forward_hook(lambda module, given, said: rows.append(len(said)))
        return model

    monkeypatch.setattr(store, "load_model", counting)
    return rows


def student(place: Path, name: str, *more: Any, targets: bool = True, teacher: str = "teacher") -> dict[str, Any]:
    kept = ["--targets", place / "kept"] if targets else []
    method = f"distil('{place}/{teacher}')"
    return report("run", *USUAL, "--method", method, *kept, "--seed", 3, *more, "--out", place / name)


def weights(place: Path, name: str) -> dict[str, torch.Tensor]:
    return load_model(place / name).state_dict()


def same(place: Path, name: str, other: str) -> bool:
    mine, theirs = weights(place, name), weights(place, other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[n], theirs[n]) for n in mine)


def test_the_second_run_asks_nothing_and_ends_with_the_same_weights(place: Path, asked: list[int]) -> None:
    first = student(place, "first")
    assert sum(asked) == ROWS + 20  # each sample once, and the dry run a batch
    assert (first["passes"]["teacher"], first["passes"]["saved"]) == (ROWS, ROWS)  # two epochs
    asked.clear()
    second = student(place, "second")
    assert asked == []
    assert (second["passes"]["teacher"], second["passes"]["saved"]) == (0, 2 * ROWS)
    assert same(place, "first", "without")
    assert same(place, "second", "without")
    assert not same(place, "teacher", "other"), "the comparison could not fail"
    page = (place / "second/report.html").read_text()
    assert "120 passes of a teacher saved, whose answers were kept" in page
    assert f"{place}/kept" in page
    assert json.loads((place / "second/run.json").read_text())["request"]["targets"] == f"{place}/kept"


def test_other_settings_use_what_is_there(place: Path, asked: list[int]) -> None:
    """Another rate, weight and batch: the teacher sees the same inputs."""
    student(place, "usual")
    asked.clear()
    other = report("run", *USUAL, "--method", f"distil('{place}/teacher', alpha=0.5)", "--targets", place / "kept",
                   "--batch-size", 30, "--lr", 0.01, "--seed", 3, "--out", place / "unusual")  # fmt: skip
    assert asked == []
    assert (other["passes"]["teacher"], other["passes"]["saved"]) == (0, 6 * 30)
    assert not same(place, "usual", "unusual")


def test_another_teacher_has_targets_of_its_own(place: Path, asked: list[int]) -> None:
    student(place, "of-one")
    before = contents(place / "kept")
    asked.clear()
    found = student(place, "of-other", teacher="other")
    assert found["passes"]["teacher"] == ROWS
    assert sum(asked) == ROWS + 20
    after = contents(place / "kept")
    assert before.items() < after.items()  # nothing of the first was touched


def test_it_resumes_and_goes_on_only_with_the_same_folder(place: Path) -> None:
    student(place, "folder")
    line = refused("run", *USUAL, "--method", f"distil('{place}/teacher')", "--seed", 3, "--out", place / "folder")
    assert "targets" in line
    assert passed("resume", place / "folder").exit_code == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--method", "ps_kd()"], "--targets stores the outputs of a frozen external teacher"),
        (["--no-cache"], "--no-cache discards them"),
        (["--augment", "weak"], "view 'x' is augmented anew in every epoch; add --augment none"),
        (["--method", "distil('nowhere')"], "nowhere"),
    ],
)
def test_what_cannot_be_kept_takes_one_line_and_leaves_nothing(more: list[str], said: str, place: Path) -> None:
    usual = [*USUAL, "--method", f"distil('{place}/teacher')", "--targets", place / "no", "--out", place / "refused"]
    assert said in refused("run", *usual, *more)
    assert not (place / "refused").exists()
    assert not (place / "no").exists()


def test_other_inputs_under_the_same_numbers_are_refused_in_one_line(place: Path, tmp_path: Path) -> None:
    """Two tables with the same columns: row 5 of one is another input than row 5 of the other."""
    generator = torch.Generator().manual_seed(0)
    for name in ("a", "b"):
        x = torch.rand(60, 2, generator=generator)
        lines = [f"{u:.6f},{v:.6f},{'yes' if u > v else 'no'}" for u, v in x.tolist()]
        (tmp_path / f"{name}.csv").write_text("\n".join(["u,v,target", *lines]) + "\n")
    usual = ["--target", "target", "--model", "mlp(width=4)", "--steps", 6, "--batch-size", 20, "--no-control"]
    report("run", tmp_path / "a.csv", *usual, "--method", "plain()", "--out", tmp_path / "teacher")
    more = [*usual, "--method", f"distil('{tmp_path}/teacher')", "--targets", tmp_path / "kept"]
    found = report("run", tmp_path / "a.csv", *more, "--out", tmp_path / "one")
    assert found["passes"]["saved"] > 0
    line = refused("run", tmp_path / "b.csv", *more, "--out", tmp_path / "two", "--quiet")
    assert "was computed for another input" in line
    assert "give another folder" in line
    assert not (tmp_path / "two").exists()


def test_learners_and_prompts_have_no_targets(tmp_path: Path) -> None:
    assert "--targets is for networks" in refused("run", "iris", "--targets", tmp_path / "t")
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "a", "demonstration": "b"}\n')
    assert "--targets has no meaning for prompts" in refused("run", prompts, "--targets", tmp_path / "t")
