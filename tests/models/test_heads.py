"""Heads: which output, in which space, and the factories that provide several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from selfdistill.core.outputs import SPACE_OF_HEAD, element_shape, output_of, space_of
from selfdistill.core.targets import SPACES
from selfdistill.errors import SpaceError
from selfdistill.models.heads import Exits
from selfdistill.models.peers import Gaussian, GaussianGroup, GaussianPair, Group, PeerModels, Ranked
from selfdistill.testing.conformance import check_value


def test_every_head_speaks_a_known_space():
    """A head nobody knows is taken for logits."""
    assert set(SPACE_OF_HEAD.values()) <= set(SPACES)
    assert space_of("another classifier") == "logits"


def test_elements_are_all_but_the_components():
    """Rows, exits and tokens are elements; classes are not."""
    assert element_shape(torch.zeros(5, 3, 10)) == (5, 3)


def test_a_bare_tensor_is_the_main_head():
    """Whatever the main head is called; nothing else can be asked of it."""
    outputs = {"": torch.ones(2, 3)}
    for head in ("logits", "values", "gaussian"):
        assert output_of(outputs, head) is outputs[""]
    with pytest.raises(SpaceError, match="one unnamed tensor"):
        output_of(outputs, "exits")


def test_a_missing_head_is_named_with_those_there():
    """What is wanted and what the model returns."""
    with pytest.raises(SpaceError, match=r"'peers' \(it returns: logits, exits\)"):
        output_of({"logits": torch.zeros(1, 2), "exits": torch.zeros(1, 1, 2)}, "peers")


def test_peers_stand_side_by_side():
    """Each peer's logits in its place; the ensemble is the mean probability; the first is the product."""
    members: list[nn.Module] = [nn.Linear(3, 4) for _ in range(3)]
    x = torch.randn(5, 3)
    out = PeerModels(members)(x)
    for k, member in enumerate(members):
        assert out["peers"][:, k].equal(member(x))
    assert out["logits"].equal(members[0](x))
    mean = sum(torch.exp(m(x)) / torch.exp(m(x)).sum(-1, keepdim=True) for m in members) / 3
    torch.testing.assert_close(torch.softmax(out["ensemble"], -1), mean)


def test_peers_of_models_with_named_outputs():
    """A member may return a mapping; its logits are taken."""

    class Named(nn.Linear):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:  # type: ignore[override]
            return {"feature": x, "logits": super().forward(x)}

    members: list[nn.Module] = [Named(3, 4), Named(3, 4)]
    assert PeerModels(members)(torch.randn(2, 3))["peers"].shape == (2, 2, 4)


def test_a_group_builds_each_peer_by_itself():
    """Every peer has an initialisation of its own: no copies."""
    group: Any = Group(3)(lambda: nn.Linear(2, 2))()
    weights = [member.weight for member in group.members]
    assert len(weights) == 3
    assert not any(weights[i].equal(weights[j]) for i in range(3) for j in range(i))


@pytest.mark.parametrize("peers", [1, 0, -2])
def test_a_peer_alone_is_refused(peers):
    """Nobody is taught by himself."""
    with pytest.raises(SpaceError, match="at least two"):
        Group(peers)


def test_exits_are_asked_for_where_the_factory_knows_them():
    """A factory that knows ``exits`` is called with it, another one as it is; one that says so by ``accepts`` too."""
    calls: list[object] = []

    def knows(exits: bool = False) -> nn.Module:
        calls.append(exits)
        return nn.Identity()

    def knows_not() -> nn.Module:
        calls.append(None)
        return nn.Identity()

    class Says:
        def accepts(self, name: str) -> bool:
            return name == "exits"

        def __call__(self, **options: object) -> nn.Module:
            calls.append(options)
            return nn.Identity()

    for build in (knows, knows_not, Says()):
        Exits()(build)()
    assert calls == [True, None, {"exits": True}]


@pytest.mark.parametrize(
    "prepare", [Exits(), Group(), Group(4), Gaussian(), GaussianGroup(3), GaussianPair(), Ranked()]
)
def test_preparations_are_values(prepare):
    """They are part of a recipe."""
    check_value(prepare)
