"""What is asked of a model that was trained without labels: a linear classifier on its features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import probes
from ..compare.networks import Answers
from ..tasks.data import Data


def probed(model: nn.Module, data: Data, weights: dict[str, Tensor] | None = None) -> Answers:
    """What a linear classifier on the features, learnt from the training labels, says of audit and test rows."""

    def said(rows: Tensor) -> Tensor:
        if weights is not None:
            model.load_state_dict(weights)
        known, asked = (probes.features(model, data, ids, data.head) for ids in (data.labelled, rows))
        y = data.targets[data.labelled]
        logits = torch.full((len(rows), data.outputs), -torch.inf)
        logits[:, y.unique()] = probes.linear(known, y, asked)
        return logits.clamp(min=-1e4)

    return Answers(said(data.audit), lambda: said(data.test))
