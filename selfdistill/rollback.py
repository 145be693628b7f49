"""Audits within a generation, for teachers that move all the time: every few epochs, what got worse is rolled back.

A moving average, a memory or a peer has no generation after which to look. With ``audit_epochs`` the student is audited
every so many epochs against the best state of the generation so far; a state that the audit does not accept is replaced
by that one (weights, teachers, memories, optimizer moments), while clock and learning rate go on. The generation ends
in the best state that was audited.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from . import shards
from .core import Clock

if TYPE_CHECKING:
    from .trainer import Trainer


def check(trainer: Trainer, clock: Clock) -> dict[str, Any] | None:
    """Audit the epoch that ended, if it is one to audit; the decision, None where none was due.

    Under several processes all take part, and decide alike: weights and audit rows are the same everywhere.
    """
    every = trainer.settings.audit_epochs
    last = clock.step + 1 == clock.length
    if every is None or ((clock.epoch + 1) % every and not last):
        return None
    losses = trainer.audited()
    if not losses:
        return None
    if not trainer.kept:
        trainer.kept = _state(trainer, clock.epoch, losses)
        return {"accepted": True, "why": f"epoch {clock.epoch + 1}: the first state audited", "epoch": clock.epoch}
    checks = -(-clock.epochs // every)
    audit = replace(trainer.audit, planned=max(1, clock.generations * checks))
    number = clock.generation * checks + clock.epoch // every
    before = trainer.kept["epoch"] + 1
    decision = audit.decide(number, losses, trainer.kept["losses"], against=before, what="check")
    worse = math.fsum(losses) > math.fsum(trainer.kept["losses"])
    restored = not decision.accepted or (last and worse)
    if restored:
        _restore(trainer)
    elif not worse:
        trainer.kept = _state(trainer, clock.epoch, losses)
    why = f"epoch {clock.epoch + 1} against epoch {before}: {decision.why}"
    trainer.say(why)
    return {**asdict(decision), "why": why, "epoch": clock.epoch, "restored": restored}


def _state(trainer: Trainer, epoch: int, losses: list[float]) -> dict[str, Any]:
    """All that learns, copied: what a check can go back to."""
    learns = {
        "student": shards.gathered(trainer.model.state_dict()),
        "objective": shards.gathered(trainer.objective.state_dict()),
        "moments": shards.gathered(trainer.optimizer.state_dict())["state"],
    }
    return {"epoch": epoch, "losses": losses, **_copied(learns)}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    return copy.deepcopy(value)


def _restore(trainer: Trainer) -> None:
    clock = trainer.objective.clock
    kept = _copied({name: trainer.kept[name] for name in ("student", "objective", "moments")})
    shards.load_module(trainer.model, kept["student"])
    shards.load_module(trainer.objective, kept["objective"])
    trainer.objective.clock = clock  # time goes on, and so does the learning rate in the groups
    groups = shards.gathered(trainer.optimizer.state_dict())["param_groups"]
    shards.load_optimizer(trainer.optimizer, {"state": kept["moments"], "param_groups": groups})
