"""Label noise: how many labels are wrong, from which class to which, and which ones, from predictions out of fold.

Equation::

    P(y_i | x_i) = sum_z p_i(z) T_zy,   p_i(z) = q_i(z)^t / sum_c q_i(c)^t
    score_i = 1 - p_i(y_i) T_{y_i y_i} / sum_z p_i(z) T_{z y_i}

q_i are the probabilities that a model, which did not learn the label of row i, gives to its classes z. The noise
matrix T (the share of the rows of class z with the given label y) and the power t, which calibrates the model, are
found together by maximum likelihood: EM for T, for each t of a grid. Confident predictions that contradict a label
count as noise, uncertain ones as errors of the model. Several annotators have a matrix each (Dawid and Skene), and the
model is the prior of each row. Intervals are percentiles of bootstrap samples of the rows, in each of which T and the
power are found anew.

A memory m_i, which a model that did learn the label has kept of its predictions, ranks rows better than q_i alone, but
believes the labels too much. It has no part in T, t and the noise rate. By T and t and (q_i + m_i) / 2 in place of q_i
there is a posterior r_i, of which the given label loses as much in every row as makes the mean score the noise rate::

    score_i = 1 - e^-b r_i(y_i) / (e^-b r_i(y_i) + sum_{z != y_i} r_i(z)),  mean_i score_i = the noise rate

Values have a residual each: a normal-like part (Student's t with 4 degrees of freedom) of right labels and a wide one
of wrong labels, mixed by EM; the score is the probability of the wide part.

The noise is taken to depend on the class alone, not on the row. Sources: Dawid and Skene, Maximum Likelihood Estimation
of Observer Error-Rates Using the EM Algorithm, 1979; Northcutt, Jiang and Chuang, Confident Learning, JAIR 2021;
Patrini et al., Making Deep Neural Networks Robust to Label Noise, CVPR 2017, for the adjusted accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LIKELY = 0.5  # a label with a higher score is a likely error
POWERS = np.geomspace(0.25, 8.0, 16)  # that calibrate a model
FLOOR = 1e-6  # of a probability
STEPS = 40  # of EM
PLAUSIBLE = 1e-3  # least share of the likelihood of a power that counts
DRAWS = 100  # bootstrap samples
MOST = 2_000_000  # numbers (rows x classes) that noise and calibration are found on
MOST_DRAWN = 200_000  # of a bootstrap sample
STEPS_DRAWN = 10  # of EM, from the matrix of all rows
FARTHEST = 15.0  # loss of the given label, in log-odds
LEVEL = 0.95  # of the intervals
KEPT_CLASSES = 30  # of a matrix that a record holds whole
MOST_PAIRS = 20
NO_LABEL = -1
WIDER = 5.0  # times the scale of right values: the least scale of wrong ones
ASSUMPTION = "given the true class, label noise is independent of the errors of the model"
VALUE_ASSUMPTION = "wrong values are those that lie far outside the spread of the other errors of the model"


class Rate(NamedTuple):
    """A share with its interval."""

    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class LabelNoise:
    """The noise of labels, as `find_label_errors` estimates it.

    ``scores`` (rows,) are the probabilities that labels are wrong, ``suggested`` (rows,) the most probable classes or
    the predicted values, ``noise`` is the share of wrong labels. Of classes, ``matrix`` (classes, classes) has a row
    for each true class and a column for each given one, ``draws`` (samples, classes, classes) are the same of
    bootstrap samples, and ``agreement`` has an entry for each annotator: the share of its labels that are right. Of
    several annotators, ``posterior`` (rows, classes) are the probabilities of the true classes, and ``matrices``
    (annotators, classes, classes) and ``matrix_draws`` (samples, annotators, classes, classes) the noise of each one.
    """

    scores: Floats
    suggested: NDArray[Any]
    noise: Rate
    matrix: Floats | None = None
    draws: Floats | None = None
    power: float = 1.0
    agreement: tuple[Rate, ...] = ()
    posterior: Floats | None = None
    matrices: Floats | None = None
    matrix_draws: Floats | None = None

    @property
    def likely(self) -> NDArray[np.bool_]:
        """A mask of the likely errors."""
        return self.scores > LIKELY

    @property
    def order(self) -> Ints:
        """The rows, the highest score first."""
        return np.argsort(-self.scores, kind="stable")


def find_label_errors(
    labels: ArrayLike, pred_probs: ArrayLike, seed: int = 0, memory: ArrayLike | None = None
) -> LabelNoise:
    """Find labels that are likely wrong, the noise rate and the noise matrix; see the module.

    Args:
        labels: Of each row a class from 0 on, (rows,); or the shares of its classes, (rows, classes), floating; or the
            classes that annotators gave it, (rows, annotators), whole, -1 for none. For values the labels (rows,).
        pred_probs: The probabilities of the classes, (rows, classes), by a model that did not learn the row's label;
            for values its predictions, (rows,).
        seed: Of the bootstrap samples.
        memory: The probabilities of the classes, (rows, classes), that a model kept which did learn the labels: they
            have a part in the scores, and none in the noise.

    Returns:
        The scores, the suggested classes, the noise rate and the noise matrix.

    Raises:
        DataError: the shapes do not fit, a number is not finite, or a label is no class.

    >>> q = [[0.9, 0.1]] * 20 + [[0.1, 0.9]] * 20
    >>> result = find_label_errors([1] + [0] * 19 + [1] * 20, q)
    >>> result.order[0].item(), result.suggested[0].item(), result.likely.sum().item()
    (0, 0, 1)
    """
    y, q = np.asarray(labels), np.asarray(pred_probs, dtype=np.float64)
    _check(y, q)
    kept = q if memory is None else np.asarray(memory, dtype=np.float64)
    if kept.shape != q.shape or not np.isfinite(kept).all():
        raise DataError(f"memory has the shape {kept.shape} and pred_probs {q.shape}; give finite numbers of one shape")
    random = np.random.default_rng(seed)
    if q.ndim == 1:
        return _values(y.astype(np.float64), q, random)
    if y.ndim == 2 and y.dtype.kind == "f":
        hot = y[:, None, :]
    else:
        hot = _one_hot(y.astype(np.int64).reshape(len(y), -1), q.shape[1])
    return _classes(hot, q, None if memory is None else kept, random)


def _check(y: NDArray[Any], q: Floats) -> None:
    if q.ndim not in (1, 2) or not len(q):
        raise DataError(f"pred_probs has the shape {q.shape}; give (rows, classes), or (rows,) for values")
    if y.ndim not in (1, 2) or len(y) != len(q):
        raise DataError(f"labels has the shape {y.shape} and pred_probs {q.shape}; give both for the same rows")
    for name, values in (("labels", y), ("pred_probs", q)):
        if values.dtype.kind not in "fiub" or not np.isfinite(values).all():
            raise DataError(f"{name} has an entry that is no finite number; remove the row, or fill the cell")
    if q.ndim == 1:
        if y.ndim != 1:
            raise DataError(f"labels has the shape {y.shape}; values have one label for each row, (rows,)")
        return
    if (q < 0).any() or not np.allclose(q.sum(1), 1.0, atol=1e-3):
        raise DataError("pred_probs has a row that is no distribution; give probabilities that sum to 1")
    if y.ndim == 2 and y.dtype.kind == "f":
        if y.shape != q.shape or (y < 0).any() or not np.allclose(y.sum(1), 1.0, atol=1e-3):
            raise DataError("labels of several columns of shares must have a column for each class and sum to 1")
        return
    if (y != np.floor(y)).any() or y.min() < (NO_LABEL if y.ndim == 2 else 0) or y.max() >= q.shape[1]:
        raise DataError(f"labels has an entry that is none of the classes 0 to {q.shape[1] - 1}; count classes from 0")
    if (y.reshape(len(y), -1).max(axis=1) < 0).any():
        raise DataError("labels has a row without the label of any annotator; leave it out")


def _one_hot(votes: Ints, classes: int) -> Floats:
    """Labels of annotators (rows, annotators) as indicators (rows, annotators, classes); zeros where there is none."""
    hot = np.zeros((*votes.shape, classes))
    rows, places = np.nonzero(votes >= 0)
    hot[rows, places, votes[rows, places]] = 1.0
    return hot


# classes --------------------------------------------------------------------------------------------------------------


def calibrate(q: Floats, power: float) -> Floats:
    """Probabilities (rows, classes) to a power, normalised."""
    logs = power * np.log(np.clip(q, FLOOR, 1.0))
    p: Floats = np.exp(logs - logs.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return p


def _expect(p: Floats, hot: Floats, matrices: Floats) -> tuple[Floats, Floats]:
    """The joint probabilities of true class and labels (rows, classes), and the likelihood of each row (rows,)."""
    logs = np.log(p + 1e-300)
    for place, matrix in enumerate(matrices):
        logs = logs + hot[:, place] @ np.log(matrix + 1e-12).T
    top = logs.max(axis=1, keepdims=True)
    joint: Floats = np.exp(logs - top)
    return joint, joint.sum(axis=1) * np.exp(top[:, 0])


def _maximise(p: Floats, hot: Floats, matrices: Floats, steps: int) -> tuple[Floats, float]:
    """EM: the matrices of the annotators (annotators, classes, classes), and the mean log-likelihood."""
    prior = np.eye(p.shape[1])  # one right label a class: a class of few rows has no noise without evidence
    for _ in range(steps):
        joint, _ = _expect(p, hot, matrices)
        joint /= joint.sum(axis=1, keepdims=True)
        counts = np.stack([joint.T @ hot[:, a] for a in range(hot.shape[1])]) + prior
        matrices = counts / counts.sum(axis=2, keepdims=True)
    return matrices, float(np.log(_expect(p, hot, matrices)[1] + 1e-300).mean())


def _start(annotators: int, classes: int) -> Floats:
    off = 0.1 / max(1, classes - 1)
    return np.broadcast_to(
        np.full((classes, classes), off) + (0.9 - off) * np.eye(classes), (annotators, classes, classes)
    )


class Fit(NamedTuple):
    """Noise and calibration of rows, for each plausible power."""

    powers: Ints  # places in `POWERS`
    weights: Floats  # (powers,): how plausible each is
    matrices: Floats  # (powers, annotators, classes, classes)

    @property
    def best(self) -> int:
        """The place of the most plausible power."""
        return int(self.weights.argmax())


def _fit(calibrated: Sequence[Floats], hot: Floats, start: Floats, powers: Ints, steps: int) -> Fit:
    """EM for predictions to some of the powers, from the matrices (powers, annotators, classes, classes)."""
    fits = [_maximise(p, hot, one, steps) for p, one in zip(calibrated, start, strict=True)]
    likelihoods = np.array([fit[1] for fit in fits])
    weights = np.exp(len(hot) * (likelihoods - likelihoods.max()))
    weights /= weights.sum()
    kept = weights > PLAUSIBLE
    matrices = np.stack([fit[0] for fit in fits])
    return Fit(powers[kept], weights[kept] / weights[kept].sum(), matrices[kept])


def _rate(fit: Fit, calibrated: Mapping[int, Floats], hot: Floats) -> Floats:
    """The share of the labels of each annotator that are wrong, (annotators,), over the plausible powers."""
    shares = [_wrong(calibrated[i], hot, each) for i, each in zip(fit.powers.tolist(), fit.matrices, strict=True)]
    rate: Floats = np.tensordot(fit.weights, np.stack(shares), 1)
    return rate


def _classes(hot: Floats, q: Floats, memory: Floats | None, random: np.random.Generator) -> LabelNoise:
    rows, annotators, classes = hot.shape
    most = max(200, MOST // classes)
    part = np.arange(rows) if rows <= most else random.choice(rows, most, replace=False)
    start = np.stack([_start(annotators, classes)] * len(POWERS))
    fit = _fit([calibrate(q[part], t) for t in POWERS], hot[part], start, np.arange(len(POWERS)), STEPS)
    calibrated = {i: calibrate(q, POWERS[i]) for i in fit.powers.tolist()}
    rate, matrices = _rate(fit, calibrated, hot), np.tensordot(fit.weights, fit.matrices, 1)
    rates, draws = _bootstrap(fit, calibrated, hot, rate, random)
    weights = given_rows(hot) / given_rows(hot).sum()
    mean, power = float(rate @ weights), float(POWERS[fit.powers[fit.best]])
    given = hot.sum(axis=1)
    given /= given.sum(axis=1, keepdims=True)
    p = calibrate(q if memory is None else (q + memory) / 2, power)
    posterior = _expect(p, hot, (matrices + _even(matrices)) / 2)[0]
    posterior /= posterior.sum(axis=1, keepdims=True)
    if memory is not None:
        posterior = _doubted(posterior, given, mean)
    scores = 1.0 - (posterior * given).sum(axis=1)
    agreement = tuple(_interval(1 - rate[a], 1 - rates[:, a]) for a in range(annotators))
    panel = (posterior, matrices, draws) if annotators > 1 else (None, None, None)
    return LabelNoise(
        scores, posterior.argmax(axis=1), _interval(mean, rates @ weights), np.tensordot(weights, matrices, 1),
        np.einsum("a,dazy->dzy", weights, draws), power, agreement, *panel,
    )  # fmt: skip


def _bootstrap(
    fit: Fit, calibrated: Mapping[int, Floats], hot: Floats, rate: Floats, random: np.random.Generator
) -> tuple[Floats, Floats]:
    """Noise rates (samples, annotators) and matrices (samples, annotators, classes, classes) of bootstrap samples."""
    rows, annotators, classes = hot.shape
    size = min(rows, max(200, MOST_DRAWN // classes))
    rates, draws = np.empty((DRAWS, annotators)), np.empty((DRAWS, annotators, classes, classes))
    for draw in range(DRAWS):
        drawn = random.choice(rows, size)
        p, given = {i: each[drawn] for i, each in calibrated.items()}, hot[drawn]
        sample = _fit(list(p.values()), given, fit.matrices, fit.powers, STEPS_DRAWN)
        rates[draw] = _rate(sample, p, given)
        draws[draw] = np.tensordot(sample.weights, sample.matrices, 1)
    width = np.sqrt(size / rows)  # of a smaller sample
    centre = np.tensordot(fit.weights, fit.matrices, 1)
    return rate + width * (rates - rate), np.clip(centre + width * (draws - centre), 0.0, 1.0)


def _doubted(posterior: Floats, given: Floats, rate: float) -> Floats:
    """The posterior (rows, classes) of which the given labels (rows, classes) lose as much in every row as makes the
    mean score equal to the noise rate."""
    low, high = -FARTHEST, FARTHEST
    while True:
        loss = (low + high) / 2
        doubted: Floats = posterior * np.exp(-loss * given) + 1e-300
        doubted /= doubted.sum(axis=1, keepdims=True)
        score = 1.0 - float((doubted * given).sum(axis=1).mean())
        if high - low < 1e-3:
            return doubted
        low, high = (loss, high) if score < rate else (low, loss)


def raise_rate(noise: LabelNoise, held: LabelNoise) -> LabelNoise:
    """The noise of classes with the rate that was found on rows left out alone, if that is the larger one.

    Memories and models that learnt the labels contradict too few of them. Rows of a trusted test split may have less
    noise than the others, so a smaller rate changes nothing. Scores keep their order, and their mean is the new rate.

    Args:
        noise: The noise of all rows.
        held: The noise of the rows left out.

    Returns:
        The noise; the matrix has so much more noise, and the rate the interval of the rows left out.
    """
    if noise.matrix is None or noise.draws is None or held.noise.rate <= noise.noise.rate:
        return noise
    pair = np.column_stack([1.0 - noise.scores, noise.scores])
    given = np.broadcast_to([1.0, 0.0], pair.shape)
    scores = 1.0 - _doubted(pair, given, held.noise.rate)[:, 0]
    unit = np.eye(len(noise.matrix))
    factor = min(held.noise.rate / max(noise.noise.rate, FLOOR), 1.0 / max(FLOOR, 1.0 - noise.matrix.diagonal().min()))
    matrix, draws = unit + factor * (noise.matrix - unit), unit + factor * (noise.draws - unit)
    return replace(noise, scores=scores, noise=held.noise, matrix=matrix, draws=np.clip(draws, 0.0, 1.0))


def _even(matrices: Floats) -> Floats:
    """As much noise (annotators, classes, classes), of all classes alike: a pair of classes without any confusion yet
    may have one."""
    classes = matrices.shape[2]
    noise = 1.0 - np.einsum("azz->a", matrices)[:, None, None] / classes
    off = 1.0 - np.eye(classes)
    even: Floats = (1.0 - noise) * np.eye(classes) + noise * off / max(1, classes - 1)
    return even


def given_rows(hot: Floats) -> Floats:
    """The rows that each annotator labelled, (annotators,)."""
    rows: Floats = hot.sum(axis=(0, 2))
    return rows


def _wrong(p: Floats, hot: Floats, matrices: Floats) -> Floats:
    """The share of the labels of each annotator that are wrong, (annotators,)."""
    joint, _ = _expect(p, hot, matrices)
    joint /= joint.sum(axis=1, keepdims=True)
    right = np.einsum("nz,naz->a", joint, hot)
    share: Floats = 1.0 - right / np.maximum(given_rows(hot), 1e-12)
    return share


def _interval(value: float, samples: Floats) -> Rate:
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Rate(float(value), float(min(max(low, 0.0), value)), float(max(min(high, 1.0), value)))


def matrix_record(noise: LabelNoise, labels: NDArray[Any], classes: Sequence[str]) -> dict[str, Any]:
    """The noise matrix as run.json holds it: whole for few classes, and the pairs of most noise.

    Args:
        noise: The noise.
        labels: The given classes (rows,).
        classes: Their names.

    Returns:
        ``matrix`` and ``pairs``; empty for values.
    """
    if noise.matrix is None or noise.draws is None:
        return {}
    low, high = np.quantile(noise.draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    low, high = np.minimum(low, noise.matrix), np.maximum(high, noise.matrix)
    counts = np.zeros(noise.matrix.shape, dtype=np.int64)
    np.add.at(counts, (labels, noise.suggested), 1)
    off = np.where(np.eye(len(classes), dtype=bool), -1, counts.T)
    pairs = []
    for place in np.argsort(-off, axis=None, kind="stable")[:MOST_PAIRS].tolist():
        true, given = divmod(place, len(classes))
        if off[true, given] > 0:
            rate = Rate(*(float(part[true, given]) for part in (noise.matrix, low, high)))._asdict()
            pairs.append({"true": classes[true], "given": classes[given], **rate, "rows": int(off[true, given])})
    if len(classes) > KEPT_CLASSES:
        return {"pairs": pairs}
    parts = {"rates": noise.matrix, "low": low, "high": high}
    shown = {name: np.round(part, 6).tolist() for name, part in parts.items()}
    return {"matrix": {"classes": list(classes), **shown, "counts": counts.tolist()}, "pairs": pairs}


def adjust(
    outputs: Floats, labels: NDArray[Any], noise: LabelNoise, predictions: Floats, scores: Floats, seed: int = 0
) -> dict[str, Any]:
    """A score of a model against the given labels, and the same against the true ones, by the noise.

    The confusion of given labels with the model's classes is multiplied by the inverse of the noise matrix, whose noise
    is scaled to that of these rows. A squared error is weighted by the probability that its label is right.

    Args:
        outputs: The model's outputs on the test rows, (rows, classes) or (rows,).
        labels: Their given labels (rows,).
        noise: The noise of all rows.
        predictions: What `find_label_errors` took of these rows.
        scores: Their scores.
        seed: Of the bootstrap samples.

    Returns:
        ``metric``, ``raw``, ``adjusted`` with its interval ``low`` and ``high``, and ``assumption``.
    """
    random, rows = np.random.default_rng(seed), len(labels)
    if noise.matrix is None or noise.draws is None:
        squares = (outputs - labels) ** 2

        def rmse(ids: Ints) -> float:
            right = 1.0 - scores[ids]
            return float(np.sqrt((squares[ids] * right).sum() / max(right.sum(), 1e-12)))

        value = rmse(np.arange(rows))
        samples = np.array([rmse(random.choice(rows, rows)) for _ in range(DRAWS)])
        raw, metric, assumption = float(np.sqrt(squares.mean())), "rmse", VALUE_ASSUMPTION
    else:
        predicted, p = outputs.argmax(axis=1), calibrate(predictions, noise.power)

        def accuracy(ids: Ints, matrix: Floats) -> float:
            counts = np.zeros(matrix.shape)
            np.add.at(counts, (predicted[ids], labels[ids]), 1.0)
            inverse = np.linalg.pinv(_scaled(matrix, p[ids], labels[ids]))
            return float(np.clip(np.trace(counts @ inverse) / rows, 0.0, 1.0))

        value = accuracy(np.arange(rows), noise.matrix)
        samples = np.array([accuracy(random.choice(rows, rows), draw) for draw in noise.draws])
        raw, metric, assumption = float((predicted == labels).mean()), "accuracy", ASSUMPTION
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    bounds = {"low": float(min(low, value)), "high": float(max(high, value))}
    return {"metric": metric, "raw": raw, "adjusted": value, **bounds, "assumption": assumption}


def _scaled(matrix: Floats, p: Floats, labels: Ints) -> Floats:
    """The noise matrix with as much noise as some rows have, which may be another split than the others, by maximum
    likelihood."""
    excess = matrix - np.eye(len(matrix))
    right, wrong = p[np.arange(len(labels)), labels], (p * excess[:, labels].T).sum(axis=1)
    shares = np.linspace(0.0, min(2.0, 0.99 / max(1e-9, float(-excess.diagonal().min()))), 101)
    likelihood = np.log(np.maximum(right[:, None] + shares * wrong[:, None], 1e-12)).sum(axis=0)
    scaled: Floats = np.eye(len(matrix)) + shares[likelihood.argmax()] * excess
    return scaled


# values ---------------------------------------------------------------------------------------------------------------


def _student(residuals: Floats, scale: float) -> Floats:
    """The density of Student's t with 4 degrees of freedom."""
    density: Floats = 0.375 / scale / (1.0 + (residuals / scale) ** 2 / 4.0) ** 2.5
    return density


