"""Student and teacher write together: each token is drawn from what the two say, each of its own prompt.

Rollouts: the model writes completions, in batches of prompts sorted by length, each batch with a seed of its own.

What is drawn depends on the address of the batch alone, so that a run cut between two of them goes on exactly.

What is told while a language model answers, which on a slow machine takes longer than training.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .. import rng
from ..data.examples import Example
from ..data.rewards import Checker, names_function
from ..errors import RecipeError
from ..io.files import line_due, seconds_left, write
from ..models.causal_folder import save_causal
from ..models.causal_lm import Causal, ModelView, check_length
from . import continuous_batching
from .contexts import Rollout, begins_thought, spoken, turn_end
from .vllm_engine import VllmModel


@dataclass(frozen=True)
class MixingTeacher:
    """Who writes beside the student: a teacher, its share, and what it reads for each prompt."""

    teacher: ModelView
    share: float
    prompts: Sequence[Sequence[int]]

    def of(self, rows: Sequence[int]) -> MixingTeacher:
        """The same for some of the prompts."""
        return replace(self, prompts=[self.prompts[row] for row in rows])


class TeacherMixture:
    """What `generate` draws from, in place of the student's own scores; remembers how likely each drawn token was.

    Equation::

        m(y_t) = a q(y_t | teacher's prompt, y_<t) + (1 - a) p(y_t | prompt, y_<t)

    The teacher keeps keys and values of its own, so that a token costs one token of each. Source: MiniLLM, Gu et al.,
    ICLR 2024, teacher-mixed sampling.
    """

    def __init__(self, model: Causal, by: MixingTeacher, pad: int, room: int) -> None:
        device, longest = next(model.parameters()).device, max(map(len, by.prompts))
        with by.teacher.placed() as (who, _):
            for prompt in by.prompts:
                check_length(prompt, who, room, "what the teacher reads")
        self.model, self.by, self.cache, self.log_m, self.drawn = model, by, None, None, list[Tensor]()
        self.ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in by.prompts], device=device)
        self.mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in by.prompts], device=device)

    cache: Any
    log_m: Tensor | None

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (rows, outputs) of the next token; ``ids`` end in the one that was drawn before."""
        if self.log_m is not None:
            self.drew(ids[:, -1:])
            self.mask = nn.functional.pad(self.mask, (0, 1), value=1)
        with self.by.teacher.placed() as (who, weights):
            logits, self.cache = who.next_logits(self.ids, self.mask, self.cache, weights)
        log_q = torch.full_like(scores, -math.inf, dtype=torch.float32)
        log_q[:, : self.model.vocabulary] = logits[:, : self.model.vocabulary].float().log_softmax(-1)
        log_p = scores.float().log_softmax(-1)
        self.log_m = torch.logaddexp(log_q + math.log(self.by.share), log_p + math.log1p(-self.by.share))
        return self.log_m

    def drew(self, ids: Tensor) -> None:
        """These tokens (rows, 1) were drawn."""
        assert self.log_m is not None
        self.ids = ids
        self.drawn.append(self.log_m.gather(1, ids))

    def log_probs(self, last: Tensor) -> list[list[float]]:
        """log m of all tokens that were drawn, (rows, tokens); ``last`` are the last of them."""
        self.drew(last)
        return torch.cat(self.drawn, 1).tolist()


CHUNK = 32  # prompts that are written to at once

Prompt = tuple[int, Sequence[int]]  # example, token ids


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn: softmax(z / temperature) over the ``top_k`` most probable tokens (0: all) that make up
    ``top_p``; temperature 0 takes the most probable one. At most ``max_tokens`` tokens."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 256

    def __post_init__(self) -> None:
        if self.temperature < 0 or not 0 < self.top_p <= 1 or self.top_k < 0 or self.max_tokens < 1:
            raise RecipeError(f"no tokens can be drawn with {self}; temperature >= 0, 0 < top_p <= 1, top_k >= 0")

    def options(self) -> dict[str, Any]:
        """As `generate` takes them."""
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}

    def draw(self, logits: Tensor, numbers: Tensor) -> Tensor:
        """The token of each row where the sum of the probabilities of those before it passes its number.

        Args:
            logits: (rows, vocabulary).
            numbers: (rows,) in [0, 1).

        Returns:
            (rows,) token ids.

        >>> half = Sampling(top_p=0.5)
        >>> half.draw(torch.tensor([[0.1, 0.6, 0.3]]).log(), torch.tensor([0.99])).tolist()
        [1]
        """
        if self.temperature == 0:
            return logits.argmax(-1)
        scores = logits / self.temperature
        if self.top_k:
            least = scores.topk(min(self.top_k, scores.shape[-1])).values[:, -1:]
            scores = scores.masked_fill(scores < least, -math.inf)
        p = scores.softmax(-1)
        if self.top_p < 1:
            falling, order = p.sort(descending=True, stable=True)
            falling = falling.masked_fill(falling.cumsum(-1) - falling >= self.top_p, 0.0)
            p = torch.zeros_like(p).scatter(-1, order, falling)
        sums = p.double().cumsum(-1)
        passed = sums > numbers[:, None].double() * sums[:, -1:]
        return passed.int().argmax(-1)


