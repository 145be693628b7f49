"""Digits of which two fifths are labelled wrong: plain training, elr(), and the label errors that elr() remembers.

python examples/wrong_labels.py --steps 1800
"""

import argparse

from selfdistill import find_label_errors, fit, methods
from selfdistill.data.dataset import load
from selfdistill.evaluation.predict import score, task_outputs
from selfdistill.models import parse


def main(steps: int) -> None:
    data = load("digits", label_noise=0.4)
    build = parse("mlp", data.shape, len(data.classes))
    for name, method in (("plain()", methods.plain()), ("elr()", methods.elr())):
        result = fit(build, data, method, steps=steps, seed=0)
        right = score(result.model, data, data.test)["accuracy"]  # the labels of the test split are right
        print(f"{name:8} {right:6.1%} of the test rows")

    # the rows of the validation split taught nothing, so the model contradicts their wrong labels
    held_out = task_outputs(result.model, data, data.audit).softmax(-1)
    found = find_label_errors(data.y[data.audit].numpy(), held_out.numpy())
    suspected, wrong = found.scores > 0.5, data.noisy[data.audit].numpy()
    print(f"{suspected.sum()} of {len(wrong)} labels suspected, {wrong.sum()} wrong, {(suspected & wrong).sum()} found")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1800)
    main(parser.parse_args().steps)
