"""What a divergence over a large vocabulary costs, against holding all logits: time, and memory beyond the inputs.

From hidden states and output matrices to gradients of both. Time is taken in turns in one process, on one thread.
Memory is the highest resident size above the one before, in a process of its own for each variant.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.speed.timing import Spread, in_turns, one_thread, ratio, seconds
from selfdistill.core.logits import Projection
from selfdistill.errors import RecipeError
from selfdistill.losses.chunked.definitions import ForwardKL, JensenShannon
from selfdistill.losses.chunked.divergences import divergence

#: divergence -> what it may cost at most, as a ratio to all logits: time, extra memory.
TARGETS = {"KL": (0.85, 0.16), "JS": (0.5, 0.13)}
#: From the fewest to the most tokens, extra memory may differ by this share.
FLAT, TOKENS = 0.05, (256, 4096)
PEERS = {"TRL": "trl", "Liger": "liger_kernel"}
NAIVE, OURS, FLOOR, CLOCK = "all logits", "selfdistill", "products alone", "cpu"


class Sizes(NamedTuple):
    """Of the logits and of what they come from."""

    vocabulary: int = 131_072
    tokens: int = 1024
    width: int = 256


class Problem(NamedTuple):
    """A student that learns and its teacher."""

    student: Projection
    teacher: Projection

    @classmethod
    def of(cls, sizes: Sizes, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Problem:
        torch.manual_seed(0)
        drawn = [torch.randn(n, sizes.width) for n in (sizes.tokens, sizes.vocabulary) * 2]
        hidden, weight, far, other = (x.to(device, dtype) for x in drawn)
        scale = sizes.width**-0.5
        student = Projection(hidden.requires_grad_(), weight.mul_(scale).requires_grad_())
        return cls(student, Projection(far, other.mul_(scale)))

    def forget(self) -> None:
        """Without gradients."""
        self.student.hidden.grad = self.student.matrix.grad = None

    def learnt(self, loss: Tensor) -> None:
        """Make the gradients."""
        self.forget()
        loss.backward()


def naive(problem: Problem, name: str) -> Tensor:
    """All logits of both sides and torch's own operations; the mixture of JS as a logarithm, by logsumexp."""
    (hidden, weight, *_), (far, other, *_) = problem
    log_p = F.log_softmax(hidden @ weight.t(), -1)
    with torch.no_grad():
        log_q = F.log_softmax(far @ other.t(), -1)
    if name == "KL":
        return F.kl_div(log_p, log_q, reduction="sum", log_target=True)
    log_m = torch.logsumexp(torch.stack([log_p - math.log(2), log_q - math.log(2)]), 0)
    to_teacher = F.kl_div(log_m, log_q, reduction="none", log_target=True)
    to_student = F.kl_div(log_m, log_p, reduction="none", log_target=True)
    return (0.5 * to_teacher + 0.5 * to_student).sum()


def ours(problem: Problem, name: str) -> Tensor:
    return divergence(problem.student, problem.teacher, ForwardKL() if name == "KL" else JensenShannon(0.5)).total


def trl(problem: Problem, name: str) -> Tensor:
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction  # type: ignore[import-not-found,unused-ignore]

    beta = 0.0 if name == "KL" else 0.5
    values: Tensor = ChunkedDivergenceFunction.apply(*problem.student[:3], *problem.teacher[:3], beta)[0]
    return values.sum()


def liger(problem: Problem, name: str) -> Tensor:
    from liger_kernel.chunked_loss import (  # type: ignore[import-not-found,unused-ignore]
        LigerFusedLinearJSDLoss,
    )

    loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.5, compiled=False, chunk_size=128)
    (hidden, weight, *_), (far, other, *_) = problem
    mean: Tensor = loss(hidden, weight, far, other, torch.zeros(len(hidden), dtype=torch.long))
    return mean * len(hidden)


VARIANTS: dict[str, Callable[[Problem, str], Tensor]] = {NAIVE: naive, OURS: ours, "TRL": trl, "Liger": liger}


