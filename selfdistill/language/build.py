"""Where a student comes from: a pretrained model by name, with or without an adapter, anew for each generation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..errors import DataError
from ..pretrained import causal, quiet
from .causal import Causal

#: Where LoRA goes: all linear layers of the blocks.
EVERYWHERE = "all-linear"


@dataclass(frozen=True)
class Pretrained:
    """A factory of students: ``name`` as `pretrained.locate` reads it, LoRA of rank ``lora`` (0: all weights learn).

    ``targets`` are the layers with an adapter, comma separated; ``alpha`` its scale [default: 2 x rank].
    ``checkpointing`` computes activations again in the backward pass, for less memory.
    """

    name: str
    lora: int = 0
    alpha: int | None = None
    targets: str = EVERYWHERE
    checkpointing: bool = False

    def __call__(self) -> Causal:
        lm, tokenizer = causal(self.name)
        return of_model(lm, tokenizer, self, lambda: of_model(*causal(self.name)).learning())

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
    return Causal(lm, tokenizer, origin)


def _adapted(lm: Any, how: Pretrained) -> Any:
    try:
        import peft
    except ImportError:
        raise DataError("LoRA needs peft: pip install 'selfdistill[language]', or leave --lora out") from None
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
    from .lora import swift

    swift(adapted)
    return adapted
