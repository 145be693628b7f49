"""What targets on disk take and cost: bytes and reading speed, the error of what is left out, and a training step.

Sparse targets are those of a made-up teacher whose probabilities fall like rank^-s (Zipf), with s such that its entropy
is 3 nats; the student's logits are the teacher's under normal noise. Times are processor time on one thread, warm: what
is read was read before. The step is that of the residual network of `bench steps`, against the plain loop by hand.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.timing import Call, Spread, in_turns, one_thread, ratio
from benchmarks.speed.workloads import ALPHA, BATCHES, TEMPERATURE, Workload, by_hand, cnn, taught
from selfdistill.core.objective import Method
from selfdistill.core.parts import Term
from selfdistill.errors import RecipeError
from selfdistill.io.target_store import Store, Top
from selfdistill.losses import KL, CrossEntropy
from selfdistill.teachers import CachedTeacher, External, Labels

#: What is promised: at most so many bytes a token, at least so many tokens a processor second, at most such a share of
#: the gradient's norm, and at most such a multiple of the plain step.
TARGETS = {"bytes": 134.0, "speed": 5e6, "error": 0.06, "step": 1.05}
ENTROPY, NOISES = 3.0, (1.0, 0.5)  # nats; the first noise is judged
PLAIN, DISK, AGAIN = "plain by hand", "cached on disk", "plain by hand again"
CLOCK = "cpu"


class Sizes(NamedTuple):
    """Of the sparse targets: windows of so many tokens, read so many at a time."""

    vocabulary: int = 131_072
    k: int = 32
    windows: int = 400
    tokens: int = 256
    together: int = 8


def run(repeats: int = 20, quick: bool = False, progress: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Measure; the result is ready for JSON.

    Args:
        repeats: rounds of reading, and of steps.
        quick: small sizes and three rounds, to see that it works; the numbers mean nothing.
        progress: told now and then where the measurement is.

    Raises:
        RecipeError: fewer than three repeats.
    """
    if repeats < 3:
        raise RecipeError(f"bench store needs 3 repeats or more for a median and a spread, not {repeats}")
    sizes, rounds = (Sizes(500, 32, 6, 16, 2), 3) if quick else (Sizes(), repeats)
    tell = progress or (lambda line: None)
    result: dict[str, Any] = {
        "device": "cpu", "threads": 1, "torch": torch.__version__, "numpy": np.__version__, "judged_by": CLOCK,
        "repeats": rounds, "quick": quick, "sizes": sizes._asdict(), "targets": TARGETS,
    }  # fmt: skip
    with one_thread(), torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        tell("writing and reading targets")
        result |= read(sizes, Path(folder, "sparse"), rounds)
        tell("gradients")
        result["errors"] = [errors(sizes, noise) for noise in NOISES]
        result["step"] = step_cost(cnn(quick), Path(folder, "dense"), rounds, tell)
    found = {
        "bytes": result["bytes"] <= TARGETS["bytes"],
        "speed": result["speed"][f"{sizes.together} windows"]["median"] >= TARGETS["speed"],
        "error": result["errors"][0]["even rest"] <= TARGETS["error"],
        "step": result["step"][DISK]["median"] <= TARGETS["step"],
    }
    return {**result, "verdicts": found, "met": all(found.values())}


def zipf(vocabulary: int, entropy: float) -> Tensor:
    """Log-probabilities that fall like rank^-s with this entropy, (vocabulary,), float64."""
    logs = torch.arange(1, vocabulary + 1, dtype=torch.float64).log()
    low, high = 0.0, 8.0
    for _ in range(60):
        s = (low + high) / 2
        found = torch.log_softmax(-s * logs, 0)
        low, high = (s, high) if float(-(found.exp() * found).sum()) > entropy else (low, s)
    return found


def read(sizes: Sizes, folder: Path, rounds: int) -> dict[str, Any]:
    """Bytes a token on disk, all files included, and tokens a processor second of windows in a random order."""
    layout = Top(sizes.vocabulary, sizes.k)
    store, q = Store(folder, layout, {"teacher": "zipf"}), zipf(sizes.vocabulary, ENTROPY).exp().numpy()
    rng, shape = np.random.default_rng(0), (sizes.tokens, sizes.k)
    best, rest = np.broadcast_to(q[: sizes.k], shape), np.full(sizes.tokens, q[sizes.k :].sum())
    for window in range(sizes.windows):
        # ids in steps of an odd number do not repeat, and lie all over the vocabulary
        ids = (rng.integers(sizes.vocabulary, size=(sizes.tokens, 1)) + 40_503 * np.arange(sizes.k)) % sizes.vocabulary
        store.write([window], layout.packed(ids, best, rest), [sizes.tokens])
    store.flush()
    tokens = sizes.windows * sizes.tokens
    kept = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "bytes": round(kept / tokens, 2),
        "bytes_dense_float16": 2 * sizes.vocabulary,
        "speed": {
            f"{together} window{'s' * (together > 1)}": _speed(folder, sizes.windows, together, tokens, rounds)
            for together in (1, sizes.together)
        },
    }


def _speed(folder: Path, windows: int, together: int, tokens: int, rounds: int) -> dict[str, float]:
    store, rng, found = Store(folder), np.random.default_rng(1), list[float]()
    store.sparse(range(windows))  # warm, and checked
    for _ in range(rounds):
        order = rng.permutation(windows)
        begin = time.process_time()
        for start in range(0, windows, together):
            store.sparse(order[start : start + together])
        found.append(tokens / (time.process_time() - begin))
    return {name: round(value) for name, value in Spread.of(found)._asdict().items()}


