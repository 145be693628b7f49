"""Freeze what small runs of the command line give, and check later that they give it still.

python tools/golden.py record tests/golden.json
python tools/golden.py check tests/golden.json [--tolerance 1e-6] [--only elr dino]

Everything goes through ``python -m selfdistill`` in processes of its own and through the files of a run folder, so that
the modules may move and the classes may get other names. The code that knows a module's name is in `_TOY` and `_REPRS`.
What `explain` says lies beside the file, under its name with ``-explain`` added. Bits are the same only on the same
kind of processor and the same version of torch; numbers are to agree within the tolerance everywhere else.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Record = dict[str, Any]

ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}  # this checkout is what is run
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0", "CUDA_VISIBLE_DEVICES": ""}
UNSTEADY = {"seconds", "run", "versions", "path"}  # keys whose values differ from run to run
TEXTS = ("explain", "recipes")  # what is recorded of the recipes without training
RESUMED = "resumed"
SHOWN = 8  # lines of each list that `check` prints


@dataclass(frozen=True)
class Golden:
    """One run: its data, its options, and whether its predictions are recorded too."""

    data: str
    options: tuple[str, ...]
    predicts: bool = False


def _digits(method: str, *more: str, steps: int = 40, model: str = "mlp", predicts: bool = False) -> Golden:
    """A short run on the small images."""
    return Golden("digits", ("--method", method, "--model", model, "--steps", str(steps), *more), predicts)


def _toy(method: str, *more: str, predicts: bool = False) -> Golden:
    """A short run of the toy language model."""
    usual = ("--model", "toy", "--steps", "5", "--batch-size", "4", "--lr", "1e-3", "--max-tokens", "8")
    return Golden("pick.jsonl", ("--method", method, *usual, *more), predicts)


_FEW, _NOISE, _ALONE = ("--labels", "100"), ("--label-noise", "0.4"), ("--no-control",)
_KEEP = ("--keep", "prior.jsonl")

RUNS = {
    "elr": _digits("elr()", *_NOISE, steps=300, predicts=True),
    "born_again": _digits("born_again(generations=2)", *_NOISE),
    "fixmatch": _digits("fixmatch()", *_FEW, *_ALONE),
    "self_training": _digits("self_training(generations=3)", *_FEW, *_ALONE),
    "dino": _digits("dino()", *_ALONE, steps=20),
    "ibot": _digits("ibot(prototypes=64)", *_ALONE, "--batch-size", "16", steps=6, model="vit"),
    "mixskd": _digits("mixskd()", *_ALONE, steps=15, model="cnn(width=8)", predicts=True),
    "mutual": _digits("mutual()", *_ALONE, *_NOISE),
    "gaussian": Golden("diabetes", ("--method", "gaussian_born_again()", "--model", "mlp", "--steps", "40"), True),
    "learner": Golden("wine", ("--method", "self_distilled()", "--model", "boosting(iterations=20)"), True),
    "sdft": _toy("sdft(turns=True, skip=0)", *_KEEP, predicts=True),
    "sft": _toy("sft()", *_ALONE),
    "grpo": _toy("grpo(samples=4)", *_ALONE),
    "sdpo": _toy("sdpo(samples=4)", *_ALONE),
    "gkd": _toy("gkd()", *_ALONE, "--lora", "4"),
}

# ---- what knows the modules of the package -----------------------------------------------------------

_TOY = """
from pathlib import Path
from selfdistill.testing import toys
toys.save(*toys.train_tiny((toys.ECHO, toys.PICK), steps=300, seed=3, hidden=32), Path("toy"))
toys.write(toys.prompts(toys.PICK, 60), Path("pick.jsonl"))
toys.write(toys.suite((toys.ECHO,), rows=12), Path("prior.jsonl"))
"""

_REPRS = """
import json, sys
import selfdistill.methods as networks
from selfdistill.language import recipes as language
from selfdistill.estimators import recipes as learners
places = {"networks": networks, "language models": language, "learners": learners}
made = [(c["name"], places.get(c["for"])) for c in json.load(sys.stdin)]  # policies need packages of their own
print(json.dumps({name: repr(getattr(place, name)()) for name, place in made if hasattr(place, name)}))
"""

_EXPLAIN = """
import contextlib, io, json, runpy, sys
found = {}
for name in json.load(sys.stdin):
    sys.argv, said = ["selfdistill", "explain", name + "()", "--json"], io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        runpy.run_module("selfdistill", run_name="__main__")
    found[name] = json.loads(said.getvalue())
