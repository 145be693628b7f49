"""How much do peers differ? What is equal adds nothing: in the linear theory equal peers bring no gain at all.

Audits within a generation, for teachers that move all the time: every few epochs, what got worse is rolled back.

A moving average, a memory or a peer has no generation after which to look. With ``audit_epochs`` the student is audited
every so many epochs against the best state of the generation so far; a state that the audit does not accept is replaced
by that one (weights, teachers, memories, optimizer moments), while clock and learning rate go on. The generation ends
in the best state that was audited.

Does a generation end at chance? Asked of its audit rows, once, when its training is over.

Does a generation start afresh?
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..core import distributed
from ..core.step import Clock, Passes, members
from ..errors import VitalsError
from ..evaluation.predict import answers, predict_rows
from ..models.peers import Peers
from ..teachers import Labels
from . import vitals_log

if TYPE_CHECKING:
    import torch

    from ..data.dataset import Data
    from .trainer import Trainer

MOST = 1000  # rows that are looked at


HEADS = {"classify": "peers", "regress": "peer_values"}


def pairwise(said: Tensor, task: str = "classify") -> dict[str, float]:
    """Means over rows and pairs of peers, from probabilities (rows, K, classes) or values (rows, K, 1).

    ``distance`` is the total variation of two peers' probabilities, or the absolute difference of their values;
    ``disagreement``, of classes, the share of rows to which two peers give another class.

    >>> import torch
    >>> pairwise(torch.tensor([[[1.0, 0.0], [0.25, 0.75]]]))
    {'distance': 0.75, 'disagreement': 1.0}
    """
    peers = said.shape[1]
    pairs = [(i, j) for i in range(peers) for j in range(i + 1, peers)]
    if not pairs or not len(said):
        return {}
    apart = [(said[:, i] - said[:, j]).abs().sum(-1).mean() for i, j in pairs]
    if task != "classify":
        return {"distance": float(sum(apart)) / len(pairs)}
    best = said.argmax(-1)
    other = [(best[:, i] != best[:, j]).double().mean() for i, j in pairs]
    return {"distance": float(sum(apart)) / (2 * len(pairs)), "disagreement": float(sum(other)) / len(pairs)}


def measure_diversity(model: nn.Module, data: Data, device: torch.device | str = "cpu") -> dict[str, float]:
    """`pairwise` of a group's members on rows of the audit split, or of the training rows where nothing is audited.

    Nothing for a model that is no group, or one whose members speak of a mean and a variance.
    """
    rows = (data.audit if len(data.audit) else data.labelled)[:MOST]
    said = together(model, data, rows, device)
    return {} if said is None else pairwise(said, data.task)


def together(model: nn.Module, data: Data, ids: Tensor, device: torch.device | str = "cpu") -> Tensor | None:
    """What the members of a group say of rows: probabilities (rows, K, classes) or standardised values (rows, K, 1)."""
    if not isinstance(model, Peers) or hasattr(model, "jointly"):
        return None
    said = predict_rows(model, data, ids, HEADS[data.task], device)
    return F.softmax(said, dim=-1) if data.task == "classify" else said


def check_rollback(trainer: Trainer, clock: Clock) -> dict[str, Any] | None:
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
    decision = audit.decide(number, losses, trainer.kept["losses"], against=before, what="check_rollback")
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
    """All that learns, copied: what a check_rollback can go back to."""
    learns = {
        "student": distributed.gathered(trainer.model.state_dict()),
        "objective": distributed.gathered(trainer.objective.state_dict()),
        "moments": distributed.gathered(trainer.optimizer.state_dict())["state"],
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
    distributed.load_module(trainer.model, kept["student"])
    distributed.load_module(trainer.objective, kept["objective"])
    trainer.objective.clock = clock  # time goes on, and so does the learning rate in the groups
    groups = distributed.gathered(trainer.optimizer.state_dict())["param_groups"]
    distributed.load_optimizer(trainer.optimizer, {"state": kept["moments"], "param_groups": groups})


ONE = 0.9  # share of the rows above which answers are called one class


SPREAD = 0.5  # share that the commonest label must stay below: else one class may be a good answer


FELL = 0.8  # of its first value: a labelled loss below it has fallen


LEVEL = 0.05


FEWEST = 20  # rows; of fewer nothing is said


SETTLED = 50  # steps; before, nothing need be learnt


def vitals_entry(trainer: Trainer, clock: Clock, audit: Mapping[str, float] | None) -> dict[str, Any]:
    """What an epoch's line of the log says (`record.entry`), and after a generation's last one a warning of its end.

    Args:
        trainer: whose history has the epochs before.
        clock: of the epoch's last step.
        audit: metrics of the audit split; None without one.
    """
    found = vitals_log.entry(trainer.objective.pulse, trainer.history, clock.generation)
    data, done = trainer.data, clock.step + 1 >= max(clock.length, SETTLED)
    if not done or audit is None or not trainer.settings.vitals or data.task != "classify":
        return found
    y = data.y[data.audit]
    most = float(y.bincount().max()) / len(y)
    if len(y) < FEWEST or most >= SPREAD:
        return found
    said = None
    if audit["accuracy"] <= most + 1 - ONE:  # more is right than one class could be: nothing is asked
        trainer.passes += Passes(evaluation=members(trainer.model) * len(y))
        said = one_class(answers(trainer.model, data, data.audit, trainer.device), data.classes)
    if said is None and fell(_labelled(trainer, clock.generation)) and by_chance(audit["accuracy"], len(y), most):
        said = (
            f"the labelled loss fell, and {audit['accuracy']:.0%} of {len(y)} audit rows are right, which is chance: "
            "what was learnt does not carry over; see whether labels belong to their rows"
        )
    return {**found, "warnings": [*found.get("warnings", []), said]} if said else found


def one_class(logits: Tensor, classes: Sequence[str]) -> str | None:
    """A warning where answers (rows, classes) are nearly all one class; None where they are not.

    >>> import torch
    >>> one_class(torch.eye(3)[[0, 1, 2, 1]], "abc")
    >>> one_class(torch.eye(3)[[1, 1, 1, 1]], "abc").partition(":")[0]
    "4 of 4 audit rows are called 'b'"
    """
    counts = logits.argmax(-1).bincount(minlength=len(classes))
    most = int(counts.max())
    if most <= ONE * len(logits):
        return None
    return (
        f"{most} of {len(logits)} audit rows are called {classes[int(counts.argmax())]!r}: the training has collapsed; "
        "take more steps, less weight on what the model says itself, or another method"
    )


def fell(losses: Sequence[float]) -> bool:
    """Did losses, one an epoch, fall by a fifth and more?

    >>> fell([2.3, 1.1]), fell([2.3, 2.4]), fell([2.3])
    (True, False, False)
    """
    return len(losses) > 1 and losses[-1] < FELL * losses[0]


def by_chance(accuracy: float, rows: int, most: float) -> bool:
    """Could who knows nothing, and says a class of this share, be right as often? By exact binomial tests at 0.05.

    Who is right more seldom than that knows something, and says the opposite.

    >>> by_chance(0.14, 100, 0.1), by_chance(0.2, 100, 0.1), by_chance(0.0, 100, 0.1)
    (True, False, False)
    """
    from scipy.stats import binom

    right = round(accuracy * rows)
    return min(float(binom.sf(right - 1, rows, most)), float(binom.cdf(right, rows, most))) > LEVEL


def _labelled(trainer: Trainer, generation: int) -> list[float]:
    """The loss of the first term that learns from labels, by epoch of a generation; the epoch at hand is not in yet."""
    terms = trainer.method.terms.items()
    name = next((name for name, term in terms if isinstance(term.teacher, Labels)), None)
    lines = [line["terms"].get(name) for line in trainer.history if line["generation"] == generation]
    return [line["loss"] for line in lines if line and line["loss"] is not None]


def fresh_start(start: str, before: Sequence[tuple[str, str]]) -> str | None:
    """A warning where a generation starts as an earlier one did; None where it starts afresh.

    Equal starts are right for a factory that loads pre-trained weights, so they are no error.

    Args:
        start: digest of its initial weights.
        before: for each generation so far the digests of its initial and of its final weights.

    Raises:
        VitalsError: it starts from what an earlier one ended with.
    """
    for number, (started, ended) in enumerate(before):
        if start == ended != started:
            raise VitalsError(
                "trained-start",
                f"trained-start: generation {len(before)} starts from the final weights of generation {number}; "
                "let build() make a new model at every call, not return the one it made before",
            )
    same = [number for number, (started, _) in enumerate(before) if started == start]
    if not same:
        return None
    return (
        f"generation {len(before)} starts from the very weights that generation {same[0]} started from; "
        "unless build() loads pre-trained weights, let it draw new ones"
    )
