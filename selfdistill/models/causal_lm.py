"""A causal language model as the engine uses it, and the pretrained model, with or without adapter, that it is made of.

Rows of token ids come in, and the hidden states before each completion token go out; the output matrix is read by the
chunked divergences, so that logits are never all in memory. A row is two lines of integers, (2, length): token ids, and
roles (0 padding, 1 prompt, 2 completion). The completion is right of the prompt and padding right of both.

It holds its teachers as other weights that answer through the student's own layers.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pad_sequence

from ..core import distributed
from ..core.logits import Logits, Projection, product
from ..core.memory import LargeModel, WeightView
from ..core.step import Rows
from ..errors import DataError, RecipeError
from .chat_options import own_template, set_options, with_options
from .hub import causal, description, parameter_count, quiet

PROMPT, COMPLETION = 1, 2  # roles; 0 is padding


Ids = Sequence[int]


def packed(pairs: Sequence[tuple[Ids, Ids]]) -> Tensor:
    """Rows (rows, 2, length) of prompts with their completions.

    >>> packed([([5, 6], [7]), ([5], [8])]).tolist()
    [[[5, 6, 7], [1, 1, 2]], [[5, 8, 0], [1, 2, 0]]]
    """
    if not pairs:
        return torch.zeros(0, 2, 0, dtype=torch.int64)
    rows = [
        torch.tensor([[*prompt, *completion], [PROMPT] * len(prompt) + [COMPLETION] * len(completion)]).t()
        for prompt, completion in pairs
    ]
    return pad_sequence(rows, batch_first=True).transpose(1, 2).contiguous()


def completions(x: Tensor) -> tuple[Tensor, Tensor]:
    """Ids (rows, T) of the completions, left-aligned, and which of them are real, (rows, T)."""
    lengths = (x[:, 1] == COMPLETION).sum(1)
    mask = torch.arange(int(lengths.max()) if len(x) else 0, device=x.device) < lengths[:, None]
    ids = x.new_zeros(mask.shape)
    ids[mask] = x[:, 0][x[:, 1] == COMPLETION]
    return ids, mask


TOGETHER = 4096  # tokens that are looked at at once, without gradient: activations of one layer are held at a time


def completion_rows(pairs: Sequence[tuple[Ids, Ids]], ids: Tensor | None = None, **extra: Tensor) -> Rows:
    """Prompts with their completions as the rows of a view: tokens as labels (rows, T), -1 for padding, and a mask."""
    x = packed(pairs)
    y, mask = completions(x)
    return Rows(x, y.masked_fill(~mask, -1), ids, None, {"mask": mask, **extra})


class ModelView(WeightView):
    """A teacher with the student's layers; rows (rows, 2, length) in, {"logits": lazy logits (rows, T)} out.

    ``student`` is in a tuple, so that it is no part of the teacher's state.
    """

    def __init__(self, student: Causal) -> None:
        super().__init__()
        self.student = (student,)

    def forward(self, x: Tensor) -> dict[str, Projection | Tensor]:
        with self.placed() as (model, weights):
            return {"logits": model.source(model.hidden_states(x, weights), weights)}

    @contextlib.contextmanager
    def placed(self) -> Iterator[tuple[Causal, dict[str, Tensor] | None]]:
        """The model that answers while it lasts, and the weights to put in the place of its own (None: none)."""
        yield self.student[0], None


class AdapterOff(ModelView):
    """The pre-trained weights of a student with an adapter: the adapter is switched off."""

    @contextlib.contextmanager
    def placed(self) -> Iterator[tuple[Causal, dict[str, Tensor] | None]]:
        with self.student[0].without_adapter():
            yield self.student[0], None


class OtherModel(ModelView):
    """Another model, out of the way of state dicts: it is loaded again, never saved."""

    def __init__(self, other: Causal) -> None:
        super().__init__(other.eval().requires_grad_(False))


class Swapped(ModelView):
    """Weights by their names in the student, as buffers, put in the place of its own for one look."""

    def __init__(self, student: Causal, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
        super().__init__(student)
        self.names = list(weights)
        for i, value in enumerate(weights.values()):
            self.register_buffer(str(i), value.detach().clone().to(dtype or value.dtype))

    def weights(self) -> dict[str, Tensor]:
        """The weights by name."""
        return {name: self.get_buffer(str(i)) for i, name in enumerate(self.names)}

    @contextlib.contextmanager
    def placed(self) -> Iterator[tuple[Causal, dict[str, Tensor] | None]]:
        yield self.student[0], self.weights()


class Averaged(Swapped):
    """A moving average of the student's weights in float32, rounded to their precision when it is looked through.

    Under LoRA the update dW = s B A is averaged as one matrix a layer: averages of A and of B have another product. In
    bfloat16 an average of a small rate stands still.
    """

    def __init__(self, student: Causal) -> None:
        super().__init__(student, dict(student.averaged_weights()), torch.float32)
        self._together: Sequence[Tensor] = ()
        self._answers: list[Projection] = []

    @contextlib.contextmanager
    def placed(self) -> Iterator[tuple[Causal, dict[str, Tensor] | None]]:
        model, weights = self.student[0], self.weights()
        own = dict(model.named_parameters())
        whole = {n: w.to(own[n].dtype) for n, w in weights.items() if n in own}
        with model.shifted({n: w for n, w in weights.items() if n not in own}):
            yield model, whole

    def forward(self, x: Tensor) -> dict[str, Projection | Tensor]:
        """As any view; under LoRA, weights and updates are added up once for all micro-batches of a step."""
        model = self.student[0]
        together = next((xs for xs in model.micro_batches if any(x is other for other in xs)), None)
        if together is None or not model.has_adapter or not model.linear:
            return super().forward(x)
        if self._together is not together:
            self._together, self._answers = together, list(answers(together, self._looked))
        return {"logits": next(a for other, a in zip(together, self._answers, strict=True) if other is x)}

    def _looked(self, x: Tensor) -> Projection:
        found = super().forward(x)["logits"]
        assert isinstance(found, Projection)
        return found

    @torch.no_grad()
    def follow(self, student: nn.Module, share: float) -> None:
        weights = self.weights()
        with distributed.whole(student):
            for name, now in self.student[0].averaged_weights():
                weights[name].lerp_(now.to(weights[name].dtype), share)


def answers(xs: Sequence[Tensor], answer: Callable[[Tensor], Projection]) -> Iterator[Projection]:
    """The answer to each of some batches of rows (rows, 2, length), as many asked together as `TOGETHER` allows."""
    for few in _neighbours(xs):
        longest = max(x.shape[-1] for x in few)
        whole = answer(torch.cat([nn.functional.pad(x, (0, longest - x.shape[-1])) for x in few]))
        for x, hidden in zip(few, whole.hidden.split([len(x) for x in few]), strict=True):
            length = int((x[:, 1] == COMPLETION).sum(1).max()) if len(x) else 0
            yield whole._replace(hidden=hidden[:, :length])


def _neighbours(xs: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours, until padded to the longest they have more tokens than may be looked at together."""
    few = list[Tensor]()
    for x in xs:
        if few and sum(map(len, [*few, x])) * max(y.shape[-1] for y in [*few, x]) > TOGETHER:
            yield few
            few = []
        few.append(x)
    if few:
        yield few