print(json.dumps(found))
"""


# ---- processes ---------------------------------------------------------------------------------------


def _python(folder: Path, *arguments: str, given: str = "") -> str:
    """What a Python process in this folder prints; its complaint is raised."""
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, env=os.environ | ENVIRONMENT, input=given, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ended.returncode:
        raise RuntimeError(f"{' '.join(arguments)[:200]} ended with {ended.returncode}:\n{ended.stderr[-2000:]}")
    return ended.stdout


def _command(folder: Path, *arguments: str) -> str:
    """What a command of selfdistill prints."""
    return _python(folder, "-m", "selfdistill", *arguments)


def _request(golden: Golden, out: str) -> list[str]:
    """The arguments of a run into this folder."""
    return ["run", golden.data, *golden.options, "--device", "cpu", "--quiet", "--out", out]


def _killed(folder: Path, golden: Golden, out: str, checkpoints: int = 6) -> None:
    """Begin a run that saves often, and kill it after that many checkpoints."""
    command = [sys.executable, "-m", "selfdistill", *_request(golden, out), "--save-steps", "5"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=folder, env=os.environ | ENVIRONMENT, **quiet)  # type: ignore[call-overload]
    seen: set[str] = set()
    while process.poll() is None and len(seen) < checkpoints:
        seen |= {path.name for path in folder.glob(f"{out}/checkpoints/ckpt-*")}
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    if len(seen) < checkpoints or json.loads((folder / out / "run.json").read_text()).get("result") is not None:
        raise RuntimeError("the run that was to be killed had ended before")


# ---- what is recorded --------------------------------------------------------------------------------


def _sha(*parts: bytes) -> str:
    """A digest of these bytes, one after the other."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def _bytes(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor of any type."""
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()) if tensor.numel() else b""


def _tensors(path: Path) -> Record:
    """The digest of names and bytes of a file, and of each tensor its digest, type, shape, sum and norm."""
    tensors = dict(sorted(load_file(path).items()))
    each = {}
    for name, tensor in tensors.items():
        wide = tensor.double()
        kind = f"{str(tensor.dtype).removeprefix('torch.')} {'x'.join(map(str, tensor.shape))}"
        each[name] = [_sha(_bytes(tensor))[:12], kind, round(wide.sum().item(), 9), round(wide.norm().item(), 9)]
    parts = [part for name, tensor in tensors.items() for part in (name.encode(), _bytes(tensor))]
    return {"sha256": _sha(*parts), "tensors": each}


def _steady(value: Any) -> Any:
    """A JSON value without what differs from run to run."""
    if isinstance(value, dict):
        return {key: _steady(held) for key, held in sorted(value.items()) if key not in UNSTEADY}
    return [_steady(held) for held in value] if isinstance(value, list) else value


def _checkpoint(run: Path) -> Record:
    """The names of the last checkpoint's tensors, file by file, and one digest of their bytes, whatever the names."""
    names, digests = [], []
    for path in sorted(max(run.glob("checkpoints/ckpt-*")).glob("*.safetensors")):
        tensors = load_file(path)
        names += [f"{path.stem}:{name}" for name in tensors]
        digests += [_sha(_bytes(tensor)) for name, tensor in tensors.items() if not name.endswith("_extra_state")]
    return {"names": sorted(names), "bytes": _sha(*(digest.encode() for digest in sorted(digests)))}


