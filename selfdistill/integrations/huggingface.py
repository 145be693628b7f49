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

from typing import Any, cast

from ..core import distributed
from .common import NamedInputs, batch_of, bind_named, load, requiring, save, set_run_length, total_counts

with requiring("transformers accelerate"):
    from transformers import TrainerCallback


class SelfDistillMixin(cast(Any, TrainerCallback)):  # type: ignore[misc]  # it follows its own events
    def __init__(self, *args: Any, method: Any, inputs: Any, fixed: Any = (), bind: Any = None, **more: Any) -> None:
        super().__init__(*args, **more)
        self.names = inputs
        self.distillation = bind_named(method, self.model, inputs, bind or {})  # the Trainer has an `objective`
        self._batch: Any = lambda batch: batch_of(self._prepare_inputs(batch), inputs, fixed)
        self.__dict__.update(loss_is_scaled_for_ga=False, model_accepts_loss_kwargs=False)  # so it divides
        self.add_callback(self)

    def on_train_begin(self, args: Any, state: Any, *rest: Any, train_dataloader: Any = (), **more: Any) -> None:
        accumulate = args.gradient_accumulation_steps
        set_run_length(self.distillation, state.max_steps, train_dataloader, accumulate, state.global_step)

    def on_optimizer_step(self, *args: Any, **more: Any) -> None:
        self.distillation.update()

    def on_save(self, args: Any, state: Any, *rest: Any, **more: Any) -> None:
        save(self.distillation, f"{args.output_dir}/checkpoint-{state.global_step}", state.is_world_process_zero)

    def _load_from_checkpoint(self, resume_from_checkpoint: Any, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        load(self.distillation, resume_from_checkpoint)

    def get_batch_samples(self, *args: Any) -> Any:
        self._step_batches, items = super().get_batch_samples(*args)
        return self._step_batches, items

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
        if not model.training:
            return super().compute_loss(model, {k: v for k, v in inputs.items() if k != "id"}, *args, **more)
        self.distillation.call_through(NamedInputs(model, self.names))
        if self._step_batches:  # only now mode and random state are those of the step
            self._counts = total_counts(self.distillation, [self._batch(b) for b in self._step_batches])
            self._step_batches = []
        loss = self.distillation.combine(self.distillation.measure(self._batch(inputs)), self._counts)
        return loss * distributed.size() * self.current_gradient_accumulation_steps
