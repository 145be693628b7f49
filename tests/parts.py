"""Our parts, and which of them fit together: what the tests of conformance and of refusal share."""

from __future__ import annotations

from typing import Any

from selfdistill.control.parts import ActionsTaken, GaussianMeanNLL, SharpenedGaussianKL, SquaredMeans
from selfdistill.core.mixing import Mixing
from selfdistill.core.parts import Always
from selfdistill.gates import (
    Agreement,
    Annealed,
    Bagged,
    ClassProgress,
    CleanGradient,
    Confidence,
    Confident,
    Correct,
    ErrorBound,
    FallingLoss,
    LabelledShare,
    LowVariance,
    PeerShard,
    Precision,
    SelfAdaptive,
    Singleton,
    SmallLoss,
    Spared,
    TruncatedGaussian,
    Unanimous,
)
from selfdistill.losses import (
    KL,
    Absolute,
    AmongOthers,
    ClassPrior,
    CosineDistance,
    CrossEntropy,
    DirichletNLL,
    Entropy,
    Excluding,
    GaussianKL,
    GaussianNLL,
    KLFromStudent,
    KnownKL,
    LogOneMinusInner,
    LogVariances,
    MeanDistance,
    MeanNLL,
    PairCrossEntropy,
    PrototypeCrossEntropy,
    SelfWeighted,
    Sharpened,
    Squared,
    SquaredLogits,
)
from selfdistill.teachers import (
    Aligned,
    BetaRanked,
    CachedTeacher,
    CentredMomentum,
    CertainLabels,
    ClassAligned,
    ClassMean,
    Combined,
    CurrentStudent,
    EarlierTasks,
    Ema,
    Ensembled,
    External,
    Extrapolated,
    Frozen,
    Generation,
    GenerationEnsemble,
    History,
    JointLabels,
    Labels,
    LastBatch,
    LastEpoch,
    Members,
    MixedLabels,
    Momentum,
    Neighbours,
    OtherPeers,
    PseudoLabels,
    Refurbished,
    Relabelled,
    Sampled,
    Snapshot,
    Stale,
    Stored,
    StoredLabels,
    Virtual,
    WeakRanks,
    ZipfRanks,  # fmt: skip
)
from selfdistill.teachers.self_training import InheritedPseudoLabels

LOSSES = [
    (CrossEntropy(), None), (CrossEntropy(4.0, smoothing=0.1), None), (CrossEntropy(hard=True), None),
    (KL(), 0.0), (KL(4.0), 0.0), (Squared(), 0.0), (Squared(mean=True), 0.0), (LogOneMinusInner(), None),
    (GaussianNLL(), None), (GaussianNLL(0.5), None), (GaussianKL(), 0.0), (MeanNLL(), None), (LogVariances(), 0.0),
    (MeanDistance(), 0.0), (AmongOthers(), 0.0),
    (SelfWeighted(), None),
    (Absolute(), 0.0), (PairCrossEntropy(), None), (Sharpened(), None), (Sharpened(KL(), 2.0), None), (Entropy(), None),
    (Excluding(), None), (ClassPrior(), None), (KLFromStudent(), 0.0), (KLFromStudent(4.0), 0.0),
    (DirichletNLL(), None), (SquaredLogits(), 0.0), (KnownKL(), 0.0),
    (CosineDistance(), 0.0), (PrototypeCrossEntropy(), None), (PrototypeCrossEntropy(1.0, 0.5), None),
    (SquaredMeans(), 0.0), (GaussianMeanNLL(), None), (SharpenedGaussianKL(), None),
]  # fmt: skip
GATES = [
    Always(), Confident(), Confident(0.4), Confidence(), Correct(), Agreement(), Agreement(0.5), Precision(),
    Precision(0.1), Annealed(), Annealed("log"), Annealed("exp"), ClassProgress(), ClassProgress(0.4, "concave", False),
    ClassProgress(0.3, "linear"), SelfAdaptive(), SelfAdaptive(0.5), TruncatedGaussian(),
    TruncatedGaussian(0.5, 2.0, False), FallingLoss(), FallingLoss(phase="floor"), Spared(), Singleton(), Unanimous(),
    LowVariance(), LowVariance(0.01, head="peers"), SmallLoss(), SmallLoss(0.5, 0.0, crossed=True), LabelledShare(),
    PeerShard(),
    Bagged(), Bagged(0.3), CleanGradient("x"), ErrorBound(), ErrorBound(0.2, 0.1),
]  # fmt: skip
TEACHERS = [
    Labels(), CurrentStudent(), CurrentStudent("weak"), CurrentStudent(head="exits"),
    Ema(), Ema(0.5, view="weak", train=True, warm_up=False),
    Frozen(), Frozen("weak"), Generation(), External(), LastEpoch(), History(), History(0.9, "labels", wait=0.5),
    CachedTeacher(), CachedTeacher(Frozen("weak")), CachedTeacher(Generation()), CachedTeacher(External()),
    ClassMean(), Virtual(), Virtual(0.5), BetaRanked(), BetaRanked(0.9, a=1.0), Snapshot(),
    Snapshot(2, 1.0), Extrapolated(), Extrapolated(xi=-1.0),
    Neighbours(), Neighbours(0.0, 1.0), MixedLabels(), JointLabels(),
    LastBatch(), OtherPeers(), PseudoLabels(), PseudoLabels(False, (0.5,), 0.3, True), PseudoLabels(balanced=False),
    InheritedPseudoLabels(),
    InheritedPseudoLabels("replace", hard=True, fresh=5), InheritedPseudoLabels("anchor", fresh=7),
    Sampled(), Sampled(2), Aligned(),
    ClassAligned(), ClassAligned(Ema(0.5), 0.5), ClassAligned(History(), 0.9), CertainLabels(0.3, 0.05, 0.25, 0.05),
    CertainLabels(0.9, 0.05, 0.25, 0.05, 3, True),
    Ensembled(), Refurbished(0.4, 2, 0.5, 0.0), Relabelled(2, 0.0),
    GenerationEnsemble(), GenerationEnsemble(at_last=True), Members(),
    Stale(), Stale(2), Combined(), Combined("linear"), Combined("minlogit"), Combined("general"),
    Momentum(), Momentum(0.5, view="weak", head="logits"), CentredMomentum(), CentredMomentum(0.5, centring=0.3),
    Stored(), Stored(8, 3, True), StoredLabels(8, 3), EarlierTasks(), ActionsTaken(),
]  # fmt: skip

