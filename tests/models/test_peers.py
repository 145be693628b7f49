"""Branches, peers apart, combined and old teachers, ensembles: against explicit sums, grids and brute force."""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfdistill import fit
from selfdistill.core.objective import Method
from selfdistill.core.parts import BaseTerm, Loss, Teacher, Term
from selfdistill.core.step import Forward, TrainingClock
from selfdistill.core.targets import Target
from selfdistill.errors import RecipeError, SelfdistillError, SpaceError, VitalsError
from selfdistill.experiments.network_run import gain
from selfdistill.losses import KL, CrossEntropy, DirichletNLL, KLFromStudent, LogOneMinusInner, PrototypeCrossEntropy
from selfdistill.methods import recipes
from selfdistill.models import peers
from selfdistill.models.networks import mlp
from selfdistill.models.peers import ApartPeers, AttendingBranches, Branches, GatedBranches, Group, PeerMean, PeerModels
from selfdistill.models.registry import parse
from selfdistill.teachers import Combined, CurrentStudent, GenerationEnsemble, Labels, Members, Stale
from selfdistill.teachers.committee import best_weights, convex
from selfdistill.terms import Cooling, RowMeanCooling
from selfdistill.training import callbacks
from selfdistill.training.callbacks import pairwise
from tests.harness import record, tiny_data
from tests.oracles import kdcl as kdcl_oracle
from tests.test_oracles import LOSS, WEIGHT, differences

generator = torch.Generator().manual_seed(5)


def models(number: int) -> list[nn.Module]:
    torch.manual_seed(0)
    return [mlp((6,), 4, width=16, depth=3) for _ in range(number)]


# groups of another kind -----------------------------------------------------------------------------------------------


def test_branches_share_their_first_stages_and_the_product_is_a_plain_model() -> None:
    x, whole = torch.randn(5, 6, generator=generator), models(3)
    before = [model(x) for model in whole]
    group = Branches(whole)
    torch.testing.assert_close(group(x)["peers"][:, 0], before[0])  # the first keeps its own trunk
    shared, plain = group.final_model(), mlp((6,), 4, width=16, depth=3)
    assert shared.state_dict().keys() == plain.state_dict().keys()
    torch.testing.assert_close(shared(x), group(x)["logits"])
    assert sum(p.numel() for p in group.parameters()) < sum(p.numel() for m in models(3) for p in m.parameters())
    group.final_model().classifier.weight.data.zero_()  # type: ignore[union-attr, operator]
    torch.testing.assert_close(shared(x), group(x)["logits"])


def test_the_gate_weighs_the_branches() -> None:
    group = GatedBranches(models(3)).eval()
    said = group(torch.randn(5, 6, generator=generator))
    inside = torch.stack([said["peers"].amin(1), said["peers"].amax(1)])
    assert (said["gated"] >= inside[0] - 1e-6).all()
    assert (said["gated"] <= inside[1] + 1e-6).all()
    group.gate[0].weight.data.zero_()  # type: ignore[operator]
    group.gate[0].bias.data.zero_()  # type: ignore[operator]
    even = group(torch.ones(1, 6))
    torch.testing.assert_close(even["gated"], even["peers"].mean(1))


def test_the_leader_is_the_product_and_no_peer() -> None:
    group, x = AttendingBranches(models(4)), torch.randn(5, 6, generator=generator)
    said = group(x)
    assert said["peers"].shape == said["attended"].shape == (5, 3, 4)
    torch.testing.assert_close(group.final_model()(x), said["logits"])
    torch.testing.assert_close(said["mean"], said["peers"].mean(1))


def test_a_model_without_stages_is_named() -> None:
    with pytest.raises(SpaceError, match="share the first stages"):
        Branches([nn.Linear(2, 2), nn.Linear(2, 2)])


def test_peers_apart_see_a_block_each_in_training_and_every_row_later() -> None:
    members: list[nn.Module] = [nn.Linear(3, 4) for _ in range(3)]
    group, x = ApartPeers(members), torch.randn(6, 3, generator=generator)
    said = group.train()(x)["logits"]
    for k in range(3):
        torch.testing.assert_close(said[2 * k : 2 * k + 2], members[k](x[2 * k : 2 * k + 2]))
    assert group.forward_passes == 1
    assert group.eval()(x)["peers"].shape == (6, 3, 4)
    assert group.forward_passes == 3
    with pytest.raises(SpaceError, match="one view for each peer"):
        group.train()(x[:5])


