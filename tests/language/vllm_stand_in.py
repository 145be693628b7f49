"""A stand-in for the module `vllm`: the documented interface of `LLM` with sleep mode, `SamplingParams` and
`RequestOutput`, computed by transformers on the CPU. It refuses what vLLM refuses: unknown arguments, a call asleep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

OFF: list[float | None] = [0.0]  # added to each log-probability: kernels of another precision; None: none is told
CALLS = list[str]()  # of all models, in their order


@dataclass
class SamplingParams:
    """As in the documentation, as far as it is used here."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    max_tokens: int | None = 16
    logprobs: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    logit_bias: dict[int, float] | None = None
    detokenize: bool = True

    def __post_init__(self) -> None:
        if self.top_k < -1 or not 0 < self.top_p <= 1 or self.temperature < 0:
            raise ValueError("parameters are out of their range")


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None


@dataclass
class RequestOutput:
    request_id: str
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True


class LLM:
    """A model of a folder. Asleep at level 2 it has neither weights nor a cache; each is woken by its tag."""

    def __init__(
        self, model: str, *, dtype: str = "auto", enable_sleep_mode: bool = False, gpu_memory_utilization: float = 0.9,
        generation_config: str = "auto", logprobs_mode: str = "raw_logprobs",
    ) -> None:  # fmt: skip
        assert 0 < gpu_memory_utilization <= 1
        assert (generation_config, logprobs_mode) == ("vllm", "raw_logprobs")
        CALLS.append("load")
        self.folder, self.dtype, self.sleeps = model, getattr(torch, dtype), enable_sleep_mode
        self.lm: Any = None
        self.cache = True
        self._load()

    def _load(self) -> None:
        self.lm = AutoModelForCausalLM.from_pretrained(self.folder, dtype=self.dtype).eval()

    def sleep(self, level: int = 1) -> None:
        if not self.sleeps:
            raise ValueError("sleep mode is not enabled")
        CALLS.append(f"sleep {level}")
        self.cache = False
        if level == 2:
            for weight in self.lm.parameters():
                weight.data = torch.full_like(weight, math.nan)

    def wake_up(self, tags: list[str] | None = None) -> None:
        assert set(tags or ()) <= {"weights", "kv_cache"}
        CALLS.append(f"wake {' '.join(tags or [])}")
        self.cache = self.cache or tags is None or "kv_cache" in tags

    def collective_rpc(self, method: str, timeout: float | None = None, args: tuple[Any, ...] = ()) -> list[Any]:
        assert method == "reload_weights"
        CALLS.append(method)
        self._load()
        return [None]

    def generate(
        self, prompts: Sequence[dict[str, list[int]]], sampling_params: Sequence[SamplingParams], *, use_tqdm: bool
    ) -> list[RequestOutput]:
        assert self.cache, "the model is asleep"
        assert len(prompts) == len(sampling_params)
        CALLS.append(f"generate {len(prompts)}")
        pairs = zip(prompts, sampling_params, strict=True)
        return [self._answer(str(i), one["prompt_token_ids"], how) for i, (one, how) in enumerate(pairs)]

    @torch.no_grad()
    def _answer(self, name: str, prompt: list[int], how: SamplingParams) -> RequestOutput:
        generator = torch.Generator().manual_seed(how.seed or 0)
        ids, found = list(prompt), list[dict[int, Logprob]]()
        reason = "length"
        for _ in range(how.max_tokens or 1):
            logits = self.lm(input_ids=torch.tensor([ids])).logits[0, -1].float()
            raw = logits.log_softmax(-1)  # before anything that sampling changes
            ids.append(_drawn(logits, how, generator))
            found.append({ids[-1]: Logprob(float(raw[ids[-1]]) + (OFF[0] or 0.0))})
            if ids[-1] in (how.stop_token_ids or ()):
                reason = "stop"
                break
        total = math.fsum(one.logprob for at in found for one in at.values())
        told = None if how.logprobs is None or OFF[0] is None else found
        output = CompletionOutput(0, "", ids[len(prompt) :], total, told, reason)
        return RequestOutput(name, list(prompt), [output])


def _drawn(logits: Tensor, how: SamplingParams, generator: torch.Generator) -> int:
    for token, bias in (how.logit_bias or {}).items():
        logits[token] += bias
    if how.temperature == 0:
        return int(logits.argmax())
    p = (logits / how.temperature).softmax(-1)
    order = p.argsort(descending=True)
    kept = p[order].cumsum(0) - p[order] < how.top_p
    if how.top_k > 0:
        kept[how.top_k :] = False
    chosen = order[kept]
    return int(chosen[torch.multinomial(p[chosen], 1, generator=generator)])
