"""Going on from a checkpoint is exact, whatever step it was written after, and every part of it is needed.

One uninterrupted run saves after every step; each of its checkpoints is kept as a *snapshot* of the run folder. Going
on from any of them must end with the same bits. Then the controls: with one part of a checkpoint put back to what it
was when the generation began (or wiped, where it never changes), the end must differ.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from selfdistill.core.step import TrainingClock
from selfdistill.errors import CheckpointError
from selfdistill.io import checkpoint, tensors
from selfdistill.methods import plain
from selfdistill.training.fit import Result, Stopped, fit
from tests.harness import CLASSES, tiny_data
from tests.workers.runs import GENERATIONS, STEPS, Net, bits, differences, everything, run

MIDDLE = "1-14"  # in the last generation, in the middle of its second epoch
BEGIN = "1-0"


@dataclass
class Snapshots:
    """The uninterrupted run: what it left, and its folder as it was at each checkpoint (``generation-step``)."""

    bits: dict[str, str]
    result: Result
    folders: dict[str, Path] = field(default_factory=dict)

    def copy(self, name: str, to: Path) -> Path:
        shutil.copytree(self.folders[name], to)
        return to


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> Snapshots:
    base = tmp_path_factory.mktemp("snapshots")
    taken: dict[str, Path] = {}
    write = checkpoint.write

    def keeping(folder: Path, components: dict[str, Any], **options: Any) -> Path:
        path = write(folder, components, **options)
        extra = components["objective"]["_extra_state"]
        clock = TrainingClock(*extra.tolist())
        name = f"{clock.generation}-{clock.step}"
        if name not in taken:  # the last step of a generation is saved twice, before and after it counts as due
            taken[name] = base / name
            shutil.copytree(folder.parent, taken[name])
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write", keeping)
        result = run(base / "whole")
    return Snapshots(bits(base / "whole"), result, taken)


def test_there_is_a_checkpoint_after_every_step(snapshots: Snapshots) -> None:
    """Every phase is cut below: middle and border of epochs, both sides of the generation's border, the last step."""
    expected = {f"0-{s}" for s in range(1, STEPS + 1)} | {f"1-{s}" for s in range(STEPS + 1)}
    assert set(snapshots.folders) == expected
    assert snapshots.result.steps == GENERATIONS * STEPS


@pytest.mark.parametrize("generation", range(GENERATIONS))
def test_going_on_from_every_checkpoint_is_exact(snapshots: Snapshots, tmp_path: Path, generation: int) -> None:
    """From each step's checkpoint the run ends with the same bits and reports the same result."""
    for name in (name for name in snapshots.folders if name.startswith(f"{generation}-")):
        folder = snapshots.copy(name, tmp_path / name)
        result = run(folder, resume=True, save_steps=1000)
        assert differences(snapshots.bits, bits(folder)) == [], f"cut after {name}"
        assert result.steps == snapshots.result.steps
        assert result.history == snapshots.result.history
        assert [t.start for t in result.generations] == [t.start for t in snapshots.result.generations]


def test_a_cut_that_no_checkpoint_saw_is_exact(snapshots: Snapshots, tmp_path: Path) -> None:
    """Steps after the last checkpoint are done again, and their lines in the log are not there twice."""
    for cut in (3, 12, 21, 34):
        seen: list[int] = []

        def stop(clock: TrainingClock, batches: object, loss: float, seen: list[int] = seen, cut: int = cut) -> None:
            seen.append(clock.step)
            if len(seen) == cut:
                raise RuntimeError("the power fails")

        with pytest.raises(RuntimeError, match="power"):
            run(tmp_path / str(cut), save_steps=5, watch=stop)
        run(tmp_path / str(cut), save_steps=5, resume=True)
        assert differences(snapshots.bits, bits(tmp_path / str(cut))) == [], f"cut at {cut}"


def test_a_finished_run_gives_its_result_again(snapshots: Snapshots, tmp_path: Path) -> None:
    """No step is repeated; weights, generations and history are those of the run."""
    folder = snapshots.copy(f"1-{STEPS}", tmp_path / "run")
    for _ in range(2):
        result = run(folder, resume=True, watch=lambda *_: pytest.fail("a step was trained again"))
        assert result.steps == snapshots.result.steps
        assert result.history == snapshots.result.history
        assert differences(snapshots.bits, bits(folder)) == []
        for name, value in result.model.state_dict().items():
            assert torch.equal(value, snapshots.result.model.state_dict()[name])


