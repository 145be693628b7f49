"""The default networks: shapes of every output, and what reaches what."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from selfdistill.errors import RecipeError
from selfdistill.models.networks import Block, cnn, mlp, resnet, vit
from selfdistill.models.registry import MODELS

IMAGE = (3, 16, 16)


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (1, 28, 28), (3, 9, 13), (2, 4, 4)])
def test_without_exits_a_model_returns_logits(name, shape):
    assert MODELS[name](shape, 7)(torch.rand(4, *shape)).shape == (4, 7)


@pytest.mark.parametrize(("build", "exits"), [(mlp, 1), (cnn, 2), (resnet, 2)])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 13), (3, 32, 32)])
def test_with_exits_a_model_returns_each_exit_on_its_own_feature(build, exits, shape):
    model = build(shape, 7, exits=True)
    out = model(torch.rand(4, *shape))
    width = model.classifier.in_features
    assert {name: tuple(value.shape) for name, value in out.items()} == {
        "logits": (4, 7),
        "exits": (4, exits, 7),
        "feature": (4, width),
        "features": (4, exits, width),
    }
    by_hand = torch.stack([c(out["features"][:, i]) for i, c in enumerate(model.classifiers)], dim=1)
    assert torch.allclose(out["exits"], by_hand, atol=1e-6)
    assert torch.allclose(out["logits"], model.classifier(out["feature"]), atol=1e-6)


@pytest.mark.parametrize("build", [mlp, cnn, resnet])
def test_exits_run_from_shallow_to_deep(build):
    """An exit's gradient reaches its own stage and earlier ones, and none after it; the main one uses no exit."""
    model = build(IMAGE, 5, exits=True)
    exits = len(model.classifiers)
    for i in range(exits + 1):
        model.zero_grad()
        out = model(torch.rand(4, *IMAGE))
        (out["exits"][:, i] if i < exits else out["logits"]).square().sum().backward()
        reached = [any(p.grad is not None and p.grad.any() for p in stage.parameters()) for stage in model.stages]
        assert reached == [j <= i for j in range(exits + 1)]
        own = [any(p.grad is not None and p.grad.any() for p in b.parameters()) for b in model.bottlenecks]
        assert own == [j == i for j in range(exits)]


def test_exits_change_nothing_for_the_deepest_classifier():
    plain, early = cnn(IMAGE, 5), cnn(IMAGE, 5, exits=True)
    early.load_state_dict(plain.state_dict(), strict=False)
    x = torch.rand(4, *IMAGE)
    assert torch.equal(plain(x), early(x)["logits"])


def test_mlp_is_linear_and_relu_without_norm():
    """The forward pass again, by matrix products."""
    model = mlp((2, 3), 4, width=5, depth=3)
    weights = list(model.parameters())
    assert [tuple(w.shape) for w in weights] == [(5, 6), (5,), (5, 5), (5,), (5, 5), (5,), (4, 5), (4,)]
    x = torch.randn(7, 2, 3)
    h = x.reshape(7, 6)
    for i in (0, 2, 4):
        h = (h @ weights[i].T + weights[i + 1]).clamp(min=0)
    assert torch.allclose(model(x), h @ weights[6].T + weights[7], atol=1e-6)
    assert not list(model.buffers())


def test_cnn_is_small_and_its_maps_halve_until_four():
    count = sum(p.numel() for p in cnn((1, 28, 28), 10).parameters())
    convolutions = 9 * (32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128)
    assert count == convolutions + 2 * 2 * (32 + 64 + 128) + 128 * 10 + 10
    for side, sides in [(28, [28, 14, 7]), (8, [8, 4, 4]), (7, [7, 7, 7]), (4, [4, 4, 4])]:
        for build in (cnn, resnet):
            x = torch.rand(2, 1, side, side)
            found = []
            net: Any = build((1, side, side), 3)
            for stage in net.stages:
                x = stage(x)
                found.append(x.shape[-1])
            assert found == sides


