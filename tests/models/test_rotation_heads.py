"""Four rotations of each row, in training only."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from selfdistill.core.objective import Method
from selfdistill.core.parts import Term
from selfdistill.core.step import Forward, Passes, TrainingClock
from selfdistill.errors import SpaceError
from selfdistill.losses import CrossEntropy
from selfdistill.methods import sla_sd
from selfdistill.models.feature_heads import Rotated
from selfdistill.models.peers import final_model
from selfdistill.teachers import JointLabels
from selfdistill.testing.specimens import batch_of
from tests.harness import build


def test_in_eval_mode_only_the_image_as_it_is_is_looked_at():
    model = Rotated(build()).eval()
    seen = []
    model.model.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    x = torch.rand(3, 1, 8, 8)
    assert model(x).keys() == {"logits"}
    assert model.train()(x).keys() == {"logits", "joint", "aggregated"}
    assert seen == [3, 12]
    assert model.kept == {}
    bare = final_model(model)
    assert torch.equal(bare.eval()(x), model.eval()(x)["logits"])
    assert len(list(bare.parameters())) == len(list(model.parameters())) - 2


class Corner(nn.Module):
    """One feature: how bright the upper left corner is."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(1, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x[:, 0, 0, :1])  # type: ignore[no-any-return]


def test_rotations_go_by_quarters_and_are_averaged_where_they_belong():
    """Each corner comes to the upper left in its turn: upper left, upper right, lower right, lower left."""
    model = Rotated(Corner())
    with torch.no_grad():
        model.joint.weight.copy_(torch.arange(12.0)[:, None])
        model.joint.bias.zero_()
    said = model(torch.tensor([[[[1.0, 2.0], [4.0, 3.0]]]]))
    for m, corner in enumerate((1.0, 2.0, 3.0, 4.0)):
        assert said["joint"][0, m].tolist() == [corner * k for k in range(12)]
    wanted = [sum((4 * c + m) * (m + 1) for m in range(4)) / 4 for c in range(3)]
    assert said["aggregated"][0].tolist() == pytest.approx(wanted)


def test_passes_are_counted_for_every_copy():
    model = Rotated(build())
    forward = Forward(model, batch_of({"x": "labelled"}, 0, maps=True), TrainingClock()).run()
    assert forward.passes == Passes(forward=48, backward=48)


def test_a_joint_label_is_the_class_and_the_turn_and_a_row_without_one_has_none():
    term = Term(JointLabels(), CrossEntropy(), head="joint")
    objective = Method({"t": term}).bind(Rotated(build()))
    x = torch.rand(2, 1, 8, 8)
    found = JointLabels().target(nn.Module(), objective.forward_views({"x": x, "y": torch.tensor([2, -1])}), term)
    assert found.value[0].tolist() == [8, 9, 10, 11]
    assert found.valid is not None
    assert found.valid.tolist() == [[True] * 4, [False] * 4]
    with pytest.raises(SpaceError, match="head 'joint'"):
        JointLabels().space("logits")


def test_rows_that_cannot_be_rotated_are_refused():
    method = sla_sd()
    assert method.wrap_model is not None
    for shape in ((2, 6), (2, 1, 4, 6)):
        with pytest.raises(SpaceError, match="square images"):
            method.bind(method.wrap_model(build)())({"x": torch.rand(shape), "y": torch.tensor([0, 1])})