def test_a_mean_predicts_the_mean() -> None:
    members: list[nn.Module] = [nn.Linear(3, 4) for _ in range(3)]
    x = torch.randn(5, 3, generator=generator)
    mean = torch.stack([m(x).softmax(1) for m in members]).mean(0)
    torch.testing.assert_close(PeerMean(members)(x)["logits"].softmax(1), mean)
    torch.testing.assert_close(
        PeerMean(members, values=True)(x)["values"], torch.stack([m(x) for m in members]).mean(0)
    )


# teachers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("peers", [2, 3])
def test_the_best_convex_combination_beats_every_point_of_a_grid(peers: int) -> None:
    z, y = 3 * torch.randn(40, peers, 5, generator=generator), torch.arange(40) % 5
    a = convex(z, y)
    torch.testing.assert_close(a.sum(1), torch.ones(40).double())
    assert (a >= 0).all()

    def loss(weights: Tensor) -> Tensor:
        return F.cross_entropy(torch.einsum("nk,nkc->nc", weights, z.double()), y, reduction="none")

    best, steps = loss(a), 20
    for parts in itertools.product(range(steps + 1), repeat=peers):
        if sum(parts) == steps:
            point = torch.tensor(parts).double() / steps
            assert (best <= loss(point.expand(40, -1)) + 1e-9).all()


def test_the_best_weights_have_the_least_squared_error() -> None:
    y = torch.arange(60) % 3
    p = (torch.randn(60, 3, 3, generator=generator) + 2 * F.one_hot(y, 3)[:, None]).softmax(-1)
    w = best_weights(p, y)
    assert float(w.sum()) == pytest.approx(1.0)

    def error(weights: Tensor) -> float:
        return float((torch.einsum("k,nkc->nc", weights, p.double()) - F.one_hot(y, 3)).square().sum())

    for _ in range(50):
        nudge = torch.randn(3, generator=generator).double() * 0.1
        assert error(w) <= error(w + nudge - nudge.mean()) + 1e-6


@pytest.mark.parametrize("combination", ["naive", "linear", "minlogit", "general"])
def test_kdcl_equals_its_oracle_by_every_combination(combination: str) -> None:
    """Two epochs, so that the weights of "general" are estimated once in between."""
    with tempfile.TemporaryDirectory() as folder:
        run = record(recipes()["kdcl"](combination), Path(folder) / "run")
    loss, weight = differences(run, *kdcl_oracle.oracle(run, combination))
    assert loss <= LOSS * 10
    assert weight <= WEIGHT * 10


def test_unknown_combinations_are_refused_with_those_there_are() -> None:
    with pytest.raises(RecipeError, match="'naive', 'linear', 'minlogit', 'general', not 'best'"):
        Combined("best")


def test_old_copies_teach_until_they_are_renewed() -> None:
    torch.manual_seed(0)
    group = Group(3)(lambda: nn.Linear(4, 3))()
    objective = Method({"t": Term(Stale(every=2), KL(), head="peers")}).bind(group, vitals=False)
    optimizer = torch.optim.SGD(group.parameters(), lr=0.5)
    x, y = torch.randn(5, 4, generator=generator), torch.arange(5) % 3
    known = group(x)["peers"].detach().softmax(-1)
    for step in range(5):
        objective({"x": x, "y": y}).backward()
        term: Any = objective.method.terms["t"]
        target = term.teacher.target(objective.states["t_stale"], objective._steps[-1], term)
        for k in range(3):
            torch.testing.assert_close(target.value[:, k], known[:, [j for j in range(3) if j != k]].mean(1))
        optimizer.step()
        objective.update()
        if step % 2:
            known = group(x)["peers"].detach().softmax(-1)
    assert not any(m.training for m in objective.states["t_stale"].get_submodule("module").modules())
    with pytest.raises(RecipeError, match="from 1 on"):
        Stale(every=0)


def test_all_earlier_generations_teach_by_their_mean_or_one_by_one() -> None:
    x, y = torch.randn(4, 6, generator=generator), torch.arange(4) % 4
    earlier = models(3)
    for kind, last in itertools.product((GenerationEnsemble, Members), (False, True)):
        method = Method({"t": Term(kind(at_last=last), DirichletNLL() if kind is Members else KL())}, generations=4)
        for generation in (1, 3):
            clock = TrainingClock(generation, 4)
            objective = method.bind(models(1)[0], previous=PeerModels(earlier), clock=clock)
            objective({"x": x, "y": y})
            term: Any = objective.method.terms["t"]
            state = next(iter(objective.states.values()))
            target = term.teacher.target(state, objective._steps[-1], term)
            if last and generation < 3:
                assert target.valid is not None
                assert not target.valid.any()
            elif kind is Members:
                assert target.value.equal(torch.cat([m(x) for m in earlier], dim=1))
            else:
                mean = torch.stack([m(x).softmax(1) for m in earlier]).mean(0)
                torch.testing.assert_close(target.probabilities(4), mean)


