"""A table with 60 labels and 300 rows without one: a learner alone, and the same learner taught by a stack of five.

python examples/table.py --labels 60
"""

import argparse

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.model_selection import train_test_split

from selfdistill.estimators import AutoClassifier


def main(labels: int, unlabelled: int) -> None:
    rows, label = load_breast_cancer(return_X_y=True, as_frame=True)
    rows, test, label, truth = train_test_split(rows, label, test_size=0.3, random_state=0, stratify=label)
    known, more = rows[:labels], rows[labels : labels + unlabelled]

    alone = HistGradientBoostingClassifier(random_state=0).fit(known, label[:labels])
    auto = AutoClassifier(HistGradientBoostingClassifier(random_state=0), random_state=0)
    auto.fit(known, label[:labels], X_unlabeled=more)
    for name, learner in (("boosting alone", alone), ("auto()", auto)):
        print(f"{name:15} {np.mean(learner.predict(test) == truth):6.1%} of {len(test)} test rows")
    print(auto.report())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--labels", type=int, default=60)
    parser.add_argument("--unlabelled", type=int, default=300)
    given = parser.parse_args()
    main(given.labels, given.unlabelled)
