"""Our parts, and which of them fit together: what the tests of conformance and of refusal share."""

from __future__ import annotations

from typing import Any

from selfdistill.carried import Carried
from selfdistill.core import Always
from selfdistill.gates import (
    Agreement,
    Confidence,
    Confident,
    Correct,
    LabelledShare,
    Precision,
    Shard,
    SmallLoss,
)  # fmt: skip
from selfdistill.losses import (
    KL,
    Absolute,
    ClassPrior,
    CrossEntropy,
    DirichletNLL,
    Entropy,
    GaussianKL,
    GaussianNLL,
    LogOneMinusInner,
    LogVariances,
    MeanNLL,
    PairCrossEntropy,
    ReverseKL,
    Squared,
)
from selfdistill.teachers import (
    Aligned,
    Ancestors,
    Combined,
    Ema,
    Ensembled,
    External,
    Frozen,
    Generation,
    History,
    Itself,
    Labels,
    LastBatch,
    LastEpoch,
    Members,
    Peers,
    PseudoLabels,
    Refurbished,
    Relabelled,
    Sampled,
    Stale,
)  # fmt: skip

LOSSES = [
    (CrossEntropy(), None), (CrossEntropy(4.0, smoothing=0.1), None), (CrossEntropy(hard=True), None),
    (KL(), 0.0), (KL(4.0), 0.0), (Squared(), 0.0), (Squared(mean=True), 0.0), (LogOneMinusInner(), None),
    (GaussianNLL(), None), (GaussianNLL(0.5), None), (GaussianKL(), 0.0), (MeanNLL(), None), (LogVariances(), 0.0),
    (Absolute(), 0.0), (PairCrossEntropy(), None),
    (Entropy(), None), (ClassPrior(), None), (ReverseKL(), 0.0), (ReverseKL(4.0), 0.0), (DirichletNLL(), None),
]  # fmt: skip
GATES = [
    Always(), Confident(), Confident(0.4), Confidence(), Correct(), Agreement(), Agreement(0.5), Precision(),
    Precision(0.1),
    SmallLoss(), SmallLoss(0.5, 0.0, crossed=True), LabelledShare(),
    Shard(),
]  # fmt: skip
TEACHERS = [
    Labels(), Itself(), Itself("weak"), Itself(head="exits"), Ema(), Ema(0.5, view="weak", train=True, warm_up=False),
    Frozen(), Frozen("weak"), Generation(), External(), LastEpoch(), History(), History(0.9, "labels", wait=0.5),
    LastBatch(), Peers(), PseudoLabels(), PseudoLabels(False, (0.5,), 0.3, True), Carried(),
    Carried("replace", hard=True, fresh=5), Carried("anchor", fresh=7), Sampled(), Sampled(2), Aligned(),
    Ensembled(), Refurbished(0.4, 2, 0.5, 0.0), Relabelled(2, 0.0), Ancestors(), Ancestors(at_last=True), Members(),
    Stale(), Stale(2), Combined(), Combined("linear"), Combined("minlogit"), Combined("general"),
]  # fmt: skip

# What fits, written down by hand: nothing here asks the parts.
SPACE = {
    "logits": "logits", "exits": "logits", "peers": "logits", "values": "values", "gaussian": "gaussian",
    "feature": "features", "features": "features", "peer_values": "values", "peer_gaussians": "gaussian",
    "ranks": "ranks",
}  # fmt: skip
DISTRIBUTIONS = {"classes", "probabilities", "logits"}
COMPARES: dict[Any, set[tuple[str, str]]] = {
    CrossEntropy(): {("logits", t) for t in DISTRIBUTIONS},
    CrossEntropy(hard=True, smoothing=0.1): {("logits", t) for t in DISTRIBUTIONS},
    KL(4.0): {("logits", t) for t in DISTRIBUTIONS},
    Entropy(): {("logits", t) for t in DISTRIBUTIONS},
    ClassPrior(): {("logits", t) for t in DISTRIBUTIONS},
    ReverseKL(4.0): {("logits", "logits"), ("logits", "probabilities")},
    DirichletNLL(): {("logits", "members")},
    Squared(): {("logits", t) for t in DISTRIBUTIONS} | {("values", "values"), ("features", "features")},
    LogOneMinusInner(): {("logits", "probabilities")},
    GaussianNLL(): {("gaussian", "values")},
    GaussianKL(): {("gaussian", "gaussian")},
    MeanNLL(): {("gaussian", "gaussian")},
    LogVariances(): {("gaussian", "gaussian")},
    Absolute(): {("values", "values")},
    PairCrossEntropy(0.9): {("ranks", "values"), ("ranks", "ranks")},
}
LABELS = {"logits": "classes", "values": "values", "gaussian": "values", "ranks": "values"}  # by space
SAYS: dict[Any, Any] = {
    Labels(): lambda head: LABELS.get(SPACE[head]),
    **dict.fromkeys((Itself(), Ema(), Frozen(), Generation(), External(), LastBatch()), SPACE.__getitem__),
    Itself(head="logits"): lambda head: "logits",
    Itself(head="exits"): lambda head: "logits",
    Itself(head="feature"): lambda head: "features",
    **{t: {"logits": "probabilities", "values": "values"}.get for t in (LastEpoch(), History(), Ensembled())},
    **{t: {"logits": "probabilities"}.get for t in (PseudoLabels(), Carried(), Relabelled())},
    Peers(): {"peers": "probabilities", "peer_values": "values", "peer_gaussians": "gaussian"}.get,
    Sampled(): {"gaussian": "gaussian", "peer_gaussians": "gaussian"}.get,
    Aligned(): {"values": "values"}.get,
    Refurbished(): {"logits": "classes"}.get,
    Ancestors(): SPACE.__getitem__,
    Members(): {"logits": "members"}.get,
    Stale(): {"peers": "probabilities"}.get,
    Combined(): {"logits": "logits"}.get,
}
JUDGES: dict[Any, Any] = {
    Always(): None,
    Confident(0.3): DISTRIBUTIONS,
    Confidence(): DISTRIBUTIONS,
    Correct(): DISTRIBUTIONS,
    Agreement(0.5): {"values", "gaussian"},
    Precision(0.5): {"gaussian"},
    SmallLoss(0.3): DISTRIBUTIONS,
    LabelledShare(): None,
    Shard(): None,
}
#: Spaces agree and elements do not: three exits for one row, or for two peers.
TOO_MANY = {(Itself(head="exits"), "logits"), (Itself(head="exits"), "peers")}
