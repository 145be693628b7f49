"""Probes read the features that a network has, and leave it as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from selfdistill import probes
from selfdistill.benchmark.probe import probed
from selfdistill.errors import SelfdistillError
from tests.harness import CLASSES, tiny_data


class Net(nn.Module):
    """8x8 images -> logits, with dropout, which a probe must not see."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.dropout, self.classifier = nn.Linear(64, 12), nn.Dropout(0.5), nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.classifier(self.dropout(torch.relu(self.hidden(x.flatten(1)))))
        return out


def by_hand(net: Net, x: torch.Tensor) -> np.ndarray:
    w, b = net.hidden.weight.detach().numpy(), net.hidden.bias.detach().numpy()
    found: np.ndarray = np.maximum(x.flatten(1).numpy() @ w.T + b, 0.0)
    return found


def test_features_are_what_the_last_linear_layer_reads_and_the_network_stays_as_it_was() -> None:
    torch.manual_seed(0)
    net, data = Net().train(), tiny_data()
    found = probes.features(net, data, data.labelled)
    np.testing.assert_allclose(found.numpy(), by_hand(net, data.rows(data.labelled)), atol=1e-5)
    assert net.training
    assert not net.classifier._forward_hooks


def test_linear_is_a_logistic_regression_on_standardised_features() -> None:
    torch.manual_seed(0)
    net, data = Net(), tiny_data()
    known, asked = (by_hand(net, data.rows(ids)) for ids in (data.labelled, data.test))
    mean, spread = known.mean(0), known.std(0)
    spread[spread == 0] = 1.0
    wanted = LogisticRegression(max_iter=1000).fit((known - mean) / spread, data.targets[data.labelled].numpy())
    said = probed(net, data).test()
    assert said.shape == (len(data.test), data.outputs)
    np.testing.assert_allclose(
        said[:, wanted.classes_].numpy(), wanted.predict_log_proba((asked - mean) / spread), atol=1e-3
    )
    truth = data.targets[data.test].numpy()
    accuracy = float((wanted.predict((asked - mean) / spread) == truth).mean())
    assert probes.probe(net, data)["linear"] == pytest.approx(accuracy, abs=1e-9)


def test_nearest_is_a_brute_force_search() -> None:
    generator = torch.Generator().manual_seed(0)
    known, asked = torch.randn(40, 5, generator=generator), torch.randn(30, 5, generator=generator)
    y = torch.randint(3, (40,), generator=generator)
    found = probes.nearest(known, y, asked, 1)
    for row, answer in zip(asked, found, strict=True):
        cosines = [float(row @ one / (row.norm() * one.norm())) for one in known]
        assert int(answer) == int(y[int(np.argmax(cosines))])


def test_a_network_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(SelfdistillError):
        probes.features(nn.Sequential(nn.Flatten(), nn.Conv1d(1, 1, 1)), tiny_data(), torch.arange(3))