# losses, terms, figures -----------------------------------------------------------------------------------------------


def test_reverse_kl_turns_kl_round() -> None:
    a, b = (torch.randn(6, 4, generator=generator) for _ in range(2))
    torch.testing.assert_close(KLFromStudent(3.0)(a, Target(b, "logits")), KL(3.0)(b, Target(a, "logits")))


def test_the_dirichlet_loss_is_the_mean_density_of_the_members() -> None:
    z, members = torch.randn(5, 4, generator=generator), torch.randn(5, 3, 4, generator=generator)
    found = DirichletNLL(2.0, smoothing=0.1)(z, Target(members.flatten(1), "members"))
    density = torch.distributions.Dirichlet((z / 2).exp())
    p = 0.9 * (members / 2).softmax(-1) + 0.1 / 4
    wanted = -torch.stack([density.log_prob(p[:, m]) for m in range(3)]).mean(0)
    torch.testing.assert_close(found, wanted)
    with pytest.raises(SpaceError, match="no whole number of members"):
        DirichletNLL()(z, Target(torch.zeros(5, 6), "members"))


def test_a_term_cools_to_the_temperature_of_its_loss() -> None:
    term = Cooling(Labels(), KL(2.0), start=6.0, share=0.5)
    assert [term.temperature(TrainingClock(step=s, epochs=8)) for s in (0, 1, 2, 4, 7)] == [6.0, 5.0, 4.0, 2.0, 2.0]
    with pytest.raises(RecipeError, match="has no temperature"):
        Cooling(CurrentStudent(), LogOneMinusInner())
    warming = Cooling(CurrentStudent(), PrototypeCrossEntropy(0.1, 0.07), start=0.04, share=0.5, which="sharp")
    assert [round(warming.temperature(TrainingClock(step=s, epochs=8)), 4) for s in (0, 2, 4, 7)] == [
        0.04,
        0.055,
        0.07,
        0.07,
    ]
    with pytest.raises(RecipeError, match="has no sharp"):
        Cooling(CurrentStudent(), KL(), which="sharp")
    with pytest.raises(RecipeError, match="above 0"):
        Cooling(CurrentStudent(), KL(), start=0.0)


def test_a_mean_over_rows_of_the_mean_over_a_rows_valid_elements() -> None:
    """By hand: rows of which two, one and no element are valid; the last counts as 0, and rows are divided by."""

    class Told(Teacher):
        def target(self, state: nn.Module, forward: Forward, term: BaseTerm) -> Target:
            valid = torch.tensor([[True, True, False], [False, False, True], [False, False, False]])
            return Target(torch.zeros(3, 3, 1), "features", valid)

    class Seen:
        clock, batch = TrainingClock(), {"x": None}

        def rows(self, view: str) -> int:
            return 3

        def student(self, view: str, head: str) -> torch.Tensor:
            return torch.tensor([[[1.0], [3.0], [9.0]], [[9.0], [9.0], [2.0]], [[9.0], [9.0], [9.0]]])

    @dataclass(frozen=True)
    class Far(Loss):
        temperature: float = 1.0

        def __call__(self, student: torch.Tensor, target: Target) -> torch.Tensor:
            return (student - target.value).square().sum(-1)

    found = RowMeanCooling(Told(), Far(), head="features").tally(lambda part: nn.Identity(), cast(Any, Seen()))
    assert (found.tally.total.item(), found.tally.count.item()) == ((1 + 9) / 2 + 4 + 0, 3)


def test_diversity_by_hand() -> None:
    p = torch.tensor([[[0.8, 0.2], [0.6, 0.4], [0.1, 0.9]], [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]])
    found = pairwise(p)
    assert found["distance"] == pytest.approx((0.2 + 0.7 + 0.5) / 3 / 2)
    assert found["disagreement"] == pytest.approx(2 / 3 / 2)
    assert pairwise(torch.tensor([[[1.0], [4.0]]]), "regress") == {"distance": 3.0}
    assert pairwise(torch.rand(4, 1, 3)) == {}