def measured(name: str) -> list[str]:
    """Which variants there are of a divergence, here."""
    peers = [peer for peer, module in PEERS.items() if find_spec(module) and (peer, name) != ("Liger", "KL")]
    return [NAIVE, OURS, *peers]


def run(
    repeats: int = 5,
    quick: bool = False,
    progress: Callable[[str], None] | None = None,
    memory: bool = True,
) -> dict[str, Any]:
    """Measure; the result is ready for JSON.

    Args:
        repeats: rounds; each one calls every variant once.
        quick: three rounds over a small vocabulary, to see that it works; the numbers mean nothing.
        progress: told now and then where the measurement is.
        memory: measure memory too (where /proc tells it).

    Raises:
        RecipeError: fewer than three repeats.
    """
    if repeats < 3:
        raise RecipeError(f"bench divergence needs 3 repeats or more for a median and a spread, not {repeats}")
    sizes, tokens, rounds = (Sizes(512, 64, 16), (64, 256), 3) if quick else (Sizes(), TOKENS, repeats)
    tell = progress or (lambda line: None)
    memory = memory and Path("/proc/self/clear_refs").exists()
    with one_thread(), torch.random.fork_rng(devices=[]):
        times = _times(sizes, rounds, tell)
    peaks = {name: {v: _in_its_own_process(v, name, sizes, tell) for v in measured(name)} for name in TARGETS if memory}
    result: dict[str, Any] = {
        "device": "cpu", "threads": 1, "torch": torch.__version__, "judged_by": CLOCK, "repeats": rounds,
        "quick": quick, "sizes": sizes._asdict(),
        "absent": [peer for peer, module in PEERS.items() if not find_spec(module)],
        "cases": {name: _case(name, times[name], peaks.get(name, {})) for name in TARGETS},
    }  # fmt: skip
    if memory:
        few, many = (_in_its_own_process(OURS, "KL", sizes._replace(tokens=n), tell) for n in tokens)
        growth = many / few - 1
        result["flat"] = {
            "tokens": tokens, "mebibytes": [round(few, 1), round(many, 1)], "growth": round(growth, 4), "target": FLAT,
            "met": abs(growth) <= FLAT,
        }  # fmt: skip
    result["met"] = all(
        part["met"] for part in [*(c["ours"] for c in result["cases"].values()), result.get("flat", {"met": True})]
    )
    return result


def _times(sizes: Sizes, rounds: int, tell: Callable[[str], None]) -> dict[str, dict[str, dict[str, Any]]]:
    """Seconds of every variant, and their ratio to all logits in the same round."""
    problem = Problem.of(sizes)

    def step(variant: str, name: str) -> Callable[[int], None]:
        return lambda _: problem.learnt(VARIANTS[variant](problem, name))

    groups = [{f"{name} {v}": step(v, name) for v in measured(name)} for name in TARGETS]
    groups[0][f"KL {FLOOR}"] = groups[1][f"JS {FLOOR}"] = products(problem)
    taken = in_turns(groups, rounds, warm_up=1, progress=lambda done: tell(f"time: {done} of {rounds} rounds"))
    return {
        name: {
            v: {
                "seconds": _shown(seconds(taken, f"{name} {v}")[CLOCK]),
                "time": _shown(ratio(taken, f"{name} {v}", f"{name} {NAIVE}")[CLOCK]),
            }
            for v in (*measured(name), FLOOR)
        }
        for name in TARGETS
    }


def products(problem: Problem, at_once: int = 128) -> Callable[[int], None]:
    """The four matrix products that nothing can leave out, a few tokens at a time, with their memory at hand."""
    (hidden, weight, _), (far, other, _) = ([x.detach() for x in side[:2]] + [None] for side in problem)
    assert hidden is not None
    assert weight is not None
    assert far is not None
    assert other is not None
    z, gradient = hidden.new_empty(min(at_once, len(hidden)), len(weight)), torch.zeros_like(weight)

    def step(_: int) -> None:
        for start in range(0, len(hidden), len(z)):
            rows = slice(start, start + len(z))
            torch.mm(far[rows], other.t(), out=z)
            torch.mm(hidden[rows], weight.t(), out=z)
            torch.mm(z, weight)
            gradient.addmm_(z.t(), hidden[rows])

    return step


