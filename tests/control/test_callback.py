"""The callback inside stable-baselines3: against a twin, against no callback, and what it leaves behind."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gymnasium import spaces
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from selfdistill.cli import main
from selfdistill.control import (
    SelfDistil,
    born_again_policy,
    continued,
    dagger,
    kickstart,
    policy_distillation,
    privileged,
    restarted,
    self_imitation,
)
from selfdistill.control.callback import attach
from selfdistill.control.recipes import PolicyMethod
from selfdistill.control.teachers import hide
from selfdistill.core.parts import Term
from selfdistill.errors import DataError, RecipeError
from selfdistill.io.run_record import read_lines
from tests.control.common import (
    KEYS,
    PICTURE,
    PLAIN,
    ROLLOUT,
    Twin,
    distance,
    environments,
    make,
    registered,
    sharp,
    trained,
    weights,
)

LSTM: dict[str, Any] = {"policy": "MlpLstmPolicy", "policy_kwargs": {"net_arch": [8], "lstm_hidden_size": 6}}
GSDE: dict[str, Any] = {"use_sde": True, "policy_kwargs": {"net_arch": [8], "squash_output": True}}


def constant(weight: float, steps: int = 0, recipe: PolicyMethod | None = None) -> PolicyMethod:
    """Kickstarting with a constant weight, and without extra steps as the twin does it."""
    recipe = recipe or kickstart(steps=steps)
    assert recipe.method is not None
    terms = {n: replace(t, weight=weight) for n, t in recipe.method.terms.items() if isinstance(t, Term)}
    return replace(recipe, method=replace(recipe.method, terms=terms))


SPACES: dict[str, Callable[[], Any]] = {
    "cartpole": partial(registered, "CartPole-v1"),
    "pendulum": partial(registered, "Pendulum-v1"),
    "several": lambda: environments(action=spaces.MultiDiscrete([2, 4, 3])),
    "binary": lambda: environments(action=spaces.MultiBinary(3)),
    "keys": lambda: environments(KEYS),
    "numbered": lambda: environments(spaces.Discrete(5)),
    "matrix": lambda: environments(PLAIN, spaces.Box(-1.0, 1.0, (2, 2))),
}

plain, keyed = lambda: make(environments()), lambda: make(environments(KEYS))
other_net = lambda: make(environments(), policy_kwargs={"net_arch": [9]})

# ---- the term --------------------------------------------------------------------------------------------------------


def compare_with_twin(build: Callable[[], Any], teacher: Any) -> None:
    ours, twin, plain = (
        weights(trained(build, callback)) for callback in (SelfDistil(constant(0.7), teacher), Twin(teacher, 0.7), None)
    )
    assert distance(ours, twin) < 1e-6
    assert distance(ours, plain) > 1e-3


@pytest.mark.parametrize(
    ("world", "algorithm"),
    [*((world, PPO) for world in SPACES), ("cartpole", A2C), ("pendulum", A2C), ("keys", A2C)],
)
def test_the_term_is_its_twin_of_torch_distributions(world: str, algorithm: type[Any]) -> None:
    build = lambda: make(SPACES[world](), algorithm, learning_rate=3e-3)
    compare_with_twin(build, sharp(SPACES[world](), algorithm))


@pytest.mark.parametrize("action", [spaces.Discrete(3), spaces.MultiDiscrete([2, 4, 3]), spaces.MultiBinary(2)])
def test_where_actions_are_masked_teacher_and_student_choose_among_the_others(action: Any) -> None:
    build = lambda: make(environments(action=action), MaskablePPO, learning_rate=3e-3)
    compare_with_twin(build, sharp(environments(action=action), MaskablePPO))


class RecurrentTwin(Twin):
    """A twin that leaves padding out."""

    def _on_training_start(self) -> None:
        super()._on_training_start()
        model: Any = self.model
        buffer = model.rollout_buffer
        get = buffer.get

        def noting(*given: Any) -> Any:
            for sample in get(*given):
                self.mask = sample.mask > 1e-8
                yield sample

        vars(buffer)["get"] = noting

    def divergence(self, teacher: Any, student: Any) -> torch.Tensor:
        return super().divergence(teacher, student)[self.mask]


def test_a_recurrent_policy_learns_from_a_teacher_of_single_states() -> None:
    teacher, build = sharp(environments()), lambda: make(environments(), RecurrentPPO, learning_rate=3e-3, **LSTM)

    class Of(RecurrentTwin):
        def _on_training_start(self) -> None:
            whole = self.teacher.policy.get_distribution
            self.teacher = type(
                "Teacher", (), {"policy": type("Policy", (), {"get_distribution": staticmethod(whole)})}
            )
            super()._on_training_start()

    ours, twin, plain = (
        weights(trained(build, callback)) for callback in (SelfDistil(constant(0.7), teacher), Of(teacher, 0.7), None)
    )
    assert distance(ours, twin) < 1e-6
    assert distance(ours, plain) > 1e-3


def test_a_privileged_teacher_sees_what_its_student_does_not() -> None:
    teacher = sharp(environments(KEYS))
    build = lambda: make(environments(KEYS), learning_rate=3e-3, policy_kwargs={"net_arch": [8], **hide("state")})
    ours, twin = (
        weights(trained(build, callback))
        for callback in (
            SelfDistil(constant(0.7, recipe=privileged(steps=0, temperature=1.0)), teacher),
            Twin(teacher, 0.7),
        )
    )
    assert distance(ours, twin) < 1e-6


@pytest.mark.parametrize("algorithm", [PPO, A2C, MaskablePPO, RecurrentPPO])
@pytest.mark.parametrize(
    "method", [constant(0.0, steps=5), restarted(), kickstart(release=0.0)], ids=lambda m: repr(m)[14:40]
)
def test_without_weight_the_training_is_that_of_the_algorithm_to_the_bit(
    algorithm: type[Any], method: PolicyMethod
) -> None:
    options = LSTM if algorithm is RecurrentPPO else {}
    build = lambda: make(environments(), algorithm, **options)
    teacher = sharp(environments())
    ours, plain = (weights(trained(build, one, 2)) for one in (SelfDistil(method, teacher), None))
    assert distance(ours, plain) == 0.0


def test_a_continued_policy_is_the_teacher_that_the_algorithm_trains_on() -> None:
    teacher = sharp(environments())

    class Begin(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_training_start(self) -> None:
            self.model.policy.load_state_dict(teacher.policy.state_dict())

    ours, by_hand = (weights(trained(plain, one, 2)) for one in (SelfDistil(continued(), teacher), Begin()))
    assert distance(ours, by_hand) == 0.0


def test_an_attached_loss_has_the_gradient_of_a_sum() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, requires_grad=True)
    carrier, scalar = weight.sigmoid().log(), weight.square().sum()
    (explicit,) = torch.autograd.grad(2.0 * carrier.mean() + scalar, weight, retain_graph=True)
    attached = attach(carrier, scalar)
    assert torch.equal(attached, carrier)
    (gradient,) = torch.autograd.grad(2.0 * attached.mean(), weight)
    torch.testing.assert_close(gradient, explicit, atol=0.0, rtol=1e-6)


def test_an_attached_loss_counts_where_nothing_else_of_the_carrier_does() -> None:
    weight = torch.randn(3, requires_grad=True)
    attached = attach(torch.zeros(4), weight.square().sum())
    (0.0 * attached).mean().backward()
    assert torch.equal(weight.grad, 2.0 * weight) if weight.grad is not None else False


@pytest.mark.parametrize("world", SPACES)
def test_a_copy_of_its_teacher_has_nothing_to_learn(world: str) -> None:
    model = make(SPACES[world]())
    callback = SelfDistil(constant(1.0), model)
    gradients: list[torch.Tensor] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            buffer = model.rollout_buffer
            sample = next(iter(copy.deepcopy(buffer).get(16)))
            actions = (
                sample.actions.long().flatten() if isinstance(model.action_space, spaces.Discrete) else sample.actions
            )
            _, log_prob, _ = model.policy.evaluate_actions(sample.observations, actions)
            (0.0 * log_prob).sum().backward()
            gradients.extend(p.grad for p in model.policy.parameters() if p.grad is not None)
            model.policy.zero_grad()

    model.learn(ROLLOUT, callback=[callback, Look()])
    assert gradients
    assert max(float(gradient.abs().max()) for gradient in gradients) < 1e-6


# ---- the extra steps -------------------------------------------------------------------------------------------------


class Record(BaseCallback):
    """What the algorithm holds when a rollout begins; stops by an exception before rollout number ``until``."""

    def __init__(self, distil: SelfDistil | None = None, until: int = 99) -> None:
        super().__init__()
        self.distil, self.until = distil, until
        self.begun: list[dict[str, torch.Tensor]] = []
        self.adam: list[Any] = []
        self.steps: list[int] = []
        self.drift: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        model: Any = self.model
        self.begun.append(weights(model))
        self.adam.append(copy.deepcopy(model.policy.optimizer.state_dict()["state"]))
        self.steps.append(self.distil.extra_steps if self.distil else 0)
        if len(self.begun) > self.until:
            raise InterruptedError

    def _on_rollout_end(self) -> None:
        model: Any = self.model
        buffer = model.rollout_buffer
        rows = torch.as_tensor(buffer.observations).flatten(0, 1)
        actions = torch.as_tensor(buffer.actions).flatten(0, 1).squeeze(-1)
        with torch.no_grad():
            _, log_prob, _ = type(model.policy).evaluate_actions(model.policy, rows, actions)
        self.drift.append(float((log_prob - torch.as_tensor(buffer.log_probs).flatten()).abs().max()))


def test_extra_steps_follow_the_weight_and_leave_the_algorithm_alone() -> None:
    teacher = sharp(environments())
    distil, late = SelfDistil(kickstart(release=0.5, steps=9), teacher), SelfDistil(constant(0.0), teacher)
    record, plain = Record(distil), Record(late)
    trained(lambda: make(environments()), [distil, record], 8)
    trained(lambda: make(environments()), [late, plain], 8)
    wanted = [round(9 * max(0.0, 1.0 - rollout / 4)) for rollout in range(8)]
    assert np.diff(record.steps).tolist() == wanted[1:]  # the first rollout has no update before it
    assert distil.extra_steps == sum(wanted[1:])
    assert max(record.drift) < 1e-5  # stored log-probabilities are those of the policy that acted
    updates = [next(iter(adam.values()))["step"].item() for adam in record.adam if adam]
    assert updates == [next(iter(adam.values()))["step"].item() for adam in plain.adam if adam]


def test_extra_steps_are_those_of_an_adam_of_their_own() -> None:
    teacher = sharp(environments())
    build = lambda: make(environments(), learning_rate=3e-3)
    many, none = SelfDistil(constant(1.0, steps=3), teacher), SelfDistil(constant(1.0), teacher)
    after, before = Record(many, until=1), Record(none, until=1)
    for callback, record in ((many, after), (none, before)):
        model = build()
        with pytest.raises(InterruptedError):
            model.learn(2 * ROLLOUT, callback=[callback, record])
    for mine, theirs in zip(after.adam[1].values(), before.adam[1].values(), strict=True):
        assert torch.equal(mine["exp_avg_sq"], theirs["exp_avg_sq"])
    policy = model.policy  # by hand, from where the algorithm's update ended
    adam = torch.optim.Adam(policy.parameters(), 1e-3)
    rows = next(iter(many._visited))["x"]
    draws = torch.Generator().manual_seed(many._address("distillation"))
    for _ in range(3):
        picked = rows[torch.randint(len(rows), (256,), generator=draws)]
        with torch.no_grad():
            target = teacher.policy.get_distribution(picked).distribution
        student = policy.get_distribution(picked).distribution
        loss = torch.distributions.kl_divergence(target, student).mean()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        adam.step()
    assert distance(after.begun[1], weights(model)) < 1e-6
    assert distance(after.begun[1], before.begun[1]) > 1e-3


METHODS: dict[str, Callable[[], PolicyMethod]] = {
    "kickstart": lambda: kickstart(release=0.8, steps=4),
    "dagger": lambda: dagger(share=0.6, steps=4),
    "self_imitation": lambda: self_imitation(steps=4),
    "mixed": lambda: policy_distillation(states="mixed", steps=4),
}


@pytest.mark.parametrize("recipe", METHODS)
def test_equal_trainings_are_equal_and_a_cut_one_goes_on_to_the_bit(recipe: str) -> None:
    method, teacher = METHODS[recipe](), sharp(registered("CartPole-v1"))
    build = lambda: make(registered("CartPole-v1"))
    whole, again = (trained(build, SelfDistil(method, teacher), 5) for _ in range(2))
    assert distance(weights(whole), weights(again)) == 0.0
    model, first, second = build(), SelfDistil(method, teacher), SelfDistil(method, teacher)
    with pytest.raises(InterruptedError):
        model.learn(5 * ROLLOUT, callback=[first, Record(until=2)])
    second.load_tree(copy.deepcopy(first.state_tree()))
    model.learn(3 * ROLLOUT, callback=second, reset_num_timesteps=False)
    assert distance(weights(whole), weights(model)) == 0.0


def test_a_cut_before_the_extra_steps_goes_on_to_the_bit_too() -> None:
    method, teacher = METHODS["kickstart"](), sharp(environments(action=spaces.Discrete(3)))
    build = lambda: make(environments())
    whole = trained(build, SelfDistil(method, teacher), 4)
    model, first, second = build(), SelfDistil(method, teacher), SelfDistil(method, teacher)
    with pytest.raises(InterruptedError):
        model.learn(4 * ROLLOUT, callback=[Record(until=2), first])
    second.load_tree(copy.deepcopy(first.state_tree()))
    model.learn(2 * ROLLOUT, callback=second, reset_num_timesteps=False)
    assert distance(weights(whole), weights(model)) == 0.0


# ---- who acts --------------------------------------------------------------------------------------------------------


class Always(nn.Module):
    """A teacher that takes one action nearly always."""

    def __init__(self, action: int = 2) -> None:
        super().__init__()
        self.action = action

    def forward(self, rows: Any) -> torch.Tensor:
        logits = torch.full((len(rows), 3), -20.0)
        logits[:, self.action] = 20.0
        return logits


def shares(method: PolicyMethod, rollouts: int) -> list[float]:
    """The share of the teacher's action in each rollout, of a student that never learns it."""
    method = replace(method, training=replace(method.training, steps=0))
    taken: list[float] = []

    class Count(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            model: Any = self.model
            taken.append(float((model.rollout_buffer.actions == 2).mean()))

    model = make(environments(), learning_rate=1e-12, n_steps=64)
    with torch.no_grad():
        model.policy.action_net.bias.copy_(torch.tensor([5.0, 0.0, -15.0]))
    model.learn(rollouts * 128, callback=[SelfDistil(method, Always()), Count()])
    return taken


def test_the_teacher_acts_as_the_states_say() -> None:
    assert shares(policy_distillation(states="student"), 1) == [0.0]
    assert shares(policy_distillation(states="teacher"), 1) == [1.0]
    assert 0.35 < shares(policy_distillation(states="mixed"), 1)[0] < 0.65


def test_the_share_of_dagger_falls_on_a_line() -> None:
    np.testing.assert_allclose(shares(dagger(share=1.0), 4), [1.0, 0.75, 0.5, 0.25], atol=0.13)
    assert shares(dagger(share=0.5), 4)[2:] == [0.0, 0.0]


def test_a_teacher_that_acts_takes_no_forbidden_action() -> None:
    model = make(environments(), MaskablePPO)
    model.learn(ROLLOUT, callback=SelfDistil(policy_distillation(states="teacher"), Always()))
    buffer = model.rollout_buffer
    allowed = buffer.action_masks.reshape(-1, 3)[np.arange(ROLLOUT), buffer.actions.astype(int).ravel()]
    assert allowed.all()


@pytest.mark.parametrize("box", [spaces.Box(-2.0, 2.0, (2, 2)), spaces.Box(-2.0, 2.0, (1,))])
def test_a_teacher_of_squashed_actions_acts_within_them(box: Any) -> None:
    teacher = sharp(environments(action=box), **GSDE)
    model = make(environments(action=box), **GSDE)
    model.learn(2 * ROLLOUT, callback=SelfDistil(policy_distillation(states="teacher"), teacher))
    assert np.abs(model.rollout_buffer.actions).max() <= 1.0


# ---- beside other things ---------------------------------------------------------------------------------------------


def clean(model: Any) -> bool:
    """Whether nothing of a callback is left in a model."""
    left = {"evaluate_actions", "forward", "_get_action_dist_from_latent"} & vars(model.policy).keys()
    return not left and "get" not in vars(model.rollout_buffer)


@pytest.mark.parametrize("method", [kickstart(steps=2), policy_distillation(states="mixed", steps=2)], ids=["k", "p"])
def test_an_exception_in_training_leaves_no_term_behind(method: PolicyMethod) -> None:
    teacher = sharp(environments())

    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 20:
                raise KeyboardInterrupt
            return True

    def after(callback: Any) -> dict[str, torch.Tensor]:
        model = make(environments())
        with pytest.raises(KeyboardInterrupt):
            model.learn(4 * ROLLOUT, callback=[SelfDistil(method, teacher), Stop()])
        model.learn(2 * ROLLOUT, callback=callback)
        return weights(model)

    class Nothing(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_training_start(self) -> None:
            for name in ("evaluate_actions", "forward"):
                vars(self.model.policy).pop(name, None)

    assert distance(after(None), after(Nothing())) == 0.0
    again = SelfDistil(kickstart(steps=0), teacher)
    assert distance(after(again), after([Nothing(), again])) == 0.0


def test_a_callback_trains_twice_and_leaves_nothing() -> None:
    teacher = sharp(environments())
    callback = SelfDistil(kickstart(release=1.0, steps=3), teacher)
    model = make(environments())
    for _ in range(2):
        model.learn(2 * ROLLOUT, callback=callback)
        assert clean(model)
    model.learn(2 * ROLLOUT, callback=CallbackList([callback, SelfDistil(kickstart(steps=3), teacher)]))
    assert clean(model)
    model.learn(2 * ROLLOUT, callback=callback, reset_num_timesteps=False)
    assert {"loss", "weight"} == set(callback.figures["teacher"])


def test_two_terms_ride_side_by_side() -> None:
    teacher = sharp(environments())
    build = lambda: make(environments(), learning_rate=3e-3)
    halves = [SelfDistil(constant(0.35), teacher), SelfDistil(constant(0.35), teacher)]
    one, two = weights(trained(build, SelfDistil(constant(0.7), teacher))), weights(trained(build, halves))
    assert distance(one, two) < 1e-6


@pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped")
def test_models_are_saved_and_evaluated_beside_it(tmp_path: Any) -> None:
    build = lambda: make(environments())
    teacher = sharp(environments())
    own = SelfDistil(policy_distillation(states="mixed", steps=2), teacher)
    beside = [
        CheckpointCallback(8, str(tmp_path)),
        EvalCallback(environments(), eval_freq=8, n_eval_episodes=1, best_model_save_path=str(tmp_path), verbose=0),
    ]
    trained(build, [own, *beside], 2)
    saved = sorted(tmp_path.glob("rl_model*.zip"))
    assert len(saved) == 4
    assert b"selfdistill" not in saved[0].read_bytes()
    loaded = PPO.load(saved[0], environments(), device="cpu")
    assert clean(loaded)
    loaded.learn(ROLLOUT)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 13},
        {"target_kl": 1e-9},
        {"policy_kwargs": {"net_arch": []}},
        {"policy_kwargs": {"net_arch": {"pi": [4], "vf": []}, "share_features_extractor": False}},
        {"gae_lambda": 1.0, "ent_coef": 0.1, "clip_range_vf": 0.2, "vf_coef": 0.0},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_odd_settings_of_the_algorithm_train(options: dict[str, Any]) -> None:
    teacher = sharp(environments())
    callback = SelfDistil(kickstart(release=1.0, steps=2), teacher)
    before = weights(make(environments(), **options))
    assert distance(weights(trained(lambda: make(environments(), **options), callback, 3)), before) > 0.0
    assert callback.extra_steps == 2  # 1.33 and 0.67 of 2


def test_gsde_and_images_train() -> None:
    box = spaces.Box(-2.0, 2.0, (2,))
    often: dict[str, Any] = {"use_sde": True, "sde_sample_freq": 4}
    for options in (GSDE, often):
        build = partial(make, environments(action=box), learning_rate=3e-3, **options)
        compare_with_twin(build, make(environments(action=box), seed=1, **options))
    of_images = lambda: make(
        environments(PICTURE),
        policy="CnnPolicy",
        policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}},
        n_epochs=1,
    )
    callback = SelfDistil(kickstart(release=1.0, steps=2), of_images())
    trained(of_images, callback, 2)
    assert callback.extra_steps == 1


