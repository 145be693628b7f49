"""TRL's ``SFTTrainer`` with a recipe for language models as its loss; the rest of the training is TRL's.

>>> import tempfile
>>> from datasets import Dataset
>>> from trl import SFTConfig
>>> from selfdistill.language.recipes import sdft
>>> from selfdistill.testing import toys
>>> rows = [{"prompt": [{"role": "user", "content": example.prompt}],
...          "completion": [{"role": "assistant", "content": example.demonstration}]}
...         for example in toys.examples(toys.NEW, 8)]
>>> with tempfile.TemporaryDirectory() as out:
...     args = SFTConfig(out, max_steps=2, bf16=False, disable_tqdm=True, report_to=[], logging_strategy="no")
...     trainer = SelfDistillTrainer(toys.untrained(), args, method=sdft(max_tokens=8),
...                                  train_dataset=Dataset.from_list(rows), processing_class=toys.tokenizer())
...     trainer.train().global_step, trainer.distillation.clock.step  # doctest: +ELLIPSIS
{'train_runtime': ...}
(2, 2)

Completions of the data are learnt as the tokens that TRL makes of them. What a recipe draws, the model in training
writes before each step. In a checkpoint ``objective.safetensors`` has the state of the teachers, which resume bit by
bit; that they hold adapters, too, is not seen in the folder of the model's adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..data.prompts import Prompts, of_records
from ..errors import DataError, RecipeError
from ..language.batches import completion_batch, known_counts
from ..language.completions import CONTEXT, Language, Writer, read_views
from ..language.completions import check as check_method
from ..language.contexts import Rollout, completed, rendered
from ..language.evaluation import check_teachers
from ..language.prompt_check import check_prompts
from ..language.sampling import Engine, by_transformers
from ..language.trainer import check_engine
from ..models.causal_lm import Causal, Swapped, check_length
from .common import requiring, total_counts, warn
from .trainer_objective import ObjectiveMixin

with requiring("trl datasets"):
    from datasets import Dataset
    from trl import SFTTrainer

ROW = "row"  # the column with the number of a row in the data that are given

Tokens = tuple[tuple[int, ...], tuple[int, ...]]  # of a prompt and its completion


class PreparedWriter(Writer):
    """A writer whose demonstrations are the tokens that TRL has prepared.

    Attributes:
        prepared: prompt and completion of each row, by its number.
    """

    prepared: Mapping[int, Tokens]

    def demonstration(self, example: int) -> Rollout:
        prompt, ids = self.prepared[example]
        check_length(prompt, self.model, len(ids), f"a completion (row {example + 1} of {self.data.name})")
        return Rollout(example, prompt, ids, self.data.rows[example].demonstration or "", 1.0)


class RowCollator:
    """Another collator, whose batches also have the numbers of their rows.

    Args:
        collate: The collator.
    """

    def __init__(self, collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        numbers = {ROW: torch.tensor([row[ROW] for row in rows])} if ROW in rows[0] else {}
        return {**self.collate([{k: v for k, v in row.items() if k != ROW} for row in rows]), **numbers}


class SelfDistillTrainer(ObjectiveMixin, SFTTrainer):  # type: ignore[misc]  # TRL is not followed
    """TRL's ``SFTTrainer``, whose loss is a recipe of `selfdistill.language`.

    Args:
        model: As TRL takes it: a model, a `PeftModel` or a name.
        args: Its ``SFTConfig``.
        method: The recipe.
        train_dataset: A ``datasets.Dataset``; its columns are those of TRL, or the fields of prompts.
        bind: Options of `Objective`, such as ``previous`` or ``external``, a model that teaches.
        engine: What writes completions.
        trust_code: Allow checkers that the data name as ``module:function``.
        warn: Called with each line about trouble that the run survives.
        more: Arguments of ``SFTTrainer``.

    Attributes:
        distillation: The objective.
        writer: Who writes completions, with the data.

    Raises:
        CheckpointError: The data name a function as a checker, and are not trusted.
        DataError: The data lack what the recipe needs, or are not read alike by student and teacher.
        RecipeError: The recipe has no place in this trainer.
        VitalsError: A teacher has nothing to say that the student does not.

    >>> from selfdistill.language.recipes import sdft
    >>> SelfDistillTrainer(None, method=sdft(), train_dataset=[])
    Traceback (most recent call last):
    selfdistill.errors.DataError: train_dataset is a list; give a datasets.Dataset, such as Dataset.from_list(rows)
    """

    data_collator: Any

    def __init__(
        self,
        model: Any,
        args: Any = None,
        *,
        method: Language,
        train_dataset: Any,
        bind: Mapping[str, Any] | None = None,
        engine: Engine = by_transformers,
        trust_code: bool = False,
        warn: Callable[[str], None] = warn,
        **more: Any,
    ) -> None:
        options = dict(bind or {})
        _check(method, engine, options)
        data = _prompts(train_dataset, method, trust_code)
        self.writer = PreparedWriter(method, data, engine=engine)
        numbered = train_dataset.remove_columns([c for c in train_dataset.column_names if c == ROW])
        super().__init__(model, args, train_dataset=numbered.add_column(ROW, range(len(data.rows))), **more)
        _check_arguments(self.args)
        self.data_collator = RowCollator(self.data_collator)
        self.causal = Causal(self.model, self.processing_class)
        self.writer.model, self.writer.seed = self.causal, self.args.seed
        self.writer.autocast = self.accelerator.autocast
        self.writer.prepared = _tokens(self.train_dataset, data.name)
        _check_alike(self.writer)
        for name, value in options.items():
            if isinstance(value, nn.Module) and not isinstance(value, Causal):
                options[name] = Causal(value, self.processing_class)
        self.attach(method.bind(self.causal, autocast=self.accelerator.autocast, **options))
        self.writer.objective = self.distillation
        check_prompts(self.causal.reader, method, data, None, 1)
        check_teachers(self.writer, warn)
        if data.extra:
            warn(f"warning: no recipe reads of train_dataset: {', '.join(data.extra)}")
        self._losses = dict.fromkeys(method.terms, 0.0)

    def _prepare_dataset(
        self, dataset: Any, processing_class: Any, args: Any, packing: bool, formatting_func: Any, dataset_name: str
    ) -> Any:
        """As TRL's; rows without a completion, or in a format that TRL does not read, are made here."""
        if dataset_name == "train" and packing:
            raise DataError("packing joins rows, and a teacher reads each by itself; leave packing out of SFTConfig")
        known = {"messages"} <= {*dataset.column_names} or {"prompt", "completion"} <= {*dataset.column_names}
        if dataset_name == "train" and not known and formatting_func is None:
            dataset = _made(self.writer.data, processing_class)
        return super()._prepare_dataset(dataset, processing_class, args, packing, formatting_func, dataset_name)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if ROW not in self._signature_columns:
            self._signature_columns.append(ROW)

    # a step ----------------------------------------------------------------------------------------------------------

    def begin_step(self, model: Any, batches: Sequence[Mapping[str, Any]]) -> Any:
        """Have the completions of a step written, all micro-batches at once."""
        writer, clock = self.writer, self.distillation.clock
        self.causal.train(model.training)
        rows = [batch[ROW].tolist() for batch in batches]
        drawn = [i for part in rows for i in part]
        rollouts = [r for r in writer.method.source.rollouts(writer, drawn, clock) if r.ids]
        parts = [[r for r in rollouts if r.example in part] for part in map(set, rows)]
        if not all(parts):
            raise DataError(
                f"all completions of a micro-batch of step {clock.step} are empty, without even the token that ends "
                "them; look at the engine that writes them"
            )
        self._parts = [completion_batch(writer, part, self.args.device)[0] for part in parts]
        tokens = sum(int((part["x"].x[:, 1] > 0).sum()) for part in self._parts)
        self._total_train_tokens += tokens
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
        self._metrics["train"]["completion_length"].append(sum(len(r.ids) for r in rollouts) / len(rollouts))
        if len(self._parts) == 1:
            return None
        return known_counts(writer.method, self._parts) or total_counts(self.distillation, self._parts)

    def read(self, model: Any, batch: Any) -> Any:
        """What the objective reads of the next micro-batch of a step."""
        return self._parts.pop(0)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
        """The loss of the recipe in training, and that of TRL in evaluation."""
        loss = super().compute_loss(model, inputs, *args, **more)
        if model.training:
            for name, figure in self.distillation.figures.items():
                self._losses[name] += float(figure.loss)
        return loss

    def on_optimizer_step(self, *args: Any, **more: Any) -> None:
        super().on_optimizer_step(*args, **more)
        for name, value in self._losses.items():
            self._metrics["train"][f"loss_{name}"].append(value)
        self._losses = dict.fromkeys(self._losses, 0.0)

    # checkpoints -----------------------------------------------------------------------------------------------------

    def _save(self, *args: Any, **more: Any) -> None:
        with self._own_adapter():
            super()._save(*args, **more)

    @contextmanager
    def _own_adapter(self) -> Iterator[None]:
        """Without the adapters that teachers hold in the model, which the objective saves."""
        held = [state.adapter for state in self.distillation.states.modules() if isinstance(state, Swapped)]
        configs = {name: self.model.peft_config.pop(name) for name in held if name is not None}
        try:
            yield
        finally:
            if configs:
                self.model.peft_config.update(configs)


