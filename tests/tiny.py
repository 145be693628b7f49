"""Pretrained models of a few thousand weights, made on the spot: nothing is fetched and nothing has to be installed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTConfig,
    ViTForImageClassification,
)

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = """
the a film book meal was is very not quite good great fine lovely bad awful poor dull and but so it this that
plot cast end food time i we they saw read ate liked hated again never always
""".split()  # noqa: SIM905


def tokenizer(length: int = 32) -> PreTrainedTokenizerFast:
    """Whole words of a small vocabulary; all others are unknown."""
    names = [*SPECIAL, *WORDS]
    made = Tokenizer(WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=length,
    )  # fmt: skip


def bert(folder: Path, length: int = 32, dropout: float = 0.1, seed: int = 0) -> Path:
    """The folder of an encoder of two layers of width 16, with its tokenizer."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=length, hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout, pad_token_id=0,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer(length).save_pretrained(folder)
    return folder


def llama(folder: Path) -> Path:
    """The folder of a causal model of two layers of width 16, with its tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=32, max_position_embeddings=64, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def image_model(folder: Path, side: int = 32, mean: tuple[float, ...] = (0.5, 0.4, 0.3)) -> Path:
    """The folder of a vision transformer of two layers of width 16 that classifies, so that it has no pooler."""
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=side, patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    ViTForImageClassification(config).save_pretrained(folder)
    described = {"image_mean": mean, "image_std": [0.2, 0.3, 0.4], "size": {"height": side, "width": side}}
    (folder / "preprocessor_config.json").write_text(json.dumps(described))
    return folder
