"""The estimators on tables, against the same learner alone: paired over seeds, mean ± half of the 95 % interval.

``python -m benchmarks.tables`` measures everything (about a quarter of an hour on one core); name parts to run some:

repair   ridge on diabetes with a penalty ten times too large: what xi from the data repairs
tuned    ridge on diabetes, penalty by generalised cross-validation: xi must leave it alone
joint    penalty and xi chosen together: must not be worse than the tuned penalty
peers    60 labels of diabetes, 80 of friedman1, the rest unlabelled: peers that label for each other, and own labels
soft     the cost of fitting soft targets, where the learner takes them without copies of the rows
million  memory and seconds of the defaults on a million rows with kinds and gaps (``benchmarks.million``)
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_diabetes, make_friedman1
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.naive_bayes import GaussianNB
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from selfdistill.estimators import (
    NetworkClassifier,
    PeerTaughtRegressor,
    SelfDistilledRegressor,
    mixing_weight,
    usual_peers,
)
from selfdistill.estimators.generations import fit_soft
from selfdistill.evaluation.statistics import interval

TEST = 150  # rows of every split


def gain(before: Any, after: Any, X: Any, y: Any, root: bool) -> float:
    """Relative gain in mean squared error (or its root) in per cent."""
    errors = [float(np.mean((model.predict(X) - y) ** 2)) for model in (before, after)]
    ratio: float = (errors[1] / errors[0]) ** (0.5 if root else 1.0)
    return 100 * (1 - ratio)


def shown(part: str, about: str, gains: list[float], **more: Any) -> None:
    """One line of JSON."""
    mean, half = interval(gains)
    row = {"part": part, "about": about, "gain": round(mean, 2), "half": round(half, 2), "worst": round(min(gains), 2)}
    print(json.dumps({**row, "seeds": len(gains), **more}), flush=True)


def diabetes(degree: int) -> tuple[Any, Any]:
    X, y = load_diabetes(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    if degree > 1:
        X = StandardScaler().fit_transform(PolynomialFeatures(degree, include_bias=False).fit_transform(X))
    return X, y


def splits(rows: int, train: int, seeds: int) -> Any:
    for seed in range(seeds):
        order = np.random.RandomState(seed).permutation(rows)
        yield order[:train], order[train : train + TEST]


def smoothers(X: Any) -> dict[float, Any]:
    """The matrix of ridge regression with an intercept, for penalties on X'X / n."""
    Z = X - X.mean(0)
    U, s, _ = np.linalg.svd(Z, full_matrices=False)
    return {p: (U * (s**2 / (s**2 + p * len(X)))) @ U.T + 1 / len(X) for p in np.logspace(-4, 2, 31)}


def tuned_penalty(matrices: dict[float, Any], y: Any) -> float:
    return float(min(matrices, key=lambda p: float(np.mean(mixing_weight.left_out_residuals(matrices[p], y) ** 2))))


def joint_choice(smoothers: dict[float, Any], y: Any) -> tuple[float, float]:
    """A penalty and a mixing weight, chosen together: (key of ``smoothers``, xi).

    The penalty that generalised cross-validation prefers without distillation stays, unless another one with its own xi
    is better on rows left out one by one, by three standard errors: the best of a free choice over both is often the
    noise of a fit with too little regularisation.
    """
    best = tuned_penalty(smoothers, y)
    usual = mixing_weight.left_out_residuals(smoothers[best], y, "loo") ** 2
    choice, least = (best, 0.0), usual
    for key, H in smoothers.items():
        xi = mixing_weight.closed_form_weight(H, y, "loo").xi
        losses = mixing_weight.left_out_residuals((1.0 - xi) * H + xi * (H @ H), y, "loo") ** 2
        gain = usual - losses
        noise = float(gain.std()) / np.sqrt(len(y))
        if gain.mean() > 3.0 * noise and losses.mean() < least.mean():
            choice, least = (key, xi), losses
    return choice


def repair(seeds: int = 10) -> None:
    """Test MSE with xi from the data against xi = 0, at ten times the tuned penalty, and at 10 on X'X / n."""
    X, y = diabetes(1)
    gains: dict[str, list[float]] = {"penalty 10": [], "ten times the tuned penalty": []}
    for train, test in splits(len(X), 200, seeds):
        penalties = 10.0, 10 * tuned_penalty(smoothers(X[train]), y[train])
        for about, penalty in zip(gains, penalties, strict=True):
            alone = Ridge(penalty * 200).fit(X[train], y[train])
            taught = SelfDistilledRegressor(Ridge(penalty * 200)).fit(X[train], y[train])
            gains[about].append(gain(alone, taught, X[test], y[test], root=False))
    for about, found in gains.items():
        shown("repair", f"{about}, degree 1, 200 rows, test MSE", found)


def _against_tuned(part: str, seeds: int, fitted: Callable[[Any, Any, dict[float, Any], float], Any]) -> None:
    """Test MSE of what ``fitted`` (rows, targets, smoothers, tuned penalty) makes, against ridge at that penalty."""
    for degree, rows in ((1, 200), (2, 250)):
        X, y = diabetes(degree)
        gains = []
        for train, test in splits(len(X), rows, seeds):
            matrices = smoothers(X[train])
            penalty = tuned_penalty(matrices, y[train])
            alone = Ridge(rows * penalty).fit(X[train], y[train])
            made = fitted(X[train], y[train], matrices, penalty)
            gains.append(gain(alone, made, X[test], y[test], root=False))
        shown(part, f"degree {degree}, {rows} rows, test MSE", gains)


