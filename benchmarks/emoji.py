"""Heads on the features of a pretrained image model, with few labels: a recipe that validation rows choose, against
logistic regression on the same features at its best penalty, paired over seeds.

    python -m benchmarks.emoji GOOGLE --seeds 10 --out runs/emoji.jsonl
    python -m benchmarks.emoji GOOGLE --onto APPLE --seeds 10 --out runs/emoji-onto.jsonl

GOOGLE and APPLE are the unpacked npm packages ``emoji-datasource-google`` and ``emoji-datasource-apple`` (a folder
``package``), with ``emoji.json`` and pictures of 64 x 64 pixels; the class is the category. A seed draws 500 test rows
and 10 labels a class; the other rows teach without. The recipe is chosen, among those that learn from unlabelled rows,
by its accuracy on 5 folds of the labelled rows, weighted by the class shares that plain() expects among unlabelled
rows: labels are drawn by class, and the test rows are not. The penalty of the logistic regression is chosen on 5 folds
too. Nobody has another label. The components of the features are fitted to all images, for both learners alike.

With ``--onto`` the labels are of the first vendor, unlabelled rows and test rows of the second, and each vendor's
features are centred on their own. A seed adds a line to ``--out``; given again, the command goes on where it was cut.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.lines import Lines
from selfdistill.data.dataset import Data, from_tensors
from selfdistill.evaluation.predict import predict_rows, score
from selfdistill.evaluation.statistics import interval
from selfdistill.experiments import tuning
from selfdistill.methods.registry import read_method
from selfdistill.models.registry import Build, parse
from selfdistill.training.fit import fit

MODEL = "efficientnet-lite0"
METHODS = (
    "plain()",
    *(
        f"uda(confidence={c}, temperature=0.5, ratio=5.0, labelled='none', weak='none', strong='none')"
        for c in (0.3, 0.5, 0.7)
    ),
)
PENALTIES = np.logspace(-4, 2, 13)
FOLDS, TEST = 5, 500


def pictures(folder: Path, vendor: str) -> tuple[Tensor, list[str], list[str]]:
    """Pictures (rows, 3, 64, 64) on white, their categories and their names; what both vendors drew."""
    from PIL import Image

    rows, categories, names = [], [], []
    for entry in json.loads((folder / "emoji.json").read_text()):
        if entry["category"] == "Component" or not (entry["has_img_google"] and entry["has_img_apple"]):
            continue
        with Image.open(folder / "img" / vendor / "64" / entry["image"]) as opened:
            image = opened.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        rows.append(np.array(Image.alpha_composite(white, image).convert("RGB")))
        categories.append(entry["category"])
        names.append(entry["image"])
    return torch.from_numpy(np.stack(rows)).permute(0, 3, 1, 2).contiguous(), categories, names


def vendor_of(folder: Path) -> str:
    """The vendor whose pictures a package has."""
    return next(path.name for path in sorted((folder / "img").iterdir()) if (path / "64").is_dir())


def embedded(given: argparse.Namespace) -> tuple[Data, Build, int]:
    """All rows as components of features, the head that reads them, and where the second vendor's begin."""
    sets = [pictures(folder, vendor_of(folder)) for folder in filter(None, (given.folder, given.onto))]
    classes = sorted(set(sets[0][1]))
    x = torch.cat([images for images, _, _ in sets])
    y = torch.tensor([classes.index(category) for _, categories, _ in sets for category in categories])
    data = from_tensors(x, y, classes, name="emoji", flips=True, test=0, audit=0)
    build = parse(MODEL, data.shape, len(classes))
    data, head = tuning.frozen(data, build, [read_method("plain()")])
    return data, head, len(sets[0][0])