class Engine(Protocol):
    """What writes completions for left-padded batches: ids without the end padding, and log-probabilities if known."""

    def __call__(
        self, model: Causal, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> list[tuple[list[int], tuple[float, ...] | None]]: ...


def ends(model: Causal) -> list[int]:
    """The tokens that end a completion: those of model and tokenizer, and the end of a turn of the chat template."""
    known = [model.plain.generation_config.eos_token_id, model.tokenizer.eos_token_id, turn_end(model.tokenizer)]
    return sorted({i for one in known if one is not None for i in (one if isinstance(one, list) else [one])})


def by_transformers(
    model: Causal, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int, by: MixingTeacher | None = None
) -> list[tuple[list[int], tuple[float, ...] | None]]:
    """Batched sampling by transformers' `generate`, with its cache of keys and values; ``by``: who writes beside it."""
    device, stop = next(model.parameters()).device, ends(model)
    longest = max(map(len, prompts))
    pad = model.tokenizer.pad_token_id if model.tokenizer.pad_token_id is not None else (stop or [0])[0]
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    padding = range(model.vocabulary, model.plain.get_output_embeddings().weight.shape[0])  # outputs that are no token
    devices = [device] if device.type == "cuda" else []
    mixture = None if by is None else TeacherMixture(model, by, pad, sampling.max_tokens)
    with torch.random.fork_rng(devices), model.inference(), _plainly(model.plain):
        torch.manual_seed(seed)
        out = model.plain.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=sampling.max_tokens, pad_token_id=pad,
            eos_token_id=stop or None, use_cache=True, suppress_tokens=list(padding) or None,
            logits_processor=None if mixture is None else [mixture], **sampling.options(),
        )[:, longest:]  # fmt: skip
    rows = [_until(row, stop) for row in out.tolist()]
    if mixture is None:
        return [(row, None) for row in rows]
    known = mixture.log_probs(out[:, -1:])
    return [(row, tuple(mine[: len(row)])) for row, mine in zip(rows, known, strict=True)]


@contextlib.contextmanager
def _plainly(lm: Any) -> Iterator[None]:
    """Without what the model's own generation config adds (penalties, banned tokens, cut-offs): it comes back."""
    from transformers import GenerationConfig

    before, lm.generation_config = lm.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        lm.generation_config = before


def _until(row: list[int], stop: Sequence[int]) -> list[int]:
    """Up to and with the first token that ends it."""
    place = next((i for i, token in enumerate(row) if token in stop), None)
    return row if place is None else row[: place + 1]