def test_gsde_explores_by_the_deviations_of_now() -> None:
    options: dict[str, Any] = {"use_sde": True}
    box = spaces.Box(-2.0, 2.0, (2,))
    teacher = make(environments(action=box), seed=1, policy_kwargs={"net_arch": [8], "log_std_init": 3.0}, **options)
    scales: list[float] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            torch.manual_seed(0)

        def _on_rollout_end(self) -> None:
            policy: Any = self.model.policy
            scales.append(
                float(policy.action_dist.exploration_mat.detach().abs().mean() / policy.log_std.detach().exp().mean())
            )

    method = replace(
        kickstart(release=1.0, steps=300), training=replace(kickstart().training, steps=300, learning_rate=0.05)
    )
    make(environments(action=box), **options).learn(2 * ROLLOUT, callback=[SelfDistil(method, teacher), Look()])
    assert 0.3 < scales[1] < 1.5


def test_a_recurrent_student_learns_from_a_privileged_teacher() -> None:
    options: dict[str, Any] = {"policy_kwargs": {"net_arch": [8], "lstm_hidden_size": 6, **hide("state")}}
    model = make(environments(KEYS), RecurrentPPO, policy="MultiInputLstmPolicy", **options)
    callback = SelfDistil(privileged(release=1.0, steps=4), sharp(environments(KEYS)))
    before = weights(model)
    model.learn(2 * ROLLOUT, callback=callback)
    assert callback.extra_steps == 2
    assert distance(before, weights(model)) > 0.0