def draw(data: Data, first: int, seed: int, labels: int, onto: bool) -> Data:
    """The data of a seed: so many labels of each class, the others unlabelled, and 500 test rows."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(first))
    shift = len(data.y) - first  # the second vendor's rows come in the same order
    test, rest = order[:TEST], order[TEST:]
    labelled = torch.cat([rest[data.y[rest] == label][:labels] for label in range(len(data.classes))])
    x = data.x
    if onto:
        teaching = (rest, rest + shift)
        assert isinstance(x, Tensor)
        x = torch.cat([x[:first] - x[teaching[0]].mean(0), x[first:] - x[teaching[1]].mean(0)])
        test, unlabelled = test + shift, rest + shift
    else:
        unlabelled = rest[~torch.isin(rest, labelled)]
    return replace(data, x=x, labelled=labelled, unlabelled=unlabelled, test=test, augment="none")


def folds(data: Data, labels: int) -> list[tuple[Tensor, Tensor]]:
    """Labelled rows that teach and those that validate; every class is in each part."""
    place = torch.arange(len(data.labelled)) % labels % FOLDS
    return [(data.labelled[place != fold], data.labelled[place == fold]) for fold in range(FOLDS)]


def train(data: Data, head: Build, method: str, seed: int, steps: int) -> Any:
    """The model of one training on the labelled rows."""
    settings = tuning.head_settings(len(data.labelled)) | {"steps": steps, "batch_size": len(data.labelled)}
    result = fit(head, data, read_method(method), seed=seed, warn=lambda line: None, audit="off", **settings)
    return result.model


def regression(data: Data) -> float:
    """The test accuracy of logistic regression at the penalty that folds choose."""
    from sklearn.linear_model import LogisticRegressionCV

    assert isinstance(data.x, Tensor)
    x, y = data.x.numpy(), data.y.numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learner = LogisticRegressionCV(Cs=PENALTIES, cv=FOLDS, max_iter=500).fit(x[data.labelled], y[data.labelled])
    return float(learner.score(x[data.test], y[data.test]))


def class_shares(model: nn.Module, data: Data) -> Tensor:
    """The shares of classes among unlabelled rows by the mean probability, (classes,)."""
    return predict_rows(model, data, data.unlabelled).softmax(1).mean(0)


def compare(data: Data, head: Build, given: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The accuracies of a seed, and what the folds chose."""
    begun, validated = time.monotonic(), dict[str, float]()
    models = {method: train(data, head, method, seed, given.steps) for method in METHODS}
    weight = class_shares(models["plain()"], data)[data.y[data.labelled]]
    for method in METHODS:
        right = torch.zeros(len(data.y))
        for teach, held in folds(data, given.labels):
            model = train(replace(data, labelled=teach), head, method, seed, given.steps)
            right[held] = (predict_rows(model, data, held).argmax(1) == data.y[held]).float()
        validated[method] = float((right[data.labelled] * weight).sum() / weight.sum())
    chosen = max(METHODS[1:], key=lambda method: validated[method])
    tested = {name: score(model, data, data.test)["accuracy"] for name, model in models.items()}
    return {
        "seed": seed,
        "chosen": chosen,
        "validated": validated,
        "test": tested,
        "regression": regression(data),
        "seconds": round(time.monotonic() - begun, 1),
    }


def summary(records: list[dict[str, Any]]) -> None:
    """Means, and paired differences with half of their 95 % intervals."""
    base = [record["regression"] for record in records]
    print(f"{len(records)} seeds; logistic regression {100 * float(np.mean(base)):.1f} %")
    rows = {"chosen": [record["test"][record["chosen"]] for record in records]}
    rows |= {method: [record["test"][method] for record in records] for method in METHODS}
    for name, scores in rows.items():
        against = {"regression": base, "plain()": [record["test"]["plain()"] for record in records]}
        said = []
        for other, values in against.items():
            mean, half = interval([100 * (a - b) for a, b in zip(scores, values, strict=True)])
            said.append(f"against {other} {mean:+.2f} ± {half:.2f}")
        print(f"{100 * float(np.mean(scores)):.1f} % {'; '.join(said)}: {name}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--onto", type=Path)
    options.add_argument("--labels", type=int, default=10, help="of each class")
    options.add_argument("--seeds", type=int, default=10)
    options.add_argument("--first-seed", type=int, default=0)
    options.add_argument("--steps", type=int, default=200)
    options.add_argument("--out", type=Path, required=True)
    given = options.parse_args()
    torch.set_num_threads(1)
    asked = {"onto": given.onto is not None, "labels": given.labels, "steps": given.steps, "methods": METHODS}
    lines = Lines(given.out, json.loads(json.dumps(asked)))
    data, head, first = embedded(given)
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        if all(record["seed"] != seed for record in lines.records):
            drawn = draw(data, first, seed, given.labels, given.onto is not None)
            lines.add(compare(drawn, head, given, seed))
    summary([one for one in lines.records if one["seed"] in range(given.first_seed, given.first_seed + given.seeds)])


if __name__ == "__main__":
    main()