def tuned(seeds: int = 100) -> None:
    """Xi from the data at the tuned penalty."""

    def fitted(X: Any, y: Any, matrices: dict[float, Any], penalty: float) -> Any:
        return SelfDistilledRegressor(Ridge(len(X) * penalty)).fit(X, y)

    _against_tuned("tuned", seeds, fitted)


def joint(seeds: int = 100) -> None:
    """Penalty and xi together."""

    def fitted(X: Any, y: Any, matrices: dict[float, Any], penalty: float) -> Any:
        chosen, xi = joint_choice(matrices, y)
        first = Ridge(len(X) * chosen).fit(X, y)
        return Ridge(len(X) * chosen).fit(X, xi * first.predict(X) + (1 - xi) * y)

    _against_tuned("joint", seeds, fitted)


class Mean:
    """The mean of fitted models: what peers know together, undistilled."""

    def __init__(self, models: list[Any]) -> None:
        self.models = models

    def predict(self, X: Any) -> Any:
        return np.mean([model.predict(X) for model in self.models], axis=0)


def million() -> None:
    """A process for each of the defaults."""
    for kind in ("regressor", "peers", "taught", "classifier"):
        subprocess.run([sys.executable, str(Path(__file__).with_name("million.py")), kind], check=True)


def peers(seeds: int = 20) -> None:
    """Test RMSE against the same learner on the labels alone."""
    for name, labels in (("diabetes", 60), ("friedman1", 80)):
        gains: dict[str, list[float]] = {}
        taken: dict[str, int] = {}
        for seed in range(seeds):
            X, y = (
                load_diabetes(return_X_y=True)
                if name == "diabetes"
                else make_friedman1(600, noise=1.0, random_state=seed)
            )
            order = np.random.RandomState(seed).permutation(len(X))
            test, train, rest = order[:TEST], order[TEST : TEST + labels], order[TEST + labels :]
            beside = [clone(peer).fit(X[train], y[train]) for peer in usual_peers(frame=False)]
            for base in (RandomForestRegressor(random_state=seed), HistGradientBoostingRegressor(random_state=seed)):
                alone = clone(base).fit(X[train], y[train])
                both = {
                    "peers": PeerTaughtRegressor(base, random_state=seed),
                    "peers, nothing made up": PeerTaughtRegressor(base, random_state=seed, synthetic=0),
                    "peers and itself": PeerTaughtRegressor(base, random_state=seed, include_self=True),
                    "peers, audit off": PeerTaughtRegressor(base, random_state=seed, audit="off"),
                    "own labels": SelfDistilledRegressor(base, xi=0.0, random_state=seed),
                }
                about = f"{name}, {labels} labels, {type(base).__name__}"
                for kind, model in both.items():
                    model.fit(X[train], y[train], X_unlabeled=X[rest])
                    gains.setdefault(f"{about}: {kind}", []).append(gain(alone, model, X[test], y[test], root=True))
                    taken[f"{about}: {kind}"] = taken.get(f"{about}: {kind}", 0) + (model.generation_ > 0)
                kind = f"{about}: the mean of learner and peers, undistilled"
                gains.setdefault(kind, []).append(gain(alone, Mean([alone, *beside]), X[test], y[test], root=True))
        for about, found in gains.items():
            shown("peers", f"{about}, test RMSE", found, **({"accepted": taken[about]} if about in taken else {}))


def _costs(about: str, hard: Callable[[], Any], soft: Callable[[], Any], size: int, rounds: int) -> None:
    ratios, peaks = [], []
    for _ in range(rounds):
        took = []
        for call in (hard, soft):
            begin = time.process_time()
            call()
            took.append(time.process_time() - begin)
        ratios.append(took[1] / took[0])
    for call in (hard, soft):
        tracemalloc.start()
        call()
        peaks.append(round(tracemalloc.get_traced_memory()[1] / size, 2))
        tracemalloc.stop()
    row = {"part": "soft", "about": about, "time": round(float(np.median(ratios)), 2), "rounds": rounds}
    print(json.dumps({**row, "peak over X, hard": peaks[0], "soft": peaks[1]}), flush=True)


def soft(rounds: int = 9) -> None:
    """CPU time and peak memory of soft targets over hard ones of the same rows."""
    random = np.random.default_rng(0)
    X = random.normal(size=(20_000, 20))
    y = random.integers(0, 10, len(X))
    P = random.dirichlet(np.ones(10), len(X))
    learners = {"NetworkClassifier": NetworkClassifier(steps=300), "GaussianNB": GaussianNB(),
                "LogisticRegression, by weighted copies": LogisticRegression()}  # fmt: skip
    for about, learner in learners.items():
        _costs(
            f"{about}, 20,000 rows, 10 classes",
            lambda learner=learner: clone(learner).fit(X, y),  # type: ignore[misc]
            lambda learner=learner: fit_soft(clone(learner), X, P, np.arange(10)),  # type: ignore[misc]
            X.nbytes,
            rounds,
        )


PARTS: dict[str, Callable[..., None]] = {part.__name__: part for part in (repair, tuned, joint, peers, soft, million)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} [default: all]")
    parser.add_argument("--seeds", type=int, help="instead of each part's own number")
    options = parser.parse_args()
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; there are {', '.join(PARTS)}")
    for part in options.parts or PARTS:
        PARTS[part](*([options.seeds] if options.seeds and part != "million" else []))


if __name__ == "__main__":
    main()
