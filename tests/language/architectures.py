"""Tiny random models of twenty architectures, as transformers make them from a configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as t

from selfdistill.models.causal_lm import Causal, Pretrained, of_model
from tests.language.tiny import EOS, tokenizer

WORDS = len(tokenizer())
_TOKENS: dict[str, Any] = {
    "vocab_size": WORDS, "pad_token_id": 0, "eos_token_id": EOS, "bos_token_id": None, "initializer_range": 0.2,
}  # fmt: skip
_BLOCKS: dict[str, Any] = _TOKENS | {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def _without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in _BLOCKS.items() if name not in names}


#: Name -> its configuration.
ARCHITECTURES: dict[str, Callable[[], Any]] = {
    "llama": lambda: t.LlamaConfig(**_BLOCKS),
    "qwen2": lambda: t.Qwen2Config(**_BLOCKS),
    "qwen3": lambda: t.Qwen3Config(**_BLOCKS, head_dim=8),
    "gpt2": lambda: t.GPT2Config(**_TOKENS, n_positions=512, n_embd=32, n_layer=2, n_head=4),
    "gemma": lambda: t.GemmaConfig(**_BLOCKS, head_dim=8),
    "gemma2": lambda: t.Gemma2Config(**_BLOCKS, head_dim=8, query_pre_attn_scalar=8),
    "gemma3": lambda: t.Gemma3TextConfig(**_BLOCKS, head_dim=8, query_pre_attn_scalar=8),
    "mistral": lambda: t.MistralConfig(**_BLOCKS, head_dim=8),
    "phi3": lambda: t.Phi3Config(**_BLOCKS),
    "olmo2": lambda: t.Olmo2Config(**_BLOCKS),
    "gptneox": lambda: t.GPTNeoXConfig(**_without("num_key_value_heads")),
    "granite": lambda: t.GraniteConfig(**_BLOCKS, logits_scaling=2.0),
    "bloom": lambda: t.BloomConfig(**_TOKENS, hidden_size=32, n_layer=2, n_head=4),
    "lfm2": lambda: t.Lfm2Config(**_BLOCKS, layer_types=["conv", "full_attention"], block_multiple_of=16),
    "gpt-oss": lambda: t.GptOssConfig(
        **_BLOCKS, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=16,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "mamba": lambda: t.MambaConfig(**_TOKENS, hidden_size=32, state_size=4, num_hidden_layers=2),
    "qwen3moe": lambda: t.Qwen3MoeConfig(**_BLOCKS, **_EXPERTS),
    "qwen3next": lambda: t.Qwen3NextConfig(
        **_BLOCKS, **_EXPERTS, head_dim=8, shared_expert_intermediate_size=16, linear_key_head_dim=8,
        linear_value_head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4,
        layer_types=["linear_attention", "full_attention"],
    ),
    "deepseek3": lambda: t.DeepseekV3Config(
        **_without("num_key_value_heads"), num_key_value_heads=4, moe_intermediate_size=16, n_routed_experts=4,
        n_shared_experts=1, num_experts_per_tok=2, n_group=2, topk_group=1, q_lora_rank=16, kv_lora_rank=16,
        qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, first_k_dense_replace=1,
    ),
    "llama4": lambda: t.Llama4TextConfig(
        **_BLOCKS, head_dim=8, num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=48,
        interleave_moe_layer_step=2, attention_chunk_size=16,
    ),
}  # fmt: skip


def build(name: str, lora: int = 4) -> Causal:
    """A student of an architecture, the same each time."""
    torch.manual_seed(0)
    lm = t.AutoModelForCausalLM.from_config(ARCHITECTURES[name](), dtype=torch.float32)
    return of_model(lm, tokenizer(), Pretrained(name, lora=lora))
