"""Policies as modules from flat rows of observations to what the core's terms compare, and how observations lie flat.

An `Actor` answers with the heads that all recipes know: ``logits`` of discrete actions, ``gaussian`` of continuous
ones, and ``values``, the value of the observation. So the terms, teachers and losses of every other task fit a policy.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Normal

from ..core.targets import matched
from ..errors import DataError, SpaceError

ABSENT = -1e8  # the logit of an action that does not exist, as stable-baselines3 has it for masked actions

Observation = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class ObservationLayout:
    """Where each part of an observation lies in a flat row.

    Args:
        parts: name and shape of each part in order; a plain space is one part with the name ``""``.

    >>> layout = ObservationLayout((("frames", (2, 2)), ("state", (1,))))
    >>> rows = layout.flatten({"frames": torch.ones(3, 2, 2), "state": torch.zeros(3, 1)})
    >>> rows.shape, layout.unflatten(rows)["frames"].shape
    (torch.Size([3, 5]), torch.Size([3, 2, 2]))
    """

    parts: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, space: Any, hidden: Sequence[str] = ()) -> ObservationLayout:
        """The layout of a gymnasium space.

        Args:
            space: Box, Discrete, MultiDiscrete or MultiBinary, or a Dict of these.
            hidden: keys of a Dict that are left out.

        Raises:
            DataError: the space is of another kind, or has no such key.
        """
        from gymnasium import spaces

        if not isinstance(space, spaces.Dict):
            if hidden:
                raise DataError(
                    f"the observation is a {type(space).__name__} without keys, so it has no key {hidden[0]!r}; give "
                    "an environment with Dict observations, or a gymnasium.ObservationWrapper"
                )
            return cls((("", _shape(space, "the observation")),))
        missing = [key for key in hidden if key not in space.spaces]
        if missing:
            raise DataError(f"the observation has no key {missing[0]!r}; it has {', '.join(map(repr, space.spaces))}")
        visible = {key: part for key, part in space.spaces.items() if key not in hidden}
        if not visible:
            raise DataError("no key of the observation is left for the student; hide fewer")
        parts = ((key, _shape(part, f"the key {key!r} of the observation")) for key, part in visible.items())
        return cls(tuple(parts))

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of a Dict; none for a plain space."""
        return tuple(name for name, _ in self.parts if name)

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return sum(torch.Size(shape).numel() for _, shape in self.parts)

    def flatten(self, observations: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Observations as rows (rows, width); one part alone keeps its type, several become float32."""
        if isinstance(observations, Tensor):
            return observations.reshape(len(observations), -1)
        columns = [observations[name].reshape(len(observations[name]), -1) for name, _ in self.parts]
        return columns[0] if len(columns) == 1 else torch.cat([column.float() for column in columns], 1)

    def unflatten(self, rows: Tensor) -> Observation:
        """The observations of flat rows, as a policy takes them."""
        sizes = [torch.Size(shape).numel() for _, shape in self.parts]
        columns = rows.split(sizes, 1)
        whole = {
            name: column.reshape(len(rows), *shape) for (name, shape), column in zip(self.parts, columns, strict=True)
        }
        return whole if self.keys else whole[""]

    def describe(self) -> str:
        """Keys and shapes in words."""
        return ", ".join(f"{name + ' ' if name else ''}{tuple(shape)}" for name, shape in self.parts)


def _shape(space: Any, what: str) -> tuple[int, ...]:
    """The shape in which stable-baselines3 stores the observations of a space.

    Raises:
        DataError: the space is of a kind that is not served.
    """
    from gymnasium import spaces
    from stable_baselines3.common.preprocessing import get_obs_shape

    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise DataError(
            f"{what} is a {type(space).__name__}; Box, Discrete, MultiDiscrete, MultiBinary and a Dict of these are "
            "served: flatten it by a gymnasium wrapper"
        )
    return tuple(get_obs_shape(space))  # type: ignore[arg-type]  # a mapping of a Dict alone


def action_output(distribution: Any) -> tuple[str, Tensor]:
    """The head and the output of a distribution of actions.

    Args:
        distribution: of torch: Categorical, a list of them (MultiDiscrete), Bernoulli (MultiBinary), or Normal (Box;
            for a squashed one that before the tanh, whose divergences are the same).

    Returns:
        ``logits`` with (rows, actions), or (rows, dimensions, most actions) where those that do not exist have
        `ABSENT`; or ``gaussian`` with (rows, dimensions, 2), mean and log variance.

    Raises:
        DataError: it is another distribution.

    >>> action_output(Categorical(logits=torch.zeros(2, 3)))[1].shape
    torch.Size([2, 3])
    """
    if isinstance(distribution, Categorical):
        return "logits", distribution.logits
    if isinstance(distribution, Normal):
        return "gaussian", torch.stack([distribution.mean, 2.0 * distribution.stddev.log()], -1)
    if isinstance(distribution, Bernoulli):
        return "logits", torch.stack([torch.zeros_like(distribution.logits), distribution.logits], -1)
    if isinstance(distribution, Sequence) and all(isinstance(one, Categorical) for one in distribution):
        most = max(one.logits.shape[-1] for one in distribution)
        padded = [nn.functional.pad(one.logits, (0, most - one.logits.shape[-1]), value=ABSENT) for one in distribution]
        return "logits", torch.stack(padded, 1)
    raise DataError(f"actions of a {type(distribution).__name__} are not served; PPO, A2C and their kin have others")


def action_head(made: Any) -> tuple[str, Tensor]:
    """The same of the distribution that a policy of stable-baselines3 made."""
    own = vars(made)  # masked ones of several actions have another name for it
    return action_output(own["distributions"] if "distributions" in own else own["distribution"])


def action_mask(masks: Any, actions: Any) -> Tensor:
    """Which actions are possible, in the shape of the logits.

    Args:
        masks: as MaskablePPO has them, (rows, actions of all dimensions).
        actions: the action space.

    >>> from gymnasium.spaces import MultiDiscrete
    >>> action_mask([[1, 0, 1, 1, 0]], MultiDiscrete([2, 3])).tolist()
    [[[True, False, False], [True, True, False]]]
    """
    from gymnasium import spaces

    masks = torch.as_tensor(masks).bool()
    if isinstance(actions, spaces.Discrete):
        mask: Tensor = masks.reshape(-1, int(actions.n))
        return mask
    counts = actions.nvec.tolist() if isinstance(actions, spaces.MultiDiscrete) else [2] * actions.n
    parts = masks.reshape(-1, sum(counts)).split(counts, -1)
    return torch.stack([nn.functional.pad(part, (0, max(counts) - part.shape[-1])) for part in parts], 1)


def copy_policy(policy: Any) -> Any:
    """A copy of a policy of stable-baselines3; the distribution that it made last, which holds a graph, is left out."""
    return copy.deepcopy(policy, {id(policy.action_dist): copy.copy(policy.action_dist)})


class Actor(nn.Module):
    """A policy of stable-baselines3 as a module from flat rows to heads.

    Args:
        policy: the actor-critic policy.
        layout: of the observations that it is given.
        values: whether it answers with ``values`` too, the value of each row, (rows, 1).

    Example::

        objective = kickstart().bind(Actor(model.policy, layout), external=teacher)
        loss = ppo_loss + objective({"x": layout.flatten(observations)})
    """

    def __init__(self, policy: Any, layout: ObservationLayout, values: bool = False) -> None:
        super().__init__()
        self.policy, self.layout, self.values = policy, layout, values

    @property
    def continuous(self) -> bool:
        """Whether its actions are continuous."""
        from gymnasium import spaces

        return isinstance(self.policy.action_space, spaces.Box)

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        """Heads of flat rows (rows, width)."""
        observations = self.layout.unflatten(rows)
        head, output = action_head(self.policy.get_distribution(observations))
        return {head: output, "values": self.policy.predict_values(observations)} if self.values else {head: output}


class MaskedActor(nn.Module):
    """An actor without the actions that a mask forbids: their logit is `ABSENT`.

    Attributes:
        mask: of the rows that it is asked about next, in the shape of its logits; None where all actions are possible.
    """

    def __init__(self, actor: nn.Module) -> None:
        super().__init__()
        self.actor = actor
        self.mask: Tensor | None = None

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        """Heads of flat rows."""
        heads = dict(self.actor(rows))
        if self.mask is not None:
            heads["logits"] = heads["logits"].masked_fill(~self.mask.to(rows.device), ABSENT)
        return heads


class ModuleActor(nn.Module):
    """A module of one's own as a teacher: observations to logits (rows, actions), or to (rows, dimensions, 2), mean
    and log variance, or to a mapping of heads.

    Args:
        module: takes observations as the environment gives them, a tensor or a dict of tensors.
        layout: of these observations.
        continuous: whether the actions are continuous.
    """

    def __init__(self, module: nn.Module, layout: ObservationLayout, continuous: bool = False) -> None:
        super().__init__()
        self.module, self.layout, self.continuous = module, layout, continuous

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        """Heads of flat rows."""
        answer = self.module(self.layout.unflatten(rows.float() if rows.dtype == torch.float64 else rows))
        if isinstance(answer, Mapping):
            return dict(answer)
        if not isinstance(answer, Tensor):
            raise SpaceError(
                f"the teacher returned a {type(answer).__name__}; a tensor or a mapping of heads is wanted"
            )
        return {"gaussian" if self.continuous else "logits": answer}


class SelectedColumns(nn.Module):
    """A teacher that reads some keys of the rows alone.

    Args:
        actor: reads ``layout``.
        rows_layout: of the rows that are given.
        layout: of the keys that the actor reads.
    """

    def __init__(self, actor: nn.Module, rows_layout: ObservationLayout, layout: ObservationLayout) -> None:
        super().__init__()
        self.actor, self.rows_layout, self.layout = actor, rows_layout, layout

    def forward(self, rows: Tensor) -> Any:
        """The actor's heads."""
        whole = self.rows_layout.unflatten(rows)
        if isinstance(whole, dict):
            name = self.layout.parts[0][0]
            return self.actor(self.layout.flatten(whole if name else next(iter(whole.values()))))
        return self.actor(rows)


class PolicyEnsemble(nn.Module):
    """Several policies as one teacher: the mean of their probabilities, or the normal distribution with the mean and
    variance of their mixture.

    Args:
        actors: of one action space.
    """

    def __init__(self, actors: Sequence[nn.Module]) -> None:
        super().__init__()
        self.actors = nn.ModuleList(actors)

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        """The head of the mixture."""
        answers = [actor(rows) for actor in self.actors]
        if "gaussian" in answers[0]:
            mixture = matched(*torch.stack([a["gaussian"] for a in answers], -2).unbind(-1))
            return {"gaussian": torch.stack([mixture.mean, mixture.log_variance], -1)}
        logits = torch.stack([nn.functional.log_softmax(a["logits"], -1) for a in answers])
        return {"logits": torch.logsumexp(logits, 0) - math.log(len(answers))}
