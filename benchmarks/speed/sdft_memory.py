"""Peak memory of a training by `sdft()` over that by `sft()`: the same bfloat16 model, adapter, prompts and batch.

Each recipe trains in a fresh process, whose highest resident size is compared, libraries and weights included, and also
without what was there before the first step (the model, its adapter and the libraries).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.speed.sdft_step import BATCH, PROMPTS, RANK, prompts
from benchmarks.speed.trl_peer import highest

#: Tokens that are written at most: about as many as a demonstration has.
TOKENS = 128


#: How much more than `sft()` a training by `sdft()` may take.
AT_MOST = 1.3


def serve(asked: str) -> None:
    """Train one recipe in this process, and print what it took as JSON."""
    import torch

    from selfdistill.data.examples import Example
    from selfdistill.data.prompts import of_examples
    from selfdistill.language.run import read_recipe
    from selfdistill.language.trainer import LanguageTask
    from selfdistill.models.causal_lm import Pretrained
    from selfdistill.training.settings import Settings
    from selfdistill.training.trainer import Trainer

    wanted = json.loads(asked)
    torch.set_num_threads(1)
    rows = [Example((("user", one),), demonstration=other) for one, other in prompts(PROMPTS)]
    data = of_examples(rows, "made on the spot", audit=0.0, test=0.0)
    settings = Settings(epochs=1000, batch_size=wanted["batch"], clip=1.0, lr=2e-5, vitals=False)
    build = Pretrained(wanted["model"], lora=wanted["rank"], dtype=wanted["dtype"])
    method = read_recipe(wanted["recipe"])
    trainer = Trainer(LanguageTask(build, data.sealed(), method), method, settings)
    trainer.begin(0)
    before = highest()
    for _ in range(wanted["steps"]):
        trainer.step()
    named = trainer.state.model.named_parameters()
    kinds = {str(p.dtype).removeprefix("torch.") for n, p in named if "lora_" not in n}
    print(json.dumps({"before": before, "peak": highest(), "base": sorted(kinds)}))


def run(
    quick: bool = False, progress: Callable[[str], None] = print, model: str = "smollm2", steps: int = 2
) -> dict[str, Any]:
    """Measure both recipes; ``quick`` with a small model made on the spot."""
    batch, tokens, rank = (2, 4, 2) if quick else (BATCH, TOKENS, RANK)
    found, started = dict[str, Any](), f"import sys; from {__name__} import serve; serve(sys.argv[1])"
    with tempfile.TemporaryDirectory() as folder:
        place = str(_small(Path(folder))) if quick else model
        for recipe in ("sft()", f"sdft(skip=0, max_tokens={tokens})"):
            progress(f"{recipe}, {steps} steps of {batch} prompts")
            asked = {
                "model": place, "recipe": recipe, "batch": batch, "rank": rank, "steps": steps, "dtype": "bfloat16"
            }  # fmt: skip
            command = [sys.executable, "-c", started, json.dumps(asked)]
            child = subprocess.run(command, check=True, capture_output=True, text=True)
            found[recipe.partition("(")[0]] = json.loads(child.stdout.strip().splitlines()[-1])
    ratio = found["sdft"]["peak"] / found["sft"]["peak"]
    steps_alone = [found[name]["peak"] - found[name]["before"] for name in ("sdft", "sft")]
    return {
        "model": "made on the spot" if quick else model, "batch": batch, "tokens": tokens, "rank": rank, "steps": steps,
        **found, "ratio": ratio, "beyond_start": steps_alone, "at_most": AT_MOST, "met": ratio <= AT_MOST,
    }  # fmt: skip


def _small(folder: Path) -> Path:
    """The folder of a Llama of one layer over bytes, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: i for i, token in enumerate(["<pad>", "<end>", *letters])}
    characters = Tokenizer(models.BPE(words, [], unk_token="<pad>"))
    characters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    characters.decoder = decoders.ByteLevel()
    made: Any = PreTrainedTokenizerFast
    tokenizer = made(tokenizer_object=characters, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}<end>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"  # noqa: E501
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=4096, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def render(result: dict[str, Any]) -> str:
    """The result in words."""
    lines = [
        f"{result['model']} in bfloat16, LoRA rank {result['rank']}, {result['batch']} prompts, at most "
        f"{result['tokens']} tokens written, {result['steps']} steps, one thread; MiB of the highest resident size",
        f"  {'':<8}{'before':>8}{'peak':>8}",
        *(f"  {name:<8}{result[name]['before']:>8.0f}{result[name]['peak']:>8.0f}" for name in ("sft", "sdft")),
        f"sdft() over sft(): {result['ratio']:.2f} (at most {result['at_most']}): "
        f"{'met' if result['met'] else 'missed'}; beyond the start "
        f"{result['beyond_start'][0]:.0f} against {result['beyond_start'][1]:.0f} MiB",
    ]
    return "\n".join(lines)
