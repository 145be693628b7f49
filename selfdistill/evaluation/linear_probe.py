"""Linear probes: simple learners on a network's features, fitted to labels that it was not trained on."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..models.feature_taps import Extended, last_linear
from .predict import predict_rows

if TYPE_CHECKING:
    from ..data.dataset import Data

NEIGHBOURS = 20


MOST = 5000  # labelled rows that a classifier is fitted to in training, evenly drawn


def features(model: nn.Module, data: Data, ids: Tensor, head: str = "logits") -> Tensor:
    """The features of rows in eval mode, float32, (rows, width): the input of the last linear layer of the model
    itself, without the heads beside it.

    Raises:
        SpaceError: the model has no linear layer.
    """
    inputs = list[Tensor]()
    layer, device = last_linear(_itself(model)), next(model.parameters()).device
    hook = layer.register_forward_hook(lambda module, args, output: inputs.append(args[0].detach().float().cpu()))
    try:
        predict_rows(model, data, ids, head, device)
    finally:
        hook.remove()
    return torch.cat(inputs) if inputs else torch.zeros(0, layer.in_features)


def _itself(model: nn.Module) -> nn.Module:
    """The model that heads were put beside: their layers were made after its classifier."""
    return model.model if isinstance(model, Extended) else model


def linear(train: Tensor, y: Tensor, query: Tensor) -> Tensor:
    """Log-probabilities (rows, classes seen in y) of a logistic regression on standardised features.

    >>> known = torch.tensor([[-1.0], [-0.5], [0.5], [1.0]])
    >>> linear(known, torch.tensor([0, 0, 1, 1]), torch.tensor([[-2.0], [2.0]])).argmax(1).tolist()
    [0, 1]
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    learner = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(train.numpy(), y.numpy())
    return torch.from_numpy(learner.predict_proba(query.numpy()).astype(np.float32)).clamp(min=1e-12).log()


def nearest(train: Tensor, y: Tensor, query: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """The class (rows,) that most of the nearest rows have, by the cosine of their features.

    >>> known = torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0]])
    >>> nearest(known, torch.tensor([4, 4, 7]), torch.tensor([[9.0, 0.0], [0.0, 0.1]]), 1).tolist()
    [4, 7]
    """
    from sklearn.neighbors import KNeighborsClassifier

    learner = KNeighborsClassifier(min(neighbours, len(train)), metric="cosine").fit(train.numpy(), y.numpy())
    return torch.from_numpy(learner.predict(query.numpy()))


def _subset(data: Data) -> Tensor:
    """Ids of the labelled rows that a classifier is fitted to in training."""
    return data.labelled[:: max(1, -(-len(data.labelled) // MOST))]


def by_neighbours(model: nn.Module, data: Data) -> float | None:
    """Accuracy of `nearest` on the test split, on the rows of `fit_classifier`; None without classes or rows."""
    ids = _subset(data)
    if data.task != "classify" or not len(ids) or not len(data.test):
        return None
    train, query = (features(model, data, rows, data.head) for rows in (ids, data.test))
    return float((nearest(train, data.targets[ids], query) == data.targets[data.test]).double().mean())


@torch.no_grad()
def fit_classifier(model: nn.Module, data: Data) -> int:
    """Fit the last linear layer, in place, to the labels and the features as they are: a linear probe.

    Returns how many rows it has looked at.

    For classes a logistic regression on standardised features, for values a ridge regression, both with scikit-learn's
    usual penalty of 1. Standardisation is folded into the weights; a class without a label gets the smallest bias.

    Raises:
        SpaceError: the model has no linear layer.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.preprocessing import StandardScaler

    if not len(data.labelled):
        return 0
    base = _itself(model)
    ids = _subset(data)
    layer, inputs, y = last_linear(base), features(base, data, ids, data.head), data.targets[ids]
    shifted = layer.bias is not None
    scaler = StandardScaler(with_mean=shifted).fit(inputs.numpy())
    if data.task == "regress":
        learner, classes = Ridge(fit_intercept=shifted), torch.arange(layer.out_features)
    else:
        learner, classes = LogisticRegression(max_iter=200, fit_intercept=shifted), y.unique()
    if len(classes) < min(2, layer.out_features):
        return len(ids)  # labels of one class say nothing
    with warnings.catch_warnings():  # said after every epoch, it would hide all else
        warnings.simplefilter("ignore", ConvergenceWarning)
        learner.fit(scaler.transform(inputs.numpy()), y.numpy())
    weight = torch.from_numpy(learner.coef_ / scaler.scale_).reshape(-1, layer.in_features)
    bias = torch.as_tensor(learner.intercept_).reshape(-1) - weight @ torch.as_tensor(scaler.mean_ * shifted)
    if len(weight) < len(classes):  # of two classes scikit-learn says one
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    layer.weight.zero_()
    layer.weight[classes] = weight.to(layer.weight)
    if shifted:
        layer.bias.fill_(float(bias.min()) - 10.0)
        layer.bias[classes] = bias.to(layer.bias)
    return len(ids)


def probe(model: nn.Module, data: Data) -> dict[str, float]:
    """Accuracy on the test split of both, fitted to the features of the labelled rows: ``linear`` and ``nearest``."""
    ids, y, truth = data.labelled, data.targets[data.labelled], data.targets[data.test]
    train, query = features(model, data, ids, data.head), features(model, data, data.test, data.head)
    labels = y.unique()  # the columns of the log-probabilities
    predictions = {"linear": labels[linear(train, y, query).argmax(1)], "nearest": nearest(train, y, query)}
    return {name: float((classes == truth).double().mean()) for name, classes in predictions.items()}