def test_a_callback_serves_one_model_after_another() -> None:
    callback = SelfDistil(kickstart(release=1.0, steps=2), sharp(environments()))
    for model in (plain(), make(environments(), A2C), make(environments(), MaskablePPO)):
        model.learn(2 * ROLLOUT, callback=callback)
        assert clean(model)
        assert callback.figures["teacher"]["loss"] > 0.0


def test_less_than_a_rollout_trains() -> None:
    callback = SelfDistil(kickstart(steps=4), sharp(environments()))
    make(environments()).learn(5, callback=callback)
    assert callback.figures["teacher"]["weight"] == 1.0
    assert callback.extra_steps == 0


def test_a_normalised_student_shows_its_teacher_what_the_environment_shows() -> None:
    teacher, seen = sharp(environments()), list[torch.Tensor]()

    class Note(nn.Module):
        def forward(self, rows: torch.Tensor) -> torch.Tensor:
            seen.append(rows)
            return torch.zeros(len(rows), 3)

    env = VecNormalize(environments(), clip_obs=1000.0)
    make(env).learn(2 * ROLLOUT, callback=SelfDistil(kickstart(steps=1), Note()))
    rows = torch.cat([rows for rows in seen[1:] if len(rows) > 2])
    assert float(rows.min()) > -1.3
    assert float(rows.max()) < 1.3
    make(env).learn(2 * ROLLOUT, callback=SelfDistil(kickstart(steps=1), teacher))