def _number(text: Any) -> float | None:
    """A number, if this is one."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _predictions(said: str) -> Record:
    """The digest of a table of predictions or of JSON lines, their first rows, and a summary of each column."""
    lines = said.splitlines()
    rows: list[Record] = (
        [json.loads(line) for line in lines] if said.startswith("{") else list(csv.DictReader(io.StringIO(said)))
    )
    found: Record = {"sha256": _sha(said.encode()), "rows": len(rows), "first": lines[:4], "sums": {}, "counts": {}}
    for column in rows[0]:
        numbers = [_number(row.get(column)) for row in rows]
        if column == "completion" or (column == "prediction" and None in numbers):
            found["counts"][column] = dict(sorted(Counter(str(row[column]) for row in rows).items()))
        elif None not in numbers:
            found["sums"][column] = round(sum(number for number in numbers if number is not None), 6)
    return found


def _recorded(folder: Path, out: str, golden: Golden) -> Record:
    """All that is recorded of a run that has ended."""
    run = folder / out
    found: Record = {"result": _steady(json.loads((run / "run.json").read_text())["result"])}
    if (run / "metrics.jsonl").exists():
        found["metrics"] = [_steady(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
        weights = [*run.glob("model/*.safetensors"), *run.glob("generations/*.safetensors")]
        found["weights"] = {str(path.relative_to(run).with_suffix("")): _tensors(path) for path in sorted(weights)}
        found["checkpoint"] = _checkpoint(run)
    if golden.predicts:
        found["predictions"] = _predictions(_command(folder, "predict", out, golden.data))
    return found


def _run(folder: Path, name: str) -> Record:
    """Train one of the runs, and record it."""
    _command(folder, *_request(RUNS[name], name))
    return _recorded(folder, name, RUNS[name])


def _resumed(folder: Path, name: str = "elr") -> Record:
    """Kill a run in the middle, resume it, and compare its end with that of the run in one piece."""
    if not (folder / name / "run.json").exists():
        _command(folder, *_request(RUNS[name], name))
    _killed(folder, RUNS[name], RESUMED)
    _command(folder, "resume", RESUMED, "--quiet")
    whole, cut = (_recorded(folder, out, Golden("", ())) for out in (name, RESUMED))
    same = {part: whole[part] == cut[part] for part in ("result", "metrics", "weights")}
    return {"same as in one piece": same}


def _texts(folder: Path) -> tuple[Record, Record]:
    """The recipes with their default arguments as Python writes them, and what `explain` says of them."""
    cards = _command(folder, "methods", "--json")
    names = json.dumps([card["name"] for card in json.loads(cards)])
    reprs = json.loads(_python(folder, "-c", _REPRS, given=cards))
    return reprs, json.loads(_python(folder, "-c", _EXPLAIN, given=names))


def _all(only: Sequence[str], jobs: int) -> Iterator[tuple[str, Record]]:
    """Record what is asked for, one after the other, by that many processes at a time."""
    wanted = [name for name in (*RUNS, RESUMED, *TEXTS) if not only or name in only]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if any(name in RUNS and RUNS[name].data == "pick.jsonl" for name in wanted):
            _python(folder, "-c", _TOY)
            yield "toy", {"weights": {"model": _tensors(folder / "toy" / "model.safetensors")}}
        trained = [name for name in wanted if name in RUNS]
        with ThreadPoolExecutor(jobs) as pool:
            yield from zip(trained, pool.map(lambda name: _run(folder, name), trained), strict=True)
        if RESUMED in wanted:
            yield RESUMED, _resumed(folder)
        if set(wanted) & set(TEXTS):
            reprs, explained = _texts(folder)
            yield "recipes", reprs
            yield "explain", explained


# ---- comparing ---------------------------------------------------------------------------------------


@dataclass
class Verdict:
    """What differs between a record and what is now."""

    same_bits: bool = True
    largest: float = 0.0
    numbers: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    words: dict[str, list[str]] = field(default_factory=dict)  # what changed -> where

    def number(self, place: str, before: float, now: float, tolerance: float, scale: float = 1.0) -> None:
        """Note two numbers that are to agree within the tolerance, relative to the largest of them and the scale."""
        same = before == now or (math.isnan(before) and math.isnan(now))
        off = 0.0 if same else abs(before - now) / max(scale, abs(before), abs(now))
        self.same_bits &= off == 0
        self.largest = max(self.largest, off)
        if not off <= tolerance:
            self.numbers.append(f"{place}: {before!r} -> {now!r}")

    def text(self, place: str, before: object, now: object) -> None:
        """Note two texts."""
        if before != now:
            self.same_bits = False
            for change in _changes(str(before), str(now)):
                self.words.setdefault(change, []).append(place)

    def moved(self, place: str, gone: Sequence[str], come: Sequence[str]) -> None:
        """Note names that are no longer there, and those that are there instead."""
        if gone or come:
            self.same_bits = False
            self.names.append(f"{place}: {_short(', '.join(gone))} -> {_short(', '.join(come))}")


def _short(value: object, most: int = 160) -> str:
    """A text in one line of bounded length."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def _changes(before: str, now: str) -> list[str]:
    """Which words became which; of texts of another length, how they go on where they part."""
    old, new = (re.findall(r"\d+\.?\d*(?:e-?\d+)?|\w+|\W", text) for text in (before, now))
    if len(old) == len(new):
        return sorted({f"{a} -> {b}" for a, b in zip(old, new, strict=True) if a != b})
    start = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    first = max(0, start - 6)
    return [f"{_short(''.join(old[first:]))} -> {_short(''.join(new[first:]))}"]


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """All values that are neither objects nor lists, each with the way to it."""
    if isinstance(value, dict | list) and value:
        for key, held in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _leaves(held, f"{place}.{key}" if place else str(key))
    else:
        yield place, value


