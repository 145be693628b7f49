"""What self-distillation of a language model costs: a teacher beside a plain step, and a whole SDFT step beside TRL's.

Both are ratios within one run: the variants of `llama_step` take turns in one process, and the two sides of `sdft_step`
take turns in a process each.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.speed import llama_step, sdft_step
from selfdistill.errors import RecipeError

#: A whole SDFT step: TRL's seconds over ours at least, our memory over TRL's at most.
FASTER, MEMORY = 1.3, 0.7


def run(
    repeats: int = 5, quick: bool = False, progress: Callable[[str], None] | None = None, peer: str | None = None
) -> dict[str, Any]:
    """Measure; the result is ready for JSON.

    Args:
        repeats: rounds; each one calls every variant once.
        quick: small sizes and three rounds, to see that it works; the numbers mean nothing.
        progress: told now and then where the measurement is.
        peer: an interpreter that has trl, transformers and peft; without one only our side is measured.

    Raises:
        RecipeError: fewer than three repeats, or the peer cannot run.
    """
    if repeats < 3:
        raise RecipeError(f"bench language needs 3 repeats or more for a median and a spread, not {repeats}")
    tell = progress or (lambda line: None)
    sizes = llama_step.Sizes(500, 64, 1, 16, 2, 8) if quick else llama_step.Sizes()
    small = llama_step.run(sizes, 3 if quick else repeats, tell)
    whole = sdft_step.run(3 if quick else repeats, quick, tell, peer)
    whole |= _judged(whole["sides"])
    return {
        "device": "cpu", "torch": torch.__version__, "judged_by": llama_step.CLOCK, "repeats": 3 if quick else repeats,
        "quick": quick, "small": small, "sdft": whole,
        "met": all(v.get("met", True) for v in (*small["variants"].values(), whole)),
    }  # fmt: skip


def _judged(sides: dict[str, Any]) -> dict[str, Any]:
    """How ours stands against each of the peer's columns; met against the peer as it comes."""
    ours, found = sides[sdft_step.OURS], dict[str, Any]()
    for name in (n for n in sides if n != sdft_step.OURS):
        pairs = zip(sides[name]["cpu"], ours["cpu"], strict=True)
        faster = statistics.median(theirs / mine for theirs, mine in pairs)
        memory = ours["mebibytes"] / sides[name]["mebibytes"]
        found[name] = {
            "faster": round(faster, 3), "memory": round(memory, 3), "at_least": FASTER, "at_most": MEMORY,
            "met": faster >= FASTER and memory <= MEMORY,
        }  # fmt: skip
    return {"against": found, "met": found.get(sdft_step.PEER, {"met": True})["met"]}


def render(result: dict[str, Any]) -> str:
    """The result in words and tables."""
    small, whole = result["small"], result["sdft"]
    s = small["sizes"]
    lines = [
        f"Llama of {s['depth']} layers, width {s['width']}, vocabulary {s['vocabulary']:,}, {s['rows']} rows of "
        f"{s['tokens']} tokens, one thread",
        f"  {'':<24}{'seconds':>8}  {'plain steps':<22}  at most",
    ]
    for name, f in small["variants"].items():
        spread = "{median:.3f} ({low:.3f}-{high:.3f})".format(**f["ratio"])
        verdict = f"  {f['at_most']:.2f} {'met' if f['met'] else 'missed'}" if "met" in f else ""
        lines.append(f"  {name:<24}{f['seconds']['median']:>8.3f}  {spread:<22}{verdict}".rstrip())
    w = whole["asked"]
    lines += [
        "",
        f"SDFT step of {w['model']}, LoRA rank {w['rank']}, {w['batch']} prompts, {w['tokens']} tokens written, "
        f"threads: {w['threads']}",
        f"  {'':<34}{'cpu s':>8}{'wall s':>8}{'MiB':>8}",
    ]
    for name, side in whole["sides"].items():
        times = f"{statistics.median(side['cpu']):>8.1f}{statistics.median(side['wall']):>8.1f}"
        lines.append(f"  {name:<34}{times}{side['mebibytes']:>8.0f}")
    for name, f in whole["against"].items():
        lines.append(
            f"  against {name}: {f['faster']:.2f} times as fast (at least {FASTER}), {f['memory']:.2f} of its memory "
            f"(at most {MEMORY}): {'met' if f['met'] else 'missed'}"
        )
    if not whole["against"]:
        lines.append("  TRL was left out: --peer PYTHON names an interpreter that has trl, transformers and peft.")
    lines += [
        "",
        f"Ratios of processor time, median (quartiles) of {result['repeats']} rounds in turns, torch "
        f"{result['torch']}; memory is",
        "the highest resident size of a process, libraries and weights included.",
    ]
    if result["quick"]:
        lines.append("Quick: small sizes, to see that it works; the numbers mean nothing.")
    return "\n".join(lines)