# every part is needed -----------------------------------------------------------------------------------------------

CHANGING = ("average_ema", "noisy_ema", "memory_lastepoch", "history_history", "before_lastbatch")
GIVEN = ("pseudo_pseudolabels", "past_generation")  # made when the generation begins; they do not change in it
PROGRESS = ("generation", "start", "sums", "log", "steps_done", "done", "pulse")

Edit = Callable[[dict[str, Any], dict[str, Any]], None]


def _forgets(*path: str) -> Edit:
    """Puts a part back to what it was when the generation began."""

    def edit(saved: dict[str, Any], begin: dict[str, Any]) -> None:
        for key in path[:-1]:
            saved, begin = saved[key], begin[key]
        saved[path[-1]] = begin[path[-1]]

    return edit


def _forgets_state(name: str) -> Edit:
    def edit(saved: dict[str, Any], begin: dict[str, Any]) -> None:
        state = {k: v for k, v in begin["objective"].items() if k.startswith(f"states.{name}.")}
        assert state
        for key in [key for key in saved["objective"] if key.startswith(f"states.{name}.")]:
            del saved["objective"][key]  # a memory that has rows has names that an empty one lacks
        saved["objective"].update(state)

    return edit


def _wipes_state(name: str) -> Edit:
    def edit(saved: dict[str, Any], begin: dict[str, Any]) -> None:
        for key, value in saved["objective"].items():
            if key.startswith(f"states.{name}.") and key.split(".")[-1] not in (
                "keys",
                "width",
            ):  # which rows there are
                saved["objective"][key] = torch.zeros_like(value)

    return edit


def _sets(key: str, value: Any) -> Edit:
    def edit(saved: dict[str, Any], begin: dict[str, Any]) -> None:
        saved["progress"][key] = value

    return edit


CONTROLS: dict[str, Edit] = {
    **{name: _forgets(name) for name in ("student", "objective", "optimizer", "scheduler", "best", "progress")},
    "clock": _forgets("objective", "_extra_state"),
    "progress/sums": _forgets("progress", "sums"),
    "progress/log": _forgets("progress", "log"),
    "progress/steps_done": _forgets("progress", "steps_done"),
    "progress/pulse": _forgets("progress", "pulse"),
    "progress/generation": _sets("generation", 0),
    "progress/start": _sets("start", ""),
    "progress/done": _sets("done", []),
    **{name: _forgets_state(name) for name in CHANGING},
    **{name: _wipes_state(name) for name in GIVEN},
}