def _is_number(value: object) -> bool:
    """Is this a number, or a truth value?"""
    return isinstance(value, int | float)


def _leaf(verdict: Verdict, place: str, before: Any, now: Any, tolerance: float) -> None:
    """Compare two values that are neither objects nor lists."""
    if _is_number(before) and _is_number(now):
        verdict.number(place, before, now, tolerance)
    elif _is_number(before) or _is_number(now) or before is None or now is None:
        if before != now:
            verdict.numbers.append(f"{place}: {_short(before)} -> {_short(now)}")
    else:
        verdict.text(place, before, now)


def _json(verdict: Verdict, place: str, before: Any, now: Any, tolerance: float) -> None:
    """Compare two JSON values leaf by leaf; a value that another name has now is a renamed key, a lost one differs."""
    old, new = dict(_leaves(before, place)), dict(_leaves(now, place))
    for key in [key for key in old if key in new]:
        _leaf(verdict, key, old[key], new[key], tolerance)
    gone, come = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
    for key in gone:
        equal = [other for other in come if _alike(old[key], new[other], tolerance)]
        match = max(equal, key=lambda other: len(set(other.split(".")) & set(key.split("."))), default=None)
        if match is None:
            verdict.numbers.append(f"{key}: {_short(old[key])} is gone")
        else:
            come.remove(match)
            verdict.moved("key", [key], [match])
    if come:
        verdict.moved("new keys", [], come)


def _alike(before: object, now: object, tolerance: float) -> bool:
    """May the second be the first under another name?"""
    found = Verdict()
    _leaf(found, "", before, now, tolerance)
    return not found.numbers and not found.words


def _pairs(old: Record, new: Record, tolerance: float) -> Iterator[tuple[str, str | None]]:
    """The tensors of a file, each with the name that it has now: the same, or that of an equal one."""
    left = sorted(new.keys() - old.keys())
    for name, held in old.items():
        if name in new:
            yield name, name
            continue
        equal = [key for key in left if new[key][0] == held[0]]
        close = [key for key in left if new[key][1] == held[1] and _alike(held[3], new[key][3], tolerance)]
        match = next(iter(equal + close), None)
        if match is not None:
            left.remove(match)
        yield name, match


def _weights(verdict: Verdict, before: Record, now: Record, tolerance: float) -> None:
    """Compare files of weights."""
    if before.keys() != now.keys():
        verdict.numbers.append(f"files of weights: {sorted(before)} -> {sorted(now)}")
    for path in sorted(before.keys() & now.keys()):
        old, new = before[path]["tensors"], now[path]["tensors"]
        verdict.same_bits &= before[path]["sha256"] == now[path]["sha256"]
        for name, other in _pairs(old, new, tolerance):
            if other is None:
                verdict.numbers.append(f"{path} {name}: gone")
                continue
            if old[name][1] != new[other][1]:
                verdict.numbers.append(f"{path} {name}: {old[name][1]} -> {new[other][1]}")
            scale = max(1.0, old[name][3])
            verdict.number(f"{path} {name}, sum", old[name][2], new[other][2], tolerance, scale)
            verdict.number(f"{path} {name}, norm", old[name][3], new[other][3], tolerance)
        verdict.moved(path, sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys()))


