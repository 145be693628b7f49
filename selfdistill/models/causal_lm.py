"""A causal language model as the engine uses it, and the pretrained model, with or without adapter, that it is made of.

Rows of token ids come in, and the hidden states before each completion token go out; the output matrix is read by the
chunked divergences, so that logits are never all in memory. A row is two lines of integers, (2, length): token ids, and
roles (0 padding, 1 prompt, 2 completion). The completion is right of the prompt and padding right of both.

It holds its teachers as other weights that answer through the student's own layers.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import pad_sequence

from ..core import distributed
from ..core.logits import Logits, Projection
from ..core.memory import LargeModel, WeightView
from ..core.step import Rows
from ..errors import DataError, RecipeError
from .chat_options import own_template, set_options, with_options
from .hub import answer_ends, causal, check_4bit, description, parameter_count, stored_dtype
from .token_spans import SharedTokens, TokenPairing

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


class OtherTokenizer(OtherModel):
    """Another model with a tokenizer of its own, which reads the student's completions as texts.

    Attributes:
        pairing: of the two tokenizers.
        shared: the ids of the tokens that both have.
    """

    def __init__(self, other: Causal, student: Causal) -> None:
        super().__init__(other)
        self.pairing, self.sizes = (
            TokenPairing(student.tokenizer, other.tokenizer),
            (student.vocabulary, other.vocabulary),
        )
        self.match_ends(student.tokenizer.eos_token_id, other.tokenizer.eos_token_id)

    def match_ends(self, mine: int | None, theirs: int | None) -> None:
        """Take the student's token that ends an answer and the teacher's for one, whatever they are called."""
        pairs = self.pairing.pairs(self.sizes)
        if mine is not None and theirs is not None:
            pairs = {i: j for i, j in pairs.items() if i != mine and j != theirs} | {mine: theirs}
        device = next(self.student[0].parameters()).device
        self.shared = SharedTokens(*(ids.to(device) for ids in SharedTokens.of(pairs, self.sizes)))


class Swapped(ModelView):
    """Weights by their names in the student, put in the place of its own for one look.

    Those of an adapter are one more adapter of the student's model, to which PEFT switches: they cost what an adapter
    costs. Others are buffers. Both are part of its state. Under FSDP2 each process keeps its part of both: the factors
    are sharded with the layers that they are in, the buffers by `shard`.

    Attributes:
        adapter: the name of the adapter that it holds; None where the student has none.
    """

    def __init__(self, student: Causal, weights: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
        super().__init__(student)
        given = {name: value.detach().clone().to(dtype or value.dtype) for name, value in weights.items()}
        factors = {name for name in given if student.adapter_name in name.split(".")}
        self.adapter = student.add_adapter({n: v for n, v in given.items() if n in factors}) if factors else None
        self.factors = {n: student.renamed(n, self.adapter) for n in given if n in factors}  # theirs, by the student's
        self.names = [name for name in given if name not in factors]
        for i, name in enumerate(self.names):
            self.register_buffer(str(i), given[name])
        self._whole: dict[str, Tensor] | None = None  # of the buffers, while they are in one piece

    def shard(self) -> None:
        distributed.reshard(self.student[0])
        own = dict(self.student[0].named_parameters())
        for i, name in enumerate(self.names):
            self.register_buffer(str(i), distributed.shard_like(self.get_buffer(str(i)), own[name]))

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        if self._whole is not None or not self.sharded:
            yield
            return
        self._whole = {name: distributed.gathered(self.get_buffer(str(i))) for i, name in enumerate(self.names)}
        try:
            yield
        finally:
            self._whole = None

    @property
    def sharded(self) -> bool:
        """Whether this process holds a part of each weight."""
        return any(map(distributed.is_shard, self.buffers()))

    def weights(self) -> dict[str, Tensor]:
        """The weights by their names in the student; of an adapter the tensors that are switched to."""
        own = dict(self.student[0].named_parameters()) if self.factors else {}
        held = {name: own[theirs].detach() for name, theirs in self.factors.items()}
        return held | {name: self.get_buffer(str(i)) for i, name in enumerate(self.names)}

    @contextlib.contextmanager
    def placed(self) -> Iterator[tuple[Causal, dict[str, Tensor] | None]]:
        model, weights = self.student[0], self.weights() if self._whole is None else self._whole
        if self._whole is None and self.sharded:
            raise RuntimeError("weights that are sharded answer within `whole` alone, which all processes must enter")
        with model.with_adapter(self.adapter) if self.adapter else contextlib.nullcontext():
            yield model, {name: weights[name] for name in self.names} or None

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        weights = self.weights()
        destination.update({prefix + _key(name): weights[name] for name in self.factors})

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        weights, own = self.weights(), {prefix + _key(name): name for name in self.factors}
        super()._load_from_state_dict({n: v for n, v in state_dict.items() if n not in own}, prefix, *rest)
        rest[2].extend(key for key in own if key not in state_dict)  # the names that are missing
        for key in own.keys() & state_dict.keys():
            weights[own[key]].copy_(state_dict[key])


def _key(name: str) -> str:
    """A weight's name in a state, which has no dots of its own.

    >>> _key("lm.q.lora_A.default.weight")
    'lm/q/lora_A/default/weight'
    """
    return name.replace(".", "/")


class Averaged(Swapped):
    """A moving average of the student's weights in float32, rounded to their precision when it is looked through.

    Of an adapter the products B A are averaged, as factors of the rank of the adapter (`lora.average_products`): it
    costs what an adapter costs. An average of A and one of B would have another product.

    In bfloat16 an average of a small rate stands still.
    """

    def __init__(self, student: Causal) -> None:
        super().__init__(student, student.learning(), torch.float32)
        self._pairs: Sequence[Any] = ()
        if self.factors:
            from .lora import factor_pairs

            self._pairs = factor_pairs(student, self.factors)

    @contextlib.contextmanager
    def placed(self) -> Iterator[tuple[Causal, dict[str, Tensor] | None]]:
        with super().placed() as (model, weights):
            own = dict(model.named_parameters()) if weights else {}
            yield model, weights and {name: w.to(own[name].dtype) for name, w in weights.items()}

    @torch.no_grad()
    def follow(self, student: nn.Module, share: float) -> None:
        if self.factors:
            self._follow_adapter(student, share)
        if not self.names:
            return
        distributed.reshard(student)
        own = self.student[0].learning()
        for i, name in enumerate(self.names):
            average, now = (distributed.local(w) for w in (self.get_buffer(str(i)), own[name].detach()))
            average.lerp_(now.to(average.dtype), share)

    def _follow_adapter(self, student: nn.Module, share: float) -> None:
        """In the parts that each process holds, all of which compute the same."""
        from .lora import average_products

        distributed.reshard(student)
        weights, own = self.weights(), self.student[0].learning()
        held = distributed.gathered({name: weights[name] for name in self.factors})
        now = distributed.gathered({name: own[name].detach() for name in self.factors})
        found = average_products(self._pairs, held, now, share)
        for name in self.factors:
            if name not in found:
                found[name] = held[name].lerp(now[name].to(held[name].dtype), share)
            weights[name].copy_(distributed.shard_like(found[name], weights[name]))


class Causal(LargeModel):
    """A Hugging Face causal model, with or without LoRA, whose output is {"hidden": (rows, T, width)}.

    Position t holds the state that predicts the t-th completion token. Weights that do not learn (under LoRA all but
    the adapter) are no part of its state: a checkpoint holds what training changed.

    Args:
        lm: the model, or a `peft.PeftModel` around it.
        tokenizer: its tokenizer.
        origin: gives the weights that training began with, where they are asked for after it has begun.
        dtype: the dtype that the model is saved in [default: that of its weights].

    Attributes:
        teacher_template: the chat template of what is read with a context, where it is not the tokenizer's own.
    """

    teacher_template: str | None = None

    def __init__(
        self,
        lm: Any,
        tokenizer: Any,
        origin: Callable[[], Mapping[str, Tensor]] | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.lm, self.tokenizer, self.origin = lm, tokenizer, origin
        self.saved_dtype = dtype or self.plain.dtype
        self.vocabulary = min(len(tokenizer), self.plain.get_output_embeddings().weight.shape[0])
        self.register_state_dict_post_hook(_learning_only)  # type: ignore[no-untyped-call]
        self._linear: bool | None = None

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

    def external(self, source: str | None, module: nn.Module | None, same_tokens: bool = True) -> OtherModel:
        """Another model: a folder or a name as --model takes them.

        Args:
            source: The name.
            module: The model itself, where it is given.
            same_tokens: Whether it must have the student's tokenizer; else any that spells its tokens.

        Raises:
            DataError: its tokenizer reads texts differently, so that ids of one mean nothing to the other.
            RecipeError: neither a name nor a model is given.
        """
        if module is None and source is None:
            raise RecipeError("this method needs a teacher: name a model of the student's family, as in gkd('smollm2')")
        other = Pretrained(source)() if module is None and source is not None else module
        if not isinstance(other, Causal):
            raise RecipeError(f"a language model learns from language models, not from a {type(other).__name__}")
        other.to(next(self.parameters()).device)
        if not same_tokens:
            return OtherTokenizer(other, self)
        if other.tokenizer.get_vocab() != self.tokenizer.get_vocab():
            raise DataError(
                f"the teacher {source or 'that is given'} has another tokenizer ({len(other.tokenizer)} tokens, the "
                f"student {len(self.tokenizer)}); give one of the student's family, or take gold() or uld()"
            )
        return OtherModel(other)

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
        if not self.has_adapter:
            yield
            return
        with self._as_it_learns(), self.lm.disable_adapter():
            yield

    @contextlib.contextmanager
    def with_adapter(self, name: str) -> Iterator[None]:
        """Another adapter of the model in the place of its own, for as long as it lasts."""
        own = self.adapter_name
        with self._as_it_learns():
            self.lm.set_adapter(name, inference_mode=True)
            try:
                yield
            finally:
                self.lm.set_adapter(own)

    def add_adapter(self, weights: Mapping[str, Tensor]) -> str:
        """Add an adapter like its own, which does not learn, and return its name.

        Args:
            weights: Of the adapter, by the names of its own; the tensors are taken, not copied.
        """
        name = f"held{len(self.lm.peft_config)}"
        self._add(name, copy.deepcopy(self.lm.peft_config[self.adapter_name]))
        own = dict(self.named_parameters())
        for theirs, value in weights.items():
            own[self.renamed(theirs, name)].data = value
        return name

    def _add(self, name: str, config: Any, seed: int | None = None) -> None:
        """Add an adapter that does not learn; the random numbers of others stay, whatever it is drawn by."""
        from .lora import without_warnings

        config.init_lora_weights = True  # other ways to begin change the weights under the adapter
        with self._as_it_learns(), without_warnings(), torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.manual_seed(seed)
            self.lm.add_adapter(name, config)

    def renamed(self, name: str, adapter: str | None) -> str:
        """The name in another adapter of a weight of its own adapter."""
        return name_in_adapter(name, str(self.adapter_name), adapter) if adapter else name

    @contextlib.contextmanager
    def _as_it_learns(self) -> Iterator[None]:
        """PEFT decides anew what learns when it switches; afterwards it is what it was."""
        flags = [(parameter, parameter.requires_grad) for parameter in self.parameters()]
        try:
            yield
        finally:
            for parameter, learns in flags:
                parameter.requires_grad_(learns)

    @property
    def parameter_count(self) -> int:
        """The number of its weights, also where several of them share a byte."""
        return int(self.plain.num_parameters())

    @property
    def quantised(self) -> bool:
        """Whether its base has weights of few bits, which are read and never trained."""
        return "quantization_config" in vars(self.plain.config)

    @property
    def adapter_name(self) -> str | None:
        """The name of the adapter that learns; None without one."""
        return str(self.lm.active_adapter) if self.has_adapter else None

    def learning(self) -> dict[str, Tensor]:
        """The parameters that learn, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    @property
    def saved_names(self) -> set[str]:
        """The names of what its state holds."""
        return set(self.learning())

    @property
    def candidates(self) -> tuple[str, ...]:
        """The names of the models that it may answer as; mostly one."""
        return ("the model",)

    @property
    def adapters(self) -> dict[str, str]:
        """The names of the adapters that are saved beside the one that answers, by their folders; mostly none."""
        return {}

    def choose(self, candidate: int) -> None:
        """Let one of its `candidates` answer from here on."""

    @property
    def linear(self) -> bool:
        """Whether the logits are the last states times the output matrix: some models cap or scale them."""
        if self._linear is None:
            self._linear = self._reads_linearly()
        return self._linear

    def _reads_linearly(self) -> bool:
        if self.plain.get_decoder() is self.plain:  # transformers do not say where its layers are
            return False
        probe = torch.arange(1, 4, device=next(self.parameters()).device)[None]
        with self.inference():  # dropout would differ between the two, and draw numbers that a resumed run draws again
            states = self.plain.get_decoder()(probe, use_cache=False).last_hidden_state
            found, expected = self.plain.get_output_embeddings()(states), self.plain(probe).logits
            return torch.allclose(found.float(), expected.float(), atol=1e-4)  # accelerate makes float32 of the latter

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


