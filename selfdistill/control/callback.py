"""`SelfDistil`: the callback by which an on-policy algorithm of stable-baselines3 learns from a teacher as well.

No training loop is copied. PPO, A2C, MaskablePPO and RecurrentPPO ask ``policy.evaluate_actions`` in their own
``train()``. The callback wraps that method while training runs: the recipe's loss rides on the log-probabilities that
it returns, with gradient 1, and the algorithm's own loss, clipping and logs stay as they are. Extra distillation steps
come after the algorithm's update and before anyone acts, so that stored log-probabilities are those of the policy that
acted; they have an Adam of their own, whose second moments the algorithm never sees.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from ..core.objective import Objective
from ..core.step import Batch, Rows, TrainingClock
from ..errors import DataError, RecipeError
from ..io.checkpoint import Tree
from ..losses import KL, Sharpened
from ..rng import seed as address_seed
from ..teachers import Generation
from .actors import Actor, MaskedActor, ObservationLayout, action_head, action_mask
from .episode_memory import EpisodeMemory
from .recipes import EPISODES, TEACHER_VIEW, VISITED, PolicyMethod
from .rollout_log import ScriptLog
from .store import VisibleExtractor
from .teachers import Unnormalised, hidden_keys, own_normaliser, read_teacher, refuse_visible

ENGINES = (PPO, A2C, MaskablePPO, RecurrentPPO)  # those that ask `evaluate_actions` in their update
MASK = "action_masks"


class _Attached(torch.autograd.Function):
    """A carrier that hands gradient 1 to a second scalar; its own value and gradient are unchanged."""

    @staticmethod
    def forward(ctx: Any, carrier: Tensor, scalar: Tensor) -> Tensor:
        return carrier.view_as(carrier)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        return gradient, gradient.new_ones(())


def attach(carrier: Tensor, scalar: Tensor) -> Tensor:
    """The carrier, by whose backward pass a scalar loss gets gradient 1.

    >>> carrier, scalar = torch.ones(2, requires_grad=True), torch.ones((), requires_grad=True)
    >>> attach(carrier, 3.0 * scalar).sum().backward()
    >>> carrier.grad.tolist(), scalar.grad.item()
    ([1.0, 1.0], 3.0)
    """
    attached: Tensor = _Attached.apply(carrier, scalar)  # type: ignore[no-untyped-call]
    return attached


class SelfDistil(BaseCallback):
    """Self-distillation inside an SB3 algorithm: ``PPO("MlpPolicy", env).learn(200_000, callback=SelfDistil(...))``.

    Args:
        method: a recipe of `selfdistill.control`, such as ``kickstart("teacher.zip")``.
        teacher: the teacher where the recipe names none: an SB3 model, an SB3 zip, a module from observations to
            logits, or a run folder.
        previous: the generation before, as a module from rows to heads, for recipes of generations.
        out: a new folder for the log of the training, which `selfdistill report` draws and `vitals` reads.
        verbose: as of every SB3 callback.

    Attributes:
        extra_steps: distillation steps taken so far, beside the updates of the algorithm.
        figures: of each term in the last update: its mean ``loss``, and its ``weight`` when it began.

    Raises:
        DataError: at the start of training: the teacher does not fit the environment, or the algorithm is off-policy.

    Example::

        from stable_baselines3 import PPO
        from selfdistill.control import SelfDistil, kickstart

        model = PPO("MlpPolicy", "CartPole-v1", n_epochs=10)
        model.learn(24_000, callback=SelfDistil(kickstart("teacher.zip")))
    """

    def __init__(
        self,
        method: PolicyMethod,
        teacher: Any = None,
        *,
        previous: nn.Module | None = None,
        out: str | Path | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.method, self.previous = method, previous
        self.teacher = method.teacher if teacher is None else teacher
        self.extra_steps = 0
        self._log = None if out is None else ScriptLog(Path(out), method.name or "SelfDistil", self)
        self.figures = dict[str, dict[str, float]]()
        self._losses = dict[str, list[Tensor]]()
        self._saved: Mapping[str, Any] | None = None  # a state to go on from

    # ---- the hooks of the algorithm ----------------------------------------------------------------------------

    def _on_training_start(self) -> None:
        algorithm = self.model
        if not isinstance(algorithm, ENGINES):
            served = ", ".join(engine.__name__ for engine in ENGINES)
            raise DataError(f"SelfDistil cannot ride on the update of {type(algorithm).__name__}; train by {served}")
        self._algorithm: OnPolicyAlgorithm = algorithm
        self._policy = algorithm.policy
        self._recurrent = isinstance(self._policy, RecurrentActorCriticPolicy)
        hidden = hidden_keys(self.method.sees, algorithm.observation_space)
        refuse_visible(self._policy, hidden)
        extractor = self._policy.features_extractor
        hidden = extractor.hidden if isinstance(extractor, VisibleExtractor) else hidden
        self._layout = ObservationLayout.of(algorithm.observation_space, hidden)
        self._whole = ObservationLayout.of(algorithm.observation_space)
        self._bind(hidden)
        if self._saved is not None:
            self._restore(self._saved)
            self._saved = None  # the next training is a new one
        self._wrap()
        if self._log:
            self._log.on_training_start(self.locals, self.globals)

    def _bind(self, hidden: tuple[str, ...]) -> None:
        """Read the teacher and bind the terms; make what follows the training."""
        algorithm, training, terms = self._algorithm, self.method.training, self.method.terms
        self._rollout = algorithm.n_steps * algorithm.n_envs
        self._start, self._distilled = algorithm.num_timesteps, 0
        self._losses.clear()
        rollouts = max(1, -(-(algorithm._total_timesteps - self._start) // self._rollout))
        options = vars(algorithm)
        batches = -(-self._rollout // options.get("batch_size", self._rollout))
        self._clock = TrainingClock(
            int(self.previous is not None),
            max(self.method.generations, 1 + (self.previous is not None)),
            epochs=rollouts,
            per_epoch=options.get("n_epochs", 1) * batches,
        )
        kept = training.rollouts or max(1, training.capacity // self._rollout)
        self._visited = deque[dict[str, Tensor]](maxlen=kept)
        self._sequences = list[Any]()  # the last rollout of a recurrent policy
        self._memory = EpisodeMemory(training.capacity, algorithm.gamma, algorithm.n_envs)
        values = any(EPISODES in term.views or term.head == "values" for term in terms.values())
        self._actor = Actor(self._policy, self._layout, values)
        self._student = MaskedActor(self._actor)
        self._external: MaskedActor | None = None
        if training.start == "teacher" and self._saved is None:
            self._begin_as(self._read_teacher(hidden))
        elif self.method.needs_teacher and training.start == "fresh":
            self._external = MaskedActor(self._read_teacher(hidden))
        if self.method.method is None:
            return
        if self.previous is None and any(isinstance(term.teacher, Generation) for term in terms.values()):
            raise RecipeError(
                "the recipe learns from a policy that was trained before; give it as SelfDistil(..., previous=Actor), "
                "or let `selfdistill run gym:ID` train all of them"
            )
        self._previous = None if self.previous is None else MaskedActor(self.previous.to(algorithm.device))
        self.objective: Objective = self.method.bind(
            self._actor, external=self._external, previous=self._previous, clock=self._clock, vitals=False
        )
        self._adam = torch.optim.Adam(self._policy.parameters(), training.learning_rate)
        self._learns = {view for term in terms.values() for view in term.views}
        if self._recurrent and EPISODES in self._learns:
            raise DataError("a recurrent policy cannot learn from single steps of stored episodes; train by PPO or A2C")
        self._reads_all = any(t.teacher is not None and TEACHER_VIEW in t.teacher.reads(t) for t in terms.values())

    def _read_teacher(self, hidden: tuple[str, ...]) -> nn.Module:
        """The teacher for rows as the environment shows them, behind what undoes the student's normaliser."""
        if self.teacher is None:
            raise RecipeError(
                'the recipe needs a teacher: kickstart("teacher.zip"), or SelfDistil(method, teacher=...)'
            )
        algorithm = self._algorithm
        values = any(term.head == "values" and VISITED in term.views for term in self.method.terms.values())
        teacher = read_teacher(self.teacher, algorithm.observation_space, algorithm.action_space, hidden, values)
        if {id(weight) for weight in teacher.parameters()} & {id(weight) for weight in self._policy.parameters()}:
            raise DataError("the teacher has weights of the student, which would be frozen; give a copy.deepcopy of it")
        normaliser = own_normaliser(algorithm.get_env())
        teacher = teacher if normaliser is None else Unnormalised(teacher, normaliser, self._whole)
        return teacher.to(algorithm.device)

    def _begin_as(self, teacher: nn.Module) -> None:
        """Give the student the weights of its teacher.

        Raises:
            DataError: the teacher has another network, or looks at the observations in another way.
        """
        try:
            if not isinstance(teacher, Actor):
                raise RuntimeError
            self._policy.load_state_dict(teacher.policy.state_dict())
        except RuntimeError:
            raise DataError(
                "a teacher goes on only with its own network, observations and normaliser, and the student's differ; "
                "make the student with the teacher's policy_kwargs, or take kickstart()"
            ) from None

    def _init_callback(self) -> None:
        if self._log:
            self._log.init_callback(self.model)

    def _on_rollout_start(self) -> None:
        if self._log:
            self._log.on_rollout_start()
        self._clock = self._clock.at(self._finished * self._clock.per_epoch)
        steps, policy = self._distil(), self._policy
        if steps and isinstance(policy, ActorCriticPolicy) and policy.use_sde:
            policy.reset_noise(self._algorithm.n_envs)  # who acts draws noise of the deviations of now
        self._draws = torch.Generator().manual_seed(self._address("acts"))

    def _on_step(self) -> bool:
        if self._log:
            self._log.update_locals(self.locals)
            self._log.on_step()
        return True

    def _on_rollout_end(self) -> None:
        if self._log:
            self._log.on_rollout_end()
        if self.method.method is None:
            return
        self._clock = self._clock.at((self._finished - 1) * self._clock.per_epoch)
        self.objective.clock = self._clock
        buffer = self._algorithm.rollout_buffer
        if EPISODES in self._learns:
            ended = self._algorithm._last_episode_starts
            assert ended is not None
            self._memory.add(buffer, ended, self._flat(buffer.observations), self._policy.squash_output)
        if not self.method.training.steps:
            return
        if self._recurrent:
            state = np.random.get_state()  # the draws of the algorithm stay as they are
            self._sequences = list(buffer.get(self._algorithm_batch))
            np.random.set_state(state)
        elif VISITED in self._learns:
            rows = {name: rows.x for name, rows in self._batch(_merged(buffer.observations)).items()}
            masks = vars(buffer).get(MASK)
            masked = {} if masks is None else {MASK: action_mask(_merged(masks), self._algorithm.action_space)}
            self._visited.append(rows | masked)

    def _on_training_end(self) -> None:
        if self._log:
            self._log.on_training_end()
        self._clock = self._clock.at(self._finished * self._clock.per_epoch)
        self._distil()
        self._unwrap()

    # ---- inside the algorithm's update -------------------------------------------------------------------------

    def _wrap(self) -> None:
        """Put the recipe into the policy while the training runs."""
        policy, training, begun = self._policy, self.method.training, self._algorithm.start_time

        def inside(ours: Callable[..., Any], theirs: Callable[..., Any]) -> Callable[..., Any]:
            """Ours in this training; theirs in the next one, where an exception has ended this one."""
            return lambda *given, **named: (
                ours(theirs, *given, **named) if self._algorithm.start_time == begun else theirs(*given, **named)
            )

        if self.method.method is None:
            return
        if VISITED in self._learns or not training.reward or training.warm_up:
            vars(policy)["evaluate_actions"] = inside(self._evaluate, policy.evaluate_actions)
            if self._recurrent:
                buffer = self._algorithm.rollout_buffer
                vars(buffer)["get"] = inside(self._noting, buffer.get)
        if callable(training.teacher_acts) or training.teacher_acts:
            vars(policy)["forward"] = inside(self._act, policy.forward)

    def _unwrap(self) -> None:
        """Take it out again."""
        for name in ("evaluate_actions", "forward"):
            vars(self._policy).pop(name, None)
        vars(self._algorithm.rollout_buffer).pop("get", None)

    def _noting(self, draw: Callable[..., Iterator[Any]], *given: Any) -> Iterator[Any]:
        """The samples of a recurrent buffer; which of their rows are no padding is noted."""
        for sample in draw(*given):
            self._mask = sample.mask > 1e-8
            yield sample

    def _evaluate(self, evaluate: Callable[..., Any], obs: Any, actions: Tensor, *rest: Any, **named: Any) -> Any:
        """What the algorithm asks of its policy, with the recipe's loss on the log-probabilities."""
        training = self.method.training
        rewarded = training.reward and self._clock.epoch >= training.warm_up
        if self._released and rewarded:
            return evaluate(obs, actions, *rest, **named)
        with self._noted_distribution() as noted:
            values, log_prob, entropy = evaluate(obs, actions, *rest, **named)
        if not rewarded:
            log_prob, entropy = log_prob.detach(), None if entropy is None else entropy.detach()
        if VISITED not in self._learns:
            return values, log_prob, entropy
        self._mask_actions(named.get(MASK))
        loss = self._loss(obs, action_head(noted[-1]), values)
        return values, attach(log_prob, loss), entropy

    def _loss(self, obs: Any, output: tuple[str, Tensor], values: Tensor) -> Tensor:
        """The recipe's loss, of outputs that the algorithm has computed for its own."""
        objective = self.objective
        if objective._steps:
            objective.update()  # the step before was taken
            objective.clock = objective.clock.at(min(objective.clock.step, self._clock.step + self._clock.per_epoch))
        batch, heads = self._batch(obs), {output[0]: output[1], "values": values.reshape(-1, 1)}
        if self._recurrent:
            mask = self._mask
            batch = Batch({name: Rows(rows.x[mask]) for name, rows in batch.items()})
            heads = {name: value[mask] for name, value in heads.items()}
        objective.call_through(lambda rows: heads)
        loss: Tensor = objective(batch)
        self._note()
        return loss

    def _note(self) -> None:
        """Note what each term has just said."""
        for name, figure in self.objective.figures.items():
            self._losses.setdefault(name, []).append(figure.loss)

    @contextmanager
    def _noted_distribution(self) -> Iterator[list[Any]]:
        """Within it the distributions that the policy makes are noted: a second forward pass is saved."""
        noted, policy = list[Any](), self._policy
        before = vars(policy).get("_get_action_dist_from_latent")
        make = policy._get_action_dist_from_latent

        def note(latent: Tensor, *rest: Any) -> Any:
            noted.append(make(latent, *rest))
            return noted[-1]

        vars(policy)["_get_action_dist_from_latent"] = note
        try:
            yield noted
        finally:
            del vars(policy)["_get_action_dist_from_latent"]
            if before is not None:  # of another callback
                vars(policy)["_get_action_dist_from_latent"] = before

    def _mask_actions(self, mask: Any) -> None:
        """Tell student and teachers which actions are possible in the rows to come, as the algorithm or as logits."""
        if mask is not None and not (isinstance(mask, Tensor) and mask.dtype == torch.bool):
            mask = action_mask(mask, self._algorithm.action_space)
        for actor in (self._student, self._external, self._previous):
            if actor is not None:
                actor.mask = mask

    @property
    def _released(self) -> bool:
        """Whether no term has a weight now, and none has a teacher that would have to follow."""
        terms = self.method.terms.values()
        return all(not term.weight_at(self._clock) for term in terms) and all(
            term.teacher is None or term.teacher.frozen for term in terms
        )

    # ---- beside it ---------------------------------------------------------------------------------------------

    def _distil(self) -> int:
        """The extra steps after an update, on states of the last rollouts or on finished episodes; how many."""
        self.settle()
        begun, self._distilled = self._distilled, self._finished
        steps, strength = self.method.extra_steps(self._clock), self.method.strength(self._clock)
        rows = self._visited or self._sequences or len(self._memory)
        if self.method.method is None or begun == self._finished or not (steps and rows):
            return 0
        objective, policy = self.objective, self._policy
        objective.call_through(self._student)
        draws = torch.Generator().manual_seed(self._address("distillation"))
        policy.set_training_mode(True)
        source = _joined(self._visited) if self._visited else {}
        for step in range(steps):
            objective.clock = self._clock
            loss = self._recurrent_loss(step) if self._recurrent else objective(self._draw(source, draws))
            self._adam.zero_grad()
            (loss / strength).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), self._algorithm.max_grad_norm)
            self._adam.step()
            objective.update()
            if not self._recurrent:
                self._note()
        self.extra_steps += steps
        objective.clock = self._clock
        policy.optimizer.zero_grad()
        policy.set_training_mode(False)
        return steps

    def settle(self) -> None:
        """Take in the update that has ended: teachers follow, and `figures` are those of its steps."""
        if self.method.method is None:
            return
        if self.objective._steps:
            self.objective.update()
        if not self._losses:
            return
        update = self._clock.at(max(0, self._finished - 1) * self._clock.per_epoch)
        self.figures = {
            name: {"loss": float(torch.stack(losses).mean()), "weight": self.method.terms[name].weight_at(update)}
            for name, losses in self._losses.items()
        }
        self._losses.clear()
        self.record(self.logger)

    def record(self, logger: Logger) -> None:
        """Write the figures to a logger of SB3: ``distil/TERM_loss``, ``distil/TERM_weight``, ``distil/teacher_kl``."""
        for name, figure in self.figures.items():
            logger.record(f"distil/{name}_loss", figure["loss"])
            logger.record(f"distil/{name}_weight", figure["weight"])
            if isinstance(self.method.terms[name].loss, KL | Sharpened):
                logger.record("distil/teacher_kl", figure["loss"])

    def _draw(self, visited: Mapping[str, Tensor], draws: torch.Generator) -> Batch:
        """Rows for an extra step."""
        batch, rows = Batch(), self.method.training.rows
        if visited:
            picked = torch.randint(len(visited[VISITED]), (rows,), generator=draws)
            self._mask_actions(visited[MASK][picked] if MASK in visited else None)
            batch.update({name: Rows(x[picked]) for name, x in visited.items() if name != MASK})
        if EPISODES in self._learns and len(self._memory):
            batch[EPISODES] = self._memory.draw(rows, draws)
        return batch.to(self._algorithm.device)

    def _recurrent_loss(self, step: int) -> Tensor:
        """The recipe's loss on sequences of the last rollout, in turn."""
        sample = self._sequences[step % len(self._sequences)]
        self._mask = sample.mask > 1e-8
        with self._noted_distribution() as noted:
            evaluate: Callable[..., Any] = type(self._policy).evaluate_actions  # not the wrapped one
            values, *_ = evaluate(
                self._policy, sample.observations, sample.actions, sample.lstm_states, sample.episode_starts
            )
        return self._loss(sample.observations, action_head(noted[-1]), values)

    def _act(self, act: Callable[..., Any], obs: Any, *rest: Any, **named: Any) -> Any:
        """The student's actions, some of them replaced by the teacher's."""
        answer = act(obs, *rest, **named)
        acts = self.method.training.teacher_acts
        share = acts(self._clock) if callable(acts) else acts
        if share <= 0.0:
            return answer
        actions, values, log_prob, *states = answer
        with torch.no_grad():
            assert self._external is not None
            self._mask_actions(named.get(MASK))
            heads = self._external((self._whole if self._reads_all else self._layout).flatten(obs))
            theirs, their_log_prob = _sample(heads, self._policy.squash_output, self._draws)
        takes = torch.rand(len(actions), generator=self._draws).to(actions.device) < share
        mixed = torch.where(
            takes.reshape(-1, *(1,) * (actions.dim() - 1)), theirs.reshape(actions.shape).to(actions.dtype), actions
        )
        return mixed, values, torch.where(takes, their_log_prob, log_prob), *states

    def _batch(self, obs: Any) -> Batch:
        """Observations as the views of the recipe."""
        views = {VISITED: Rows(self._layout.flatten(obs))}
        if self._reads_all:
            views[TEACHER_VIEW] = Rows(self._whole.flatten(obs))
        return Batch(views)

    def _flat(self, observations: Any) -> Tensor:
        """A rollout's observations as the student's flat rows, (steps x environments, width)."""
        return self._layout.flatten(_merged(observations))

    @property
    def _finished(self) -> int:
        """Rollouts that were collected since the start of the training."""
        return (self._algorithm.num_timesteps - self._start) // self._rollout

    @property
    def _algorithm_batch(self) -> int:
        return int(vars(self._algorithm).get("batch_size", self._rollout))

    def _address(self, purpose: str) -> int:
        """The seed of what is drawn for a purpose before the next rollout."""
        return address_seed(self._algorithm.seed or 0, purpose, self._finished)

    # ---- to go on ----------------------------------------------------------------------------------------------

    def state_tree(self) -> Tree:
        """What a resumed training needs of the callback, between two rollouts: tensors and numbers."""
        self.settle()
        if self.method.method is None:
            return {"start": self._start}
        return {
            "start": self._start,
            "extra_steps": self.extra_steps,
            "objective": dict(self.objective.state_dict()),
            "adam": self._adam.state_dict(),
            "distilled": self._distilled,
            "visited": [dict(rows) for rows in self._visited],
            "memory": self._memory.state_tree(),
        }

    def load_tree(self, tree: Mapping[str, Any]) -> None:
        """Go on from a state, when training starts."""
        self._saved, self.extra_steps = tree, tree.get("extra_steps", 0)

    def _restore(self, tree: Mapping[str, Any]) -> None:
        self._start = tree["start"]
        if self.method.method is None:
            return
        rollouts = max(1, -(-(self._algorithm._total_timesteps - self._start) // self._rollout))
        self._clock = replace(self._clock, epochs=rollouts)
        self.objective.load_state_dict(tree["objective"])
        self._adam.load_state_dict(tree["adam"])
        self._distilled = tree["distilled"]
        self._visited.extend(dict(rows) for rows in tree["visited"])
        self._memory.load_tree(tree["memory"])


def _merged(observations: Any) -> Any:
    """A rollout's observations (steps, environments, ...) as tensors (steps x environments, ...)."""
    if isinstance(observations, Mapping):
        return {key: _merged(part) for key, part in observations.items()}
    return torch.as_tensor(observations).flatten(0, 1).clone()


def _joined(rollouts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The rows of several rollouts by view."""
    rollouts = list(rollouts)
    return {name: torch.cat([rows[name] for rows in rollouts]) for name in rollouts[0]}


def _sample(heads: Mapping[str, Tensor], squashed: bool, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Actions of a teacher and their log-probabilities, from its heads; squashed ones go through a tanh."""
    if "gaussian" in heads:
        mean, log_variance = heads["gaussian"].cpu().unbind(-1)
        deviation = (0.5 * log_variance).exp()
        actions = torch.normal(mean, deviation, generator=draws)
        log_prob = torch.distributions.Normal(mean, deviation).log_prob(actions).sum(-1)
        if squashed:
            actions = actions.tanh()
            log_prob = log_prob - torch.log(1.0 - actions.square() + 1e-6).sum(-1)
    else:
        logits = heads["logits"].cpu()
        probabilities = logits.softmax(-1)
        actions = torch.multinomial(probabilities.flatten(0, -2), 1, generator=draws).reshape(logits.shape[:-1])
        log_prob = logits.log_softmax(-1).gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        log_prob = log_prob if log_prob.dim() == 1 else log_prob.sum(-1)
    device = next(iter(heads.values())).device
    return actions.to(device), log_prob.to(device)
