"""Label errors found, the noise rate, and a model after cleaning: this package beside cleanlab.

    apt-get install fonts-lato fonts-roboto-unhinted fonts-liberation ...     # any packages of fonts
    pip install cleanlab
    python -m benchmarks.label_errors glyphs --seeds 10 --out runs/label_errors.jsonl
    python -m benchmarks.label_errors tables --seeds 10 --out runs/label_errors.jsonl
    python -m benchmarks.label_errors texts FILE.csv ... --seeds 10 --out runs/label_errors.jsonl

``glyphs``: the letters A to J of 120 fonts, 32 x 32, drawn anew for each seed; 26 % of the labels are flipped at
random, or to the letter most alike (the nearest mean image), and at random 0, 10 and 40 %. Both sides train the same
network (``--model``) for ``--steps`` in 5 folds: cleanlab takes `plain()` and its probabilities for the rows left out,
this package ``--method`` and what ``--folds 5`` takes. Predictions are kept beside ``--out``. Rankings are cut at the
largest recall of all wrong labels at which precision is at least .95; beside it is what each side flags. Of 26 % at
random, both drop what they flag, and the same plain network learns the rest and is scored on 500 clean glyphs of other
fonts.

``tables`` and ``texts``: 20 % of the labels flipped, the same probabilities out of fold (gradient boosting; logistic
regression on TF-IDF of words) for both rankings: AUC of the wrong labels. A text file has the columns text and rating;
its classes are ratings above and below 0. Seeds from 100 on were used to develop. Each line is one arm of one seed;
given again, the command goes on.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.lines import Lines
from selfdistill.data.dataset import Data, from_tensors
from selfdistill.errors import DataError
from selfdistill.evaluation.label_errors import auroc
from selfdistill.evaluation.label_noise import find_label_errors
from selfdistill.evaluation.predict import predict_rows
from selfdistill.evaluation.statistics import interval
from selfdistill.io.files import write
from selfdistill.methods import plain
from selfdistill.methods.registry import read_method
from selfdistill.models.registry import parse
from selfdistill.training.cross_fitting import cross_examine
from selfdistill.training.fit import fit

LETTERS, FONTS, TEST_FONTS, SIDE, FOLDS, PRECISION = "ABCDEFGHIJ", 120, 50, 32, 5, 0.95
SETTINGS = (("random", 0.26), ("alike", 0.26), ("random", 0.0), ("random", 0.1), ("random", 0.4))
ARMS = ("selfdistill", "cleanlab")
FLAGGED = ("precision", "recall")
TABLES = ("breast-cancer", "wine", "digits")


def draw_fonts(skip: str) -> NDArray[np.uint8]:
    """The letters of every font that has them, (fonts, letters, side, side); equal fonts once.

    Fonts with ``skip`` in their path are left out, if it is not empty.
    """
    from PIL import Image, ImageDraw, ImageFont

    listed = subprocess.run(["fc-list", "--format", "%{file}\n"], capture_output=True, text=True, check=True).stdout
    drawn = dict[bytes, NDArray[np.uint8]]()
    for path in sorted(
        {line for line in listed.split("\n") if line.lower().endswith((".ttf", ".otf")) and not (skip and skip in line)}
    ):
        try:
            font, rows = ImageFont.truetype(path, 24), []
            for letter in (*LETTERS, "\U0010fffd"):
                left, top, right, bottom = font.getbbox(letter)
                image = Image.new("L", (SIDE, SIDE), 255)
                place = ((SIDE - left - right) / 2, (SIDE - top - bottom) / 2)
                ImageDraw.Draw(image).text(place, letter, font=font, fill=0)
                rows.append(np.asarray(image))
        except (OSError, ValueError):
            continue
        whole = np.stack(rows)
        different = len({image.tobytes() for image in whole}) == len(whole)  # no letter is the box of a missing one
        if different and ((whole[:-1] < 128).sum(axis=(1, 2)) >= 10).all():
            drawn.setdefault(whole[:-1].tobytes(), whole[:-1])
    return np.stack(list(drawn.values()))


def glyphs(
    fonts: NDArray[np.uint8], seed: int, kind: str, noise: float, augment: str
) -> tuple[Data, Tensor, Tensor, Tensor]:
    """Glyphs with flipped labels, their true classes, and clean glyphs of other fonts with their classes."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(fonts))
    rows = torch.from_numpy(fonts[order[:FONTS]].reshape(-1, 1, SIDE, SIDE))
    test = torch.from_numpy(fonts[order[FONTS : FONTS + TEST_FONTS]].reshape(-1, 1, SIDE, SIDE))
    true, clean = (torch.arange(len(LETTERS)).repeat(len(x) // len(LETTERS)) for x in (rows, test))
    wrong = torch.from_numpy(random.permutation(len(rows))[: round(noise * len(rows))])
    y = true.clone()
    if kind == "alike":
        means = fonts[order[:FONTS]].astype(float).mean(axis=0).reshape(len(LETTERS), -1)
        distances = ((means[:, None] - means[None]) ** 2).sum(axis=2) + np.diag(np.full(len(LETTERS), np.inf))
        y[wrong] = torch.from_numpy(distances.argmin(axis=1))[true[wrong]]
    else:
        y[wrong] = (true[wrong] + torch.from_numpy(random.integers(1, len(LETTERS), len(wrong)))) % len(LETTERS)
    data = from_tensors(rows, y, list(LETTERS), audit=0, test=0, augment=augment)
    return data, true, test, clean


def recall(order: NDArray[Any], wrong: NDArray[np.bool_]) -> float:
    """The largest share of all wrong labels in a beginning of the ranking of which 95 % are wrong."""
    hits = wrong[order].cumsum()
    enough = np.flatnonzero(hits >= PRECISION * np.arange(1, len(hits) + 1))
    return float(hits[enough[-1]] / wrong.sum()) if len(enough) and wrong.any() else 0.0


def flagged(mask: NDArray[np.bool_], wrong: NDArray[np.bool_]) -> dict[str, float]:
    """How many labels are flagged, and precision and recall."""
    hits = int((mask & wrong).sum())
    return {"share": float(mask.mean()), "precision": hits / max(1, mask.sum()), "recall": hits / max(1, wrong.sum())}


def train_without(data: Data, mask: NDArray[np.bool_], test: Tensor, clean: Tensor, options: dict[str, Any]) -> float:
    """The accuracy on clean rows of a plain network that learns the rows without a mask."""
    kept = torch.from_numpy(np.flatnonzero(~mask))
    rest = from_tensors(data.tensor[kept], data.y[kept], list(LETTERS), audit=0, test=0, augment=data.augment)
    model = fit(parse(options["model"], data.shape, data.outputs), rest, plain(), warn=lambda line: None,
                steps=options["steps"], seed=options["seed"], audit="off").model.cpu()  # fmt: skip
    judged = from_tensors(test, clean, list(LETTERS), audit=0, test=0)
    outputs = predict_rows(model, judged, torch.arange(len(test)), "logits")
    return float((outputs.argmax(1) == clean).double().mean())


class Predictions(NamedTuple):
    """Probabilities of every row (rows, classes), and the seconds of one core that they took."""

    held: NDArray[np.float64]
    memory: NDArray[np.float64] | None
    seconds: float


def cross_predictions(data: Data, arm: str, options: dict[str, Any], place: Path) -> Predictions:
    """The predictions of one arm out of fold, from ``place`` where they are there."""
    asked = json.dumps(options, sort_keys=True)
    if not place.exists():
        begun = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            found = cross_examine(
                parse(options["model"], data.shape, data.outputs), data, read_method(options[arm]), FOLDS, Path(folder),
                steps=options["steps"], seed=options["seed"], warn=lambda line: None,
            )  # fmt: skip
        memory = np.zeros(0) if found.memory is None else found.memory.double().numpy()
        arrays = {"held": found.held.double().numpy(), "memory": memory, "asked": np.array(asked)}
        place.parent.mkdir(parents=True, exist_ok=True)
        with io.BytesIO() as buffer:
            np.savez_compressed(buffer, allow_pickle=False, **arrays, seconds=np.array(time.process_time() - begun))
            write(place, buffer.getvalue())
    with np.load(place) as stored:
        if str(stored["asked"]) != asked:
            raise DataError(f"{place} was made with other settings; remove it, or give another --out")
        kept = stored["memory"] if stored["memory"].size else None
        return Predictions(stored["held"], kept, float(stored["seconds"]))


def normalised(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities (rows, classes) that sum to 1."""
    sums: NDArray[np.float64] = p / p.sum(axis=1, keepdims=True)
    return sums


def run_glyphs(
    fonts: NDArray[np.uint8], seed: int, kind: str, noise: float, arm: str, options: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """One arm on one seed."""
    data, true, test, clean = glyphs(fonts, seed, kind, noise, options["augment"])
    options = {**options, "seed": seed}
    found = cross_predictions(data, arm, options, folder / f"{kind}-{noise}-{seed}-{arm}.npz")
    y, wrong, p = data.y.numpy(), (data.y != true).numpy(), normalised(found.held)
    record: dict[str, Any] = {"accuracy": float((p.argmax(axis=1) == true.numpy()).mean())}
    if arm == "selfdistill":
        result = find_label_errors(y, p, memory=None if found.memory is None else normalised(found.memory))
        mask, order, scores = result.likely, result.order, result.scores
        record["noise"] = result.noise._asdict()
        named = (result.suggested == true.numpy())[mask & wrong]
        record["named"] = float(named.mean()) if len(named) else None
    else:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores

        mask = np.asarray(find_label_issues(y, p, n_jobs=1))
        scores = 1.0 - get_label_quality_scores(y, p)
        order = np.argsort(-scores, kind="stable")
        record["noise"] = {"rate": float(mask.mean())}
    record |= {"recall": recall(order, wrong), "flagged": flagged(mask, wrong)}
    record["auc"] = auroc(torch.as_tensor(scores), torch.from_numpy(wrong))
    if (kind, noise) == SETTINGS[0]:
        record["cleaned"] = train_without(data, mask, test, clean, options)
    return {**record, "seconds": round(found.seconds)}


def rows_of(name: str) -> tuple[Any, NDArray[np.int64], Any]:
    """Inputs, classes and the learner of a table or a file of texts."""
    from sklearn.datasets import load_breast_cancer, load_digits, load_wine
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    loaders = {"breast-cancer": load_breast_cancer, "wine": load_wine, "digits": load_digits}
    if name in loaders:
        X, y = loaders[name](return_X_y=True)
        return X, y, HistGradientBoostingClassifier(max_iter=50, random_state=0)
    import pandas as pd

    frame = pd.read_csv(name)
    frame = frame[frame["rating"].abs() > 0.5]
    X = frame["text"].astype(str).to_numpy()
    return X, (frame["rating"] > 0).to_numpy().astype(np.int64), make_pipeline(TfidfVectorizer(), LogisticRegression())


def run_rows(name: str, seed: int) -> dict[str, Any]:
    """The AUC of both rankings of the same probabilities, with 20 % of the labels flipped."""
    from cleanlab.rank import get_label_quality_scores
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    random = np.random.default_rng(seed)
    X, true, learner = rows_of(name)
    if len(true) > 3000:
        part = random.permutation(len(true))[:3000]
        X, true = X[part], true[part]
    y, wrong, classes = true.copy(), np.zeros(len(true), dtype=bool), int(true.max()) + 1
    wrong[random.permutation(len(true))[: round(0.2 * len(true))]] = True
    y[wrong] = (true[wrong] + random.integers(1, classes, int(wrong.sum()))) % classes
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    p = cross_val_predict(learner, X, y, cv=folds, method="predict_proba")
    result = find_label_errors(y, p)
    mask = torch.from_numpy(wrong)
    ours, theirs = (
        auroc(torch.from_numpy(result.scores), mask),
        auroc(1 - torch.tensor(get_label_quality_scores(y, p)), mask),
    )
    return {"auc": ours, "cleanlab": theirs, "noise": result.noise._asdict()}


def report(records: list[dict[str, Any]]) -> None:
    """Means over seeds, and paired differences."""
    for kind, noise in SETTINGS:
        arms = {
            arm: {r["seed"]: r for r in records if (r["data"], r["noise_of"], r["arm"]) == (kind, noise, arm)}
            for arm in ARMS
        }
        report_glyphs(kind, noise, {arm: of for arm, of in arms.items() if of})
    for name in sorted({r["data"] for r in records if r["arm"] == "rows"}):
        rows = [r for r in records if r["data"] == name and r["arm"] == "rows"]
        ours, theirs = (statistics.fmean(r[key] for r in rows) for key in ("auc", "cleanlab"))
        error = max(abs(r["noise"]["rate"] - 0.2) for r in rows)
        print(
            f"{name}, {len(rows)} seeds: AUC {ours:.4f}, cleanlab {theirs:.4f}; largest error of the rate {error:.3f}"
        )


def report_glyphs(kind: str, noise: float, arms: dict[str, dict[int, dict[str, Any]]]) -> None:
    """The lines of one kind of noise."""
    seeds = sorted(set.intersection(*(set(of) for of in arms.values()))) if arms else []
    if not seeds:
        return
    print(f"glyphs, {100 * noise:.0f} % flipped ({kind}), {len(seeds)} seeds")
    for arm, of in arms.items():
        rows = [of[s] for s in seeds]
        parts = [f"recall at precision .95 {statistics.fmean(r['recall'] for r in rows):.3f}"]
        parts += [f"flagged: {name} {statistics.fmean(r['flagged'][name] for r in rows):.3f}" for name in FLAGGED]
        rates = [r["noise"]["rate"] for r in rows]
        farthest = max(rates, key=lambda x: abs(x - noise))
        parts.append(f"noise rate {statistics.fmean(rates):.3f}, farthest {farthest:.3f}")
        if "low" in rows[0]["noise"]:
            held = sum(r["noise"]["low"] <= noise <= r["noise"]["high"] for r in rows)
            parts.append(f"{held} of {len(rows)} intervals hold it")
        if "cleaned" in rows[0]:
            parts.append(f"accuracy after cleaning {statistics.fmean(r['cleaned'] for r in rows):.4f}")
        print(f"  {arm}: {'; '.join(parts)}")
    for name in ("recall", "cleaned") if len(arms) == 2 and len(seeds) > 1 else ():
        if name in arms["cleanlab"][seeds[0]]:
            mean_, half = interval([arms["selfdistill"][s][name] - arms["cleanlab"][s][name] for s in seeds])
            print(f"  {name}, difference: {mean_:+.4f} [{mean_ - half:+.4f}, {mean_ + half:+.4f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["glyphs", "tables", "texts", "report"])
    parser.add_argument("files", nargs="*", help="files of texts")
    parser.add_argument("--seeds", type=int, default=10, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--model", default="cnn(width=16)", help="the network of both sides")
    parser.add_argument("--method", default="elr(weight=1.0)", help="the recipe of this package's side")
    parser.add_argument("--skip", default="aenigma", help="leave out fonts with this in their path (ornaments)")
    parser.add_argument("--augment", default="weak", choices=["none", "weak"])
    parser.add_argument("--settings", type=int, nargs="*", default=range(len(SETTINGS)), help="places in SETTINGS")
    parser.add_argument("--arms", nargs="*", default=ARMS, choices=ARMS, help="sides of the comparison")
    parser.add_argument("--out", type=Path, default=Path("runs/label_errors.jsonl"), help="results")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    options = {
        "steps": given.steps, "model": given.model, "augment": given.augment, "skip": given.skip,
        "selfdistill": given.method, "cleanlab": "plain()",
    }  # fmt: skip
    lines, folder = Lines(given.out, options), given.out.with_suffix("")
    done = {(r["data"], r["noise_of"], r["seed"], r["arm"]) for r in lines.records}
    fonts = draw_fonts(given.skip) if given.what == "glyphs" else None
    names = {"tables": TABLES, "texts": given.files}.get(given.what, ())
    for seed in range(given.first, given.first + given.seeds):
        for kind, noise in (SETTINGS[i] for i in given.settings) if fonts is not None else ():
            for arm in given.arms:
                if (kind, noise, seed, arm) not in done and fonts is not None:
                    facts = {"data": kind, "noise_of": noise, "seed": seed, "arm": arm}
                    lines.add({**facts, **run_glyphs(fonts, seed, kind, noise, arm, options, folder)})
        for name in names:
            facts = {"data": Path(name).name, "noise_of": 0.2, "seed": seed, "arm": "rows"}
            if tuple(facts.values()) not in done:
                lines.add({**facts, **run_rows(name, seed)})
    report([r for r in lines.records if given.first <= r["seed"] < given.first + given.seeds])


if __name__ == "__main__":
    main()