def _outlying(residuals: Floats, weights: Floats, spread: float) -> tuple[Floats, float]:
    """The probability of each residual to be of the wide part (rows,), and the share of that part."""
    scale = max(1.4826 * float(np.median(np.abs(residuals))), 1e-9 * spread, 1e-300)
    share, wide, probability = 0.05, max(np.sqrt(2.0) * spread, WIDER * scale), np.zeros(len(residuals))
    for _ in range(STEPS):
        outer = share * _student(residuals, wide)
        probability = outer / (outer + (1.0 - share) * _student(residuals, scale) + 1e-300)
        share = float(np.average(probability, weights=weights))
        right = weights * (1.0 - probability)
        robust = 5.0 / (4.0 + (residuals / scale) ** 2)
        scale = max(float(np.sqrt((right * robust * residuals**2).sum() / right.sum())), 1e-9 * spread, 1e-300)
        wide = max(wide, WIDER * scale)
    return probability, share


def _values(y: Floats, predictions: Floats, random: np.random.Generator) -> LabelNoise:
    residuals = y - predictions
    residuals, spread = residuals - np.median(residuals), float(y.std())
    if not residuals.any():
        return LabelNoise(np.zeros(len(y)), predictions, Rate(0.0, 0.0, 0.0))
    scores, share = _outlying(residuals, np.ones(len(y)), spread)
    samples = []
    for _ in range(DRAWS):
        weights = np.bincount(random.choice(len(y), len(y)), minlength=len(y)).astype(np.float64)
        samples.append(_outlying(residuals, weights, spread)[1])
    return LabelNoise(scores, predictions, _interval(share, np.array(samples)))
