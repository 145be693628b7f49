"""A process that writes to a store and is killed in the middle, or one that reads it."""

from __future__ import annotations

import os
import signal
import sys

import numpy as np
import torch

from selfdistill.io.target_store import Store, Top
from selfdistill.io.target_store import store as store_module
from selfdistill.io.tensors import write_stream

WIDTH, K, LENGTH, ROUNDS = 200, 4, 16, 20


def target(key: int) -> torch.Tensor:
    """Logits (tokens, width) for a key."""
    return 3 * torch.randn(LENGTH, WIDTH, generator=torch.Generator().manual_seed(key))


def fill(folder: str, keys: range, each: int) -> None:
    """Write what is missing, a shard for so many records."""
    store = Store(folder, Top(WIDTH, K), {"teacher": "a", "data": "b", "view": "x"})
    missing = [key for key in keys if not store.contains([key])[0]]
    print(len(missing), flush=True)
    for start in range(0, len(missing), each):
        for key in missing[start : start + each]:
            store.write([key], store.layout.encode(target(key)), [LENGTH], [key * 7])
        store.flush()


def killed(folder: str, after: int) -> None:
    """Die in the middle of the bytes of one shard."""
    written = 0
    whole = write_stream

    def half(path, pieces):
        nonlocal written
        written += 1
        if written <= after:
            return whole(path, pieces)
        data = b"".join(pieces)
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
            file.flush()
            os.fsync(file.fileno())
            os.kill(os.getpid(), signal.SIGKILL)

    vars(store_module)["write_stream"] = half
    fill(folder, range(40), 8)


def total_of(store: Store, key: int) -> float:
    """What was read for a key, as one number."""
    found, _ = store.sparse([key])
    return float(found.log_probs.double().sum()) + float(found.ids.sum())


def read(folder: str, seed: int) -> None:
    """Read in an order of one's own, several times, and print what was read as one number."""
    store, rng = Store(folder), np.random.default_rng(seed)
    print(sum(total_of(store, key) for _ in range(ROUNDS) for key in rng.permutation(40).tolist()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, folder, number = sys.argv[1:]
    {"killed": killed, "read": read}[what](folder, int(number))
