"""Heads that read layers: by hand, on models of other people, in copies, compiled and in two processes' engine."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill.core.objective import Method
from selfdistill.core.outputs import space_of
from selfdistill.core.parts import Term
from selfdistill.errors import SpaceError
from selfdistill.losses import CrossEntropy, Squared
from selfdistill.methods import recipes
from selfdistill.models.feature_taps import Featured, Features, Reading, width_of
from selfdistill.models.peers import final_model
from selfdistill.models.registry import parse
from selfdistill.teachers import CurrentStudent, Ema, Labels
from selfdistill.testing.specimens import same_bits
from tests.harness import building_for


class Net(nn.Module):
    """Somebody's model: two maps of different size, a block of tokens, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU())
        self.mix = nn.TransformerEncoderLayer(5, 1, 7, dropout=0.0, batch_first=True)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(x))
        return self.fc(self.mix(x.flatten(2).transpose(1, 2)).mean(1))  # type: ignore[no-any-return]


def net(seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net()


HEADS = (
    "feature", "vector:layer1", "vector:mix", "input:layer2", "map:layer2", "map:mix", "attention:layer1",
    "attention:layer2@layer1", "energy:layer2", "dense:layer2", "project:layer1@layer2", "classify:layer1",
)  # fmt: skip
X = torch.randn(2, 1, 6, 6, generator=torch.Generator().manual_seed(1))


def test_every_reading_is_what_its_formula_says():
    """Against the layers called one by one."""
    model = net().eval()
    said = Featured(model, HEADS).eval()
    f1 = model.layer1(X)
    f2 = model.layer2(f1)
    tokens = model.mix(f2.flatten(2).transpose(1, 2))
    found = said(X)
    wide = F.interpolate((f2**2).sum(1, keepdim=True), (6, 6), mode="bilinear", align_corners=False)
    energy = (f2**2).mean(1).flatten(1)
    wanted = {
        "logits": model.fc(tokens.mean(1)),
        "feature": tokens.mean(1),
        "vector:layer1": f1.mean((2, 3)),
        "vector:mix": tokens.mean(1),
        "input:layer2": f1.mean((2, 3)),
        "map:layer2": f2.permute(0, 2, 3, 1).reshape(2, 9, 5),
        "map:mix": tokens,
        "attention:layer1": (f1**2).sum(1).flatten(1).softmax(1),
        "attention:layer2@layer1": wide.flatten(1).softmax(1),
        "energy:layer2": energy / energy.norm(dim=1, keepdim=True),
        "dense:layer2": model.fc(f2.permute(0, 2, 3, 1).reshape(2, 9, 5)),
        "project:layer1@layer2": said.learnt[0](f1.mean((2, 3))),
        "classify:layer1": said.learnt[1](f1.mean((2, 3))),
    }
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, atol=1e-6), name
    assert found["project:layer1@layer2"].shape == (2, 5)
    assert found["classify:layer1"].shape == (2, 4)


def test_heads_that_read_have_their_space():
    assert {head: space_of(head) for head in ("vector:a", "map:a", "project:a@b", "dense:a", "classify:a")} == {
        "vector:a": "features", "map:a": "features", "project:a@b": "features", "dense:a": "logits",
        "classify:a": "logits",
    }  # fmt: skip


def test_a_copy_reads_its_own_layers():
    """The hooks of a copy keep nothing in the original, whose weights have moved on."""
    model = Featured(net(), ("vector:layer1",))
    model(X)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2.0)
    mine, theirs = model(X)["vector:layer1"], twin(X)["vector:layer1"]
    assert not torch.allclose(mine, theirs)
    assert torch.equal(mine, model(X)["vector:layer1"])
    assert model.kept == twin.kept == {}


def test_an_average_teaches_a_layer_through_a_projector():
    """Feature distillation from an averaged copy: the projector learns, the product is without it and without hooks."""
    heads = ("vector:layer2", "project:layer1@layer2")
    terms = {
        "label": Term(Labels(), CrossEntropy()),
        "hint": Term(CurrentStudent(head="vector:layer2"), Squared(mean=True), head="project:layer1@layer2"),
        "past": Term(Ema(0.5), Squared(mean=True), head="vector:layer2"),
    }
    method = Method(terms, wrap_model=Features(heads))
    assert method.wrap_model is not None
    model = method.wrap_model(net)()
    objective = method.bind(model)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        objective({"x": X, "y": torch.tensor([0, 3])}).backward()
        optimizer.step()
        objective.update()
    assert not torch.equal(model.state_dict()["learnt.0.weight"], before["learnt.0.weight"])
    assert float(objective.figures["past"].loss) > 0
    bare = final_model(model)
    assert isinstance(bare, Net)
    assert bare.state_dict().keys() == Net().state_dict().keys()
    assert same_bits(dict(bare.state_dict()), {k.removeprefix("model."): v for k, v in model.state_dict().items()
                                               if k.startswith("model.")})  # fmt: skip
    assert not any(module._forward_hooks for module in bare.modules())
    assert "vector:layer2" in model(X), "the trained model keeps its own"


