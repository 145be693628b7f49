"""What a network's features are worth: simple learners on top of them, fitted to labels that taught it nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from .evaluate import predict_rows
from .features.reading import last_linear

if TYPE_CHECKING:
    from .tasks.data import Data

NEIGHBOURS = 20


def features(model: nn.Module, data: Data, ids: Tensor, head: str = "logits") -> Tensor:
    """What the last linear layer reads of these rows, in eval mode, float32, (rows, width).

    Raises:
        RecipeError: the model has no linear layer.
    """
    read = list[Tensor]()
    layer, device = last_linear(model), next(model.parameters()).device
    hook = layer.register_forward_hook(lambda module, given, out: read.append(given[0].detach().float().cpu()))
    try:
        predict_rows(model, data, ids, head, device)
    finally:
        hook.remove()
    return torch.cat(read) if read else torch.zeros(0, layer.in_features)


def linear(known: Tensor, y: Tensor, asked: Tensor) -> Tensor:
    """Log-probabilities (rows, classes seen in y) of a logistic regression on standardised features.

    >>> known = torch.tensor([[-1.0], [-0.5], [0.5], [1.0]])
    >>> linear(known, torch.tensor([0, 0, 1, 1]), torch.tensor([[-2.0], [2.0]])).argmax(1).tolist()
    [0, 1]
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    learner = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(known.numpy(), y.numpy())
    return torch.from_numpy(learner.predict_log_proba(asked.numpy()).astype(np.float32))


def nearest(known: Tensor, y: Tensor, asked: Tensor, neighbours: int = NEIGHBOURS) -> Tensor:
    """The class (rows,) that most of the nearest rows have, by the cosine of their features.

    >>> known = torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.1, 1.0]])
    >>> nearest(known, torch.tensor([4, 4, 7]), torch.tensor([[9.0, 0.0], [0.0, 0.1]]), 1).tolist()
    [4, 7]
    """
    from sklearn.neighbors import KNeighborsClassifier

    learner = KNeighborsClassifier(min(neighbours, len(known)), metric="cosine").fit(known.numpy(), y.numpy())
    return torch.from_numpy(learner.predict(asked.numpy()))


def probe(model: nn.Module, data: Data) -> dict[str, float]:
    """Accuracy on the test split of both, fitted to the features of the labelled rows: ``linear`` and ``nearest``."""
    ids, y, truth = data.labelled, data.targets[data.labelled], data.targets[data.test]
    known, asked = features(model, data, ids, data.head), features(model, data, data.test, data.head)
    seen = y.unique()  # the columns of the log-probabilities
    said = {"linear": seen[linear(known, y, asked).argmax(1)], "nearest": nearest(known, y, asked)}
    return {name: float((classes == truth).double().mean()) for name, classes in said.items()}