def errors(sizes: Sizes, noise: float, tokens: int = 32) -> dict[str, float]:
    """||g' - g|| / ||g|| for the gradient g = p - q of the logits, mean over tokens, for targets of three kinds.

    ``even rest`` is what `Top.decode` gives; ``one bucket`` spreads the rest as the student does, as
    `language.divergence` does; ``renormalised`` forgets it.
    """
    generator = torch.Generator().manual_seed(1)
    logs = zipf(sizes.vocabulary, ENTROPY)
    p = torch.stack([torch.softmax(logs + noise * _normal(len(logs), generator), 0) for _ in range(tokens)])
    layout, q = Top(sizes.vocabulary, sizes.k), logs.exp().expand(tokens, -1)
    columns = layout.encode(logs.float().expand(tokens, -1))
    kept = layout.sparse(columns)
    best = kept.log_probs.double().exp()
    outside = p.scatter(1, kept.ids, 0.0)
    bucket = kept.log_rest.double().exp().unsqueeze(1) * outside / outside.sum(1, keepdim=True)
    targets = {
        "even rest": layout.decode(columns).double().exp(),
        "one bucket": bucket.scatter(1, kept.ids, best),
        "renormalised": torch.zeros_like(q).scatter(1, kept.ids, best / best.sum(1, keepdim=True)),
    }
    size = (p - q).norm(dim=1)
    found = {name: round(float(((target - q).norm(dim=1) / size).mean()), 4) for name, target in targets.items()}
    return {"noise": noise, "gradient": round(float(size.mean()), 4), **found}


def _normal(n: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, generator=generator, dtype=torch.float64)


def step_cost(work: Workload, folder: Path, rounds: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """A step that learns from targets on disk, over the plain step by hand, after the epoch that wrote them."""
    label = Term(Labels(), CrossEntropy(), weight=1.0 - ALPHA)
    method = Method({
        "label": label, "teacher": Term(CachedTeacher(External(), str(folder)), KL(TEMPERATURE), weight=ALPHA)
    })  # fmt: skip
    calls: dict[str, Call] = {
        PLAIN: by_hand(work, "plain"), DISK: taught(work, method), AGAIN: by_hand(work, "plain"),
    }  # fmt: skip
    taken = in_turns(
        [calls], rounds, warm_up=BATCHES + 1, progress=lambda done: tell(f"steps: {done} of {rounds} rounds")
    )
    shown = {name: ratio(taken, name, PLAIN)[CLOCK] for name in (DISK, AGAIN)}
    return {
        "about": work.about,
        **{name: {key: round(value, 4) for key, value in spread._asdict().items()} for name, spread in shown.items()},
    }


def render(result: dict[str, Any]) -> str:
    """The result in words and tables."""
    size, targets, verdicts = result["sizes"], result["targets"], result["verdicts"]
    met = {name: "met" if kept else "missed" for name, kept in verdicts.items()}
    lines = [
        f"top {size['k']} of {size['vocabulary']:,}, {size['windows']} windows of {size['tokens']} tokens",
        f"  bytes a token {result['bytes']:.2f}, at most {targets['bytes']:.0f} {met['bytes']} (all outputs in half "
        f"precision: {result['bytes_dense_float16']:,})",
    ]
    for name, speed in result["speed"].items():
        judged = f", at least {targets['speed'] / 1e6:.0f} {met['speed']}" if name != "1 window" else ""
        spread = f"{speed['median'] / 1e6:.2f} ({speed['low'] / 1e6:.2f}-{speed['high'] / 1e6:.2f})"
        lines.append(f"  million tokens a processor second, {name} at a time: {spread}{judged}")
    lines += [
        "",
        f"  {'error of the gradient, student noise':<40}{'even rest':>10}{'one bucket':>12}{'renormalised':>14}",
    ]
    for i, row in enumerate(result["errors"]):
        judged = "" if i else f"  at most {targets['error']:.2f} {met['error']}"
        name = f"{row['noise']} (gradient {row['gradient']:.3f})"
        kinds = f"{row['even rest']:>10.3f}{row['one bucket']:>12.3f}{row['renormalised']:>14.3f}"
        lines.append(f"  {name:<40}{kinds}{judged}")
    disk, again = (_shown(result["step"][name]) for name in (DISK, AGAIN))
    lines += [
        "",
        f"step over the plain one by hand; {result['step']['about']}",
        f"  {DISK} {disk}, at most {targets['step']:.2f} {met['step']}; the same loop again {again}: noise",
        "",
        f"Processor time: median (quartiles) of {result['repeats']} rounds, one process, one thread, page cache warm,",
        f"torch {result['torch']}, numpy {result['numpy']}. The teacher's probabilities fall like rank^-s, entropy "
        f"{ENTROPY:.0f} nats.",
        "A student nearer to the teacher has a smaller gradient, of which the same error is a larger share.",
    ]
    if result["quick"]:
        lines.append("Quick: small sizes, to see that it works; the numbers mean nothing.")
    return "\n".join(lines)


def _shown(spread: dict[str, float]) -> str:
    return f"{spread['median']:.3f} ({spread['low']:.3f}-{spread['high']:.3f})"
