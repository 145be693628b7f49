"""Policies as modules from flat rows to heads, and how observations lie flat."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Independent, Laplace, MixtureSameFamily, Normal

from selfdistill.control import Actor, ModuleActor, ObservationLayout, PolicyEnsemble
from selfdistill.control.actors import ABSENT, MaskedActor, SelectedColumns, action_mask, action_output, copy_policy
from selfdistill.errors import DataError, SpaceError
from tests.control.common import KEYS, PICTURE, PLAIN, environments, make

SERVED = [
    PLAIN, PICTURE, spaces.Discrete(4), spaces.MultiDiscrete([2, 5]), spaces.MultiBinary(3), KEYS,
    spaces.Dict({"picture": PICTURE, "place": spaces.MultiDiscrete([2, 3])}), spaces.Dict({"only": PICTURE}),
]  # fmt: skip


@pytest.mark.parametrize("space", SERVED, ids=str)
def test_flat_rows_are_the_observations_again(space: Any) -> None:
    """As a rollout stores them and as a policy gets them: the answers of a policy are the same."""
    model = make(environments(space))
    observations = model.policy.obs_to_tensor(model.get_env().reset())[0]
    layout = ObservationLayout.of(space)
    rows = layout.flatten(observations)
    assert rows.shape == (2, layout.width)
    again = layout.unflatten(rows)
    for answer, direct in (
        (Actor(model.policy, layout, values=True)(rows)["values"], model.policy.predict_values(observations)),
        (
            model.policy.get_distribution(again).distribution.logits,
            model.policy.get_distribution(observations).distribution.logits,
        ),
    ):
        torch.testing.assert_close(answer, direct)
    if len(layout.parts) == 1:
        kept: Any = again[layout.keys[0]] if isinstance(again, dict) else again
        assert kept.dtype == rows.dtype == (observations[layout.keys[0]] if layout.keys else observations).dtype


@pytest.mark.parametrize(
    ("space", "hidden", "message"),
    [
        (spaces.Tuple([PLAIN]), (), "the observation is a Tuple; .*flatten it by a gymnasium wrapper"),
        (spaces.Dict({"a": spaces.Text(3)}), (), "the key 'a' of the observation is a Text"),
        (spaces.Dict({"a": KEYS}), (), "the key 'a' of the observation is a Dict"),
        (PLAIN, ("state",), "is a Box without keys, so it has no key 'state'; .*Dict"),
        (KEYS, ("States",), "has no key 'States'; it has 'frames', 'place', 'state'"),
        (KEYS, ("frames", "place", "state"), "no key of the observation is left for the student; hide fewer"),
    ],
)
def test_observations_that_are_not_served_are_named(space: Any, hidden: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ObservationLayout.of(space, hidden)


def test_a_hidden_key_is_in_no_row() -> None:
    layout = ObservationLayout.of(KEYS, ("state",))
    assert layout.keys == ("frames", "place")
    assert layout.width == 5
    assert layout.describe() == "frames (2, 2), place (1,)"


LOGITS = torch.tensor([[0.5, -1.0, 2.0], [0.0, 3.0, 1.0]])
MEANS, DEVIATIONS = torch.tensor([[0.5, -1.0]]), torch.tensor([[0.3, 2.0]])


def test_a_divergence_of_heads_is_that_of_the_distributions() -> None:
    from selfdistill.core.targets import Target
    from selfdistill.losses import KL, GaussianKL

    other = torch.tensor([[1.0, 0.0, -1.0], [0.2, 0.1, 0.0]])
    pairs: list[tuple[Any, Any]] = [
        (Categorical(logits=LOGITS), Categorical(logits=other)),
        (Bernoulli(logits=LOGITS), Bernoulli(logits=other)),
        (
            [Categorical(logits=LOGITS), Categorical(logits=LOGITS[:, :2])],
            [Categorical(logits=other), Categorical(logits=other[:, 1:])],
        ),
        (Normal(MEANS, DEVIATIONS), Normal(MEANS + 1.0, DEVIATIONS.flip(1))),
    ]
    for teacher, student in pairs:
        head, output = action_output(student)
        _, target = action_output(teacher)
        loss = GaussianKL() if head == "gaussian" else KL()
        ours = loss(output, Target(target, head))
        ours = ours if ours.dim() == 1 else ours.sum(1)
        both = zip(teacher, student, strict=True) if isinstance(teacher, list) else [(teacher, student)]
        expected = [torch.distributions.kl_divergence(t, s) for t, s in both]
        total = torch.stack([e if e.dim() == 1 else e.sum(1) for e in expected]).sum(0)
        torch.testing.assert_close(ours, total)


def test_an_action_that_does_not_exist_has_no_gradient() -> None:
    from selfdistill.core.targets import Target
    from selfdistill.losses import KL

    logits = LOGITS.clone().requires_grad_()
    _, output = action_output([Categorical(logits=logits), Categorical(logits=logits[:, :2])])
    _, target = action_output([Categorical(logits=LOGITS.flip(0)), Categorical(logits=LOGITS[:, 1:])])
    KL()(output, Target(target, "logits")).sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_other_distributions_are_refused() -> None:
    for distribution in (
        Laplace(MEANS, DEVIATIONS),
        Independent(Normal(MEANS, DEVIATIONS), 1),
        [Normal(MEANS, DEVIATIONS)],
    ):
        with pytest.raises(DataError, match="are not served"):
            action_output(distribution)


def test_a_mask_has_the_shape_of_the_logits() -> None:
    assert action_mask([[1, 0, 1]], spaces.Discrete(3)).tolist() == [[True, False, True]]
    assert action_mask([[1, 0, 0, 1]], spaces.MultiBinary(2)).tolist() == [[[True, False], [False, True]]]
    actor = MaskedActor(ModuleActor(nn.Identity(), ObservationLayout((("", (3,)),))))
    assert torch.equal(actor(LOGITS)["logits"], LOGITS)
    actor.mask = action_mask([[1, 0, 1], [1, 1, 1]], spaces.Discrete(3))
    assert actor(LOGITS)["logits"].tolist() == [[0.5, ABSENT, 2.0], [0.0, 3.0, 1.0]]


def test_a_module_answers_as_it_likes_and_reads_what_the_environment_shows() -> None:
    keyed = ObservationLayout((("a", (1,)), ("b", (2, 1))))

    class Keyed(nn.Module):
        def forward(self, seen: Any) -> Any:
            return {"logits": seen["b"].squeeze(-1), "values": seen["a"]}

    rows = torch.tensor([[1.0, 2.0, 3.0]])
    assert {name: value.tolist() for name, value in ModuleActor(Keyed(), keyed)(rows).items()} == {
        "logits": [[2.0, 3.0]],
        "values": [[1.0]],
    }
    layout = ObservationLayout((("", (3,)),))
    assert set(ModuleActor(nn.Linear(3, 2), layout, continuous=True)(rows.double())) == {"gaussian"}

    class Words(nn.Module):
        def forward(self, seen: Any) -> Any:
            return "left"

    with pytest.raises(SpaceError, match="the teacher returned a str; a tensor or a mapping"):
        ModuleActor(Words(), layout)(rows)


def test_selected_columns_are_those_of_the_keys() -> None:
    whole = ObservationLayout((("a", (1,)), ("b", (2,)), ("c", (1,))))
    rows = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    own = ObservationLayout((("c", (1,)), ("a", (1,))))
    teacher = SelectedColumns(ModuleActor(Sum(), own), whole, own)
    assert teacher(rows)["logits"].tolist() == [[4.0, 10.0]]


class Sum(nn.Module):
    """c, and a ten times."""

    def forward(self, seen: Any) -> Any:
        return torch.cat([seen["c"], 10.0 * seen["a"]], 1)


class Fixed(nn.Module):
    """One answer for all rows."""

    def __init__(self, **heads: Tensor) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        return self.heads


def test_an_ensemble_is_the_mixture_of_its_policies() -> None:
    second = torch.tensor([[1.0, 0.0, -1.0], [0.2, 0.1, 0.0]])
    mean = PolicyEnsemble([Fixed(logits=LOGITS), Fixed(logits=second + 7.0)])(LOGITS)["logits"]
    torch.testing.assert_close(mean.softmax(-1), (LOGITS.softmax(-1) + second.softmax(-1)) / 2)
    torch.testing.assert_close(mean.exp().sum(-1), torch.ones(2))

    normal = [Normal(MEANS, DEVIATIONS), Normal(MEANS + 3.0, DEVIATIONS / 2)]
    heads = [Fixed(gaussian=action_output(one)[1]) for one in normal]
    mixed = PolicyEnsemble(heads)(LOGITS)["gaussian"]
    components = Normal(torch.stack([n.mean for n in normal], -1), torch.stack([n.stddev for n in normal], -1))
    mixture = MixtureSameFamily(Categorical(torch.ones(1, 2, 2)), components)
    torch.testing.assert_close(mixed[..., 0], mixture.mean)
    torch.testing.assert_close(mixed[..., 1].exp(), mixture.variance)


def test_a_copy_of_a_policy_shares_no_weight_and_needs_no_graph() -> None:
    model = make(environments())
    model.learn(32)
    with pytest.raises(RuntimeError):  # what a plain copy says, since the last distribution holds a graph
        copy.deepcopy(model.policy)
    copied = copy_policy(model.policy)
    assert not {id(w) for w in copied.parameters()} & {id(w) for w in model.policy.parameters()}
    rows = torch.zeros(1, 3)
    with torch.no_grad():
        before = copied.get_distribution(rows).distribution.logits
        model.policy.action_net.bias.add_(1.0)
        assert torch.equal(copied.get_distribution(rows).distribution.logits, before)
