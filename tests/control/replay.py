"""What the oracles of policies share: a real training by stable-baselines3, recorded so that a plain loop repeats it.

An oracle sees the same first weights, the same minibatches of every update and the same rows of every extra step, and
computes losses and steps by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from torch import Tensor, nn

from selfdistill.control import Actor, ObservationLayout, PolicyEnsemble, PolicyMethod, SelfDistil
from selfdistill.control.actors import copy_policy
from selfdistill.control.parallel import ParallelStudent
from selfdistill.core.objective import Objective
from tests.control.common import ROLLOUT, Walk, environments, make, sharp

ENTROPY, VALUE, CLIP, RATE = 0.01, 0.5, 0.2, 3e-3
HIDDEN = "state"


class Network(nn.Module):
    """A policy as its networks: log-probabilities of actions (rows, actions), and values (rows,)."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def copy(self) -> Network:
        return Network(copy_policy(self.policy))

    def logits(self, x: Any) -> Tensor:
        logits: Tensor = self.policy.get_distribution(x).distribution.logits
        return logits

    def log_p(self, x: Any) -> Tensor:
        return self.logits(x).log_softmax(1)

    def value(self, x: Any) -> Tensor:
        value: Tensor = self.policy.predict_values(x).squeeze(1)
        return value


@dataclass
class Minibatch:
    """What an update saw: observations, actions, advantages, returns, and log-probabilities under who acted."""

    x: Any
    actions: Tensor
    advantages: Tensor
    returns: Tensor
    log_p: Tensor


@dataclass
class Rollout:
    """The update after a rollout, and the extra steps after it."""

    number: int
    of: int
    batches: list[Minibatch] = field(default_factory=list)
    rows: list[Any] = field(default_factory=list)

    @property
    def end(self) -> float:
        """The share of the training that is done after its update."""
        return (self.number + 1) / self.of

    def minibatches(self) -> Iterator[tuple[float, Minibatch]]:
        """Each with the share of the training that is done before it."""
        for place, batch in enumerate(self.batches):
            yield (self.number + place / len(self.batches)) / self.of, batch

    def drawn(self, steps: float) -> list[Any]:
        """The rows of the extra steps, of which there are so many."""
        assert len(self.rows) == round(steps)
        return self.rows


@dataclass
class Training:
    """One policy: its first weights, its rollouts and its last weights."""

    start: Any
    rollouts: list[Rollout] = field(default_factory=list)
    final: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class Recorded:
    """The trainings of a recipe in order, its teacher, and what its terms said at each step."""

    trainings: list[Training] = field(default_factory=list)
    teacher: Any = None
    losses: list[float] = field(default_factory=list)

    def network(self, number: int = 0) -> Network:
        """A training's network as it was at first."""
        return Network(copy_policy(self.trainings[number].start))

    def adam(self, network: nn.Module) -> torch.optim.Optimizer:
        """The engine's optimizer."""
        return torch.optim.Adam(network.parameters(), RATE, eps=1e-5)

    def step(self, optimizer: torch.optim.Optimizer, network: nn.Module, loss: Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.5)
        optimizer.step()

    def critic_loss(self, network: Network, batch: Minibatch) -> Tensor:
        """The part of the engine's loss that teaches the critic."""
        return VALUE * (batch.returns - network.value(batch.x)).square().mean()

    def actor_loss(self, network: Network, batch: Minibatch) -> Tensor:
        """The part of the engine's loss (PPO) that teaches the actor."""
        log_p = network.log_p(batch.x)
        advantages = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
        ratio = (log_p.gather(1, batch.actions[:, None]).squeeze(1) - batch.log_p).exp()
        surrogate = torch.min(advantages * ratio, advantages * ratio.clamp(1.0 - CLIP, 1.0 + CLIP)).mean()
        return -surrogate - ENTROPY * -(log_p.exp() * log_p).sum(1).mean()

    def ppo(self, network: Network, batch: Minibatch) -> Tensor:
        """The engine's loss."""
        return self.actor_loss(network, batch) + self.critic_loss(network, batch)


class Recorder:
    """Trains a recipe on a tiny environment and records it."""

    def __init__(self, monkeypatch: Any, keys: Any = None) -> None:
        self.run, self.space = Recorded(), keys
        forward, draw = Objective.forward, SelfDistil._draw

        def noting_loss(objective: Objective, batch: Any) -> Tensor:
            loss = forward(objective, batch)
            self.run.losses.append(float(loss.detach()))
            return loss

        def noting_rows(distil: SelfDistil, *given: Any) -> Any:
            batch = draw(distil, *given)
            self.of[id(distil._policy)].rollouts[-1].rows.append(_rows(batch, distil))
            return batch

        monkeypatch.setattr(Objective, "forward", noting_loss)
        monkeypatch.setattr(SelfDistil, "_draw", noting_rows)
        self.of: dict[int, Training] = {}

    def model(self, seed: int, begin: Any = None, of: int = 4, **options: Any) -> Any:
        """A model whose updates are noted."""
        env = environments(self.space) if self.space is not None else environments()
        model = make(env, seed=seed, learning_rate=RATE, ent_coef=ENTROPY, **options)
        if begin is not None:
            model.policy.load_state_dict(begin.state_dict())
        training = Training(_visible(model.policy))
        self.run.trainings.append(training)
        self.of[id(model.policy)] = training
        train, get = model.train, model.rollout_buffer.get

        def noting_train() -> None:
            training.rollouts.append(Rollout(len(training.rollouts), of))
            train()

        def noting_get(*given: Any) -> Iterator[Any]:
            for sample in get(*given):
                training.rollouts[-1].batches.append(
                    Minibatch(
                        _seen(sample.observations, model), sample.actions.long().flatten(), sample.advantages,
                        sample.returns, sample.old_log_prob,
                    )
                )  # fmt: skip
                yield sample

        model.train, model.rollout_buffer.get = noting_train, noting_get
        return model

    def train(self, model: Any, callback: BaseCallback | None, rollouts: int = 4) -> Any:
        model.learn(rollouts * ROLLOUT, callback=callback)
        self.of[id(model.policy)].final = copy.deepcopy(_visible(model.policy).state_dict())
        return model