def _edited(snapshots: Snapshots, folder: Path, edit: Edit, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What differs at the end of a run that went on from an edited checkpoint, or the error it ended with."""
    begin = checkpoint.newest(snapshots.folders[BEGIN] / "checkpoints")
    assert begin is not None
    initial, read = checkpoint.read(begin), checkpoint.read

    def damaged(path: Path) -> dict[str, Any]:
        saved = read(path)
        edit(saved, initial)
        return saved

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "read", damaged)
        try:
            run(folder, resume=True, save_steps=1000)
        except CheckpointError as error:  # the parts contradict one another
            return [f"{type(error.__cause__).__name__}"]
    return differences(snapshots.bits, bits(folder))


@pytest.mark.parametrize("name", CONTROLS)
def test_a_forgotten_part_shows(
    snapshots: Snapshots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Negative control: leave one part out of the way back, and the end is another one."""
    folder = snapshots.copy(MIDDLE, tmp_path / "run")
    differs = _edited(snapshots, folder, CONTROLS[name], monkeypatch)
    assert differs != []
    assert differs != ["RuntimeError"] or name in ("progress/generation", "progress/done"), "the edit is no whole state"


def test_the_controls_leave_the_rest_alone(
    snapshots: Snapshots, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same way with nothing forgotten ends bit-equal: what the controls see is what they left out."""
    folder = snapshots.copy(MIDDLE, tmp_path / "run")
    assert _edited(snapshots, folder, lambda saved, begin: None, monkeypatch) == []


def test_the_controls_are_all_there_is(snapshots: Snapshots) -> None:
    """A part added to the checkpoint later needs a control of its own."""
    found = checkpoint.newest(snapshots.folders[MIDDLE] / "checkpoints") or Path()
    saved = checkpoint.read(found)
    states = {key.split(".")[1] for key in saved["objective"] if key.startswith("states.")}
    assert states == {*CHANGING, *GIVEN}
    assert {key for key in saved["objective"] if not key.startswith("states.")} == {"_extra_state"}
    assert set(saved) == {"student", "objective", "optimizer", "scheduler", "best", "rollback", "task", "progress"}
    assert saved["rollback"] == {}  # without --audit-epochs; with it, see test_audit
    # ``run`` is compared and not used, ``scaler`` is empty without float16 (below), the next two are only told, and
    # networks have no ``baseline``; what ``task`` holds of language models is followed in tests/language/test_resume.py
    assert saved["task"] == {"start": {}, "now": {}}
    assert saved["progress"]["baseline"] is None
    assert set(saved["progress"]) == {*PROGRESS, "run", "scaler", "elapsed", "passes", "baseline"}


def test_the_loss_scale_of_float16_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under float16 the scale is part of the run: forgotten, steps are skipped again."""
    options: dict[str, Any] = {"steps": 8, "batch_size": 12, "precision": "float16", "save_steps": 1}
    data = replace(tiny_data(0), x=tiny_data(0).tensor * 60.0)  # gradients that overflow at the first scales

    def build() -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))

    def halt(clock: TrainingClock, batches: object, loss: float) -> None:
        if clock.step == 5:
            raise RuntimeError("cut")

    fit(build, data, plain(), out=tmp_path / "whole", **options)
    for name in ("kept", "forgotten"):
        with pytest.raises(RuntimeError, match="cut"):
            fit(build, data, plain(), out=tmp_path / name, watch=halt, **options)
    read = checkpoint.read
    fit(build, data, plain(), out=tmp_path / "kept", resume=True, **options)

    def without(path: Path) -> dict[str, Any]:
        saved = read(path)
        assert saved["progress"]["scaler"]["scale"] < 65536.0, "no step was skipped, so this test shows nothing"
        saved["progress"]["scaler"]["scale"] = 65536.0
        return saved

    monkeypatch.setattr(checkpoint, "read", without)
    fit(build, data, plain(), out=tmp_path / "forgotten", resume=True, **options)
    monkeypatch.undo()
    ends = {name: bits(tmp_path / name) for name in ("whole", "kept", "forgotten")}
    assert differences(ends["whole"], ends["kept"]) == []
    assert differences(ends["whole"], ends["forgotten"]) != []


def test_the_time_of_all_sittings_is_told(snapshots: Snapshots, tmp_path: Path) -> None:
    """``seconds`` counts what was spent before the cut."""
    folder = snapshots.copy(MIDDLE, tmp_path / "run")
    found = checkpoint.newest(folder / "checkpoints") or Path()
    before = checkpoint.read(found)["progress"]["elapsed"]
    assert before > 0
    assert run(folder, resume=True).seconds > before


# damage ---------------------------------------------------------------------------------------------------------------


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over(snapshots: Snapshots, tmp_path: Path) -> None:
    """The one before it is used, one line says so, and the end is bit-equal."""
    for i, name in enumerate(("student.safetensors", "objective.safetensors", "progress.json", "manifest.json")):
        folder = snapshots.copy(MIDDLE, tmp_path / str(i))
        newest, before = sorted((folder / "checkpoints").iterdir(), reverse=True)[:2]
        _flip(newest / name)
        warnings: list[str] = []
        run(folder, resume=True, save_steps=1000, warn=warnings.append)
        assert len(warnings) == 1
        assert newest.name in warnings[0]
        assert before.name in warnings[0]
        assert differences(snapshots.bits, bits(folder)) == []


