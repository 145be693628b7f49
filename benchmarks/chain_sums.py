"""SmolLM2-135M and sums of two or three digits (reasoning-gym): self-distillation beside SFT, rejection sampling, GRPO.

    python -m benchmarks.chain_sums --out runs/chain-sums

A comparison over paired seeds in which all trainings but the short `sft()` have the same number of tokens: those
written by sampling plus those that the student reads in training, prompts included. A row of reasoning-gym has an
answer and no solution, so the demonstration, which `sft()` learns and the teacher of `sdft()` reads, is "The answer is
N.". A completion is right if its last number is the answer. Cut off, the same command goes on; ``--table`` prints the
seeds that are complete so far. ``--tuning`` makes all of it of other questions, on which the settings were chosen.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from selfdistill.data.reasoning import make_examples
from selfdistill.evaluation.statistics import interval
from selfdistill.experiments.compare.runner import compare
from selfdistill.io.run_record import Request

TASK = "reasoning-gym:chain_sum(seed={}, size={}, min_terms=2, max_terms=3, min_digits=1, max_digits=1)"
#: Seeds of reasoning-gym, far apart because row i of seed s is row 0 of seed s + i; and rows, by split. The validation
#: rows choose nothing here, and `compare` wants some.
SEEDS = {"test": 10_000, "train": 20_000, "validation": 30_000}
TUNING = {"test": 100, "train": 2_000, "validation": 4_000}
ROWS = {"test": 100, "train": 64, "validation": 8}
SAMPLES, WRITTEN, BATCH, RANK, RATE = 4, 16, 4, 16, 1e-3
SFT, RFT = "sft()", f"rft(samples={SAMPLES}, max_tokens={WRITTEN})"
GRPO, SDFT = f"grpo(samples={SAMPLES}, max_tokens={WRITTEN})", f"sdft(turns=True, skip=0, max_tokens={WRITTEN})"
METHODS, LONGER, BEFORE = (SDFT, RFT, GRPO), "sft(), longer", "before"
STEPS = 6  # of the dearest method, which the others match


def questions(seeds: dict[str, int]) -> list[dict[str, str]]:
    """Rows of prompts; no question is twice among them.

    >>> rows = questions({"test": 100, "train": 101})
    >>> rows[0]["demonstration"], len({row["prompt"] for row in rows}) == len(rows)
    ('The answer is 5.', True)
    """
    seen, rows = set[str](), list[dict[str, str]]()
    for split, seed in seeds.items():
        made = (example for example in make_examples(TASK.format(seed, 4 * ROWS[split])) if example.prompt not in seen)
        for example in _first(made, ROWS[split], seen):
            answer = str(example.answer)
            rows.append(
                {"prompt": example.prompt, "demonstration": f"The answer is {answer}.", "answer": answer,
                 "checker": "numeric", "split": split}
            )  # fmt: skip
    return rows


def _first(examples: Iterator[Any], number: int, seen: set[str]) -> Iterator[Any]:
    for _, example in zip(range(number), examples, strict=False):
        seen.add(example.prompt)
        yield example


def request(data: Path, seed: int, model: str = "smollm2", dtype: str = "bfloat16") -> Request:
    """The settings that all trainings share."""
    return Request(
        data=str(data), model=model, dtype=dtype, lora=RANK, max_tokens=WRITTEN, batch_size=BATCH, steps=STEPS,
        seed=seed, training=(("lr", RATE), ("clip", 1.0), ("audit", "off"), ("vitals", False)),
    )  # fmt: skip


def cells(folder: Path) -> dict[str, dict[int, dict[str, Any]]]:
    """The finished trainings of a comparison, by method and seed, with as many steps as its plan has."""
    plan = json.loads((folder / "plan.json").read_text())
    steps = {job["name"]: job["steps"] for job in plan["jobs"] or []}
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(folder.glob("cells/*/*/cell.json")):
        record = json.loads(path.read_text())
        if steps.get(record["job"]["name"]) == record["job"]["steps"]:
            found.setdefault(record["job"]["name"], {})[record["job"]["seed"]] = record["rows"][record["job"]["name"]]
    return {name: found[name] for name in steps if name in found}


def _difference(ours: dict[int, dict[str, Any]], theirs: dict[int, dict[str, Any]], seeds: Sequence[int]) -> str:
    if ours is theirs:
        return ""
    gains = [100 * (ours[seed]["metrics"]["accuracy"] - theirs[seed]["metrics"]["accuracy"]) for seed in seeds]
    mean, half = interval(gains)
    return f"{round(mean, 1) + 0.0:+.1f} ± {half:.1f}"


def table(rows: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Tokens, accuracy, and paired differences over the seeds that every row has, with intervals of 95 %."""
    seeds = sorted(set.intersection(*(set(each) for each in rows.values())))
    against = [name for name in (BEFORE, LONGER, RFT, GRPO) if name in rows]
    lines = [
        f"| {len(seeds)} seeds ({', '.join(map(str, seeds))}) | steps | tokens written | trained on | right | "
        + " | ".join(f"against `{name}`" for name in against) + " |",
        "|---" * (5 + len(against)) + "|",
    ]  # fmt: skip
    for name, each in rows.items():
        written = statistics.fmean(each[s]["tokens"]["once"] + each[s]["tokens"]["written"] for s in seeds)
        read = statistics.fmean(each[s]["tokens"]["read"] for s in seeds)
        right = 100 * statistics.fmean(each[s]["metrics"]["accuracy"] for s in seeds)
        pairs = " | ".join(_difference(each, rows[other], seeds) for other in against)
        lines.append(
            f"| `{name}` | {each[seeds[0]]['steps']} | {written:,.0f} | {read:,.0f} | {right:.1f} % | {pairs} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/chain-sums"), help="folder of prompts and trainings")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 1 on; from 100 on with --tuning")
    parser.add_argument("--tuning", action="store_true", help="other questions and seeds, to choose settings by")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    data, folder = given.out / "sums.jsonl", given.out / "comparison"
    rows = questions(TUNING if given.tuning else SEEDS)
    if not given.table:
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        asked = request(data, 100 if given.tuning else 1)
        result = compare(asked, METHODS, seeds=given.seeds, match="tokens", out=folder, tell=print)
        print("\n".join(result["verdict"]))
    print(table(cells(folder)))


if __name__ == "__main__":
    main()