def _seen(observations: Any, model: Any) -> Any:
    return dict(observations) if isinstance(observations, Mapping) else observations


def _rows(batch: Any, distil: SelfDistil) -> Any:
    """The rows of an extra step as observations, or those of episodes with actions and returns."""
    if "episodes" in batch:
        rows = batch["episodes"]
        return rows.x, rows.y, rows.extra["returns"]
    if "teacher" in batch:
        return distil._whole.unflatten(batch["teacher"].x)
    return distil._layout.unflatten(batch["x"].x)


def _visible(policy: Any) -> Any:
    """A copy of a policy; one that hides keys is made anew without these, since its weights are the same."""
    if not isinstance(policy, MultiInputActorCriticPolicy) or not hasattr(policy.features_extractor, "hidden"):
        return copy_policy(policy)
    from gymnasium import spaces

    space: Any = policy.observation_space
    hidden: Any = policy.features_extractor.hidden
    kept = {key: part for key, part in space.spaces.items() if key not in hidden}
    fresh = MultiInputActorCriticPolicy(spaces.Dict(kept), policy.action_space, lambda _: 0.0, net_arch=policy.net_arch)
    fresh.load_state_dict(policy.state_dict())
    return fresh


def with_teacher(method: Callable[..., PolicyMethod], options: dict[str, Any], monkeypatch: Any) -> Recorded:
    """A recipe with a teacher from outside."""
    recorder = Recorder(monkeypatch)
    teacher = sharp(environments())
    recorder.run.teacher = Network(copy_policy(teacher.policy))
    begin = teacher.policy if method.__name__ == "continued" else None
    recorder.train(recorder.model(0, begin), SelfDistil(method(**options), teacher))
    return recorder.run


def with_privilege(method: Callable[..., PolicyMethod], options: dict[str, Any], monkeypatch: Any) -> Recorded:
    """A recipe whose teacher sees more."""
    from selfdistill.control.teachers import hide
    from tests.control.common import KEYS

    recorder = Recorder(monkeypatch, KEYS)
    teacher = sharp(environments(KEYS))
    recorder.run.teacher = Network(copy_policy(teacher.policy))
    student = recorder.model(0, policy_kwargs={"net_arch": [8], **hide(HIDDEN)})
    recorder.train(student, SelfDistil(method(**options), teacher))
    return recorder.run


def in_generations(method: Callable[..., PolicyMethod], options: dict[str, Any], monkeypatch: Any) -> Recorded:
    """A recipe of generations, each taught by the one before."""
    recorder, recipe, last = Recorder(monkeypatch), method(**options), None
    for number in range(recipe.generations):
        model = recorder.model(number)
        previous = None if last is None else Actor(copy_policy(last), ObservationLayout.of(model.observation_space))
        recorder.train(model, None if previous is None else SelfDistil(recipe, previous=previous))
        last = model.policy
    return recorder.run


def of_peers(method: Callable[..., PolicyMethod], options: dict[str, Any], monkeypatch: Any) -> Recorded:
    """Peers, and the product that their mean teaches."""
    recorder, recipe = Recorder(monkeypatch), method(**options)
    peers = [recorder.train(recorder.model(number), None).policy for number in range(recipe.training.members)]
    layout = ObservationLayout.of(Walk().observation_space)
    mean = PolicyEnsemble([Actor(copy_policy(peer), layout) for peer in peers])
    recorder.train(recorder.model(len(peers)), SelfDistil(recipe, previous=mean))
    return recorder.run


def in_phases(method: Callable[..., PolicyMethod], options: dict[str, Any], monkeypatch: Any) -> Recorded:
    """Phases in each of which one policy acts and learns, and a fresh one learns beside it.

    The trainings are the first policy, and for each phase the policy that acts and the one that learns beside it.
    """
    recorder, recipe = Recorder(monkeypatch), method(**options)
    last = recorder.train(recorder.model(0), None).policy
    for phase in range(1, recipe.generations):
        student = recorder.model(10 * phase)
        student.set_logger(Logger(None, []))
        acting = recorder.model(10 * phase + 1, last)
        parallel = ParallelStudent(recipe, student)
        recorder.train(acting, parallel)
        recorder.of[id(student.policy)].final = copy.deepcopy(student.policy.state_dict())
        last = student.policy
    return recorder.run


def record(method: Callable[..., PolicyMethod], options: dict[str, Any], monkeypatch: Any) -> Recorded:
    """A training of a recipe, as its kind is trained."""
    recipe = method(**options)
    if recipe.sees is not None:
        return with_privilege(method, options, monkeypatch)
    if recipe.training.members:
        return of_peers(method, options, monkeypatch)
    if recipe.training.parallel:
        return in_phases(method, options, monkeypatch)
    if recipe.generations > 1:
        return in_generations(method, options, monkeypatch)
    return with_teacher(method, options, monkeypatch)
