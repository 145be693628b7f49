"""Memories: the bytes that a sample takes in `elr`'s memory of predictions, by the resident memory of a process.

Ids are spread up to 2^62 and come in batches in random order, twice: in the second epoch each is known. Memory is that
of the whole process, less what is there before the first batch; the last peak is that with a checkpoint.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

CHILD = """
import sys, tempfile, time
from pathlib import Path
import torch
from selfdistill.core.memory import SampleMemory
from selfdistill.io import checkpoint

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

count, classes, batch, dtype = int(sys.argv[1]), 10, 1000, getattr(torch, sys.argv[2])

def ids(epoch):
    # spread by an odd factor, in another order each epoch, without a list of all: it would be memory too
    step = 7368787 if epoch else 5915587
    for start in range(0, count, batch):
        rows = torch.arange(start, min(start + batch, count)) * step % count
        yield ((rows * 0x1E3779B97F4A7C15) & ((1 << 62) - 1))

torch.set_num_threads(1)
warm = SampleMemory(predictions=True)
for part in ids(0):
    warm.write(part, torch.rand(len(part), classes))
    break
with tempfile.TemporaryDirectory() as folder:
    checkpoint.write(Path(folder), {"objective": warm.state_dict()})
memory, before = SampleMemory(predictions=True), resident("VmRSS")
memory.compact(dtype)
begun = time.perf_counter()
for epoch in range(2):
    for part in ids(epoch):
        p = torch.rand(len(part), classes)
        memory.read(part, classes)
        memory.write(part, p)
seconds = time.perf_counter() - begun
assert len(memory) == count
print((resident("VmRSS") - before) / count, (resident("VmHWM") - before) / count, seconds / (2 * count / batch))
with tempfile.TemporaryDirectory() as folder:
    checkpoint.write(Path(folder), {"objective": memory.state_dict()})
print((resident("VmHWM") - before) / count)
"""


def run(
    quick: bool = False, progress: Callable[[str], None] = print, ids: int = 10_000_000, dtype: str = "float32"
) -> dict[str, Any]:
    """Measure it in a process of its own; ``quick`` with few ids."""
    ids = 50_000 if quick else ids
    progress(f"{ids} ids up to 2^62, 10 classes, {dtype}")
    command = [sys.executable, "-c", CHILD, str(ids), dtype]
    child = subprocess.run(command, check=True, capture_output=True, text=True)
    resident, peak, seconds, saved = map(float, child.stdout.split())
    return {
        "ids": ids, "dtype": dtype, "resident": resident, "peak": peak, "peak_saved": saved,
        "milliseconds": 1e3 * seconds,
    }  # fmt: skip


def render(result: dict[str, Any]) -> str:
    """The result in words."""
    return (
        f"{result['ids']} ids up to 2^62, 10 classes, {result['dtype']}: {result['resident']:.1f} bytes a sample "
        f"resident, {result['peak']:.1f} at the peak, {result['peak_saved']:.1f} with a checkpoint; a batch of 1,000 "
        f"read and written in {result['milliseconds']:.2f} ms"
    )
