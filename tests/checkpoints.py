"""What the tests of checkpoints share: two small components, and equality in every bit."""

from __future__ import annotations

import struct
from pathlib import Path

import torch

from selfdistill.io import checkpoint

FILES = ["clock.json", "clock.safetensors", "manifest.json", "student.json", "student.safetensors"]


def same(a: object, b: object) -> bool:
    """Equal in every type and every bit, including the order of keys."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        raw = [t.detach().contiguous().reshape(-1).view(torch.uint8).tolist() if t.numel() else [] for t in (a, b)]
        return a.dtype == b.dtype and a.shape == b.shape and raw[0] == raw[1]
    if isinstance(a, dict) and isinstance(b, dict):
        return same(list(a.items()), list(b.items()))
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack("d", a) == struct.pack("d", b)
    return a == b


def components(value: float) -> dict[str, object]:
    """Two small components that differ everywhere between two values, so that a mixture would show."""
    student = {"weight": torch.full((3, 2), value), "steps": torch.tensor(int(value)), "value": value}
    return {"student": student, "clock": {"epoch": int(value), "seen": torch.full((2,), value), "none": None}}


def saved(folder: Path, *values: float, keep: int = 2) -> list[Path]:
    return [checkpoint.write(folder, components(value), keep=keep) for value in values]


def temporary(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".tmp-")]