@dataclass(frozen=True)
class ContinuousBatching:
    """Sampling in which a row that ends leaves the batch and a waiting prompt takes its place (`continuous_batching`).

    What is drawn for a prompt depends on the prompt's own address and not on the others of its step, up to the rounding
    of its logits. A model whose cache cannot be moved by rows is sampled by `by_transformers`. On a CPU, greedy answers
    are written so by themselves: they are the same.
    """

    def __call__(
        self, model: Causal, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> list[tuple[list[int], tuple[float, ...] | None]]:
        if not continuous_batching.fits(model):
            return by_transformers(model, prompts, sampling, seed)
        rows = continuous_batching.RowPrompts(prompts, torch.arange(len(prompts)), (seed,))
        said = continuous_batching.write(model, rows, sampling.draw, sampling.max_tokens, ends(model))
        return [(ids, None) for ids in said]


def _inner(engine: Engine) -> Engine:
    """The engine that writes."""
    return engine.engine if isinstance(engine, WritingProgress) else engine


def _is_vllm(engine: Engine) -> bool:
    return isinstance(_inner(engine), Vllm)


def _in_slots(engine: Engine, model: Causal, sampling: Sampling) -> bool:
    """Whether all prompts of a call are written in one batch that is refilled."""
    inner = _inner(engine)
    on_cpu = next(model.parameters()).device.type == "cpu"
    greedy = inner is by_transformers and sampling.temperature == 0 and on_cpu
    return (greedy or isinstance(inner, ContinuousBatching)) and continuous_batching.fits(model)


def _refilled(
    model: Causal, prompts: Sequence[Prompt], sampling: Sampling, address: rng.Address, engine: Engine
) -> list[list[int]]:
    """Completions of all prompts, the samples of an example addressed by its number and theirs."""
    counts, keys = dict[int, int](), list[int]()
    for example, _ in prompts:
        keys.append((example << 20) + counts.get(example, 0))
        counts[example] = counts.get(example, 0) + 1
    rows = continuous_batching.RowPrompts([ids for _, ids in prompts], torch.tensor(keys, dtype=torch.int64), address)
    write = partial(continuous_batching.write, model, rows, sampling.draw, sampling.max_tokens, ends(model))
    return write(engine.wrote) if isinstance(engine, WritingProgress) else write()


#: Fields of a config that saving writes, and that tell no models apart.
_SAVED = ("architectures", "dtype", "transformers_version", "_name_or_path")


class Vllm:
    """Sampling by vLLM on the GPU that trains (`vllm_engine`): all prompts of a call at once, by the weights of now.

    Its log-probabilities differ from the trainer's by kernels and rounding. They come with the completions, and
    `ImportanceWeight` corrects for them by truncated importance sampling. Never run with a real engine.
    """

    def __init__(self) -> None:
        self._model: VllmModel | None = None
        self._config, self._digest = dict[str, Any](), ""  # of its model, and of the weights in its folder

    def __call__(
        self, model: Causal, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> list[tuple[list[int], tuple[float, ...] | None]]:
        from ..io.tensors import digest

        now, config = digest(model.learning()), model.plain.config.to_dict()
        for name in _SAVED:
            config.pop(name, None)
        write = partial(export, model)
        changed = now != self._digest
        if self._model is None or config != self._config:
            self._model = None  # its memory is free before another one asks for it
            self._model, changed = VllmModel(write, str(model.saved_dtype).removeprefix("torch.")), False
        self._config, self._digest = config, now
        options = [self._options(model, sampling, rng.seed(seed, row)) for row in range(len(prompts))]
        found = self._model.generate(prompts, options, write if changed else None)
        return [(one.ids, one.log_probs) for one in found]

    @staticmethod
    def _options(model: Causal, sampling: Sampling, seed: int) -> dict[str, Any]:
        """Of `SamplingParams`."""
        padding = range(model.vocabulary, model.plain.get_output_embeddings().weight.shape[0])
        return {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k or -1,  # -1: all
            "max_tokens": sampling.max_tokens,
            "seed": seed % 2**63,
            "logprobs": 0,  # of the token that was drawn alone
            "stop_token_ids": ends(model),
            "ignore_eos": True,  # those tokens alone end it
            "logit_bias": dict.fromkeys(padding, -100.0) or None,  # outputs that are no token
            "detokenize": False,
        }


def export(model: Causal, folder: str | Path, save: str = "merged", base: str = "") -> None:
    """Write a model as plain transformers or PEFT load it, with its tokenizer and the tokens that end an answer.

    Args:
        model: The model; its adapter is merged in a copy.
        folder: Where to.
        save: ``merged``, ``adapter`` (a folder that PEFT loads) or ``both`` (the adapter in ``FOLDER/adapter``).
        base: The model that it was trained from, for the cards.
    """
    end, config = turn_end(model.tokenizer), model.plain.generation_config
    known = end in (config.eos_token_id, model.tokenizer.eos_token_id)
    save_causal(model, folder, save, base, None if known else ends(model))


def roll(
    model: Causal,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    address: rng.Address,
    engine: Engine = by_transformers,
    by: MixingTeacher | None = None,
) -> list[Rollout]:
    """One completion for each prompt, in their order. Batches are of similar length; an empty one stays empty.

    `ContinuousBatching` writes all of them in one batch that is refilled; so are greedy ones on a CPU. With ``by``
    transformers write, whatever the engine: no other one asks two models for a token.
    """
    for _, ids in prompts:
        check_length(ids, model, sampling.max_tokens, "a prompt")
    if by is None and prompts and _in_slots(engine, model, sampling):
        said = _refilled(model, prompts, sampling, address, engine)
        return [_rollout_of(model, prompt, ids, None) for prompt, ids in zip(prompts, said, strict=True)]
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i][1]), i))
    found: dict[int, Rollout] = {}
    chunk = len(order) if by is None and _is_vllm(engine) else CHUNK  # vLLM makes batches of its own
    for number, start in enumerate(range(0, len(order), max(1, chunk))):
        few = order[start : start + chunk]
        seed = rng.seed(*address, number)
        asked = [prompts[i][1] for i in few]
        written = (
            by_transformers(model, asked, sampling, seed, by.of(few)) if by else engine(model, asked, sampling, seed)
        )
        for i, (ids, log_probs) in zip(few, written, strict=True):
            found[i] = _rollout_of(model, prompts[i], ids, log_probs)
    return [found[i] for i in range(len(prompts))]


