"""How much do peers differ? What is equal adds nothing: in the linear theory equal peers bring no gain at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor, nn

from .evaluate import predict_rows
from .heads import Peers

if TYPE_CHECKING:
    import torch

    from .tasks.data import Data

MOST = 1000  # rows that are looked at
HEADS = {"classify": "peers", "regress": "peer_values"}


def pairwise(said: Tensor, task: str = "classify") -> dict[str, float]:
    """Means over rows and pairs of peers, from probabilities (rows, K, classes) or values (rows, K, 1).

    ``distance`` is the total variation of two peers' probabilities, or the absolute difference of their values;
    ``disagreement``, of classes, the share of rows to which two peers give another class.

    >>> import torch
    >>> pairwise(torch.tensor([[[1.0, 0.0], [0.25, 0.75]]]))
    {'distance': 0.75, 'disagreement': 1.0}
    """
    peers = said.shape[1]
    pairs = [(i, j) for i in range(peers) for j in range(i + 1, peers)]
    if not pairs or not len(said):
        return {}
    apart = [(said[:, i] - said[:, j]).abs().sum(-1).mean() for i, j in pairs]
    if task != "classify":
        return {"distance": float(sum(apart)) / len(pairs)}
    best = said.argmax(-1)
    other = [(best[:, i] != best[:, j]).double().mean() for i, j in pairs]
    return {"distance": float(sum(apart)) / (2 * len(pairs)), "disagreement": float(sum(other)) / len(pairs)}


def measure(model: nn.Module, data: Data, device: torch.device | str = "cpu") -> dict[str, float]:
    """`pairwise` of a group's members on rows of the audit split, or of the training rows where nothing is audited.

    Nothing for a model that is no group, or one whose members speak of a mean and a variance.
    """
    rows = (data.audit if len(data.audit) else data.labelled)[:MOST]
    said = together(model, data, rows, device)
    return {} if said is None else pairwise(said, data.task)


def together(model: nn.Module, data: Data, ids: Tensor, device: torch.device | str = "cpu") -> Tensor | None:
    """What the members of a group say of rows: probabilities (rows, K, classes) or standardised values (rows, K, 1)."""
    if not isinstance(model, Peers) or hasattr(model, "jointly"):
        return None
    said = predict_rows(model, data, ids, HEADS[data.task], device)
    return F.softmax(said, dim=-1) if data.task == "classify" else said
