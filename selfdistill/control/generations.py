"""How a recipe becomes one policy: one training, or generations, peers or phases that share the environment steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback
from torch import nn

from .. import rng
from ..evaluation.audit import Audit, Decision
from .actors import Actor, ObservationLayout, PolicyEnsemble, copy_policy
from .callback import SelfDistil
from .episodes import Player
from .parallel import ParallelStudent
from .recipes import PolicyMethod
from .training import Arm, Place, Trained, train


@dataclass
class Lineage:
    """A policy, and the trainings that it came from.

    Args:
        product: the training of the final policy.
        number: of the product among the trainings.
        generations: of each training: its number, its environment steps and its ``decision``.
        steps, updates: environment steps of all trainings, and optimizer steps, the extra ones included.
        seconds: of all trainings.
    """

    product: Trained
    number: int = 0
    generations: list[dict[str, Any]] = field(default_factory=list)
    steps: int = 0
    updates: int = 0
    seconds: float = 0.0

    @classmethod
    def of(cls, trainings: Sequence[Trained], product: int = 0, extra: int = 0) -> Lineage:
        """The lineage of trainings.

        Args:
            trainings: all of them, in order.
            product: the number of that of the final policy.
            extra: distillation steps beside the updates of the engine, of all.
        """
        return cls(
            trainings[product],
            product,
            generations=[{"generation": k, "steps": t.steps} for k, t in enumerate(trainings)],
            steps=sum(t.steps for t in trainings),
            updates=sum(t.updates for t in trainings) + extra,
            seconds=sum(t.seconds for t in trainings),
        )


class PolicyTrainer:
    """Trains a recipe in an arm's environment.

    Args:
        method: the recipe.
        arm: environment, steps, seed and engine of the whole.
        place: the place of a training, by its sub-folder; ``""`` is that of a recipe with one training.
        teacher: as of `SelfDistil`.
        player: plays the episodes of the audit, as the policy will be deployed.
        episodes: of an audit.
        tell: hears what the audit decides.
    """

    def __init__(
        self,
        method: PolicyMethod,
        arm: Arm,
        place: Callable[[str], Place],
        *,
        teacher: Any = None,
        player: Player,
        episodes: int = 100,
        tell: Callable[[str], None] = print,
    ) -> None:
        self.method, self.arm, self.place, self.teacher = method, arm, place, teacher
        self.player, self.episodes, self.tell = player, episodes, tell

    def train(self) -> Lineage:
        """Every training of the recipe, from wherever it was cut."""
        training = self.method.training
        if training.members:
            return self._peers(training.members)
        if training.parallel:
            return self._phases()
        if self.method.generations > 1:
            return self._generations()
        distil = SelfDistil(self.method, self.teacher)
        trained = self._one(self.arm, "", [distil])
        return Lineage.of([trained], extra=distil.extra_steps)

    def _one(self, arm: Arm, name: str, callbacks: Sequence[BaseCallback], begin: nn.Module | None = None) -> Trained:
        return train(arm, replace(self.place(name), callbacks=callbacks), begin)

    def _share(self, number: int, count: int) -> Arm:
        """The arm of one of several trainings: its steps in whole rollouts, and a seed of its own."""
        first, whole = self.method.training.first, self.arm.steps
        if first and count > 1:
            steps = first * whole if number == 0 else (1.0 - first) * whole / (count - 1)
        else:
            steps = whole / count
        rollouts = max(1, int(steps // self.arm.per_rollout))
        seed = rng.seed(self.arm.seed, "generation", number) % 2**31 if number else self.arm.seed
        return replace(self.arm, steps=rollouts * self.arm.per_rollout, seed=seed)

    def _actor(self, trained: Trained) -> Actor:
        """The policy of a training as a teacher."""
        layout = ObservationLayout.of(trained.model.observation_space, self.arm.hidden)
        return Actor(copy_policy(trained.policy), layout)

    def _generations(self) -> Lineage:
        """Fresh policies one after another; the audit decides which of them teaches the next and is the product."""
        count = self.method.generations
        audit = Audit(planned=count - 1, measure="return")
        trainings, champion, extra = [self._one(self._share(0, count), "generations/0", [])], 0, 0
        decisions = dict[int, Decision]()
        for number in range(1, count):
            distil = SelfDistil(self.method, previous=self._actor(trainings[champion]))
            trainings.append(self._one(self._share(number, count), f"generations/{number}", [distil]))
            extra += distil.extra_steps
            decisions[number] = self._audit(audit, trainings, number, champion)
            champion = number if decisions[number].accepted else champion
        lineage = Lineage.of(trainings, champion, extra)
        for number, decision in decisions.items():
            lineage.generations[number]["decision"] = asdict(decision)
        return lineage

    def _audit(self, audit: Audit, trainings: Sequence[Trained], number: int, champion: int) -> Decision:
        """Whether a generation is not worse than the champion, on the same fresh episodes."""
        played = [
            self.player.play(trainings[k].policy, f"audit {number}", self.episodes).returns for k in (number, champion)
        ]
        decision = audit.decide(number, *((-returns).tolist() for returns in played), against=champion)
        self.tell(decision.why)
        return decision

    def _peers(self, members: int) -> Lineage:
        """Policies that learn apart, and a product that their mean teaches."""
        count = members + 1
        trainings = [self._one(self._share(k, count), f"generations/{k}", []) for k in range(members)]
        distil = SelfDistil(self.method, previous=PolicyEnsemble([self._actor(one) for one in trainings]))
        trainings.append(self._one(self._share(members, count), f"generations/{members}", [distil]))
        return Lineage.of(trainings, members, distil.extra_steps)

    def _phases(self) -> Lineage:
        """A policy acts and learns, and a fresh one learns beside it, which then takes over."""
        count = self.method.generations
        trainings, student = [self._one(self._share(0, count), "generations/0", [])], None
        for number in range(1, count):
            arm = self._share(number, count)
            begin = trainings[-1].policy if student is None else student.policy
            student = arm.build(arm.vector())
            parallel = ParallelStudent(self.method, student)
            acting = self._one(replace(arm, seed=arm.seed + 1), f"generations/{number}", [parallel], begin)
            trainings.append(replace(acting, model=student))
        return Lineage.of(trainings, count - 1)
