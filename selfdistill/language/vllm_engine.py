"""vLLM on the GPU that trains: asleep while the student learns, and given its weights before it writes.

Written against the documented interface of vLLM (`LLM` with sleep mode, `SamplingParams`, `RequestOutput`) and never
run with a real engine: nothing of it was measured.
"""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..core import distributed
from ..errors import DataError

MEMORY = 0.3  # share of the GPU's memory that vLLM may have while it is awake; the student has the rest
ALONE = "vLLM writes for one process alone; leave torchrun or vLLM away"


def check_vllm(device: str | None = None, load_in_4bit: bool = False) -> None:
    """Refuse vLLM where it cannot write.

    Args:
        device: Where the student trains, as asked for.
        load_in_4bit: Whether the base has weights of 4 bits.

    Raises:
        DataError: vLLM is not installed, there is no GPU, several processes train, or the base has 4 bits.
    """
    if importlib.util.find_spec("vllm") is None:
        raise DataError(
            "--engine vllm needs vLLM, which brings a torch of its own: pip install vllm, or leave --engine out"
        )
    if (device or "cuda").startswith("cpu") or not torch.cuda.is_available():
        raise DataError("--engine vllm needs a CUDA device; leave --engine out, which writes by transformers")
    if load_in_4bit:
        raise DataError("--engine vllm needs merged weights, and --load-in-4bit has none; leave one of them out")
    if distributed.size() > 1:
        raise DataError(ALONE)


class Completion(NamedTuple):
    """Ids that vLLM has drawn, with the log-probability of each by its weights at temperature 1, without truncation."""

    ids: list[int]
    log_probs: tuple[float, ...] | None


class VllmModel:
    """A model in vLLM, which sleeps between calls: its weights and its cache are then not in memory (level 2).

    Args:
        write: Writes the model as it is now into a folder, as transformers load it.
        dtype: The dtype of its weights, such as "bfloat16".

    Raises:
        DataError: vLLM is not installed.
    """

    def __init__(self, write: Callable[[Path], None], dtype: str) -> None:
        try:
            import vllm  # type: ignore[import-not-found,unused-ignore]
        except ImportError:
            raise DataError("vLLM is not installed; install it, or leave the engine to transformers") from None
        self._place = tempfile.TemporaryDirectory(prefix="selfdistill-vllm-")
        self.folder, self._vllm = Path(self._place.name), vllm
        write(self.folder)
        self._llm = vllm.LLM(
            model=str(self.folder),
            dtype=dtype,
            enable_sleep_mode=True,
            gpu_memory_utilization=MEMORY,
            generation_config="vllm",  # nothing of the model's own generation config is added
            logprobs_mode="raw_logprobs",
        )
        self._llm.sleep(level=2)

    def generate(
        self, prompts: Sequence[Sequence[int]], options: Sequence[dict[str, Any]], write: Callable[[Path], None] | None
    ) -> list[Completion]:
        """Completions of prompts by the weights in the folder.

        Args:
            prompts: Token ids.
            options: Of `SamplingParams`, by prompt.
            write: Writes the weights anew; None where they have not changed.
        """
        if write is not None:
            write(self.folder)
        self._llm.wake_up(tags=["weights"])
        self._llm.collective_rpc("reload_weights")  # from the folder; sleep has thrown them away
        self._llm.wake_up(tags=["kv_cache"])
        try:
            found = self._llm.generate(
                [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                [self._vllm.SamplingParams(**one) for one in options],
                use_tqdm=False,
            )
        finally:
            self._llm.sleep(level=2)
        return [_completion(one.outputs[0]) for one in found]


def _completion(output: Any) -> Completion:
    """What a `CompletionOutput` has: ids, and for each of them a mapping of ids that has its own."""
    ids = list(output.token_ids)
    if output.logprobs is None:
        return Completion(ids, None)
    return Completion(ids, tuple(float(at[i].logprob) for at, i in zip(output.logprobs, ids, strict=True)))
