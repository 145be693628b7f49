"""A language model learns by sft(), then an adapter by sdft(), and plain transformers and PEFT load both folders.

python examples/adapter.py --steps 20
"""

import argparse

from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from selfdistill.language.recipes import sdft, sft
from selfdistill.language.trainer import fit
from selfdistill.models.causal_folder import save_causal
from selfdistill.models.causal_lm import Pretrained
from selfdistill.testing import toys


def main(steps: int) -> None:
    toys.save(toys.untrained(), toys.tokenizer(), "base")  # in place of a model that you have
    data, options = toys.prompts(toys.NEW, 40, seed=1), {"steps": steps, "max_tokens": 8, "audit": "off"}

    tuned = fit(Pretrained("base"), data, sft(), lr=3e-4, **options)
    save_causal(tuned.model, "tuned", base="base")
    distilled = fit(Pretrained("tuned", lora=8), data, sdft(max_tokens=8), lr=1e-3, **options)
    save_causal(distilled.model, "adapter", save="adapter", base="tuned")

    tokens = AutoTokenizer.from_pretrained("adapter")(data.rows[0].prompt, return_tensors="pt")
    for model in (AutoModelForCausalLM.from_pretrained("tuned"), AutoPeftModelForCausalLM.from_pretrained("adapter")):
        print(type(model).__name__, model.eval()(**tokens).logits[0, -1, :3].tolist())


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    main(parser.parse_args().steps)
