"""A small run in which every kind of state is at work, and what it left behind as one comparable value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from selfdistill.core.objective import Method
from selfdistill.core.parts import PerTrust, Term
from selfdistill.data.dataset import Data
from selfdistill.gates import Confident
from selfdistill.io import checkpoint
from selfdistill.losses import KL, CrossEntropy, LogOneMinusInner, Squared
from selfdistill.schedules import ByGeneration, Linear
from selfdistill.teachers import Ema, Generation, History, Labels, LastBatch, LastEpoch, PseudoLabels
from selfdistill.training.fit import Result, fit
from selfdistill.views import View, Views
from tests.harness import CLASSES, tiny_data

STEPS, GENERATIONS = 18, 2  # per generation: two epochs, overlapping batches


class Net(nn.Module):
    """8x8 images -> logits, with batch norm and dropout: buffers and random numbers to lose."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Dropout(0.3))
        self.classifier = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.hidden(self.stem(x)))
        return out


def everything() -> Method:
    """Every kind of teacher state, gate and schedule in one method of two generations."""
    looks = (View("x", "union", "weak"), View("other", "union", "weak"), View("clean", "union", "none"))
    return Method(
        {
            "label": Term(Labels(), CrossEntropy(), weight=Linear(1.0, 0.5)),
            "pseudo": Term(PseudoLabels(shares=(0.5,)), CrossEntropy(), weight=0.5),
            "average": Term(Ema(0.9, view="other"), Squared(mean=True), weight=10.0),
            "noisy": Term(Ema(0.95, view="other", train=True), KL(), weight=0.1),
            "memory": Term(LastEpoch(), CrossEntropy(), weight=Linear(0.0, 0.5)),
            "history": Term(History(0.7, clamp=1e-4), LogOneMinusInner(), weight=0.5),
            "before": Term(LastBatch(), KL(3.0), gate=Confident(0.3), reduction=PerTrust()),
            "past": Term(Generation(view="clean"), KL(2.0), gate=Confident(0.3), weight=ByGeneration(0.0, 0.5)),
        },
        Views(looks, overlap=True),
        generations=GENERATIONS,
    )


def data() -> Data:
    return tiny_data(24)


def run(folder: Path, **options: Any) -> Result:
    """Train `everything` on the tiny images, in ``folder``; ``options`` are those of `fit`.

    With this seed the first epoch of a generation is its best one: a later sitting cannot find it again.
    """
    defaults = {"steps": STEPS, "batch_size": 12, "lr": 0.01, "schedule": "cosine", "save_steps": 1, "seed": 5}
    return fit(Net, data(), everything(), out=folder, **{**defaults, **options})


def distil(folder: str) -> None:
    """Train a self-distilled learner of scikit-learn that keeps its trainings, and write what it predicts."""
    from sklearn.datasets import load_iris
    from sklearn.linear_model import LogisticRegression

    from selfdistill.estimators import SelfDistilledClassifier, keeping

    x, y = load_iris(return_X_y=True)
    with keeping(Path(folder) / "fits"):
        model = SelfDistilledClassifier(LogisticRegression(), generations=3, random_state=0).fit(x, y)
    (Path(folder) / "predictions.bin").write_bytes(model.predict_proba(x).tobytes())
    (Path(folder) / "history.json").write_text(json.dumps(model.history_, default=str))


def flat(tree: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested dicts, lists and tuples, by path."""
    pairs = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, (list, tuple)) else ()
    leaves = {} if pairs or isinstance(tree, (Mapping, list, tuple)) else {path: tree}
    for key, value in pairs:
        leaves.update(flat(value, f"{path}/{key}" if path else str(key)))
    return leaves


def leaf_bits(leaf: Any) -> str:
    if not isinstance(leaf, Tensor):
        return repr(leaf)
    plain = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.sha256(repr((leaf.dtype, tuple(leaf.shape))).encode() + plain.numpy().tobytes()).hexdigest()


def bits(folder: Path) -> dict[str, str]:
    """Everything a run left on disk, hashed leaf by leaf; only the time it took is left out."""
    newest = checkpoint.newest(folder / "checkpoints")
    assert newest is not None
    left = {name: leaf_bits(leaf) for name, leaf in flat(checkpoint.read(newest)).items() if name != "progress/elapsed"}
    files = [folder / "metrics.jsonl", *sorted((folder / "generations").glob("*.safetensors"))]
    return left | {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def differences(one: Mapping[str, str], two: Mapping[str, str]) -> list[str]:
    """Names of what differs between two runs."""
    return sorted(name for name in one.keys() | two.keys() if one.get(name) != two.get(name))


def by_id(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state with rows in the order of their ids: micro-batches and processes bring new ones in other orders."""
    state = dict(state)
    for ids, ending in (("_lastbatch.ids", ".ids"), (".keys", ".keys")):
        for name in [name for name in state if name.endswith(ids)]:
            order = state[name].argsort(stable=True)
            for key in {name, name.removesuffix(ending) + ".values"} & state.keys():
                state[key] = state[key][order]
    return state
