"""The ablation of peers: the same method, taught by its own predictions in place of its peers', or by both."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..core.memory import FrozenCopy
from ..core.objective import Method
from ..core.outputs import space_of
from ..core.parts import BaseTerm, Schedule, Teacher, Term, value_at
from ..core.step import Forward, TrainingClock
from ..core.targets import Target
from ..teachers import Combined, CurrentStudent, Ema, OtherPeers, Sampled, Stale

DECAY = 0.99  # of the average of a network's weights, which is what it says itself


@dataclass(frozen=True)
class HalfWeight:
    """Half of a weight."""

    of: float | Schedule

    def __call__(self, clock: TrainingClock) -> float:
        return value_at(self.of, clock) / 2


@dataclass(frozen=True)
class MemberEma(Ema):
    """The average of the weights of one member of a group, for peers with a view each."""

    member: int = 0

    def target(self, state: FrozenCopy, forward: Forward, term: BaseTerm) -> Target:
        peers = forward.teacher_output(state.module, term.view, "peers")  # (rows, K, classes)
        return Target(peers[:, self.member], space_of(term.head))


def own_teacher(term: BaseTerm, peers: int) -> Teacher | None:
    """The average of a term's own network, to teach in place of its peers; None where no peer teaches it."""
    teacher = term.teacher
    if isinstance(teacher, Combined) and term.view in teacher.views:
        return MemberEma(DECAY, member=teacher.views.index(term.view))
    elsewhere = isinstance(teacher, CurrentStudent) and teacher.head not in (None, term.head)
    if isinstance(teacher, (Combined, OtherPeers, Sampled, Stale)) or (peers > 1 and elsewhere):
        return Ema(DECAY)
    return None


def ablate(method: Method, both: bool = False) -> Method | None:
    """Replace the peers that teach by an average of each network's own weights, with the same losses, gates and views.

    Args:
        method: a method with peers.
        both: Keep the peers, and give them and the network's own average half of the weight each.

    Returns:
        The method; None where no peer teaches.

    >>> from selfdistill.methods import elr, mutual
    >>> ablate(mutual()).terms["peers"].teacher
    Ema(decay=0.99, view=None, train=False, warm_up=True)
    >>> list(ablate(mutual(), both=True).terms), ablate(elr())
    (['label', 'peers', 'peers_own'], None)
    """
    peers = 1 if method.wrap_model is None else method.wrap_model.peers
    terms = dict[str, BaseTerm]()
    for name, term in method.terms.items():
        teacher = own_teacher(term, peers)
        if teacher is None or not isinstance(term, Term):
            terms[name] = term
        elif both:
            half = HalfWeight(term.weight)
            terms |= {name: replace(term, weight=half), f"{name}_own": replace(term, teacher=teacher, weight=half)}
        else:
            terms[name] = replace(term, teacher=teacher)
    return None if terms == method.terms else replace(method, terms=terms)