def test_with_no_intact_checkpoint_nothing_is_begun(snapshots: Snapshots, tmp_path: Path) -> None:
    """A named error instead of a new run over the old one; the folder stays as it was."""
    folder = snapshots.copy(MIDDLE, tmp_path / "run")
    for path in (folder / "checkpoints").iterdir():
        _flip(path / "optimizer.safetensors")
    log = (folder / "metrics.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match="no intact checkpoint"):
        run(folder, resume=True)
    assert (folder / "metrics.jsonl").read_bytes() == log


@pytest.mark.parametrize("name", ["0-final.safetensors", "0-best.safetensors"])
def test_a_generation_that_is_gone_is_named(snapshots: Snapshots, tmp_path: Path, name: str) -> None:
    """The last generation's weights teach this one: without them, or with others, there is no way on."""
    folder = snapshots.copy(MIDDLE, tmp_path / "gone")
    (folder / "generations" / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        run(folder, resume=True)
    folder = snapshots.copy(MIDDLE, tmp_path / "changed")
    path = folder / "generations" / name
    weights = tensors.read_tensors(path)
    weights["classifier.bias"] += 1e-3
    tensors.write_tensors(path, weights)
    with pytest.raises(CheckpointError, match=name):
        run(folder, resume=True)


def test_a_log_that_was_cut_is_named(snapshots: Snapshots, tmp_path: Path) -> None:
    """Lines that the checkpoint knows of and the disk has not: an error, not a shorter log."""
    folder = snapshots.copy(MIDDLE, tmp_path / "run")
    log = folder / "metrics.jsonl"
    log.write_bytes(log.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="was cut"):
        run(folder, resume=True)


def test_another_run_is_not_gone_on_with(snapshots: Snapshots, tmp_path: Path) -> None:
    """Other settings, another method or other data: refused, with what differs; so is a new run in a used folder."""
    folder = snapshots.copy(MIDDLE, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"lr 0\.01, now 0\.02"):
        run(folder, resume=True, lr=0.02)
    with pytest.raises(CheckpointError, match="method"):
        fit(Net, tiny_data(24), plain(), out=folder, resume=True, steps=STEPS, batch_size=12, lr=0.01)
    with pytest.raises(CheckpointError, match="data"):
        fit(Net, tiny_data(20), everything(), out=folder, resume=True, steps=STEPS, batch_size=12, lr=0.01)
    with pytest.raises(CheckpointError, match="holds a run already"):
        run(folder)


def test_how_often_it_saves_may_change(snapshots: Snapshots, tmp_path: Path) -> None:
    """The time between checkpoints is no part of what a run computes."""
    folder = snapshots.copy("0-4", tmp_path / "run")
    run(folder, resume=True, save_steps=7, save_seconds=3.0)
    assert differences(snapshots.bits, bits(folder)) == []


def test_a_full_disk_at_the_log_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log's line is lost, nothing else: one error with the remedy, and the run goes on from its checkpoint."""
    fsync = os.fsync

    def full(handle: int) -> None:
        if os.readlink(f"/proc/self/fd/{handle}").endswith("metrics.jsonl"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(CheckpointError, match=r"No space left on device.*resume"):
            run(tmp_path / "full")
    run(tmp_path / "full", resume=True)
    run(tmp_path / "whole")
    assert differences(bits(tmp_path / "whole"), bits(tmp_path / "full")) == []


def test_a_second_signal_ends_it_at_once(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Whoever presses Ctrl-C twice does not wait for a long step; the checkpoint before it stays."""
    outer = signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, outer))

    def ask(clock: TrainingClock, batches: object, loss: float) -> None:
        if clock.step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the second signal was not heard")

    with pytest.raises(KeyboardInterrupt) as raised:
        run(tmp_path / "run", save_steps=2, watch=ask)
    assert type(raised.value) is KeyboardInterrupt
    found = checkpoint.newest(tmp_path / "run" / "checkpoints") or Path()
    assert TrainingClock(*checkpoint.read(found)["objective"]["_extra_state"].tolist()).step == 2


def test_stopped_is_what_a_signal_raises(tmp_path: Path) -> None:
    """In the calling process too: SIGTERM during a step ends in `Stopped` after it, and the old handler is back."""
    before = signal.getsignal(signal.SIGTERM)

    def ask(clock: TrainingClock, batches: object, loss: float) -> None:
        if clock.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="after step 4 of generation 0"):
        run(tmp_path / "run", save_steps=1000, watch=ask)
    assert signal.getsignal(signal.SIGTERM) == before
    found = checkpoint.newest(tmp_path / "run" / "checkpoints") or Path()
    extra: Tensor = checkpoint.read(found)["objective"]["_extra_state"]
    assert TrainingClock(*extra.tolist()).step == 4
