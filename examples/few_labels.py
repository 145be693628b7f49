"""A hundred labels beside a thousand rows without one: plain training and pseudo-labels, at equal steps.

python examples/few_labels.py --steps 700 --seeds 3
"""

import argparse

from selfdistill import fit, methods
from selfdistill.data.dataset import load
from selfdistill.evaluation.predict import score
from selfdistill.models import parse


def main(steps: int, seeds: int) -> None:
    for seed in range(seeds):
        data = load("digits", labels=100, seed=seed)
        build = parse("mlp", data.shape, len(data.classes))
        for name, method in (("plain()", methods.plain()), ("softmatch()", methods.softmatch())):
            result = fit(build, data, method, steps=steps, seed=seed)
            accuracy = score(result.model, data, data.test)["accuracy"]
            print(f"seed {seed}  {name:12} {accuracy:6.1%} of the test rows")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    main(given.steps, given.seeds)
