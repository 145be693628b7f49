"""TRL's side of `bench language`: its SDFT trainer, one step for each line on standard input.

Runs in an interpreter that has trl, transformers and peft, and not this package: the file is started as a script, with
one argument, the settings as JSON. `Paced` is shared with our side, so that both are timed in the same way.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


class Paced:
    """Steps that wait for a line on standard input and are reported by a line of JSON on standard output."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is no report
        self.wall = self.cpu = 0.0

    def say(self, **figures: Any) -> None:
        print(json.dumps(figures), file=self.out, flush=True)

    def begin(self) -> None:
        """Wait until a step is asked for; ends the process where no more are."""
        if not sys.stdin.readline():
            sys.stdout.flush()
            os._exit(0)  # from within another trainer's loop
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def end(self, **figures: Any) -> None:
        """Report the step: seconds on the wall and of the processor, and the highest resident mebibytes so far."""
        wall, cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu
        self.say(wall=wall, cpu=cpu, mebibytes=highest(), **figures)


def highest() -> float:
    """The process's highest resident size, in MiB; nan where /proc does not tell it."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((float(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), float("nan"))


def train(task: dict[str, Any]) -> None:
    """Build the trainer, say so, and go through its loop; every step waits for a line."""
    paced = Paced()
    import torch
    import transformers
    from datasets import Dataset  # type: ignore[import-not-found,unused-ignore]
    from peft import LoraConfig
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer  # type: ignore[import-not-found,unused-ignore]

    torch.set_num_threads(task["threads"])
    model = transformers.AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(task["model"], padding_side="left")
    rows = [
        {"prompt": [{"role": "user", "content": asked}], "privileged_context": demonstration}
        for asked, demonstration in task["prompts"]
    ]
    n = task["tokens"]
    template = task["template"].replace("{demonstration}", "{privileged_context}")
    with tempfile.TemporaryDirectory() as folder:
        config = SDFTConfig(
            output_dir=folder, per_device_train_batch_size=task["batch"], num_generations=1, max_steps=10**6,
            max_completion_length=n, generation_kwargs={"min_new_tokens": n}, learning_rate=task["lr"], bf16=False,
            use_cpu=True, distillation_mode="full_logits", distillation_alpha=0.0, teacher_model_kind="ema",
            teacher_update_rate=task["rate"], num_loss_tokens_to_skip=task["skip"], teacher_prompt_template=template,
            max_prompt_length=None, gradient_checkpointing=task["checkpointing"], report_to="none", save_strategy="no",
            logging_steps=10**6, disable_tqdm=True, shuffle_dataset=False,
        )  # fmt: skip
        adapter = LoraConfig(r=task["rank"], lora_alpha=2 * task["rank"], target_modules="all-linear")
        trainer = SDFTTrainer(
            model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
            peft_config=adapter,
        )  # fmt: skip

        class Pace(transformers.TrainerCallback):  # type: ignore[misc,unused-ignore]
            def on_step_begin(self, args: Any, state: Any, control: Any, **known: Any) -> None:
                paced.begin()

            def on_step_end(self, args: Any, state: Any, control: Any, **known: Any) -> None:
                paced.end(weights=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad))

        trainer.add_callback(Pace())  # the last: the teacher's update is part of the step
        paced.say(ready=True, versions=_versions())
        trainer.train()


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("trl", "transformers", "peft", "torch")}


if __name__ == "__main__":
    train(json.loads(sys.argv[1]))