def _rollout_of(model: Causal, prompt: Prompt, ids: Sequence[int], log_probs: tuple[float, ...] | None) -> Rollout:
    """A completion with its text."""
    example, asked = prompt
    text, thinking = spoken(model.tokenizer, ids), begins_thought(model.tokenizer, asked)
    return Rollout(example, tuple(asked), tuple(ids), text, log_probs=log_probs, thinking=thinking)


class RewardCheckers:
    """Checks rollouts by the checkers of their examples, and counts those that raise; none is fatal."""

    def __init__(self) -> None:
        self.checkers: dict[str, Checker] = {}

    def __call__(self, rollout: Rollout, example: Example) -> Rollout:
        if example.checker is None:
            return rollout
        if example.checker not in self.checkers:
            self.checkers[example.checker] = Checker(example.checker)
        whole = names_function(example.checker)  # other people's checkers read the thoughts too
        found = self.checkers[example.checker](rollout.text if whole else rollout.answer, example)
        return replace(rollout, reward=found.reward, feedback=found.feedback)

    def trouble(self) -> str | None:
        """Which checkers raised, how often and how first; None if none did."""
        bad = [c for c in self.checkers.values() if c.failures]
        return "; ".join(
            f"checker {c.spec} failed on {c.failures} of {c.calls} completions, which count as wrong (first: "
            f"{c.first_error})" for c in bad
        ) or None  # fmt: skip