recurrent = lambda: make(environments(), RecurrentPPO, **LSTM)
off_policy = lambda: DQN("MlpPolicy", environments(), device="cpu")
REFUSED: list[tuple[str, Callable[[], Any], Any, Callable[[], Any]]] = [
    ("cannot ride on the update of DQN", off_policy, kickstart(), lambda: None),
    ("of TRPO; train by PPO, A2C", lambda: TRPO("MlpPolicy", environments(), n_steps=16), kickstart(), lambda: None),
    ("needs a teacher", plain, kickstart(), lambda: None),
    (r"answers with {'logits': \(2, 4\)}", plain, kickstart(), lambda: nn.Linear(3, 4)),
    (r"cannot read observations of \(3,\)", plain, kickstart(), lambda: nn.Linear(5, 3)),
    (r"where values is to be \(2, 1\); leave", plain, kickstart(value=1.0), lambda: nn.Linear(3, 3)),
    (r"acts in Discrete\(2\)", plain, kickstart(), lambda: make(environments(action=spaces.Discrete(2)))),
    ("not a int", plain, kickstart(), lambda: 7),
    ("has no key 'hidden'; it has 'frames', 'place', 'state'", keyed, privileged(sees="hidden"), keyed),
    (r"the student sees the key 'state'.*hide\('state'\)", keyed, privileged(), keyed),
    ("is a Box without keys", plain, privileged(), plain),
    ("a teacher goes on only with its own network", plain, continued(), other_net),
    ("learns from a policy that was trained before; .*previous=", plain, born_again_policy(), lambda: None),
    ("recurrent policy cannot learn from single steps", recurrent, self_imitation(), lambda: None),
    ("a recurrent policy answers by its memory", plain, kickstart(), recurrent),
    ("a DQNPolicy is no actor-critic policy", plain, kickstart(), off_policy),
]


