"""transformers' ``Trainer`` with a recipe for its loss; the rest of the training is that of the ``Trainer``.

>>> import tempfile, torch, transformers
>>> from selfdistill.methods import elr
>>> class Distilling(SelfDistillMixin, transformers.Trainer): ...
>>> rows = [{"input": torch.rand(3), "labels": i % 2, "id": i} for i in range(8)]
>>> with tempfile.TemporaryDirectory() as out:
...     args = transformers.TrainingArguments(out, max_steps=2, remove_unused_columns=False, disable_tqdm=True)
...     trainer = Distilling(torch.nn.Linear(3, 2), args, train_dataset=rows, method=elr(), inputs=["input"])
...     trainer.train().global_step, trainer.distillation.clock.step  # doctest: +ELLIPSIS
{'train_runtime': ...}
(2, 2)

Batches are those of `common.batch_of`; ``bind={...}`` has options of `Method.bind`, ``fixed`` views without randomness.
Terms are divided by their counts over all micro-batches and processes; several cost a pass without gradient. In a
checkpoint ``objective.safetensors`` resumes teachers and memories bit by bit; all else is the Trainer's, pickles too.
"""

from __future__ import annotations

from typing import Any

from .common import NamedInputs, batch_of, bind_named, total_counts
from .trainer_objective import ObjectiveMixin


class SelfDistillMixin(ObjectiveMixin):
    def __init__(self, *args: Any, method: Any, inputs: Any, fixed: Any = (), bind: Any = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self.names, self.fixed = inputs, fixed
        self.attach(bind_named(method, self.model, inputs, bind or {}))

    def begin_step(self, model: Any, batches: Any) -> Any:
        return total_counts(self.distillation, [self.read(model, batch) for batch in batches])

    def read(self, model: Any, batch: Any) -> Any:
        self.distillation.call_through(NamedInputs(model, self.names))
        return batch_of(self._prepare_inputs(batch), self.names, self.fixed)
