"""A classifier for more classes keeps what it knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from selfdistill.errors import RecipeError
from selfdistill.models import store
from selfdistill.models.growth import Padded, grown
from selfdistill.models.registry import Build, parse
from selfdistill.models.store import load

ROWS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def test_old_classes_keep_their_logits_and_new_ones_are_drawn(tmp_path: Path) -> None:
    build = parse("mlp(width=8, exits=True)", (3,), 4)
    store.save(build(), tmp_path, build)
    old, new = load(tmp_path), grown(tmp_path, 6)().eval()
    for name, logits in old(ROWS).items():
        assert torch.equal(new(ROWS)[name][..., : logits.shape[-1]], logits), name
    assert new(ROWS)["logits"].shape == (5, 6)
    assert not torch.equal(grown(tmp_path, 6)()(ROWS)["logits"][:, 4:], new(ROWS)["logits"][:, 4:])


def test_as_many_classes_are_the_same_model(tmp_path: Path) -> None:
    build = parse("mlp(width=8)", (3,), 4)
    store.save(build(), tmp_path, build)
    assert torch.equal(grown(tmp_path, 4)().eval()(ROWS), load(tmp_path)(ROWS))


def test_a_model_of_several_is_refused(tmp_path: Path) -> None:
    build = Build("mlp", (3,), 4).wrapped("mean2", 1)
    store.save(build(), tmp_path, build)
    with pytest.raises(RecipeError, match="combines several"):
        grown(tmp_path, 6)


def test_padded_logits_beside_other_heads() -> None:
    model = parse("mlp(width=8, exits=True)", (3,), 4)().eval()
    outputs = Padded(model, 6, -7.0)(ROWS)
    assert isinstance(outputs, dict)
    assert torch.equal(outputs["logits"][:, :4], model(ROWS)["logits"])
    assert (outputs["logits"][:, 4:] == -7.0).all()
    assert torch.equal(outputs["feature"], model(ROWS)["feature"])
