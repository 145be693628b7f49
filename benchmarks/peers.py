"""How much of an ensemble's gain does a single model keep that its members taught? Digits, 40 % of the labels wrong.

Every seed trains the method and a plain control for as many steps, on the same split and labels; the ensemble is the
mean of the method's own members. Run it as ``python benchmarks/peers.py --seeds 12``; what is done is not trained
again, and ``--first 100`` counts seeds from 100 on, to choose a method on other seeds than those that are told.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from selfdistill.request import Request
from selfdistill.run import Run
from selfdistill.stats import interval

METHODS = ("mutual(peers=4)", "ensemble_distil(members=4)")


def one_seed(method: str, seed: int, out: Path) -> dict[str, Any]:
    """Test accuracy of the plain control, of the single model and of the ensemble, in per cent."""
    torch.set_num_threads(1)
    request = Request(data="digits", label_noise=0.4, method=method, seed=seed)
    name = "".join(c if c.isalnum() else "-" for c in method).strip("-")
    result = Run.create(request, out / f"{name}-{seed}").execute(warn=lambda line: None)
    whole = result["ensemble"]
    return {
        "method": method,
        "seed": seed,
        "plain": 100 * result["plain"]["end"]["accuracy"],
        "stopped": 100 * result["plain"]["early_stopped"]["accuracy"],
        "single": 100 * whole["single"]["accuracy"],
        "ensemble": 100 * whole["test"]["accuracy"],
        "disagreement": 100 * whole["disagreement"],
        "doubts": result["doubts"].get("auroc"),
    }


def line(method: str, rows: list[dict[str, Any]]) -> str:
    """One row of the table: means, paired differences with 95 % intervals (Student's t), the share kept."""
    names = ("plain", "stopped", "single", "ensemble", "disagreement")
    means = " | ".join(f"{fmean(row[name] for row in rows):.1f}" for name in names)
    gains = [interval([row[name] - row["plain"] for row in rows]) for name in ("single", "ensemble")]
    told = " | ".join(f"{mean:+.2f} ± {half:.2f}" for mean, half in gains)
    return f"| `{method}` | {means} | {told} | {100 * gains[0][0] / gains[1][0]:.0f} % | {len(rows)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", default=METHODS)
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/peers"))
    options = parser.parse_args()
    table = [
        "| method | plain | stopped early | single | ensemble | members differ | single - plain | ensemble - plain "
        "| kept | seeds |",
        "|---" * 10 + "|",
    ]
    for method in options.methods:
        rows = []
        for seed in range(options.first, options.first + options.seeds):
            rows.append(one_seed(method, seed, options.out))
            print(json.dumps(rows[-1], sort_keys=True), flush=True)
        table.append(line(method, rows))
    print("\n".join(table))


if __name__ == "__main__":
    main()
