"""What a divergence over a large vocabulary costs on a GPU: all logits, this package, and peers.

    python -m benchmarks.gpu_divergence --out divergence-gpu.json

From hidden states and output matrices to gradients of both, as `python -m benchmarks.speed divergence` does it on a
CPU. Every round calls every variant once, timed by the device's events; memory is the highest allocated above the
inputs.
"selfdistill" is what runs by itself, its kernel; "compiled" has what the compiler makes of the same arithmetic in the
kernel's place, "as written" neither.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import statistics
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.speed import divergence
from selfdistill.losses.chunked import blocks
from selfdistill.losses.chunked.definitions import ForwardKL, JensenShannon, Swept, Weights

SIZES = (divergence.Sizes(), divergence.Sizes(tokens=4096), divergence.Sizes(vocabulary=49_152, tokens=4096, width=576))
Step = Callable[[], None]


@contextlib.contextmanager
def arithmetic(by: Callable[..., Swept]) -> Iterator[None]:
    with mock.patch.object(blocks, "_fast", return_value=by):
        yield


def variants(problem: divergence.Problem, name: str) -> dict[str, Step]:
    """Every variant that is here, as one step from inputs to gradients."""

    def step(loss: Callable[[divergence.Problem, str], Tensor]) -> Step:
        return lambda: problem.learnt(loss(problem, name))

    def mine(by: Callable[..., Swept]) -> Step:
        def call() -> None:
            with arithmetic(by):
                problem.learnt(divergence.ours(problem, name))

        return call

    compiled = torch.compile(divergence.naive, dynamic=False)
    blocks.compiled.cache_clear()
    found = {
        "all logits": step(divergence.naive),
        "all logits, compiled": step(compiled),
        "selfdistill": step(divergence.ours),
        "selfdistill, compiled": mine(blocks.compiled()),
        "selfdistill, as written": mine(blocks.whole),
    }
    if find_spec("trl"):
        found["TRL"] = step(divergence.trl)
    return found | {divergence.FLOOR: functools.partial(divergence.products(problem, 1024), 0)}


def measure(sizes: divergence.Sizes, name: str, rounds: int, dtype: torch.dtype) -> dict[str, Any]:
    """Milliseconds (median, quartiles), ratio to all logits in the same round, MiB above the inputs."""
    torch.compiler.reset()
    problem = divergence.Problem.of(sizes, "cuda", dtype)
    steps, failed = variants(problem, name), dict[str, str]()
    peaks: dict[str, float] = {}
    for variant, call in list(steps.items()):
        try:
            for _ in range(2):
                call()
            problem.forget()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call()
            peaks[variant] = (torch.cuda.max_memory_allocated() - before) / 2**20
        except Exception as error:  # a peer that does not run here is named, the others are measured
            failed[variant] = str(error).splitlines()[0][:200] if str(error) else repr(error)
            del steps[variant]
    times: dict[str, list[float]] = {variant: [] for variant in steps}
    for _ in range(rounds):
        for variant, call in steps.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            times[variant].append(start.elapsed_time(end))
    base = times["all logits"]
    return {
        "sizes": sizes._asdict(), "divergence": name, "dtype": str(dtype), "failed": failed,
        "variants": {
            v: {
                "ms": [round(x, 3) for x in statistics.quantiles(t, n=4)],
                "ratio": round(statistics.median(a / b for a, b in zip(t, base, strict=True)), 4),
                "mebibytes": round(peaks[v], 1), "memory": round(peaks[v] / peaks["all logits"], 4),
            }
            for v, t in times.items()
        },
    }  # fmt: skip


def agree() -> None:
    """The compiled arithmetic and the kernel say what the arithmetic as written says."""
    for kind in (ForwardKL(), JensenShannon(0.5)):
        z, t = torch.randn(2, 64, 5000, device="cuda")
        weights, found = Weights(torch.rand(64, device="cuda")), []
        for by in (blocks.whole, blocks.compiled(), blocks.fused):
            mine = z.clone()
            found.append((by(kind, mine, t.clone(), weights, None).values, mine))
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", metavar="FILE")
    given = parser.parse_args()
    agree()
    cases = [
        measure(sizes, name, given.rounds, dtype)
        for sizes in SIZES for name in ("KL", "JS") for dtype in (torch.float32, torch.bfloat16)
    ]  # fmt: skip
    about = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "rounds": given.rounds}
    if given.out:
        with open(given.out, "w", encoding="utf-8") as file:
            json.dump(about | {"cases": cases}, file, indent=1)
    print(f"{about['device']}, torch {about['torch']}, {given.rounds} rounds: median")
    for case in cases:
        size = case["sizes"]
        print(f"\n{case['divergence']}, {case['dtype']}, {size['tokens']:,} tokens, {size['vocabulary']:,} outputs, "
              f"width {size['width']}")  # fmt: skip
        for v, f in case["variants"].items():
            print(f"  {v:<28}{f['ms'][1]:>9.2f} ms{f['ratio']:>8.3f}{f['mebibytes']:>9,.0f} MiB{f['memory']:>8.3f}")
        for v, why in case["failed"].items():
            print(f"  {v:<28} does not run here: {why}")


if __name__ == "__main__":
    main()
