"""A method of one's own: an average of the weights teaches where it is sure; checked, trained, beside plain().

python examples/own_method.py --steps 1800
"""

import argparse

from selfdistill import Method, Term, fit
from selfdistill.data.dataset import load
from selfdistill.evaluation.predict import score
from selfdistill.gates import Confident
from selfdistill.losses import CrossEntropy
from selfdistill.methods import plain
from selfdistill.models import parse
from selfdistill.schedules import Linear
from selfdistill.teachers import Ema, Labels
from selfdistill.testing import check_method


def sure_average(decay: float = 0.99, confidence: float = 0.5, weight: float = 2.0) -> Method:
    """Learn from an average of the weights where it is confident, more and more over the run."""
    average = Term(Ema(decay), CrossEntropy(), gate=Confident(confidence), weight=Linear(0.0, weight))
    return Method({"label": Term(Labels(), CrossEntropy()), "average": average})


def main(steps: int) -> None:
    check_method(sure_average())
    data = load("digits", label_noise=0.4)
    for name, method in (("plain()", plain()), ("sure_average()", sure_average())):
        result = fit(parse("mlp", data.shape, len(data.classes)), data, method, steps=steps, seed=0)
        print(f"{name:15} {score(result.model, data, data.test)['accuracy']:6.1%} of the test rows")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1800)
    main(parser.parse_args().steps)
