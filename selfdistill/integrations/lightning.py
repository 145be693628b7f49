"""A Lightning module with a recipe for its loss; loop, devices, logs and checkpoints stay Lightning's.

>>> import torch
>>> from functools import partial
>>> from lightning.pytorch import Trainer
>>> from selfdistill.methods import elr
>>> rows = [{"x": torch.rand(3), "y": i % 2, "id": i} for i in range(8)]
>>> module = SelfDistilled(torch.nn.Linear(3, 2), elr(), partial(torch.optim.SGD, lr=0.1))
>>> trainer = Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
...                   enable_progress_bar=False, enable_model_summary=False)
>>> trainer.fit(module, torch.utils.data.DataLoader(rows, batch_size=4))
>>> trainer.global_step, module.objective.clock.step
(4, 4)

Batches are what `Objective` takes. The objective is a submodule, so Lightning's checkpoint (a pickle of its own) has
its state and the module's ``state_dict`` too: teachers and memories resume bit by bit at an optimizer step. Lightning
restores no random state, and gives micro-batches (and processes) one mean each and averages these: that is the loss of
the whole batch only where terms have equal counts in them; `fit` and `huggingface` divide by the counts of all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..core.objective import Method
from .common import requiring, set_run_length

with requiring("lightning"):
    from lightning.pytorch import LightningModule


class SelfDistilled(LightningModule):
    """Trains ``model`` by ``method``; ``optimizer(parameters)`` makes what ``configure_optimizers`` may return, and
    options are those of `Method.bind`."""

    def __init__(self, model: nn.Module, method: Method, optimizer: Callable[..., Any], **options: Any) -> None:
        super().__init__()
        self.model, self.optimizer, self.objective = model, optimizer, method.bind(model, **options)

    def forward(self, *args: Any, **more: Any) -> Any:
        return self.model(*args, **more)

    def on_train_start(self) -> None:
        t = self.trainer
        steps, accumulate = t.estimated_stepping_batches, t.accumulate_grad_batches
        set_run_length(self.objective, steps, t.num_training_batches, accumulate, t.global_step)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss: Tensor = self.objective(batch)
        self.log("loss", loss)
        return loss

    def optimizer_step(self, *args: Any, **more: Any) -> None:
        super().optimizer_step(*args, **more)
        self.objective.update()

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.model.parameters())
