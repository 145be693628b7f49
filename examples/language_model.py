"""A tiny language model learns a new kind of question from demonstrations: sft(), and sdft() whose teacher reads them.

The model is made here, in half a minute. With a context in a format that it knows, it is its own teacher.

python examples/language_model.py --steps 60
"""

import argparse
import copy
from dataclasses import replace

from selfdistill.language.contexts import Demonstration
from selfdistill.language.recipes import sdft, sft
from selfdistill.language.trainer import fit
from selfdistill.models.causal_lm import of_model
from selfdistill.testing import toys


def main(steps: int, updates: int | None) -> None:
    model, tokens = toys.train_tiny(seed=3) if updates is None else (toys.untrained(), toys.tokenizer())
    data = toys.prompts(toys.NEW, 300, seed=1)
    test, prior = [data.rows[i] for i in data.test.tolist()], list(toys.suite(rows=50).rows)

    context = Demonstration("{prompt}\nExample: {demonstration}")
    for name, method in (("sft()", sft()), ("sdft()", replace(sdft(skip=0, max_tokens=8), context=context))):
        result = fit(
            lambda: of_model(copy.deepcopy(model), tokens), data, method,
            steps=steps, batch_size=32, lr=3e-4, max_tokens=8, audit="off", seed=1, device="cpu",
        )  # fmt: skip
        new, kept = (toys.accuracy(result.model.lm, tokens, rows, temperature=1.0) for rows in (test, prior))
        print(f"{name:7} {new:6.1%} of the new questions right, {kept:6.1%} of the old ones")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--updates", type=int, help="0: an untrained model, to try the script")
    given = parser.parse_args()
    main(given.steps, given.updates)