@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize(("message", "build", "method", "teacher"), REFUSED, ids=[row[0][:30] for row in REFUSED])
def test_what_cannot_work_is_refused_in_one_line_before_training(
    message: str, build: Callable[[], Any], method: PolicyMethod, teacher: Callable[[], Any]
) -> None:
    model = build()
    with pytest.raises((DataError, RecipeError), match=message) as refused:
        model.learn(64, callback=SelfDistil(method, teacher()))
    assert "\n" not in str(refused.value)
    assert model.num_timesteps == 0


def test_a_student_may_learn_from_itself_as_it_was_but_not_from_its_own_weights() -> None:
    model = make(environments())
    model.learn(ROLLOUT)
    model.learn(2 * ROLLOUT, callback=SelfDistil(kickstart(steps=2), model))

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = model.policy

        def forward(self, rows: torch.Tensor) -> Any:
            return self.policy.get_distribution(rows).distribution.logits

    with pytest.raises(DataError, match=r"weights of the student.*deepcopy"):
        model.learn(2 * ROLLOUT, callback=SelfDistil(kickstart(), Own()))
    assert all(weight.requires_grad for weight in model.policy.parameters())


def test_the_environment_of_gymnasium_is_served_by_its_name() -> None:
    model = PPO("MlpPolicy", gymnasium.make("CartPole-v1"), n_steps=32, batch_size=32, n_epochs=1, device="cpu")
    model.learn(64, callback=SelfDistil(kickstart(steps=1), sharp(registered("CartPole-v1"))))
    assert clean(model)


def test_a_script_gets_a_folder_with_a_log_a_report_and_vitals(tmp_path: Path) -> None:
    teacher = PPO("MlpPolicy", "CartPole-v1", n_steps=32, seed=1, device="cpu")
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    model.learn(128, callback=SelfDistil(kickstart(steps=2), teacher, out=tmp_path / "run"))
    bare = PPO("MlpPolicy", "CartPole-v1", n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    bare.learn(128, callback=SelfDistil(kickstart(steps=2), teacher))
    assert all(torch.equal(a, b) for a, b in zip(model.policy.parameters(), bare.policy.parameters(), strict=True))
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [32, 64, 96, 128]
    assert lines[0]["control"]["teacher_kl"] > 0
    page = CliRunner().invoke(main, ["report", str(tmp_path / "run")])
    assert page.exit_code == 0, page.output
    assert "CartPole-v1" in (tmp_path / "run" / "report.html").read_text()
    vitals = CliRunner().invoke(main, ["vitals", str(tmp_path / "run")])
    assert vitals.exit_code == 0
    assert "KL to the teacher" in vitals.output
    with pytest.raises(DataError, match="give SelfDistil another out="):
        SelfDistil(kickstart(), teacher, out=tmp_path / "run")