# ---- what has no place in the trainer ------------------------------------------------------------------------------


def _check(method: Language, engine: Engine, options: Mapping[str, Any]) -> None:
    """Refuse a recipe that TRL's loop cannot train."""
    check_method(method)
    if method.wrap_model is not None:
        raise RecipeError(
            "peers are adapters that selfdistill trains itself; train them by selfdistill.language.trainer.fit"
        )
    check_engine(engine, method, "ddp")
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        raise RecipeError("several processes train a recipe by `torchrun -m selfdistill run`, and TRL's trainer in one")
    if method.source.once:
        raise RecipeError(
            "the recipe writes all completions before its first step, for which TRL's trainer has no place; train it "
            "by selfdistill.language.trainer.fit, or give completions of your own to sft()"
        )
    if method.generations > 1 and "previous" not in options:
        raise RecipeError(
            f"the recipe trains {method.generations} generations, and TRL's trainer one; train it by "
            "selfdistill.language.trainer.fit, or give the model of the generation before by bind={'previous': model}"
        )


def _check_arguments(args: Any) -> None:
    """Refuse settings of a loss that is not the recipe's."""
    if args.loss_type != "nll" or args.label_smoothing_factor:
        raise RecipeError("loss_type and label_smoothing_factor change TRL's loss, not a recipe's; leave them out")