# What fits, written down by hand: nothing here asks the parts.
SPACE = {
    "logits": "logits", "exits": "logits", "peers": "logits", "values": "values", "gaussian": "gaussian",
    "joint": "logits",
    "feature": "features", "features": "features", "peer_values": "values", "peer_gaussians": "gaussian",
    "ranks": "ranks",
}  # fmt: skip
DISTRIBUTIONS = {"classes", "probabilities", "logits"}
SPACES = {*DISTRIBUTIONS, *SPACE.values(), "excluded", "members"}
COMPARES: dict[Any, set[tuple[str, str]]] = {
    CrossEntropy(): {("logits", t) for t in DISTRIBUTIONS},
    CrossEntropy(hard=True, smoothing=0.1): {("logits", t) for t in DISTRIBUTIONS},
    KL(4.0): {("logits", t) for t in DISTRIBUTIONS},
    ClassPrior(): {("logits", t) for t in DISTRIBUTIONS},
    KLFromStudent(4.0): {("logits", "logits"), ("logits", "probabilities")},
    KnownKL(4.0): {("logits", "logits")},
    SquaredLogits(): {("logits", "logits")},
    DirichletNLL(): {("logits", "members")},
    Squared(): {("logits", t) for t in DISTRIBUTIONS} | {("values", "values"), ("features", "features")},
    LogOneMinusInner(): {("logits", "probabilities")},
    GaussianNLL(): {("gaussian", "values")},
    GaussianKL(): {("gaussian", "gaussian")},
    MeanNLL(): {("gaussian", "gaussian")},
    LogVariances(): {("gaussian", "gaussian")},
    Absolute(): {("values", "values")},
    PairCrossEntropy(0.1): {("ranks", "values"), ("ranks", "ranks")},
    Sharpened(KL(), 0.4): {("logits", t) for t in DISTRIBUTIONS},
    Entropy(): {("logits", t) for t in SPACES},
    Excluding(): {("logits", "excluded")},
    SelfWeighted(): {("logits", "classes")},
    AmongOthers(): {("logits", "probabilities")},
    MeanDistance(): {("features", "features")},
    CosineDistance(): {("features", "features")},
    PrototypeCrossEntropy(1.0, 0.5): {("features", "features")},
}
LABELS = {"logits": "classes", "values": "values", "gaussian": "values", "ranks": "values"}  # by space
SAYS: dict[Any, Any] = {
    Labels(): lambda head: None if head == "joint" else LABELS.get(SPACE[head]),
    **dict.fromkeys(
        (
            CurrentStudent(),
            Ema(),
            Frozen(),
            Generation(),
            External(),
            CachedTeacher(),
            LastBatch(),
            Momentum(),
            Stored(8, 3),
        ),
        SPACE.__getitem__,
    ),
    CentredMomentum(0.5): SPACE.__getitem__,
    Momentum(0.5, head="feature"): lambda head: None if head == "joint" else "features",
    CurrentStudent(head="logits"): lambda head: None if head == "joint" else "logits",
    CurrentStudent(head="exits"): lambda head: None if head == "joint" else "logits",
    CurrentStudent(head="feature"): lambda head: None if head == "joint" else "features",
    **{t: {"logits": "probabilities", "values": "values"}.get for t in (LastEpoch(), History(), Ensembled())},
    **{t: {"logits": "probabilities"}.get for t in (PseudoLabels(), InheritedPseudoLabels(), Relabelled())},
    OtherPeers(): {"peers": "probabilities", "peer_values": "values", "peer_gaussians": "gaussian"}.get,
    Sampled(): {"gaussian": "gaussian", "peer_gaussians": "gaussian"}.get,
    Aligned(): {"values": "values"}.get,
    CertainLabels(0.3): {"logits": "probabilities"}.get,
    CertainLabels(0.9, negative=0.3, excludes=True): {"logits": "excluded"}.get,
    **{
        ClassAligned(t, 0.9): lambda head, t=t: "probabilities" if SAYS[t](head) in DISTRIBUTIONS else None
        for t in (CurrentStudent(), Labels())
    },
    **{
        t: lambda head: "probabilities" if head == "logits" else None
        for t in (
            BetaRanked(),
            Extrapolated(),
            ClassMean(),
            Virtual(),
            Snapshot(2),
            ZipfRanks("exits"),
            WeakRanks("logits"),
        )
    },
    Neighbours(): lambda head: "logits" if head == "logits" else None,
    Refurbished(): {"logits": "classes"}.get,
    GenerationEnsemble(): {"logits": "logits", "values": "values"}.get,
    Members(): {"logits": "members"}.get,
    Stale(): {"peers": "probabilities"}.get,
    Combined(): {"logits": "logits"}.get,
    EarlierTasks(): {"logits": "logits"}.get,
    StoredLabels(8, 3): lambda head: None if head == "joint" else LABELS.get(SPACE[head]),
    JointLabels(): {"joint": "classes"}.get,
    MixedLabels(): lambda head: "probabilities" if SPACE[head] == "logits" and head != "joint" else None,
}
JUDGES: dict[Any, Any] = {
    Always(): None,
    Confident(0.3): DISTRIBUTIONS,
    Confidence(): DISTRIBUTIONS,
    Correct(): DISTRIBUTIONS,
    Agreement(0.5): {"values", "gaussian"},
    Precision(0.5): {"gaussian"},
    Spared(0.3): None,
    **dict.fromkeys(
        (Annealed(), ClassProgress(0.3), SelfAdaptive(), TruncatedGaussian(), Unanimous(), LowVariance(1.0),
         FallingLoss(1.0, warm_up=0.0, labelled="x"), Singleton(0.8, 0.5, "x"), LowVariance(1.0, head="peers")),
        DISTRIBUTIONS,
    ),
    SmallLoss(0.3): DISTRIBUTIONS,
    LabelledShare(): None,
    PeerShard(): None,
    Bagged(): None,
}  # fmt: skip
#: They ask the head 'peers', whose classes are others than those of 'joint'.
ASKS_PEERS = {Unanimous(), LowVariance(1.0, head="peers")}
#: They speak of rows that are mixed, in this view; all others of the rows as they are.
MIXED = {MixedLabels(): Mixing()}
#: They ask for a sample's id or label, and a mixture has two.
OF_A_SAMPLE = {
    Correct(): "two labels",
    **dict.fromkeys((ClassProgress(0.3), Spared(0.3), PeerShard(), Bagged()), "two samples"),
}  # fmt: skip
#: Spaces agree and elements do not: three exits for one row, or for two peers.
TOO_MANY = {(CurrentStudent(head="exits"), "logits"), (CurrentStudent(head="exits"), "peers")}