class Causal(LargeModel):
    """A Hugging Face causal model, with or without LoRA, whose output is {"hidden": (rows, T, width)}.

    Position t holds the state that predicts the t-th completion token. Weights that do not learn (under LoRA all but
    the adapter) are no part of its state: a checkpoint holds what training changed.

    Args:
        lm: the model, or a `peft.PeftModel` around it.
        tokenizer: its tokenizer.
        origin: gives the weights that training began with, where they are asked for after it has begun.

    Attributes:
        teacher_template: the chat template of what is read with a context, where it is not the tokenizer's own.
    """

    teacher_template: str | None = None

    def __init__(self, lm: Any, tokenizer: Any, origin: Callable[[], Mapping[str, Tensor]] | None = None) -> None:
        super().__init__()
        self.lm, self.tokenizer, self.origin = lm, tokenizer, origin
        self.vocabulary = min(len(tokenizer), self.plain.get_output_embeddings().weight.shape[0])
        self.register_state_dict_post_hook(_learning_only)  # type: ignore[no-untyped-call]
        self._linear: bool | None = None
        self.micro_batches: Sequence[Sequence[Tensor]] = ()  # rows that a teacher may be asked about together

    @property
    def plain(self) -> Any:
        """The model itself, its adapter's layers inside it."""
        return self.lm.get_base_model() if hasattr(self.lm, "get_base_model") else self.lm

    @property
    def context_length(self) -> int | None:
        """Tokens that it reads at most, prompt and completion together; None where it knows no end."""
        return getattr(self.plain.config, "max_position_embeddings", None)

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens fits the model's context."""
        return self.context_length is None or tokens <= self.context_length

    @property
    def reader(self) -> Reader:
        """What it reads by."""
        return Reader(self.tokenizer, self.context_length, self.teacher_template)

    @property
    def has_adapter(self) -> bool:
        """Whether the model has an adapter."""
        return self.plain is not self.lm

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        ids, roles = x[:, 0], x[:, 1]
        ids_after, real = completions(x)
        predicts = torch.zeros_like(roles, dtype=torch.bool)
        predicts[:, :-1] = roles[:, 1:] == COMPLETION  # the state that predicts a token stands one before it
        if self.linear:  # without a mask: padding lies to the right, where a causal model does not look
            states = self.plain.get_decoder()(ids, use_cache=False).last_hidden_state
        else:
            states = self.plain(ids, use_cache=False).logits
        hidden = states.new_zeros(*ids_after.shape, states.shape[-1])
        hidden[real] = states[predicts]
        return {"hidden": hidden}

    def source(self, hidden: Tensor, weights: Mapping[str, Tensor] | None = None) -> Logits:
        """What `divergence` reads: hidden states (tokens, width) and the output matrix, of given weights or its own."""
        if not self.linear:
            return hidden if hidden.shape[-1] == self.vocabulary else hidden[..., : self.vocabulary]
        head = self.plain.get_output_embeddings()
        given = weights or {}  # a tied matrix goes by its first name
        matrix = next((given[n] for n, p in self.named_parameters() if p is head.weight and n in given), None)
        matrix = head.weight if matrix is None else matrix
        return Projection(hidden, matrix, getattr(head, "bias", None), self.vocabulary)

    def logits(self, outputs: Mapping[str, Tensor]) -> Logits:
        """Those of the outputs of a pass, (rows, T, vocabulary), of hidden states in float32."""
        return self.source(outputs["hidden"].float())

    def frozen(self) -> ModelView:
        """The pre-trained weights: under LoRA the adapter is switched off, otherwise a copy is held."""
        if self.has_adapter:
            return AdapterOff(self)
        return Swapped(self, self.learning() if self.origin is None else self.origin())

    def holding(self, other: nn.Module) -> Swapped:
        """The weights that learn of another model of its kind, or its own, as they are now."""
        if not isinstance(other, Causal):
            raise RecipeError(f"a language model learns from language models, not from a {type(other).__name__}")
        return Swapped(self, other.learning())

    def average(self) -> Averaged:
        """Its weights in float32, to follow it."""
        return Averaged(self)

    def external(self, source: str | None, module: nn.Module | None) -> OtherModel:
        """Another model with the same tokenizer: a folder or a name as --model takes them.

        Raises:
            DataError: its tokenizer reads texts differently, so that ids of one mean nothing to the other.
            RecipeError: neither a name nor a model is given.
        """
        if module is None and source is None:
            raise RecipeError("this method needs a teacher: name a model of the student's family, as in gkd('smollm2')")
        other = Pretrained(source)() if module is None and source is not None else module
        if not isinstance(other, Causal):
            raise RecipeError(f"a language model learns from language models, not from a {type(other).__name__}")
        if other.tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise DataError(
                f"the teacher {source or 'that is given'} has another tokenizer ({len(other.tokenizer)} tokens, the "
                f"student {len(self.tokenizer)}); give one of the student's family"
            )
        return OtherModel(other.to(next(self.parameters()).device))

    def averaged_weights(self) -> Iterator[tuple[str, Tensor]]:
        """What a moving average holds, one layer at a time: an adapter's update as one matrix, and what else learns."""
        for name, layer in self.adapters().items():
            yield name, update_of(layer).detach()
        for name, value in self.learning().items():
            if not self.has_adapter or "lora_" not in name:
                yield name, value.detach()

    @torch.no_grad()
    def hidden_states(self, x: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Hidden states in eval mode without gradient, with some weights put in place of its own: (rows, T, width)."""
        with self.inference():
            outputs: dict[str, Tensor] = functional_call(self, dict(weights), (x,)) if weights else self(x)
        return outputs["hidden"]

    @torch.no_grad()
    def next_logits(
        self, ids: Tensor, mask: Tensor, cache: Any = None, weights: Mapping[str, Tensor] | None = None
    ) -> tuple[Tensor, Any]:
        """Logits (rows, vocabulary) of what follows left-padded rows, and a cache of what was read, to go on from.

        ``ids`` are what the cache does not hold yet, ``mask`` (rows, length) is 0 where all that was read is padding.
        """
        accepted, positions = signature(self.plain.forward).parameters, (mask.cumsum(1) - 1).clamp(min=0)
        extra = {"position_ids": positions[:, -ids.shape[1] :], "logits_to_keep": 1}
        cache_name = "cache" if "cache" in accepted else "past_key_values"  # its name in earlier transformers
        options = {"input_ids": ids, "attention_mask": mask, cache_name: cache, "use_cache": True}
        options |= {name: value for name, value in extra.items() if name in accepted}
        output = functional_call(_Whole(self.lm), dict(weights or {}), (), options)
        return output.logits[:, -1, : self.vocabulary], output[cache_name]

    def completion_logits(self, x: Tensor) -> Logits:
        """What `divergence` reads at every completion token of some rows, the tokens in one row; as `hidden_states`."""
        _, real = completions(x)
        return self.source(self.hidden_states(x)[real])

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """Eval mode without gradient, for teachers and rollouts; the mode it was in comes back."""
        was_training = self.training
        self.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.train(was_training)

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """The pre-trained weights, for as long as it lasts; nothing changes where there is no adapter."""
        with self.lm.disable_adapter() if self.has_adapter else contextlib.nullcontext():
            yield

    @contextlib.contextmanager
    def shifted(self, updates: Mapping[str, Tensor]) -> Iterator[None]:
        """Updates (by the names of `adapters`) in the adapter's place, for as long as it lasts. A layer's weights are
        added up when the layer is asked and forgotten afterwards, so that one layer of them is in memory at a time.
        What it does with them is its own affair: GPT-2 keeps them transposed, embeddings look them up.
        """
        bases = {name: layer.base_layer for name, layer in self.adapters().items() if name in updates}

        def shifted_forward(base: Any, update: Tensor) -> Callable[[Tensor], Tensor]:
            def forward(x: Tensor) -> Tensor:
                weight = (base.weight.float() + update).to(base.weight.dtype)
                if type(base) is nn.Linear:
                    return product(x.flatten(0, -2), weight, base.bias).view(*x.shape[:-1], -1)
                del base.forward  # the class's own, for this call
                try:
                    return functional_call(base, {"weight": weight}, (x,))  # type: ignore[no-any-return]
                finally:
                    base.forward = forward

            return forward

        try:
            for name, base in bases.items():
                base.forward = shifted_forward(base, updates[name])
            with self.without_adapter():
                yield
        finally:
            for base in bases.values():
                del base.forward  # the class's own is found again

    def adapters(self) -> dict[str, Any]:
        """LoRA's layers by name."""
        return {name: m for name, m in self.named_modules() if hasattr(m, "get_delta_weight")}

    def learning(self) -> dict[str, Tensor]:
        """The parameters that learn, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @property
    def linear(self) -> bool:
        """Whether the logits are the last states times the output matrix: some models cap or scale them."""
        if self._linear is None:
            self._linear = self._reads_linearly()
        return self._linear

    def _reads_linearly(self) -> bool:
        probe = torch.arange(1, 4, device=next(self.parameters()).device)[None]
        with self.inference():  # dropout would differ between the two, and draw numbers that a resumed run draws again
            states = self.plain.get_decoder()(probe, use_cache=False).last_hidden_state
            return torch.allclose(self.plain.get_output_embeddings()(states), self.plain(probe).logits, atol=1e-4)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's; weights that do not learn are not expected to be there."""
        result = super().load_state_dict(state_dict, strict=False, assign=assign)
        missing = set(self.learning()) & set(result.missing_keys)
        if strict and (missing or result.unexpected_keys):
            raise RecipeError(f"the weights do not fit the model: {sorted([*missing, *result.unexpected_keys])[:3]}")
        return result


class _Whole(nn.Module):
    """The model with its own outputs, its weights named as a `Causal` names them."""

    def __init__(self, lm: Any) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, **options: Any) -> Any:
        return self.lm(**options)