def _prompts(dataset: Any, method: Language, trust_code: bool) -> Prompts:
    if not isinstance(dataset, Dataset):
        kind = type(dataset).__name__
        raise DataError(f"train_dataset is a {kind}; give a datasets.Dataset, such as Dataset.from_list(rows)")
    data = of_records(dataset, "train_dataset", trust_code=trust_code)
    method.check_fields(data, "this method")
    return data


def _made(data: Prompts, tokenizer: Any) -> Any:
    """A dataset of tokens; a row without a demonstration is its prompt."""
    rows = []
    for number, example in enumerate(data.rows):
        prompt, text = rendered(tokenizer, example.messages), example.demonstration
        ids = [] if text is None else list(completed(tokenizer, text))
        rows.append({"input_ids": prompt + ids, "labels": [-100] * len(prompt) + ids if ids else prompt, ROW: number})
    return Dataset.from_list(rows)


def _tokens(dataset: Any, name: str) -> dict[int, Tokens]:
    """Prompt and completion of each row as TRL has prepared it; the first token of all is predicted by nothing."""
    found = dict[int, Tokens]()
    for row in dataset:
        ids, learnt = row["input_ids"], [i for i, label in enumerate(row["labels"]) if label != -100 and i]
        if learnt and learnt[-1] - learnt[0] + 1 != len(learnt):
            raise DataError(
                f"{name}:{row[ROW] + 1}: tokens between those that are learnt are not; a recipe learns one completion, "
                'so give "prompt" and "completion", or leave assistant_only_loss out'
            )
        begin, end = (learnt[0], learnt[-1] + 1) if learnt else (len(ids), len(ids))
        found[row[ROW]] = tuple(ids[:begin]), tuple(ids[begin:end])
    return found


def _check_alike(writer: PreparedWriter) -> None:
    """Does who reads a context, or writes, begin with the prompt that TRL has made?"""
    method = writer.method
    if method.sampling is None and not any(CONTEXT in read_views(term) for term in method.terms.values()):
        return
    for number, (prompt, _) in writer.prepared.items():
        row = writer.data.rows[number]
        plain = tuple(rendered(writer.tokenizer, row.messages))
        if row.demonstration is not None and prompt != plain:
            raise DataError(
                f"{writer.data.name}:{number + 1}: TRL makes {len(prompt)} tokens of the prompt, and the chat template "
                f'{len(plain)}, which a teacher would read; give "prompt" and "completion" as messages'
            )
