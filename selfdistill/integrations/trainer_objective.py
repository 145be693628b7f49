"""An objective for the loss of transformers' ``Trainer``, and of trainers that are made of it."""

from __future__ import annotations

from typing import Any, cast

from ..core import distributed
from .common import load, requiring, save, set_run_length

with requiring("transformers accelerate"):
    from transformers import TrainerCallback


class ObjectiveMixin(cast(Any, TrainerCallback)):  # type: ignore[misc]  # it follows its own events
    """The objective `distillation` in the place of the loss; a subclass calls `attach`, and says how a step begins and
    what the objective reads of a micro-batch (`begin_step`, `read`)."""

    def attach(self, objective: Any) -> None:
        self.distillation, self._counts = objective, None  # the Trainer has an `objective`
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
        if self._step_batches:  # only now mode and random state are those of the step
            self._counts, self._step_batches = self.begin_step(model, self._step_batches), []
        loss = self.distillation.combine(self.distillation.measure(self.read(model, inputs)), self._counts)
        return loss * distributed.size() * self.current_gradient_accumulation_steps