def update_of(layer: Any) -> Tensor:
    """The update that a layer of LoRA adds to its weight: s B A."""
    return layer.get_delta_weight(layer.active_adapters[0])  # type: ignore[no-any-return]


def _learning_only(module: Causal, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    names = {prefix + name for name in module.learning()}
    for name in [n for n in state if n.startswith(prefix) and n not in names]:
        del state[name]


class PromptLengthError(DataError):
    """A prompt leaves no room for its completion in the model's context."""


@dataclass(frozen=True)
class Reader:
    """What a model reads by: its tokenizer, how many tokens it reads at most (None: it knows no end), and the chat
    template of what is read with a context, where it is not the tokenizer's own."""

    tokenizer: Any
    context_length: int | None
    teacher_template: str | None = None

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens fits the model's context."""
        return self.context_length is None or tokens <= self.context_length


def check_length(prompt: Ids, model: Causal | Reader, completion: int, subject: str) -> None:
    """Refuse a prompt that leaves no room for its completion: nothing is ever cut off.

    Raises:
        PromptLengthError: prompt and completion are longer than the model's context.
    """
    if not model.fits(len(prompt) + completion):
        raise PromptLengthError(
            f"{subject} has {len(prompt)} tokens and a completion may have {completion}, more than the model's context "
            f"of {model.context_length}; shorten it, or lower --max-tokens"
        )


NEEDS_PEFT = "LoRA needs peft: pip install 'selfdistill[language]', or give --lora 0, which trains all weights"


#: Where LoRA goes: all linear layers of the blocks.
EVERYWHERE = "all-linear"


@dataclass(frozen=True)
class Pretrained:
    """A factory of students: ``name`` as `pretrained.locate` reads it, LoRA of rank ``lora`` (0: all weights learn).

    ``targets`` are the layers with an adapter, comma separated; ``alpha`` its scale [default: 2 x rank].
    ``checkpointing`` computes activations again in the backward pass, for less memory. ``student_template`` are options
    of the chat template, such as ``enable_thinking=false``; ``teacher_template`` those of what is read with a context,
    where they differ from the student's.
    """

    name: str
    lora: int = 0
    alpha: int | None = None
    targets: str = EVERYWHERE
    checkpointing: bool = False
    student_template: str | None = None
    teacher_template: str | None = None

    def __call__(self) -> Causal:
        lm, tokenizer = causal(self.name)
        return of_model(lm, tokenizer, self, lambda: of_model(*causal(self.name)).learning())

    def check(self) -> Reader:
        """What the model reads by, without its weights.

        Raises:
            DataError: there is no such model, a package that it needs is not installed, or the memory of the machine is
                too small for its weights, and on a CPU for gradients and moments where all of them learn.
        """
        if self.lora and importlib.util.find_spec("peft") is None:
            raise DataError(NEEDS_PEFT)
        tokenizer, config = description(self.name)
        parameters, memory = parameter_count(config), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        needed = 4 * parameters * (1 if self.lora or torch.cuda.is_available() else 4)
        if needed > memory:
            remedy = "take a smaller model" if self.lora else "take a smaller model, or --lora 16"
            raise DataError(
                f"{self.name} has {parameters / 1e9:.2g} billion parameters, which need {needed / 2**30:.0f} GiB to be "
                f"trained, and this machine has {memory / 2**30:.0f} GiB; {remedy}"
            )
        return Reader(tokenizer, getattr(config, "max_position_embeddings", None), self.templates(tokenizer))

    def templates(self, tokenizer: Any) -> str | None:
        """Put the student's options into the chat template of a tokenizer.

        Args:
            tokenizer: A tokenizer of transformers.

        Returns:
            The template of what is read with a context, where it is another one.

        Raises:
            DataError: There is no template, or it has no such option.
        """
        if self.student_template:
            set_options(tokenizer, self.student_template, "--student-template")
        if not self.teacher_template:
            return None
        return with_options(own_template(tokenizer, "--teacher-template"), self.teacher_template, "--teacher-template")

    def __str__(self) -> str:
        return f"{self.name}{f', LoRA r{self.lora}' if self.lora else ''}"


def of_model(
    lm: Any,
    tokenizer: Any,
    how: Pretrained | None = None,
    origin: Callable[[], Mapping[str, Tensor]] | None = None,
) -> Causal:
    """A student around a model in memory, with what ``how`` asks for: LoRA, checkpointing."""
    how = how or Pretrained("")
    if how.lora:
        lm = _adapted(lm, how)
    else:
        lm.requires_grad_(True)
    if how.checkpointing:
        lm.gradient_checkpointing_enable()
        lm.enable_input_require_grads()
    made = Causal(lm, tokenizer, origin)
    made.teacher_template = how.templates(tokenizer)
    return made


def _adapted(lm: Any, how: Pretrained) -> Any:
    try:
        import peft
    except ImportError:
        raise DataError(NEEDS_PEFT) from None
    targets = how.targets if how.targets == EVERYWHERE else how.targets.split(",")
    config = peft.LoraConfig(
        r=how.lora, lora_alpha=how.alpha or 2 * how.lora, target_modules=targets, task_type="CAUSAL_LM"
    )
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # what peft asks of transformers is their affair
            warnings.filterwarnings("ignore", "fan_in_fan_out")  # peft finds out itself that GPT-2's are transposed
            adapted = peft.get_peft_model(lm, config)
    except ValueError as error:
        raise DataError(f"LoRA does not fit {how.name} ({error}); name its layers, such as q_proj,v_proj") from error
    from .lora import use_fast_layers

    use_fast_layers(adapted)
    return adapted
