"""Digits in five tasks of two classes each: plain training forgets the earlier ones, der_pp() replays 200 rows.

python examples/streams.py --steps 200
"""

import argparse

from selfdistill import methods
from selfdistill.data.dataset import load
from selfdistill.models import parse
from selfdistill.training.stream import class_tasks, fit_stream, rows_of_tasks, score_classes


def main(steps: int) -> None:
    data = load("digits")
    build = parse("mlp", data.shape, len(data.classes))
    classes = class_tasks(data, number=5, seed=0)
    tasks = rows_of_tasks(data, classes, data.labelled)
    for name, method in (("plain()", methods.plain()), ("der_pp()", methods.der_pp(memory=200))):
        result = fit_stream(build, data, method, tasks, steps=steps, seed=0)
        scores = score_classes(result, build, data, classes, seed=0)
        print(f"{name:9} {scores['accuracy']:6.1%} of all ten classes, {scores['forgetting']:6.1%} forgotten")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    main(parser.parse_args().steps)
