"""The line of each step: against a plain computation, and the same after a cut; prompts of similar length in a step."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from selfdistill.core.step import TrainingClock
from selfdistill.data import sampler
from selfdistill.data.sampler import Order
from selfdistill.io.record_stream import heard_by
from selfdistill.language.contexts import completed, rendered
from selfdistill.language.recipes import sdft, sft, ssd
from selfdistill.language.trainer import fit
from tests.language.tiny import doubled, gradients, prompts, spoken, student

DATA = prompts(30)


class PowerError(Exception):
    """The power fails."""


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def test_a_step_is_what_a_plain_computation_says(tmp_path: Path) -> None:
    rows = [DATA.rows[i] for i in DATA.labelled.tolist()]
    heard = list[tuple[str, Any]]()
    size: Any = {"batch_size": len(rows), "steps": 3, "max_tokens": 4}
    with heard_by(lambda path, entry: heard.append((path.name, json.loads(json.dumps(entry))))):
        whole = fit(student, DATA, sft(), out=tmp_path, device="cpu", lr=1e-2, **size)
    found = lines(tmp_path)
    assert [entry for name, entry in heard if name == "steps.jsonl"] == found
    assert [entry for name, entry in heard if name == "metrics.jsonl"] == whole.history
    model = student()
    lm, words = doubled(model), model.tokenizer
    pairs = [(rendered(words, row.messages), completed(words, row.demonstration or "")) for row in rows]
    log_p = spoken(lm, pairs, model.vocabulary)
    nll = [-p[range(len(ids)), ids] for p, (_, ids) in zip(log_p, pairs, strict=True)]
    loss = torch.cat(nll).mean()
    norm = torch.stack([g.norm() for g in gradients(loss, lm).values()]).norm()
    assert found[0]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert found[0]["terms"] == {"label": pytest.approx(float(loss), rel=1e-5)}
    assert found[0]["gradient_norm"] == pytest.approx(float(norm), rel=1e-4)
    assert found[0]["tokens"] == sum(len(ids) for _, ids in pairs)
    assert found[0]["read"] == sum(len(prompt) + len(ids) for prompt, ids in pairs)
    assert [line["lr"] for line in found] == pytest.approx(
        [1e-2 * (1 + math.cos(math.pi * k / 3)) / 2 for k in range(3)]
    )
    assert [line["step"] for line in found] == [1, 2, 3]
    assert [line["seconds"] for line in found] == sorted(line["seconds"] for line in found)
    assert [entry["loss"] for entry in whole.history] == pytest.approx([line["loss"] for line in found])
    assert whole.history[-1]["read"] == sum(line["read"] for line in found)


@pytest.mark.parametrize("method", [sdft(rate=0.3, max_tokens=5), ssd(max_tokens=5)], ids=["sdft", "ssd"])
@pytest.mark.parametrize("group_lengths", [False, True])
def test_a_run_that_was_cut_has_the_lines_of_one_that_was_not(method: Any, group_lengths: bool, tmp_path: Path) -> None:
    def run(out: Path, **more: Any) -> Any:
        method_twice = replace(method, generations=2) if method.source.once else method
        return fit(
            lambda: student(4), DATA, method_twice, out=out, device="cpu", batch_size=6, epochs=1, lr=1e-2,
            max_tokens=5, group_lengths=group_lengths, **more,
        )  # fmt: skip

    whole = run(tmp_path / "whole")

    def cut(clock: Any, figures: dict[str, float]) -> None:
        if clock.step == 3:  # the end of the epoch
            raise PowerError

    with pytest.raises(PowerError):
        run(tmp_path / "cut", save_steps=3, progress=cut)
    assert len(lines(tmp_path / "cut")) == 4  # one more than the checkpoint has
    again = run(tmp_path / "cut", resume=True)
    mine, theirs = lines(tmp_path / "cut"), lines(tmp_path / "whole")
    assert len(theirs) == whole.steps
    assert [{**line, "seconds": 0} for line in mine] == [{**line, "seconds": 0} for line in theirs]
    assert again.history == whole.history
    if not method.source.once:  # each token that was written is learnt once
        assert whole.history[-1]["written"] == sum(line["tokens"] for line in theirs)


def test_lines_that_are_gone_are_told(tmp_path: Path) -> None:
    def run(**more: Any) -> Any:
        return fit(student, DATA, sft(), out=tmp_path, device="cpu", batch_size=5, steps=5, max_tokens=4, **more)

    def cut(clock: Any, figures: dict[str, float]) -> None:
        if clock.step == 3:
            raise PowerError

    with pytest.raises(PowerError):
        run(save_steps=2, progress=cut)
    content = (tmp_path / "steps.jsonl").read_bytes().split(b"\n")
    (tmp_path / "steps.jsonl").write_bytes(b"\n".join([content[0], b"{", *content[2:]]))
    warned = list[str]()
    run(resume=True, warn=warned.append)
    assert any("steps.jsonl has 1 of 2 steps; it was cut or changed, and goes on from here" in line for line in warned)
    assert [line["step"] for line in lines(tmp_path)] == [1, 3, 4, 5]


@pytest.mark.parametrize(("rows", "batch"), [(200, 8), (37, 5), (5, 8)])
def test_rows_of_similar_length_share_a_step_and_all_come_once_an_epoch(
    rows: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "GROUPED", 4)
    lengths = torch.randint(1, 100, (rows,), generator=torch.Generator().manual_seed(0))

    def epoch(order: Order, number: int) -> list[list[int]]:
        steps = order.steps_per_epoch
        clocks = [TrainingClock(0, 1, number, 9, number * steps + step, steps) for step in range(steps)]
        return [order.sample(clock).tolist() for clock in clocks]

    def padding(steps: list[list[int]]) -> float:
        return sum(len(ids) * float(lengths[ids].max()) for ids in steps) / float(lengths.sum()) - 1

    plain, grouped = Order(rows, batch, 3, 0), Order(rows, batch, 3, 0, lengths)
    for number in (0, 1):
        steps = epoch(grouped, number)
        assert sorted(row for step in steps for row in step) == list(range(rows))
        assert sorted(map(len, steps)) == sorted(map(len, epoch(plain, number)))
    assert epoch(grouped, 0) == epoch(Order(rows, batch, 3, 0, lengths), 0)
    if rows > batch:
        assert epoch(grouped, 0) != epoch(grouped, 1)
        assert padding(epoch(grouped, 0)) < 0.6 * padding(epoch(plain, 0))
