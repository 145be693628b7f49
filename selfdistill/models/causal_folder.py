"""Folders of causal language models: merged, as plain transformers load it; an adapter, as PEFT loads it; or both."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from ..errors import DataError
from ..io.files import share
from .causal_lm import Causal
from .hub import base_name, locate, quiet, unpacked

SAVES = ("merged", "adapter", "both")


#: The folder of the adapter in that of the merged model, where both are saved.
ADAPTER = "adapter"


def check_save(save: str, lora: int, load_in_4bit: bool = False) -> None:
    """Refuse a kind of folder that a model cannot be saved as.

    Args:
        save: ``merged``, ``adapter`` or ``both``.
        lora: The rank of its adapter; 0 without one.
        load_in_4bit: Whether its base has weights of 4 bits.

    Raises:
        DataError: there is no such kind, no adapter, or nothing that the adapter could be merged into.
    """
    if save not in SAVES:
        raise DataError(f"save is {', '.join(SAVES[:-1])} or {SAVES[-1]}, not {save!r}")
    if save != "merged" and not lora:
        raise DataError(f"--save {save} needs an adapter, and all weights learn; give --lora 16, or --save merged")
    if save != "adapter" and load_in_4bit:
        raise DataError(f"--save {save} would round the update to 4 bits with the base; give --save adapter")


def save_causal(
    model: Causal, folder: str | Path, save: str = "merged", base: str = "", stop: Sequence[int] | None = None
) -> None:
    """Write a language model in the dtype of its base, with its tokenizer and a card; safetensors only.

    The adapter is merged in a copy. With ``both`` the adapter is in the folder ``adapter`` of the merged model. Of
    peers the one that answers is merged or saved, and beside an adapter all of them in the folders ``peer0``, ``peer1``
    and so on.

    Args:
        model: The model, on any device.
        folder: Where to; files of other names stay.
        save: ``merged``, ``adapter`` or ``both``.
        base: The model that it was trained from, as ``--model`` takes it, for cards and for PEFT.
        stop: Ids that end an answer, where the model does not know them.

    Raises:
        DataError: as of `check_save`.
    """
    folder = Path(folder)
    check_save(save, int(model.has_adapter), model.quantised)
    if save != "adapter":
        _save_merged(model, folder, stop)
        _write_card(folder, "transformers", base)
    if save != "merged":
        place = folder / ADAPTER if save == "both" else folder
        _save_adapter(model, place, base, str(model.adapter_name))
        _write_card(place, "peft", base)
        for subfolder, name in model.adapters.items():
            _save_adapter(model, place / subfolder, base, name)


def _save_merged(model: Causal, folder: Path, stop: Sequence[int] | None) -> None:
    with quiet():
        whole = model.lm
        if model.has_adapter:
            whole = copy.deepcopy(whole).merge_and_unload(adapter_names=[model.adapter_name])
        elif model.saved_dtype != whole.dtype:
            whole = rounded(copy.deepcopy(whole), model.saved_dtype)
        whole.save_pretrained(folder)
        model.tokenizer.save_pretrained(folder)
        if stop:
            config = copy.deepcopy(whole.generation_config)
            config.eos_token_id = list(stop)  # so that plain transformers stop where training stopped
            config.save_pretrained(folder)
    share(folder)


def rounded(lm: Any, dtype: torch.dtype) -> Any:
    """The model with its weights in a dtype; its buffers, such as the frequencies of positions, stay."""
    for weight in lm.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.to(dtype)
    return lm


def _save_adapter(model: Causal, folder: Path, base: str, name: str) -> None:
    import peft

    folder.mkdir(parents=True, exist_ok=True)
    weights = peft.get_peft_model_state_dict(model.lm, adapter_name=name)
    stored = {name: value.detach().to("cpu", model.saved_dtype).contiguous() for name, value in weights.items()}
    safetensors.torch.save_file(stored, folder / "adapter_model.safetensors", {"format": "pt"})
    config = copy.deepcopy(model.lm.peft_config[name])
    config.base_model_name_or_path = _place(base) or model.plain.name_or_path or None
    config.inference_mode = True
    config.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    share(folder)


def _place(base: str) -> str:
    """Where PEFT finds a base: its name on the hub, or the folder of its safetensors."""
    if not base:
        return ""
    place = unpacked(locate(base))
    return str(place.resolve()) if isinstance(place, Path) else place


def card_fields(library: str, base: str) -> dict[str, str]:
    """Fields of the front matter of a model card.

    Args:
        library: The library that loads the folder: ``transformers`` or ``peft``.
        base: The model that it was trained from, as ``--model`` takes it; empty if it has no name.

    >>> card_fields("peft", "smollm2")
    {'library_name': 'peft', 'base_model': 'HuggingFaceTB/SmolLM2-135M-Instruct', 'base_model_relation': 'adapter'}
    """
    found = {"library_name": library} | ({"base_model": base_name(base)} if base else {})
    return found | ({"base_model_relation": "adapter"} if base and library == "peft" else {})


def _write_card(folder: Path, library: str, base: str) -> None:
    if library == "peft":
        about = "An adapter (LoRA)"
        code = [
            "from peft import AutoPeftModelForCausalLM",
            f'model = AutoPeftModelForCausalLM.from_pretrained("{folder.name}")',
        ]
    else:
        about = "A language model"
        code = [
            "from transformers import AutoModelForCausalLM",
            f'model = AutoModelForCausalLM.from_pretrained("{folder.name}")',
        ]
    of = f", trained from {base_name(base)}" if base else ""
    fields = [f"{name}: {value}" for name, value in card_fields(library, base).items()]
    text = [
        "---",
        *fields,
        "tags: [self-distillation]",
        "---",
        "",
        f"{about}{of} by selfdistill.",
        "",
        "```python",
        *code,
        "```",
        "",
    ]
    (folder / "README.md").write_text("\n".join(text), encoding="utf-8")