def test_the_share_of_the_gain_that_is_kept() -> None:
    assert gain({"rmse": 2.0}, {"rmse": 3.0}, {"rmse": 4.0}) == {"gain": 2.0, "kept": 0.5}
    assert gain({"accuracy": 0.5}, {"accuracy": 0.9}, {"accuracy": 0.5}) == {"gain": 0.0, "kept": None}


# runs -----------------------------------------------------------------------------------------------------------------


def same_each_time() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def flat() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def test_equal_peers_are_refused_in_one_line() -> None:
    """Of the same weights and the same view; with views of their own they do not stay equal."""
    options: dict[str, Any] = {"epochs": 1, "batch_size": 12, "audit": "off"}
    with pytest.raises(SelfdistillError, match="peers 1 and 2 start from the same weights") as caught:
        fit(same_each_time, tiny_data(0), recipes()["mutual"](), **options)
    assert "\n" not in str(caught.value)
    fit(same_each_time, tiny_data(0), recipes()["kdcl"](), **options)


@pytest.mark.parametrize("name", ["one", "okddip"])
def test_a_model_without_stages_is_refused_with_the_models_that_have_some(name: str) -> None:
    """What has no stages at all, and what has one alone; what says that it has none can learn by what is named."""
    options: dict[str, Any] = {"epochs": 1, "batch_size": 16, "audit": "off"}
    for build, kind in ((flat, "Sequential"), (parse("mlp(depth=1)", (1, 8, 8), 4), "Staged")):
        with pytest.raises(SpaceError, match=f"and {kind} has no nn.ModuleList `stages` of two or more; cnn") as no:
            fit(build, tiny_data(0), recipes()[name](), **options)
        assert "\n" not in str(no.value)
    for spec in ("cnn(width=4)", "resnet(width=4)", "mlp"):
        fit(parse(spec, (1, 8, 8), 4), tiny_data(0), recipes()[name](), **options)
    fit(flat, tiny_data(0), recipes()["mutual"](), **options)
    joined, odd = recipes()[name](), Term(Labels(), CrossEntropy(), head="dense")
    with pytest.raises(SpaceError, match="the model has no output 'dense'"):  # stages are not what is missing
        fit(parse("mlp", (1, 8, 8), 4), tiny_data(0), replace(joined, terms={"odd": odd}), **options)


def test_diversity_is_in_the_log_of_every_group() -> None:
    for name in ("mutual", "kdcl"):
        result = fit(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4)),
            tiny_data(0),
            recipes()[name](),
            epochs=2,
            batch_size=12,
        )
        for line in result.history:
            assert 0 < line["diversity"]["distance"] < 1
            assert 0 <= line["diversity"]["disagreement"] <= 1
    plain = fit(lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), tiny_data(0), recipes()["plain"](), epochs=1)
    assert "diversity" not in plain.history[0]


def test_peers_that_have_become_one_are_told_and_then_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only where they are not sure, only once they have learnt something, and only a second time in a row."""
    figures = {"distance": 1e-6, "disagreement": 0.0, "uncertainty": 0.4}
    monkeypatch.setattr(callbacks, "measure_diversity", lambda *_: dict(figures))
    options: dict[str, Any] = {"batch_size": 22, "audit": "off", "device": "cpu"}
    lines = list[str]()
    with pytest.raises(VitalsError, match="equal-peers: the peers are one model") as caught:
        fit(flat, tiny_data(0), recipes()["mutual"](), epochs=40, warn=lines.append, **options)
    assert caught.value.vital == "equal-peers"
    assert "\n" not in str(caught.value)
    assert [line for line in lines if "the peers are nearly one model" in line] == lines[-1:]
    fit(flat, tiny_data(0), recipes()["mutual"](), epochs=40, vitals=False, **options)
    figures["uncertainty"] = 1e-5  # they agree since they are sure
    result = fit(flat, tiny_data(0), recipes()["mutual"](), epochs=40, **options)
    assert all("uncertainty" not in line["diversity"] for line in result.history)


def test_peers_that_do_not_fit_are_refused_after_the_first(monkeypatch):
    """With their gradients and moments: 500 peers of 1 MB each take 2 GB."""
    built = list[int]()

    def build():
        built.append(1)
        return nn.Linear(500, 500)

    monkeypatch.setattr(peers, "free_memory", lambda: 10**9)
    with pytest.raises(SpaceError, match=r"500 peers take 2\.0 GB .* ask for fewer peers or a smaller --model"):
        peers.Group(500)(build)()
    assert len(built) == 1
    group = peers.Group(3)(build)()
    assert isinstance(group, peers.PeerModels)
    assert len(group.members) == 3