def _checkpoints(verdict: Verdict, before: Record, now: Record, tolerance: float) -> None:
    """Compare the names of the last checkpoints' tensors, and note other bytes."""
    gone, come = (sorted(set(a["names"]) - set(b["names"])) for a, b in ((before, now), (now, before)))
    verdict.moved("checkpoint", gone, come)
    verdict.text("bytes of the checkpoint", before["bytes"][:12], now["bytes"][:12])


def _predicted(verdict: Verdict, before: Record, now: Record, tolerance: float) -> None:
    """Compare the sums and counts of predictions; their digests speak of bits alone."""
    verdict.same_bits &= before["sha256"] == now["sha256"]
    old, new = ({key: found[key] for key in ("rows", "sums", "counts")} for found in (before, now))
    _json(verdict, "predictions", old, new, tolerance)


PARTS = {"weights": _weights, "checkpoint": _checkpoints, "predictions": _predicted}


def compared(before: Record, now: Record, tolerance: float) -> Verdict:
    """Compare a record with what is now."""
    verdict = Verdict()
    for part in sorted(before.keys() | now.keys()):
        if part not in before:
            verdict.moved("new", [], [part])
        elif part not in now:
            verdict.numbers.append(f"{part} is gone")
        elif part in PARTS:
            PARTS[part](verdict, before[part], now[part], tolerance)
        else:
            _json(verdict, part, before[part], now[part], tolerance)
    return verdict


# ---- the door ----------------------------------------------------------------------------------------


def _say(name: str, verdict: Verdict, tolerance: float) -> None:
    """Print the verdict on one record."""
    if verdict.numbers:
        said = f"DIFFERS in {len(verdict.numbers)} numbers"
    elif verdict.same_bits:
        said = "equal bit for bit"
    else:
        said = f"numbers equal to {tolerance:g} (largest difference {verdict.largest:.2g}), not every bit or name"
    print(f"{name:16}{said}", flush=True)
    renamed = list(dict.fromkeys(re.sub(r"\.\d+\.", ".*.", line) for line in verdict.names))
    told = sorted(verdict.words.items(), key=lambda item: not item[0][:1].isdigit())  # changed figures first
    words = [f"{change}  in {_short(', '.join(places), 60)}" for change, places in told]
    for title, lines in (("numbers", verdict.numbers), ("renamed", renamed), ("text", words)):
        for line in lines[:SHOWN]:
            print(f"    {title}: {line}")
        if len(lines) > SHOWN:
            print(f"    {title}: and {len(lines) - SHOWN} more")


def _beside(path: Path) -> Path:
    """Where the texts of `explain` lie."""
    return path.with_name(f"{path.stem}-explain{path.suffix}")


def _write(path: Path, records: Record) -> None:
    """Write records as JSON, a line for each."""
    lines = [f"{json.dumps(name)}: {json.dumps(held, sort_keys=True)}" for name, held in sorted(records.items())]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def record(path: Path, only: Sequence[str], jobs: int) -> int:
    """Write what the runs give now; with names, the other records of the file stay."""
    records: Record = json.loads(path.read_text()) if only and path.exists() else {}
    began = time.monotonic()
    for name, found in _all(only, jobs):
        print(f"{name:16}recorded, {time.monotonic() - began:.0f} s", flush=True)
        if name == "explain":
            _write(_beside(path), found)
        else:
            records[name] = found
    _write(path, records)
    return 0


def check(path: Path, only: Sequence[str], jobs: int, tolerance: float) -> int:
    """Compare what the runs give now with the file; 1 if numbers differ."""
    records: Record = {**json.loads(path.read_text()), "explain": json.loads(_beside(path).read_text())}
    wrong = []
    for name, found in _all(only, jobs):
        if name not in records:
            print(f"{name:16}is not in {path}")
            continue
        verdict = compared(records[name], found, tolerance)
        _say(name, verdict, tolerance)
        wrong += [name] if verdict.numbers else []
    print(f"differ: {', '.join(wrong)}" if wrong else "no number differs")
    return 1 if wrong else 0


def main() -> int:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["record", "check"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-6, help="relative difference that passes")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", choices=[*RUNS, RESUMED, *TEXTS])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    given = parser.parse_args()
    act: Callable[[], int] = (
        (lambda: record(given.file, given.only, given.jobs))
        if given.action == "record"
        else (lambda: check(given.file, given.only, given.jobs, given.tolerance))
    )
    return act()


if __name__ == "__main__":
    raise SystemExit(main())