def test_hooks_survive_compiling_without_a_break():
    """One graph, and the same numbers; a second batch is another one."""
    model = Featured(net().eval(), HEADS).eval()
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    for x in (X, X + 1.0):
        wanted, found = model(x), compiled(x)
        assert found.keys() == wanted.keys()
        assert all(torch.allclose(found[name], wanted[name], atol=1e-6) for name in wanted)


@pytest.mark.parametrize(
    "name", ["sla_sd", "mixskd", *(pytest.param(n, marks=pytest.mark.slow) for n in ("frskd", "simsiam", "ibot"))]
)
def test_what_a_recipe_puts_around_a_model_survives_compiling_in_training(name: str) -> None:
    """Pyramid, rotations, fused exits, projector and hidden patches: one graph, the same heads, the same gradients."""
    method = recipes()[name]()
    assert method.wrap_model is not None
    torch.manual_seed(0)
    model = method.wrap_model(building_for(method))().train()
    twin = copy.deepcopy(model)
    compiled: Any = torch.compile(twin, backend="eager", fullgraph=True)
    for x in torch.rand(2, 6, 1, 8, 8):
        wanted, found = model(x), compiled(x)
        assert found.keys() == wanted.keys()
        assert all(torch.allclose(found[head], wanted[head], atol=1e-6) for head in wanted)
        for said in (wanted, found):
            torch.stack([value.square().mean() for value in said.values()]).sum().backward()
    for mine, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert mine.grad is not None and theirs.grad is not None  # noqa: PT018
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-6)


def test_the_default_models_have_the_layers_that_recipes_name():
    """Stages of the CNN and the residual network say maps; the MLP's say vectors."""
    for spec in ("cnn(width=8)", "resnet(width=8)"):
        model = Featured(parse(spec, (1, 8, 8), 3)(), ("map:stages.0", "map:stages.1", "map:stages.2", "feature"))
        said = model(torch.zeros(2, 1, 8, 8))
        assert said["map:stages.0"].shape[1] == 64
        assert said["map:stages.2"].shape[2] == said["feature"].shape[1] == 32
        assert [width_of(model.model, f"stages.{i}") for i in range(3)] == [8, 16, 32] or "resnet" in spec
    said = Featured(parse("mlp(width=8)", (4,), 3)(), ("vector:stages.1", "feature"))(torch.zeros(2, 4))
    assert torch.equal(said["vector:stages.1"], said["feature"])


def refused(model: nn.Module, *heads: str) -> str:
    with pytest.raises(SpaceError) as caught:
        Featured(model, heads)(X)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_read_is_refused_by_name():
    assert "no layer 'layer9' (it has: layer1, layer1.0" in refused(net(), "vector:layer9")
    assert "or give another model (--model cnn, say)" in refused(net(), "vector:layer9")
    assert "no positions to compare" in refused(net(), "attention:fc")
    assert "took no part" in refused(nn.Sequential(nn.Flatten(), Unused()), "vector:1.spare")
    assert "no linear layer" in refused(nn.Conv2d(1, 2, 3), "feature")
    assert "no linear, convolution or norm" in refused(net(), "project:layer2.1@layer1")
    assert "says a tuple" in refused(nn.Sequential(Pair(), First()), "vector:0")
    for head in ("vector", "shape:a", "project:a", "map:a@b", "vector:", ":a"):
        with pytest.raises(SpaceError, match="no head is called"):
            Reading.of(head)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spare, self.used = nn.Linear(36, 2), nn.Linear(36, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)  # type: ignore[no-any-return]


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class First(nn.Module):
    def forward(self, x: tuple[Tensor, Tensor]) -> Tensor:
        return x[0]


def test_a_mean_distance_is_that_of_the_means_of_rows_that_have_a_target():
    """By hand; a permutation of the rows changes nothing, and neither does a row without a target."""
    from selfdistill.core.targets import Target
    from selfdistill.losses import MeanDistance

    s, t = torch.randn(5, 3), torch.randn(5, 3)
    wanted = float((s.mean(0) - t.mean(0)).square().sum())
    assert MeanDistance()(s, Target(t.flip(0), "features")).tolist() == pytest.approx([wanted] * 5)
    valid = torch.tensor([True, True, False, True, False])
    wanted = float((s[valid].mean(0) - t[valid].mean(0)).square().sum())
    assert MeanDistance()(s, Target(t, "features", valid)).tolist() == pytest.approx([wanted] * 5)


def test_sad_reads_the_layers_it_is_told_and_needs_two():
    from selfdistill.errors import RecipeError
    from selfdistill.methods import sad

    method = sad(layers=("layer1", "layer2"), wait=0.0, weight=100.0)
    assert method.wrap_model is not None
    objective = method.bind(method.wrap_model(net)())
    objective({"x": X, "y": torch.tensor([0, 1])}).backward()
    assert float(objective.figures["attention_0"].loss) > 0
    with pytest.raises(RecipeError, match="at least two"):
        sad(layers=("layer1",))
    prepare = sad(layers=("stages.0", "stages.1")).wrap_model
    assert prepare is not None
    vectors = prepare(parse("mlp(width=8)", (4,), 3))()
    with pytest.raises(SpaceError, match="no positions to compare"):
        vectors(torch.zeros(2, 4))
