"""Class-incremental streams: what replay, stored logits and their renewal gain, with paired seeds.

    python -m benchmarks.streams --seeds 10 --memory 50 --out runs/streams.jsonl

Digits in 5 tasks of 2 classes: an MLP of width 100, SGD with momentum 0.9 at 0.01 (a plain step of 0.1), 10 epochs a
task, batches of 10 beside 32 replayed rows; `er` at equal replayed rows has 64, since `der_pp` draws twice. A training
adds a line to ``--out``; given again, the command goes on where it was cut. The joint training sees all tasks at once,
for as many steps.

    python -m benchmarks.streams --data fashion-mnist --labels 6000 --epochs 1 --seeds 5 --memory 50

The same with the settings of the digits, which were not tuned for it: no augmentation, one epoch a task.

    python -m benchmarks.streams --update --seeds 5 --memory 200 --out runs/updates.jsonl

A run of the digits 0 to 4 is updated with 5 to 9: folders of images, the defaults of `run` and `update` without
augmentation, and a test split of all ten digits that neither of them learns from.

    python -m benchmarks.streams --adapt --seeds 6 --out runs/adapt.jsonl

A network that learnt 136 upright digits adapts to ten unlabelled domains of 136 digits each, turned by 6 to 60 degrees;
300 further digits turned by 60 degrees test. SGD at 0.1, 300 steps for the source and 200 for a domain. Warm starts are
also trained at 0.03. The arm `all at once` labels all unlabelled rows in each of the ten rounds, at equal steps.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.ndimage import rotate
from torch import Tensor

from selfdistill.core.objective import Method
from selfdistill.data.dataset import Data, from_tensors, load
from selfdistill.evaluation.predict import task_outputs
from selfdistill.experiments.run import Run
from selfdistill.io.run_record import Request
from selfdistill.methods import der, der_pp, er, er_ema, lwf, plain
from selfdistill.models.registry import parse
from selfdistill.training.fit import fit
from selfdistill.training.stream import class_tasks, fit_adapt, fit_stream, rows_of_tasks, score_classes, task_accuracy

TASKS = 5


def arms(memory: int) -> dict[str, Method]:
    """The methods by name."""
    return {
        "der_pp": der_pp(memory),
        "er, equal rows": er(memory, 64),
        "er": er(memory),
        "der_pp, stale": der_pp(memory, refresh=False),
        "der": der(memory),
        "er_ema": er_ema(memory),
        "lwf": lwf(generations=TASKS),
        "naive": plain(),
        "joint": plain(),
    }


def train(data_name: str, arm: str, memory: int, seed: int, epochs: int, labels: int | None) -> dict[str, Any]:
    """The scores of one training; of all labelled rows, or of so many."""
    data = replace(load(data_name, labels=labels, seed=seed), augment="none")
    build = parse("mlp(width=100)", data.shape, len(data.classes))
    classes = class_tasks(data, TASKS, seed)
    settings: dict[str, Any] = {
        "batch_size": 10, "optimizer": "sgd", "lr": 0.01, "weight_decay": 0.0, "schedule": "constant", "seed": seed,
        "epochs": epochs, "device": "cpu", "vitals": False,
    }  # fmt: skip
    if arm == "joint":
        trained = fit(build, data, plain(), audit="off", warn=lambda line: None, **settings)
    else:
        tasks = rows_of_tasks(data, classes, data.labelled)
        trained = fit_stream(build, data, arms(memory)[arm], tasks, warn=lambda line: None, **settings)
    scores = score_classes(trained, build, data, classes, seed)
    named = {"data": data_name, "labels": labels, "arm": arm, "memory": memory, "seed": seed}
    return {**named, "seconds": trained.seconds, **scores}


def gain(rows: list[dict[str, Any]], arm: str, against: str) -> str:
    """The mean difference in points over paired seeds, with a 95 % bootstrap interval."""
    by = {(row["arm"], row["seed"]): row["accuracy"] for row in rows}
    paired = [100 * (by[arm, s] - by[against, s]) for a, s in sorted(by) if a == arm and (against, s) in by]
    draw = random.Random(0)
    means = sorted(statistics.mean(draw.choices(paired, k=len(paired))) for _ in range(2000)) if paired else [0.0]
    low, high = means[int(0.025 * len(means))], means[int(0.975 * (len(means) - 1))]
    mean = statistics.mean(paired) if paired else float("nan")
    return f"{arm} minus {against}: {mean:+.1f} [{low:+.1f}, {high:+.1f}] points, {len(paired)} seeds"


def write_images(data: Data, ids: Tensor, folder: Path) -> str:
    """A folder of images by class; returns its path."""
    for i in ids.tolist():
        place = folder / data.classes[int(data.y[i])]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((data.x[torch.tensor([i])][0, 0] * 15).numpy()).save(place / f"{i}.png")
    return str(folder)


def update(memory: int, seed: int) -> dict[str, Any]:
    """The scores of one update, of the run before it, and of training on the new rows alone."""
    data = load("digits")
    taught = torch.cat([data.labelled, data.audit])
    with tempfile.TemporaryDirectory() as name:
        place, common = Path(name), dict[str, Any](augment="none", seed=seed, device="cpu")
        low = data.y[taught] < 5
        old, new = (write_images(data, taught[part], place / n) for n, part in (("old", low), ("new", ~low)))
        test = write_images(data, data.test, place / "test")
        Run.create(Request(old, image_size=8, control=False, **common), place / "run").execute()
        request = Request(new, update=str(place / "run"), test=test, memory=memory, **common)
        result = Run.create(request, place / "update").execute()
    scores = {name: result["update"][name] for name in ("before", "naive", "method")}
    return {"memory": memory, "seed": seed, "recipe": result["method"], **scores}


def main_update(options: argparse.Namespace) -> None:
    """Update what is missing, and print the table."""
    rows = read_rows(options.out)
    for seed in range(options.seeds):
        if (options.memory, seed) not in {(row["memory"], row["seed"]) for row in rows}:
            rows.append(append_row(options.out, update(options.memory, seed)))
    own = [row for row in rows if row["memory"] == options.memory]
    for name in ("before", "naive", "method"):
        shown = [f"{k} {100 * statistics.mean(r[name][k] for r in own):.1f}" for k in ("accuracy", "old", "new")]
        print(f"{name if name != 'method' else own[0]['recipe']}: {', '.join(shown)}")
    lost = [100 * row["method"]["forgetting"] for row in own]
    print(f"old classes lose {statistics.mean(lost):.1f} points, at most {max(lost):.1f}, {len(own)} seeds")


ANGLES = range(0, 66, 6)  # in degrees; the source is the first


def turned(seed: int) -> tuple[Data, Data, list[Tensor]]:
    """The labelled source, the turned digits with their test split, and the rows of each domain."""
    digits = load("digits")
    order = np.random.default_rng(seed).permutation(len(digits.y))
    cuts = np.linspace(0, 1497, len(ANGLES) + 1).astype(int)
    parts = [order[cut : cut + 136] for cut in cuts[:-1]]
    parts.append(order[1497:])
    images = (digits.tensor[:, 0].numpy() / 16).astype(np.float32)

    def rotated(rows: Any, angle: int) -> Tensor:
        one = [rotate(images[i], angle, reshape=False, order=1) for i in rows]
        return torch.from_numpy(np.stack(one))[:, None].clamp(0, 1)

    x = [rotated(rows, angle) for rows, angle in zip(parts, [*ANGLES, ANGLES[-1]], strict=True)]
    source = from_tensors(x[0], digits.y[parts[0]], digits.classes, audit=0.0, test=0.0)
    ends = np.cumsum([len(one) for one in x[1:]])
    domains = [torch.arange(end - len(one), end) for end, one in zip(ends, x[1:], strict=True)]
    y = digits.y[np.concatenate(parts[1:])]
    data = from_tensors(torch.cat(x[1:]), y, digits.classes, audit=0.0, test=domains[-1])
    return source, data, domains[:-1]


def adapt(seed: int) -> dict[str, Any]:
    """The accuracy at the last angle by arm."""
    source, data, domains = turned(seed)
    build = parse("mlp(width=128)", data.shape, len(data.classes))
    common: dict[str, Any] = {
        "optimizer": "sgd", "weight_decay": 5e-4, "seed": seed, "device": "cpu", "vitals": False,
        "warn": lambda line: None,
    }  # fmt: skip
    before = fit(build, source, plain(), audit="off", steps=300, lr=0.1, **common).model
    every = [torch.cat(domains)] * len(domains)
    trainings: dict[str, tuple[list[Tensor], bool, float]] = {
        "fresh": (domains, False, 0.1),
        "warm": (domains, True, 0.1),
        "warm, lr 0.03": (domains, True, 0.03),
        "all at once": (every, False, 0.1),
    }
    models = {"source": before}
    for arm, (rows, warm, lr) in trainings.items():
        models[arm] = fit_adapt(build, data, plain(), before, rows, warm=warm, steps=200, lr=lr, **common).model
    scores = {arm: task_accuracy(task_outputs(m, data, data.test), data.y[data.test]) for arm, m in models.items()}
    return {"seed": seed, **scores}


def main_adapt(options: argparse.Namespace) -> None:
    """Adapt what is missing, and print the table."""
    rows = read_rows(options.out)
    for seed in range(options.seeds):
        if seed not in {row["seed"] for row in rows}:
            rows.append(append_row(options.out, adapt(seed)))
    arms = [arm for arm in rows[0] if arm != "seed"]
    flat = [{"arm": arm, "seed": row["seed"], "accuracy": row[arm]} for row in rows for arm in arms]
    for arm in arms:
        print(f"{arm}: {100 * statistics.mean(row[arm] for row in rows):.1f} %; {gain(flat, arm, 'source')}")
    print("\n".join(gain(flat, "fresh", arm) for arm in arms if arm not in ("fresh", "source")))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of results; none where there is no file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_row(path: Path, row: dict[str, Any]) -> dict[str, Any]:
    """Add a line to a file of results."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--memory", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--labels", type=int, help="labelled rows that teach (default: all)")
    parser.add_argument("--arms", default="der_pp;er, equal rows;joint")
    parser.add_argument("--out", type=Path, default=Path("runs/streams.jsonl"))
    parser.add_argument("--update", action="store_true", help="update runs in place of streams")
    parser.add_argument("--adapt", action="store_true", help="adapt to turned digits in place of streams")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.update or options.adapt:
        (main_update if options.update else main_adapt)(options)
        return
    rows = read_rows(options.out)
    rows = [row for row in rows if (row["data"], row.get("labels")) == (options.data, options.labels)]
    done = {(row["arm"], row["memory"], row["seed"]) for row in rows}
    for seed in range(options.seeds):
        for arm in options.arms.split(";"):
            if (arm, options.memory, seed) not in done:
                scores = train(options.data, arm, options.memory, seed, options.epochs, options.labels)
                rows.append(append_row(options.out, scores))
    rows = [row for row in rows if row["memory"] == options.memory]
    for arm in options.arms.split(";"):
        own = [row for row in rows if row["arm"] == arm]
        names = ("accuracy", "task_incremental", "forgetting", "backward", "forward")
        shown = [f"{n} {100 * statistics.mean(r[n] for r in own):.1f}" for n in names if own and n in own[0]]
        print(f"{arm} (memory {options.memory}): {', '.join(shown)}")
    for arm in ("er, equal rows", "er", "joint"):
        if arm in options.arms.split(";"):
            print(gain(rows, "der_pp", arm))


if __name__ == "__main__":
    main()
