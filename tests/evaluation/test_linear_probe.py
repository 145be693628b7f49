"""Probes read the features that a network has, and leave it as it was."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from selfdistill.errors import SelfdistillError
from selfdistill.evaluation import linear_probe
from selfdistill.experiments.benchmark.cells import probed
from selfdistill.models.feature_heads import Projectors
from tests.harness import CLASSES, tiny_data, value_data


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
    found = linear_probe.features(net, data, data.labelled)
    np.testing.assert_allclose(found.numpy(), by_hand(net, data.rows(data.labelled)), atol=1e-5)
    assert net.training
    assert not net.classifier._forward_hooks


def test_features_are_the_models_own_and_not_those_of_heads_beside_it() -> None:
    """Projector and predictor come after the classifier: what their last layer reads is no feature of the product."""
    torch.manual_seed(0)
    net, data = Net(), tiny_data()
    whole = Projectors((6, 5), (3, 5))(lambda: net)()
    wanted = by_hand(net, data.rows(data.test))
    np.testing.assert_allclose(linear_probe.features(whole, data, data.test).numpy(), wanted, atol=1e-5)
    weights = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    for answered in (probed(whole, data).test(), probed(whole, data, weights).test()):
        torch.testing.assert_close(answered, probed(net, data).test())


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
    assert linear_probe.probe(net, data)["linear"] == pytest.approx(accuracy, abs=1e-9)


def test_nearest_is_a_brute_force_search() -> None:
    generator = torch.Generator().manual_seed(0)
    known, asked = torch.randn(40, 5, generator=generator), torch.randn(30, 5, generator=generator)
    y = torch.randint(3, (40,), generator=generator)
    found = linear_probe.nearest(known, y, asked, 1)
    for row, answer in zip(asked, found, strict=True):
        cosines = [float(row @ one / (row.norm() * one.norm())) for one in known]
        assert int(answer) == int(y[int(np.argmax(cosines))])


def test_the_nearest_rows_are_asked_about_the_test_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row by row: the commonest class of the twenty nearest by cosine, of evenly drawn rows where there are many."""
    torch.manual_seed(0)
    net, data = Net(), tiny_data()
    for most in (linear_probe.MOST, 20):
        monkeypatch.setattr(linear_probe, "MOST", most)
        ids = data.labelled if most > len(data.labelled) else data.labelled[::3]
        known, asked = (by_hand(net, data.rows(rows)) for rows in (ids, data.test))
        right = 0
        for row, label in zip(asked, data.y[data.test].tolist(), strict=True):
            cosines = known @ row / (np.linalg.norm(known, axis=1) * np.linalg.norm(row))
            votes = data.y[ids][cosines.argsort()[::-1][: min(20, len(ids))].copy()].bincount(minlength=CLASSES)
            right += int(votes.argmax()) == label
        assert linear_probe.by_neighbours(net, data) == pytest.approx(right / len(data.test))
    assert linear_probe.by_neighbours(net, dataclasses.replace(data, test=data.test[:0])) is None
    assert linear_probe.by_neighbours(net, value_data()) is None


def test_a_network_without_a_linear_layer_is_refused() -> None:
    with pytest.raises(SelfdistillError):
        linear_probe.features(nn.Sequential(nn.Flatten(), nn.Conv1d(1, 1, 1)), tiny_data(), torch.arange(3))


def test_settled_classifier_minimises_the_penalised_loss_on_standardised_features() -> None:
    """Against Newton-like steps of torch on the objective as it is written, in float64."""
    torch.manual_seed(0)
    net, data = Net(), tiny_data()
    known, y = torch.from_numpy(by_hand(net, data.rows(data.labelled))).double(), data.targets[data.labelled]
    spread = known.std(0, correction=0)
    standard = (known - known.mean(0)) / torch.where(spread > 0, spread, 1.0)
    w, b = (torch.zeros(*shape, dtype=torch.float64, requires_grad=True) for shape in ((CLASSES, 12), (CLASSES,)))
    steps = torch.optim.LBFGS([w, b], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def objective() -> torch.Tensor:
        steps.zero_grad()
        loss = nn.functional.cross_entropy(standard @ w.T + b, y, reduction="sum") + w.square().sum() / 2
        loss.backward()
        return loss

    steps.step(objective)
    assert linear_probe.fit_classifier(net, data) == len(data.labelled)
    said = net.eval()(data.rows(data.labelled)).log_softmax(1)
    wanted = (standard @ w.T + b).log_softmax(1).detach()
    torch.testing.assert_close(said.double(), wanted, atol=0.05, rtol=0)  # scikit-learn stops at a slope of 1e-4


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("classes", [[0, 1], [1, 3], [2]])
def test_settled_classifier_says_no_class_without_a_label(classes: list[int], bias: bool) -> None:
    torch.manual_seed(0)
    net, data = Net(), tiny_data()
    net.classifier = nn.Linear(12, CLASSES, bias)
    kept = data.labelled[torch.isin(data.y[data.labelled], torch.tensor(classes))]
    before = net.classifier.weight.clone()
    linear_probe.fit_classifier(net, dataclasses.replace(data, labelled=kept))
    if len(classes) < 2:
        assert net.classifier.weight.equal(before)
        return
    said = net.eval()(data.rows(kept)).argmax(1)
    assert (said == data.y[kept]).double().mean() > 0.6
    if bias:
        assert set(net(data.rows(data.test)).argmax(1).tolist()) <= set(classes)


def test_settled_values_are_a_ridge_regression() -> None:
    torch.manual_seed(0)
    net, data = Net(), value_data(0)
    net.classifier = nn.Linear(12, 1)
    known, y = torch.from_numpy(by_hand(net, data.rows(data.labelled))).double(), data.targets[data.labelled].double()
    spread = known.std(0, correction=0)
    standard = (known - known.mean(0)) / torch.where(spread > 0, spread, 1.0)
    w = torch.linalg.solve(standard.T @ standard + torch.eye(12).double(), standard.T @ (y - y.mean()))
    linear_probe.fit_classifier(net, data)
    said = net.eval()(data.rows(data.labelled))[:, 0]
    torch.testing.assert_close(said.double(), standard @ w + y.mean(), atol=1e-4, rtol=0)
