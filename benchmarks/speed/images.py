"""Images on disk: the step of a run against a bare loop over a DataLoader with as many workers, and the memory of both.

JPEG files of 224 x 224 are made on the spot from a few noisy scenes. Both loops decode, shift and mirror the same files
in workers and train the same network, in processes of their own; memory is the proportional set size of all of them.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

SIDE, CLASSES, BATCH, WORKERS = 224, 10, 64, 2
#: What is promised: at most such a multiple of the bare step, and so many GiB in all processes.
TARGETS = {"step": 1.1, "memory": 3.0}


def run(quick: bool = False, progress: Callable[[str], None] | None = None, count: int = 5000) -> dict[str, Any]:
    """Measure; the result is ready for JSON.

    Args:
        quick: few files and steps, to see that it works; the numbers mean nothing.
        progress: told now and then where the measurement is.
        count: how many files are made.
    """
    tell, count = progress or (lambda line: None), 400 if quick else count
    steps = 4 if quick else min(40, count * 13 // 20 // BATCH)
    with tempfile.TemporaryDirectory() as folder:
        tell(f"making {count} JPEG files")
        made = make(Path(folder, "images"), count)
        loops = {}
        for name in ("bare", "run"):
            tell(f"{name}: {steps} steps")
            loops[name] = _alone(name, Path(folder, "images"), steps)
    ratio = loops["run"]["step"] / loops["bare"]["step"]
    found = {"step": ratio <= TARGETS["step"], "memory": loops["run"]["memory"] <= TARGETS["memory"]}
    return {
        "count": count, "bytes": made, "steps": steps, "workers": WORKERS, "batch": BATCH, "quick": quick,
        "loops": loops, "ratio": ratio, "targets": TARGETS, "verdicts": found, "met": all(found.values()),
    }  # fmt: skip


def render(result: dict[str, Any]) -> str:
    """The result as lines for people."""
    lines = [f"{result['count']} JPEG files of {SIDE} x {SIDE}, batches of {BATCH}, {WORKERS} workers"]
    for name, loop in result["loops"].items():
        lines.append(
            f"  {name:5} {1000 * loop['step']:7.0f} ms a step (median), first step after {loop['start']:.1f} s, "
            f"{loop['memory']:.2f} GiB in all processes"
        )
    lines.append(f"  ratio {result['ratio']:.3f} (target {TARGETS['step']})  {'met' if result['met'] else 'missed'}")
    return "\n".join(lines)


def make(folder: Path, count: int) -> int:
    """Write so many JPEG files in folders by class; returns their bytes."""
    from PIL import Image

    random, total = np.random.default_rng(0), 0
    scenes = [
        Image.fromarray(random.integers(0, 256, (28, 28, 3)).astype(np.uint8)).resize((SIDE, SIDE)) for _ in range(20)
    ]
    for i in range(count):
        path = folder / str(i % CLASSES) / f"{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        scene = scenes[i % len(scenes)].copy()
        scene.putpixel((i % SIDE, i // SIDE % SIDE), (255, 0, 0))  # no two are equal
        scene.save(path, quality=80)
        total += path.stat().st_size
    return total


def network() -> nn.Module:
    """A small convolutional network."""
    layers: list[nn.Module] = []
    for before, after in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, CLASSES))


class _Bare(Dataset[tuple[Tensor, int]]):
    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.rglob("*.jpg"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        from PIL import Image

        path = self.paths[number]
        with Image.open(path) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB")).transpose(2, 0, 1)).float() / 255
        down, right, mirrored = torch.randint(0, 57, (3,)).tolist()
        pixels = nn.functional.pad(pixels, (28, 28, 28, 28), mode="reflect")[
            :, down : down + SIDE, right : right + SIDE
        ]
        return pixels.flip(2) if mirrored % 2 else pixels, int(path.parent.name)


def _bare(folder: Path, steps: int, done: Callable[[], None]) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-4, foreach=True)
    loader = DataLoader(_Bare(folder), BATCH, shuffle=True, num_workers=WORKERS)
    taken = 0
    while taken < steps:
        for x, y in loader:
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            float(loss.detach())
            done()
            taken += 1
            if taken == steps:
                return


def _run(folder: Path, steps: int, done: Callable[[], None]) -> None:
    from selfdistill.data import image_store
    from selfdistill.data.dataset import load
    from selfdistill.methods import plain
    from selfdistill.training.fit import fit

    image_store.IN_MEMORY = 0  # as for a larger set
    data = load(str(folder), image_size=SIDE)
    fit(network, data, plain(), steps=steps, batch_size=BATCH, audit="off", watch=lambda *step: done())


def _alone(name: str, folder: Path, steps: int) -> dict[str, float]:
    """A loop in a process of its own, whose memory is watched from here."""
    environment = {**os.environ, "SELFDISTILL_WORKERS": str(WORKERS), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.speed.images", name, str(folder), str(steps)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    peak, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            peak[0] = max(peak[0], _proportional(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    text, _ = process.communicate()
    ended.set()
    watcher.join()
    start, *times = map(float, text.split())
    return {"start": start, "step": statistics.median(times), "memory": peak[0] / 2**30}


def _proportional(pid: int) -> int:
    """The proportional set size of a process and its children, in bytes."""
    total = 0
    for process in [pid, *_children(pid)]:
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
        except OSError:  # it has ended
            continue
        total += 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except OSError:
        return []


def _main(name: str, folder: Path, steps: int) -> None:
    torch.set_num_threads(1)
    began, times = time.perf_counter(), list[float]()
    {"bare": _bare, "run": _run}[name](folder, steps, lambda: times.append(time.perf_counter()))
    waits = [after - before for before, after in pairwise(times)]
    sys.stdout.write(" ".join(map(str, (times[0] - began, *waits))))


if __name__ == "__main__":
    _main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
