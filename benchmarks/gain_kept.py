"""How much of a gain do folds keep? ``selfdistill run ... --audit-folds K`` against all generations, unaudited.

For each seed the method is trained on all labels (training and audit rows) without any audit; its last generation
against its first, on the test split, is the ungated gain. Then the same run with K folds, whose product learns from the
same rows. Run it as ``python -m benchmarks.gain_kept --seeds 6``; what is done is not trained again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

from selfdistill import fit
from selfdistill.evaluation.predict import score
from selfdistill.experiments.network_run import prepare
from selfdistill.experiments.run import Run
from selfdistill.io.run_record import Request
from selfdistill.training.cross_fitting import all_labels


def one_seed(seed: int, folds: int, out: Path) -> dict[str, float]:
    """Test accuracy of the first and the last unaudited generation, and of the product by folds."""
    torch.set_num_threads(1)
    request = Request(
        data="digits",
        label_noise=0.4,
        method="born_again(generations=3)",
        model="mlp(dropout=0)",
        seed=seed,
        training=(("weight_decay", 0.0),),
    )
    ready = prepare(request)
    data, settings = all_labels(ready.data), {**ready.settings, "audit": "off"}
    chain = fit(ready.build, data, ready.method, out=out / f"{seed}-chain", resume=True, **settings)
    accuracies = []
    for trained in (chain.generations[0], chain.generations[-1]):
        model = ready.build()
        model.load_state_dict(trained.weights)
        accuracies.append(score(model.eval(), data, data.test)["accuracy"])
    product = Run.create(replace(request, audit_folds=folds), str(out / f"{seed}-folds")).execute()
    return {
        "seed": seed,
        "first": accuracies[0],
        "last": accuracies[1],
        "product": product["test"]["accuracy"],
        "chosen": product["folds"]["generations"],
        "plain": float(product["folds"]["plain"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/gain-kept"))
    options = parser.parse_args()
    rows = []
    for seed in range(options.seeds):
        rows.append(one_seed(seed, options.folds, options.out))
        print(json.dumps(rows[-1], sort_keys=True), flush=True)
    gain, kept = (100 * fmean(row[name] - row["first"] for row in rows) for name in ("last", "product"))
    print(f"ungated {gain:+.2f} points, by folds {kept:+.2f}: {100 * kept / gain:.0f} % kept ({len(rows)} seeds)")


if __name__ == "__main__":
    main()