def test_resnet_has_six_blocks_and_two_layers_and_shortcuts_carry_the_input():
    model: Any = resnet((3, 32, 32), 10, blocks=3)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(convolutions) + 1 == 6 * 3 + 2
    block = model.stages[0][-1]
    for layer in (block.first, block.second):
        nn.init.zeros_(layer[0].weight)
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(block.eval()(x), x)


@pytest.mark.parametrize("build", [cnn, resnet])
def test_group_norm_does_not_look_at_the_other_rows(build):
    x = torch.rand(4, *IMAGE)
    grouped, batched = build(IMAGE, 5, norm="group"), build(IMAGE, 5)
    assert torch.allclose(grouped(x)[:1], grouped(x[:1]), atol=1e-5)
    assert not torch.allclose(batched(x)[:2], batched(x[:2]), atol=1e-3)
    assert grouped(x).shape == build(IMAGE, 5, norm="group", width=6)(x).shape


@pytest.mark.parametrize("name", sorted(MODELS))
def test_dropout_acts_in_training_only(name):
    model, x = MODELS[name](IMAGE, 5, dropout=0.5), torch.rand(4, *IMAGE)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_a_stem_makes_the_maps_of_a_cnn_smaller() -> None:
    """Of 28 pixels a side the first stage sees 14, the second 7, and the third too, for 3 is too small."""
    model = cnn((1, 28, 28), 10, width=4, stem=2)
    x, sides = torch.zeros(2, 1, 28, 28), []
    for stage in model.stages:  # type: ignore[union-attr]
        x = stage(x)
        sides.append(x.shape[-1])
    assert sides == [14, 7, 7]
    assert cnn((1, 28, 28), 10, width=4, stem=2, exits=True)(torch.zeros(2, 1, 28, 28))["exits"].shape == (2, 2, 10)
    with pytest.raises(RecipeError, match="stem"):
        cnn((1, 28, 28), 10, stem=0)


def test_a_block_is_torchs_own_encoder_layer() -> None:
    """The same weights in PyTorch's layer, norm first, say the same; heads see each other's rows in no way."""
    torch.manual_seed(0)
    block = Block(12, 3, 0.0)
    theirs = nn.TransformerEncoderLayer(12, 3, 48, 0.0, nn.functional.gelu, batch_first=True, norm_first=True)
    pairs = [(theirs.norm1, block.norm1), (theirs.norm2, block.norm2), (theirs.linear1, block.linear1),
             (theirs.linear2, block.linear2), (theirs.self_attn.out_proj, block.projection)]  # fmt: skip
    with torch.no_grad():
        for copy, original in pairs:
            copy.load_state_dict(original.state_dict())
        theirs.self_attn.in_proj_weight.copy_(block.qkv.weight)
        theirs.self_attn.in_proj_bias.copy_(block.qkv.bias)
    x = torch.randn(4, 7, 12)
    torch.testing.assert_close(block(x), theirs.train()(x), atol=1e-6, rtol=1e-5)


def test_vit_classifies_its_own_token_after_all_patches() -> None:
    torch.manual_seed(0)
    model = vit((3, 12, 20), 5, width=8, depth=2, heads=2)
    assert model.places.shape == (1, 1 + 6 * 10, 8)
    x = torch.rand(2, 3, 12, 20)
    said = model(x)
    assert said.shape == (2, 5)
    changed = x.clone()
    changed[0, :, -1, -1] += 1.0  # the last patch is seen by the first token
    assert not model(changed)[0].equal(said[0])
    torch.testing.assert_close(model(changed)[1], said[1])
    moved = x.roll(2, 3)  # patches in other places are another image
    assert not torch.allclose(model(moved), said, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "why"),
    [({"patch": 3}, "divisor"), ({"width": 10}, "divided by 4"), ({"depth": 0}, "depth"), ({"patch": 0}, "patch")],
)
def test_vit_refuses_what_does_not_divide(options: dict[str, int], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        vit((1, 8, 8), 4, **options)
    with pytest.raises(RecipeError, match="reads images"):
        vit((5,), 4)
