"""The Trainer mixin: losses of a loop by hand, teachers that move and resume, counts of the whole batch."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from selfdistill.core.objective import Method
from selfdistill.core.step import TrainingClock
from selfdistill.errors import CheckpointError, DataError, RecipeError
from selfdistill.integrations import huggingface
from selfdistill.integrations.common import NamedInputs, batch_of
from selfdistill.integrations.huggingface import SelfDistillMixin
from selfdistill.io.tensors import read_tensors
from selfdistill.methods import recipes
from tests.integrations.common import EMA, KEPT, METHODS, ROWS, by_hand, inputs, net, same

STATE = "objective.safetensors"


class Distilling(SelfDistillMixin, transformers.Trainer):
    """Remembers the mean loss of each step."""

    def training_step(self, *args: Any, **more: Any) -> Any:
        loss = super().training_step(*args, **more)
        self.told.append(float(loss))
        return loss


def dataset() -> list[dict[str, Any]]:
    x, y = inputs()
    return [{"x": x[i], "labels": int(y[i]), "id": i} for i in range(ROWS)]


def trainer(method: Method, out: Path, model: nn.Module | None = None, **settings: Any) -> Any:
    """Five rows a batch, SGD with momentum; ``order`` is told which ids were drawn."""
    args = transformers.TrainingArguments(
        str(out),
        per_device_train_batch_size=5, num_train_epochs=2, learning_rate=0.1, lr_scheduler_type="constant",
        max_grad_norm=0.0, optim="sgd", optim_args="momentum=0.9", remove_unused_columns=False, disable_tqdm=True,
        logging_strategy="no", save_strategy="no", report_to=[], use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    for name, value in settings.items():
        setattr(args, name, value)
    order: list[list[int]] = []

    def collated(rows: list[dict[str, Any]]) -> Any:
        order.append([row["id"] for row in rows])
        return transformers.default_data_collator(rows)

    found = Distilling(
        model or net(), args, train_dataset=dataset(), data_collator=collated, method=method, inputs=["x"]
    )
    found.told, found.order = [], order
    return found


@pytest.mark.parametrize("name", METHODS)
def test_losses_and_weights_are_those_of_a_loop_by_hand(name, tmp_path):
    theirs = trainer(METHODS[name], tmp_path)
    theirs.train()
    assert len(theirs.told) == 10
    clock = TrainingClock(epochs=2, per_epoch=5, steps=10)
    mine = net()
    losses, objective = by_hand(METHODS[name], mine, [[ids] for ids in theirs.order[:10]], clock)
    assert theirs.told == losses
    same(mine.state_dict(), theirs.model.state_dict())
    assert theirs.distillation.clock == objective.clock == TrainingClock(0, 1, 1, 2, 10, 5, 10)


def test_the_teacher_is_the_average_of_what_the_weights_were(tmp_path):
    """By the definition: m <- d m + (1 - d) w after each step, d = min(1 - 1 / (step + 1), 0.8)."""
    model, past = net(), []
    theirs = trainer(EMA, tmp_path, model)
    average = copy.deepcopy(model.last.weight.detach())

    class Remember(transformers.TrainerCallback):
        def on_step_end(self, *args: Any, **more: Any) -> None:
            past.append(model.last.weight.detach().clone())

    theirs.add_callback(Remember())
    theirs.train()
    for step, weight in enumerate(past):
        decay = min(1 - 1 / (step + 2), 0.8)
        average = decay * average + (1 - decay) * weight
    found = theirs.distillation.states["average_ema"].module.model.last.weight
    torch.testing.assert_close(found, average, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, model.last.weight, atol=1e-3)


@pytest.mark.parametrize(("name", "save", "accumulate"), [("average", 3, 1), ("memory", 5, 1), ("history", 2, 2)])
def test_stopped_and_resumed_it_ends_as_if_it_had_not_been(name, save, accumulate, tmp_path):
    """With dropout, inside an epoch and at its end."""
    settings = {"gradient_accumulation_steps": accumulate}
    whole = trainer(METHODS[name], tmp_path / "whole", net(0.3), **settings)
    whole.train()
    settings |= {"save_strategy": transformers.trainer_utils.SaveStrategy.STEPS, "save_steps": save}
    cut = trainer(METHODS[name], tmp_path / "cut", net(0.3), **settings)
    cut.train()
    folder = tmp_path / "cut" / f"checkpoint-{save}"
    resumed = trainer(METHODS[name], tmp_path / "resumed", net(0.3), **settings)
    resumed.train(resume_from_checkpoint=str(folder))
    assert len(resumed.told) == len(whole.told) - save * accumulate
    same(whole.model.state_dict(), resumed.model.state_dict())
    same(whole.distillation.state_dict(), resumed.distillation.state_dict())
    bare = trainer(METHODS[name], tmp_path / "bare", net(0.3), **settings)
    bare._load_from_checkpoint = lambda path: transformers.Trainer._load_from_checkpoint(bare, path)
    bare.train(resume_from_checkpoint=str(folder))
    assert not torch.equal(bare.model.last.weight, whole.model.last.weight)  # the state is needed


def test_a_checkpoint_has_the_state_bit_by_bit_beside_the_trainers_own_files(tmp_path):
    theirs = trainer(
        EMA, tmp_path, max_steps=2, save_strategy=transformers.trainer_utils.SaveStrategy.STEPS, save_steps=2
    )
    theirs.train()
    same(theirs.distillation.state_dict(), read_tensors(tmp_path / "checkpoint-2" / STATE))
    plain = transformers.Trainer(
        net(), theirs.args, train_dataset=[{k: r[k] for k in ("x", "labels")} for r in dataset()]
    )
    plain.args.output_dir = str(tmp_path / "plain")
    plain.train()
    names = {path.name for path in (tmp_path / "plain" / "checkpoint-2").iterdir()}
    assert {path.name for path in (tmp_path / "checkpoint-2").iterdir()} - names == {STATE}


@pytest.mark.parametrize("rows", [4, 5])
def test_micro_batches_give_the_step_of_the_whole_batch(rows, tmp_path):
    """Counts differ between them, and the last step of an epoch has fewer; the mean of means is another step."""
    theirs = trainer(KEPT, tmp_path, net(norm=False), gradient_accumulation_steps=3, per_device_train_batch_size=rows)
    calls: list[int] = []
    update = theirs.distillation.update

    def counting() -> None:
        calls.append(len(theirs.distillation._steps))
        update()

    theirs.distillation.update = counting
    theirs.train()
    each = math.ceil(ROWS / rows)
    pieces = [theirs.order[e * each : (e + 1) * each] for e in range(2)]
    steps = [epoch[i : i + 3] for epoch in pieces for i in range(0, each, 3)]
    assert calls == [len(parts) for parts in steps]
    assert theirs.state.global_step == len(steps) == theirs.distillation.clock.step
    clock = TrainingClock(epochs=2, per_epoch=len(steps) // 2, steps=len(steps))
    whole, parted = net(norm=False), net(norm=False)
    losses, _ = by_hand(KEPT, whole, [[[i for part in parts for i in part]] for parts in steps], clock)
    by_hand(KEPT, parted, steps, clock)
    told = iter(theirs.told)
    sums = [sum(next(told) for _ in parts) for parts in steps]
    torch.testing.assert_close(sums, losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(theirs.model.last.weight, whole.last.weight, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(theirs.model.last.weight, parted.last.weight, atol=1e-4)


def test_counting_changes_no_buffer_and_draws_nothing(tmp_path, monkeypatch):
    """Running statistics and random state are those of a run that does not count."""
    ways = []
    for counted in (True, False):
        if not counted:
            monkeypatch.setattr(huggingface, "total_counts", lambda objective, batches: None)
        theirs = trainer(EMA, tmp_path, net(0.5), gradient_accumulation_steps=2, max_steps=1)
        theirs.train()
        ways.append((theirs.model.layers[1], torch.get_rng_state(), theirs.told))
    same(ways[0][0]._buffers, ways[1][0]._buffers)
    assert int(ways[0][0].num_batches_tracked) == 2
    assert torch.equal(ways[0][1], ways[1][1])
    assert ways[0][2] != ways[1][2]  # two rows have no label


def test_evaluation_stays_the_trainers(tmp_path):
    x, y = inputs()
    kept = y >= 0
    theirs = trainer(EMA, tmp_path)
    rows = [row for row, keep in zip(dataset(), kept.tolist(), strict=True) if keep]
    found = theirs.evaluate(rows)["eval_loss"]
    theirs.model.eval()
    assert found == pytest.approx(theirs.model(x[kept], y[kept])["loss"].item(), rel=1e-5)


def test_views_are_mappings_with_labels_and_ids_of_their_own_or_of_all():
    x, y = inputs()
    batch = batch_of(
        {"weak": {"a": x, "b": x + 1}, "own": {"a": x, "b": x, "labels": y}, "id": y}, ["a", "b"], ["weak"]
    )
    assert batch["weak"].x.equal(torch.stack([x, x + 1], 1))
    assert batch["weak"].y is None
    assert batch["own"].y is y
    assert batch["own"].id is y
    assert batch.fixed == {"weak"}


def test_models_of_text_get_their_inputs_by_name():
    """Padding says nothing only if the attention mask arrives."""
    shape: Any = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(**shape, intermediate_size=8)
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    given = {"input_ids": torch.randint(1, 20, (2, 5)), "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]])}
    packed = batch_of({**given, "labels": torch.tensor([0, 1])}, list(given))["x"]
    assert NamedInputs(model, list(given))(packed.x)["logits"].equal(model(**given)["logits"])
    assert not NamedInputs(model, list(given))(packed.x)["logits"].equal(model(given["input_ids"])["logits"])


@pytest.mark.parametrize(
    ("given", "names", "words"),
    [({"ids": torch.zeros(2, 3)}, ["input_ids"], "has no 'input_ids'"),
     ({"a": torch.zeros(2, 3), "b": torch.zeros(2, 4)}, ["a", "b"], "differ in shape"),
     ({"a": torch.zeros(2, 3), "labels": torch.zeros(2, 3, dtype=torch.int64)}, ["a"], "token by token")],
)  # fmt: skip
def test_batches_that_do_not_fit_are_refused_in_one_line(given, names, words):
    with pytest.raises(DataError, match=words) as caught:
        batch_of(given, names)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_or_with_another_state_is_refused_in_one_line(tmp_path):
    settings: dict[str, Any] = {
        "max_steps": 2,
        "save_strategy": transformers.trainer_utils.SaveStrategy.STEPS,
        "save_steps": 1,
    }
    trainer(EMA, tmp_path, **settings).train()
    folder = tmp_path / "checkpoint-1"
    with pytest.raises(CheckpointError, match="of another recipe or model") as caught:
        trainer(recipes()["elr"](), tmp_path, **settings).train(resume_from_checkpoint=str(folder))
    assert "\n" not in str(caught.value)
    (folder / STATE).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        trainer(EMA, tmp_path, **settings).train(resume_from_checkpoint=str(folder))


def test_teachers_from_outside_get_their_inputs_by_name_too(tmp_path):
    """`distil`, with the options of `bind`."""
    args = trainer(EMA, tmp_path).args
    theirs = Distilling(
        net(), args, train_dataset=dataset(), method=recipes()["distil"](), inputs=["x"], bind={"external": net(0.1)}
    )
    theirs.told = []
    theirs.train()
    assert len(theirs.told) == 10


def test_a_run_without_an_end_is_refused():
    from selfdistill.integrations.common import set_run_length

    with pytest.raises(RecipeError, match="no end"):
        set_run_length(EMA.bind(net()), math.inf, 5, 1, 0)


def test_a_missing_package_is_said_in_one_line_and_torchvision_is_not_asked_for():
    """In a process of its own, one package after another."""
    doors = {"huggingface": "transformers", "lightning": "lightning", "trl": "trl"}
    code = (
        "import importlib, sys\n"
        f"for door, package in {doors!r}.items():\n"
        "    sys.modules[package] = None\n"
        "    try:\n        importlib.import_module(f'selfdistill.integrations.{door}')\n"
        "    except ImportError as error:\n        print(error)\n"
        "    del sys.modules[package]\n"
        "import trl\nfrom trl import SFTTrainer\n"
        "print('torchvision' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *lines, seen = done.stdout.splitlines()
    for package, line in zip(doors.values(), lines, strict=True):
        assert line.startswith(f"this needs {package}")
        assert f"pip install {package}" in line
    assert seen == "False"


def test_each_door_takes_at_most_seventy_lines():
    folder = Path(huggingface.__file__).parent
    for name in ("huggingface.py", "lightning.py"):
        assert len((folder / name).read_text().splitlines()) <= 70
