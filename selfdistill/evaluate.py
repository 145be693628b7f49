"""What a model says of rows it does not learn from: eval mode, no augmentation, no gradient, modes put back after."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .heads import output_of
from .sampling import Source
from .tasks.metrics import classification

CHUNK = 1024  # fixed, so that the same rows give the same bits whoever asks


@torch.no_grad()
def predict(model: nn.Module, x: Tensor, head: str = "logits", device: torch.device | str = "cpu") -> Tensor:
    """A head's output for input rows, (rows, ..., components), on the CPU in float32."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        parts = []
        for rows in x.split(CHUNK):
            output = model(rows.to(device))
            named = output if isinstance(output, dict) else {"": output}
            parts.append(output_of(named, head).float().cpu())
    finally:
        for module, mode in modes.items():
            module.training = mode
    return torch.cat(parts) if parts else torch.zeros(0)


def predict_rows(
    model: nn.Module, data: Source, ids: Tensor, head: str = "logits", device: torch.device | str = "cpu"
) -> Tensor:
    """`predict` for rows of the data, without holding the inputs of all of them at once."""
    return torch.cat([predict(model, data.rows(part), head, device) for part in ids.split(CHUNK)])


def score(
    model: nn.Module, data: Source, ids: Tensor, head: str = "logits", device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Accuracy, NLL, ECE and Brier score on rows of the data."""
    return classification(predict_rows(model, data, ids, head, device), data.y[ids])