class CompletionFile:
    """The completions of one generation in a file, a line each: cut off while it is made, it goes on where it was.

    ``of`` tells runs apart: parts that another run left in the file (other weights, prompts, settings) are not read.
    """

    def __init__(self, path: Path | None, of: str = "") -> None:
        self.path, self.of = path, of
        self.draws = dict[int, tuple[int, int]]()  # by part: completions drawn for it, and their tokens

    @property
    def drawn(self) -> int:
        """Completions that were drawn for all parts, kept or not, and before a cut too."""
        return sum(drawn for drawn, _ in self.draws.values())

    @property
    def written(self) -> int:
        """The tokens of those."""
        return sum(tokens for _, tokens in self.draws.values())

    def made(
        self, parts: int, make: Callable[[int], list[Rollout]], count: Callable[[], tuple[int, int]] = lambda: (0, 0)
    ) -> list[Rollout]:
        """The rollouts of parts 0 to ``parts``, made or read; each part is written whole or not at all. ``count`` is
        asked how many completions were drawn so far, and of how many tokens."""
        found, kept = list[Rollout](), self._read()
        for part in range(parts):
            if part not in kept:
                before = count()
                kept[part] = make(part)
                after = count()
                self.draws[part] = (after[0] - before[0], after[1] - before[1])
                self._write(kept)
            found += kept[part]
        return found

    def _read(self) -> dict[int, list[Rollout]]:
        if self.path is None or not self.path.exists():
            return {}
        kept: dict[int, list[Rollout]] = {}
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a damaged part is written anew
                row = json.loads(line)
                if row["of"] == self.of:
                    kept[int(row["part"])] = [_rollout(one) for one in row["rollouts"]]
                    self.draws[int(row["part"])] = (int(row.get("drawn", 0)), int(row.get("tokens", 0)))
        return kept

    def _write(self, kept: dict[int, list[Rollout]]) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        counts = {part: self.draws.get(part, (0, 0)) for part in kept}
        lines = [json.dumps({"of": self.of, "part": part, "drawn": counts[part][0], "tokens": counts[part][1],
                             "rollouts": [asdict(r) for r in rows]}) for part, rows in kept.items()]  # fmt: skip
        write(self.path, "\n".join(lines) + "\n")


def _rollout(row: dict[str, Any]) -> Rollout:
    chosen = row["log_probs"]
    return Rollout(
        row["example"], tuple(row["prompt"]), tuple(row["ids"]), row["text"], row["reward"], row["feedback"],
        None if chosen is None else tuple(chosen), row.get("tutored", False), row.get("trusted", True),
        row.get("thinking", False),
    )  # fmt: skip


def distinct(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The first of each completion of a prompt."""
    kept: dict[tuple[int, tuple[int, ...], tuple[int, ...]], Rollout] = {}
    for rollout in rollouts:
        kept.setdefault((rollout.example, rollout.prompt, rollout.ids), rollout)
    return list(kept.values())


class WritingProgress:
    """An engine that counts what another one writes, and tells of it now and then: so many of ``total``
    prompts, and the seconds left if all answers that are to come are as long as they may be.

    >>> list(WritingProgress(print, "nobody answers", 2).each([3, 4]))
    [3, 4]
    """

    def __init__(self, hear: Callable[[str], None] | None, what: str, total: int,
                 engine: Engine = by_transformers) -> None:  # fmt: skip
        self.hear, self.what, self.total, self.engine = hear, what, total, engine
        self.done = 0
        self.begun = self.told = time.monotonic()

    def __call__(
        self, model: Causal, prompts: Sequence[Sequence[int]], sampling: Sampling, seed: int
    ) -> list[tuple[list[int], tuple[float, ...] | None]]:
        tokens = 0

        def counted(*_: Any) -> None:
            nonlocal tokens
            tokens += 1
            self._tell(len(prompts) * min(1.0, tokens / sampling.max_tokens))

        hook = model.plain.register_forward_hook(counted)  # a forward pass a token; other engines need none of it
        try:
            found = self.engine(model, prompts, sampling, seed)
        finally:
            hook.remove()
        self.done += len(prompts)
        self._tell()
        return found

    def wrote(self, count: int, begun: float = 0.0) -> None:
        """So many prompts more are answered.

        Args:
            count: Their number.
            begun: What the answers that are being written come to, in whole ones.
        """
        self.done += count
        self._tell(begun)

    def each(self, ids: Sequence[int]) -> Iterator[int]:
        """The same rows, counted as they have been read."""
        for i in ids:
            yield i
            self.wrote(1)

    def _tell(self, begun: float = 0.0) -> None:
        """``begun``: what the answers that are being written come to, in whole ones."""
        now, done = time.monotonic(), self.done + begun
        if self.hear is None or self.done >= self.total or not line_due(now, self.begun, self.told):
            return
        self.told = now
        left = seconds_left(now - self.begun, done, self.total - done)
        self.hear(f"{self.what}: {self.done} of {self.total} prompts, at most about {left:.0f} s left")