def _learning_only(module: Causal, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    names = {prefix + name for name in module.saved_names}
    for name in [n for n in state if n.startswith(prefix) and n not in names]:
        del state[name]


def name_in_adapter(name: str, own: str, adapter: str) -> str:
    """The name of an adapter's weight in another adapter.

    >>> name_in_adapter("q.lora_A.default.weight", "default", "peer1")
    'q.lora_A.peer1.weight'
    """
    return ".".join(adapter if part == own else part for part in name.split("."))


class PromptLengthError(DataError):
    """A prompt leaves no room for its completion in the model's context."""


@dataclass(frozen=True)
class Reader:
    """What a model reads by: its tokenizer, how many tokens it reads at most (None: it knows no end), the chat template
    of what is read with a context, where it is not the tokenizer's own, and the tokens that end an answer by its
    generation config, where that was read."""

    tokenizer: Any
    context_length: int | None
    teacher_template: str | None = None
    ends: tuple[int, ...] = ()

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


#: The dtypes that a model's weights can be loaded and saved in.
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class Pretrained:
    """A factory of students: ``name`` as `pretrained.locate` reads it, LoRA of rank ``lora`` (0: all weights learn).

    ``targets`` are the layers with an adapter, comma separated; ``alpha`` its scale [default: 2 x rank].
    ``checkpointing`` computes activations again in the backward pass, for less memory. ``dtype`` is that of the base
    weights and of the saved model: ``auto`` (as in the file), ``bfloat16``, ``float16`` or ``float32``. What learns is
    float32: the factors of LoRA, or without LoRA all weights, which are rounded to the dtype in each forward pass.
    ``student_template`` are options of the chat template, such as ``enable_thinking=false``; ``teacher_template`` those
    of what is read with a context, where they differ from the student's. ``load_in_4bit`` quantises the base, under
    LoRA alone, to 4 bits (NF4) by bitsandbytes; it computes in the dtype.
    """

    name: str
    lora: int = 0
    alpha: int | None = None
    targets: str = "all-linear"
    checkpointing: bool = False
    dtype: str = "auto"
    load_in_4bit: bool = False
    student_template: str | None = None
    teacher_template: str | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", *DTYPES):
            raise DataError(f"dtype is auto, {', '.join(DTYPES)}, not {self.dtype!r}")
        if self.load_in_4bit and not self.lora:
            raise DataError("weights of 4 bits cannot learn; give --lora 16 with --load-in-4bit, or leave that out")

    def __call__(self) -> Causal:
        dtype = self.saved_dtype
        lm, tokenizer = causal(self.name, dtype if self.lora else torch.float32, load_in_4bit=self.load_in_4bit)
        return of_model(lm, tokenizer, self, lambda: of_model(*causal(self.name)).learning(), dtype)

    @property
    def saved_dtype(self) -> torch.dtype:
        """The dtype of the base weights and of the saved model."""
        return stored_dtype(self.name) if self.dtype == "auto" else DTYPES[self.dtype]

    @property
    def precision(self) -> str:
        """The precision of forward passes that fits the weights: beside float32 weights that all learn, the dtype they
        are saved in. A frozen base computes in its own dtype; float16 alone needs its losses scaled.
        """
        found = next((name for name, dtype in DTYPES.items() if dtype == self.saved_dtype), "float32")
        return "float32" if self.lora and found == "bfloat16" else found

    def check(self) -> Reader:
        """What the model reads by, without its weights.

        Raises:
            DataError: there is no such model, a package that it needs is not installed, or the memory of the machine is
                too small for its weights, and on a CPU for gradients and moments where all of them learn.
        """
        if self.lora and importlib.util.find_spec("peft") is None:
            raise DataError(NEEDS_PEFT)
        if self.load_in_4bit:
            check_4bit()
        tokenizer, config = description(self.name)
        parameters, memory = parameter_count(config), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        frozen = 1 if self.load_in_4bit else self.saved_dtype.itemsize  # embeddings keep their bits
        each = frozen if self.lora else 4 * (1 if torch.cuda.is_available() else 4)
        if each * parameters > memory:
            remedy = "take a smaller model" if self.lora else "take a smaller model, or --lora 16"
            raise DataError(
                f"{self.name} has {parameters / 1e9:.2g} billion parameters, which need "
                f"{each * parameters / 2**30:.0f} GiB to be trained, and this machine has {memory / 2**30:.0f} GiB; "
                f"{remedy}"
            )
        length = getattr(config, "max_position_embeddings", None)
        return Reader(tokenizer, length, self.templates(tokenizer), answer_ends(self.name))

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
        dtype = ("" if self.dtype == "auto" else f", {self.dtype}") + (", 4 bits" if self.load_in_4bit else "")
        return f"{self.name}{f', LoRA r{self.lora}' if self.lora else ''}{dtype}"


def of_model(
    lm: Any,
    tokenizer: Any,
    how: Pretrained | None = None,
    origin: Callable[[], Mapping[str, Tensor]] | None = None,
    dtype: torch.dtype | None = None,
) -> Causal:
    """A student around a model in memory, with what ``how`` asks for: LoRA, checkpointing.

    Args:
        lm: The transformers model; where all of its weights learn they become float32.
        tokenizer: Its tokenizer.
        how: How it is trained.
        origin: As of `Causal`.
        dtype: What it is saved in [default: its own].
    """
    how, dtype = how or Pretrained(""), dtype or lm.dtype
    if how.lora:
        if importlib.util.find_spec("peft") is None:
            raise DataError(NEEDS_PEFT)
        from .lora import add_lora

        lm = add_lora(lm, how.name, how.lora, how.alpha or 2 * how.lora, how.targets)
    else:
        lm.requires_grad_(True)
        if lm.dtype in (torch.bfloat16, torch.float16):  # where small steps are lost
            lm.float()
    if how.checkpointing:
        lm.gradient_checkpointing_enable()
        lm.enable_input_require_grads()
    made = Causal(lm, tokenizer, origin, dtype)
    made.teacher_template = how.templates(tokenizer)
    return made