def _case(name: str, times: dict[str, dict[str, Any]], peaks: dict[str, float]) -> dict[str, Any]:
    time, memory = TARGETS[name]
    variants = {v: dict(figures) for v, figures in times.items()}
    for v, peak in peaks.items():
        variants[v] |= {"mebibytes": round(peak, 1), "memory": round(peak / peaks[NAIVE], 4)}
    found = variants[OURS]
    met = {"time": found["time"]["median"] <= time, "memory": found.get("memory", 0.0) <= memory}
    return {
        "variants": variants,
        "ours": {"at_most": {"time": time, "memory": memory}, **met, "met": all(met.values())},
    }


def _shown(spread: Spread) -> dict[str, float]:
    return {name: round(value, 4) for name, value in spread._asdict().items()}


def _in_its_own_process(variant: str, name: str, sizes: Sizes, tell: Callable[[str], None]) -> float:
    """Mebibytes above the inputs, at the highest."""
    tell(f"memory: {name}, {variant}, {sizes.tokens} tokens")
    code = f"from {__name__} import peak; import sys; peak(*sys.argv[1:])"
    command = [sys.executable, "-c", code, variant, name, json.dumps(sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise RecipeError(f"bench divergence could not measure the memory of {variant} for {name}: {said}")
    return float(done.stdout.split()[-1])


def peak(variant: str, name: str, sizes: str) -> None:
    """Print the mebibytes that a variant takes above what its inputs take."""
    torch.set_num_threads(1)
    small = Problem.of(Sizes(64, 8, 8))
    small.learnt(VARIANTS[variant](small, name))  # what is loaded at the first use is not its memory
    problem = Problem.of(Sizes(*json.loads(sizes)))
    Path("/proc/self/clear_refs").write_text("5")  # the highest resident size is the present one again
    before = _resident("VmRSS")
    problem.learnt(VARIANTS[variant](problem, name))
    print(_resident("VmHWM") - before)


def _resident(figure: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(f"{figure}:"))


def render(result: dict[str, Any]) -> str:
    """The result in words and a table."""
    size = result["sizes"]
    lines = [f"vocabulary {size['vocabulary']:,}, {size['tokens']:,} tokens, width {size['width']}, float32", ""]
    lines.append(f"  {'':<20}{'seconds':>8}  {'time':<22}{'MiB extra':>10}{'memory':>9}  at most")
    for name, case in result["cases"].items():
        for v, f in case["variants"].items():
            spread = f"{f['time']['median']:.3f} ({f['time']['low']:.3f}-{f['time']['high']:.3f})"
            room = f"{f['mebibytes']:>10,.0f}{f['memory']:>9.3f}" if "memory" in f else " " * 19
            lines.append(
                f"  {name} {v:<17}{f['seconds']['median']:>8.2f}  {spread:<22}{room}{_verdict(case, v)}".rstrip()
            )
    if flat := result.get("flat"):
        (few, many), (low, high) = flat["tokens"], flat["mebibytes"]
        verdict = "met" if flat["met"] else "missed"
        lines.append(
            f"  From {few} to {many} tokens: {low:.0f} to {high:.0f} MiB, {100 * flat['growth']:+.1f} % {verdict}"
        )
    lines += [
        "",
        f"Ratios to all logits. Time is processor time: median (quartiles) of {result['repeats']} rounds, one process,",
        f"one thread, torch {result['torch']}; memory is taken in a process each, gradients included.",
        *(f"{peer} is not installed here and left out." for peer in result["absent"]),
    ]
    if result["quick"]:
        lines.append("Quick: a small vocabulary, to see that it works; the numbers mean nothing.")
    return "\n".join(lines)


def _verdict(case: dict[str, Any], variant: str) -> str:
    if variant != OURS:
        return ""
    ours = case["ours"]
    words = (f"{ours['at_most'][of]:.2f} {'met' if ours[of] else 'missed'}" for of in ("time", "memory"))
    return "  " + ", ".join(words)
