"""Self-supervised methods: two views of a row agree without any label, which trains features for a later run."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from ..core.objective import Method
from ..core.parts import Term
from ..io.expressions import Extras, Positive, Share, Size
from ..losses import CosineDistance, PrototypeCrossEntropy
from ..models.feature_heads import Projectors
from ..schedules import RunDecay
from ..teachers import CentredMomentum, CurrentStudent, Momentum
from ..terms import Cooling, RowMeanCooling
from ..views import View, Views, two

CROPS = two("all", "crop")
WIDTHS = (512, 512, 128)  # of the projection of dino and ibot
BYOL = RunDecay(0.996, 312_500, 0.97)  # the paper's .996 for 1,000 epochs and .97 for 40 of 312 steps each
DINO = RunDecay(0.996, 125_000, 0.97)  # .996 for 100 epochs of 1,251 steps
PAIRS = (("x", "other"), ("other", "x"))  # who learns from which


def simsiam(width: Size = 256) -> Method:
    """SimSiam: predict the projection of another view, whose branch has no gradient.

    Equation::

        L = 1 - 1/2 [cos(q(z_1), sg z_2) + cos(q(z_2), sg z_1)],  z_v = g(f(x_v))

    f are the features, g is three linear layers with batch norm, q two. Each view has a forward pass of its own. No
    label is read; the classifier is fitted afterwards as a linear probe.

    Args:
        width: Width of the projection in numbers, 1 or more; the predictor's hidden layer has a quarter of it.

    Returns:
        The method, with the terms ``from_other`` and ``from_x``.

    Departs: The paper leaves out the 1. Its width is 2048, for a ResNet-50, its batches have 512 rows, and q's learning
    rate is constant.

    Needs: no labels; two rows or more in a batch.

    Source: Chen and He, Exploring Simple Siamese Representation Learning, CVPR 2021, algorithm 1.

    >>> sorted(term.view for term in simsiam().terms.values())
    ['other', 'x']
    """
    heads = Projectors((width, width, width), (max(1, width // 4), width), closed=True)
    terms = {
        f"from_{theirs}": Term(CurrentStudent(theirs, "projection"), CosineDistance(), mine, "prediction", weight=0.5)
        for mine, theirs in PAIRS
    }
    return Method(terms, views=CROPS, wrap_model=heads, forward="separate")


def byol(decay: Share | None = None, hidden: Size = 512, width: Size = 128) -> Method:
    """BYOL: predict the projection that an average of the model's weights gives of another view.

    Equation::

        L = sum_v [2 - 2 cos(q(z_v), z'_w)],  w the other view, z = g(f(x)), ' the average
        w' <- d w' + (1 - d) w,  d = 1 - (1 - decay)(cos(pi k / K) + 1) / 2 after step k of K

    g and q are two linear layers with batch norm between. The average takes in parameters alone and sees its views in
    train mode. No label is read; the classifier is fitted afterwards as a linear probe.

    Args:
        decay: Decay of the averaged weights at the start, in [0, 1); left open, .996 in a run of 312,500 steps, and in
            a shorter one that of as large a share of it, but at least .97.
        hidden: Width of the hidden layers of g and q, 1 or more.
        width: Width of the projection, 1 or more.

    Returns:
        The method, with the terms ``from_other`` and ``from_x``.

    Departs: The paper's layers are 4096 and 256 wide, for a ResNet-50, and its decay is .97, .99, .996 for 40, 300,
    1000 epochs, of which this has both ends. Here the average starts from the student's weights; the authors draw
    others.

    Needs: no labels; two rows or more in a batch.

    Source: Grill et al., Bootstrap Your Own Latent, NeurIPS 2020, equations 1 and 2.

    >>> byol(decay=0.9).terms["from_x"].teacher.view
    'x'
    """
    heads = Projectors((hidden, width), (hidden, width))
    terms = {
        f"from_{theirs}": Term(
            Momentum(BYOL if decay is None else decay, theirs, head="projection"),
            CosineDistance(),
            mine,
            "prediction",
            weight=2.0,
        )
        for mine, theirs in PAIRS
    }
    return Method(terms, views=CROPS, wrap_model=heads, forward="separate")


def dino(
    decay: Share | None = None,
    temperature: Positive = 0.1,
    sharp: float = 0.04,
    centring: float = 0.9,
    prototypes: Size = 1024,
    crops: Extras = 2,
    norm: bool = True,
) -> Method:
    """DINO: learn which prototypes an average of the model's weights assigns to another view.

    Equation::

        L = mean over pairs (w, v), v not w, of CE(softmax((t_w - c) / sharp), softmax(s_v / temperature))
        c <- centring c + (1 - centring) mean t, after the loss; t's weights follow s's as in `byol`

    w are two large crops, v those and the small ones. s and t are cosines with prototypes, of a projection by three
    linear layers, 512 wide, 128 at the end. No label is read; the classifier is fitted afterwards as a linear probe.

    Args:
        decay: Decay of the averaged weights at the start, in [0, 1); left open, .996 in a run of 125,000 steps, and in
            a shorter one that of as large a share of it, but at least .97.
        temperature: Temperature of the student, above 0.
        sharp: Temperature of the teacher, above 0.
        centring: Decay of the centre c, in [0, 1).
        prototypes: Number of prototypes, 1 or more.
        crops: Number of small crops of a row, 0 or more.
        norm: Whether the projection has batch norm; otherwise GELU alone.

    Returns:
        The method, with the terms ``x_from_other``, ``other_from_x``, ``small1_from_x``, ``small1_from_other``,
        ``small2_from_x`` and ``small2_from_other``.

    Departs: The paper's projection has no batch norm (``norm=False``), widths of 2048 and 256, 65536 prototypes and
    eight small crops. Here small crops are enlarged to full size; the warm-up of the teacher's temperature and the
    frozen prototypes of the first epoch are left out.

    Needs: no labels.

    Source: Caron et al., Emerging Properties in Self-Supervised Vision Transformers, ICCV 2021, algorithm 1.

    >>> len(dino().terms), len(dino(crops=0).terms)
    (6, 2)
    """
    heads = Projectors(WIDTHS, prototypes=prototypes, norm=norm)
    small, loss = [f"small{i + 1}" for i in range(crops)], PrototypeCrossEntropy(temperature, sharp)
    pairs = [*PAIRS, *((v, w) for v in small for w in ("x", "other"))]
    teacher = partial(CentredMomentum, DINO if decay is None else decay, centring=centring)
    terms = {f"{v}_from_{w}": Term(teacher(w), loss, v, "prototypes", weight=1 / len(pairs)) for v, w in pairs}
    views = Views((*CROPS.views, *(View(v, "all", "local") for v in small)))
    return Method(terms, views=views, wrap_model=heads, forward="separate")


def ibot(
    decay: Share | None = None, temperature: Positive = 0.1, sharp: float = 0.04, settled: float = 0.07,
    warm_up: float = 0.1, centring: float = 0.9, prototypes: Size = 1024, crops: Extras = 2, hidden: float = 0.3,
    spread: float = 0.2, unmasked: float = 0.5,
) -> Method:  # fmt: skip
    """iBOT: DINO, whose student also predicts the teacher's prototypes of patches that are masked for it.

    Equation::

        L = dino + 1/2 sum_v mean_rows mean_i CE(softmax((t_vi - c') / S), softmax(s_vi / temperature)),  i hidden in v
        S = sharp + (settled - sharp) min(1, progress / warm_up), for dino's part too

    In the student's two large crops blocks of patches are replaced by a learnt token; the teacher sees them whole.
    Crops that mask nothing count as 0 in the mean over rows. Patches have their own centre c', and share the projection
    and the prototypes with the classifier's token. Shares, temperatures and blocks are the paper's.

    Args:
        decay: Decay of the averaged weights at the start, in [0, 1); left open, .996 in a run of 125,000 steps, and in
            a shorter one that of as large a share of it, but at least .97.
        temperature: Temperature of the student, above 0.
        sharp: Temperature of the teacher at the start, above 0.
        settled: Temperature of the teacher after the warm-up, above 0.
        warm_up: Share of the training in which it moves from ``sharp`` to ``settled``, in [0, 1].
        centring: Decay of the centres c and c', in [0, 1).
        prototypes: Number of prototypes, 1 or more.
        crops: Number of small crops of a row, 0 or more.
        hidden: Mean share of a crop's patches that are masked, in (0, 1).
        spread: Half the width of the range of that share, 0 or more; the range stays inside 0 to 1.
        unmasked: Share of the crops that mask nothing, in [0, 1).

    Returns:
        The method, with the terms ``x_from_other``, ``other_from_x``, ``small1_from_x``, ``small1_from_other``,
        ``small2_from_x``, ``small2_from_other``, ``patches_x`` and ``patches_other``.

    Departs: The paper warms up for 30 of 300 to 800 epochs, has 8192 prototypes, ten small crops and larger large ones.

    Needs: no labels; a transformer on patches of images (vit).

    Source: Zhou et al., iBOT: Image BERT Pre-Training with Online Tokenizer, ICLR 2022, equations 2 and 3.

    >>> [name for name in ibot(crops=0).terms]
    ['x_from_other', 'other_from_x', 'patches_x', 'patches_other']
    """
    base = dino(decay, centring=centring, prototypes=prototypes, crops=crops, norm=False)
    loss = PrototypeCrossEntropy(temperature, settled)
    masked = {view: f"{view}_hidden" for view in ("x", "other")}
    schedule: dict[str, Any] = {"start": sharp, "share": warm_up, "which": "sharp"}
    terms = dict[str, Term]()
    for name, t in base.terms.items():
        assert t.teacher is not None
        terms[name] = Cooling(t.teacher, loss, masked.get(t.view, t.view), t.head, weight=t.weight, **schedule)
    for view, hidden_name in masked.items():
        teacher = CentredMomentum(DINO if decay is None else decay, view, centring=centring, hidden=True)
        patches = RowMeanCooling(teacher, loss, hidden_name, "patch_prototypes", weight=0.5, **schedule)
        terms[f"patches_{view}"] = patches
    views = [View(to, "all", "crop", 0, hidden, of, spread, unmasked) for of, to in masked.items()]
    heads = Projectors(WIDTHS, prototypes=prototypes, norm=False, patches=True)
    return replace(base, terms=terms, views=Views((*base.views.views, *views)), wrap_model=heads)
