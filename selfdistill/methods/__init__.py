"""The recipes for networks: each is a function that returns a `Method`, and each file is a family of them.

A recipe's docstring has a summary line, ``Equation::``, ``Args:``, ``Returns:``, ``Source:`` and, where they apply,
``Needs:`` and ``Departs:`` (where code and paper differ). `selfdistill explain` prints them. `recipes` finds a new file
of this folder without its being named here. No file may have the name of a recipe, which it would hide.
"""

from __future__ import annotations

from .continual import der, der_pp, er, er_ema, lwf
from .controls import distil, label_smoothing, plain
from .deep_supervision import byot, dks, frskd, sad
from .generations import (
    beyond,
    born_again,
    born_again_ensemble,
    end2,
    ensemble_distil,
    mixed,
    self_training,
    snapshot_distillation,
    tf_kd,
)
from .mixing import function_matching, mixskd, sla_sd
from .noisy_labels import (
    co_teaching,
    dlb,
    elr,
    hard_bootstrapping,
    joint_optimisation,
    ps_kd,
    reweight,
    selc,
    self_adaptive,
    selfie,
    soft_bootstrapping,
    temporal_ensembling,
)
from .peers import co_training, codistillation, kdcl, mutual, okddip, one, tri_training
from .registry import Recipe, recipes
from .regression import gaussian, gaussian_born_again, gaussian_mutual, heteroscedastic, rankup, ucvme
from .self_supervised import byol, dino, ibot, simsiam
from .semi_supervised import (
    curriculum,
    fixmatch,
    mean_teacher,
    meta_pseudo_labels,
    noisy_student,
    pi_model,
    pseudo_label,
    uda,
    ups,
    vat,
)
from .smoothing import bake, beta_smoothing, cs_kd, ddgsd, ols, tf_kd_reg, uskd, zipf_smoothing
from .thresholds import dash, flexmatch, freematch, softmatch

__all__ = [
    "Recipe",
    "bake",
    "beta_smoothing",
    "beyond",
    "born_again",
    "born_again_ensemble",
    "byol",
    "byot",
    "co_teaching",
    "co_training",
    "codistillation",
    "cs_kd",
    "curriculum",
    "dash",
    "ddgsd",
    "der",
    "der_pp",
    "dino",
    "distil",
    "dks",
    "dlb",
    "elr",
    "end2",
    "ensemble_distil",
    "er",
    "er_ema",
    "fixmatch",
    "flexmatch",
    "freematch",
    "frskd",
    "function_matching",
    "gaussian",
    "gaussian_born_again",
    "gaussian_mutual",
    "hard_bootstrapping",
    "heteroscedastic",
    "ibot",
    "joint_optimisation",
    "kdcl",
    "label_smoothing",
    "lwf",
    "mean_teacher",
    "meta_pseudo_labels",
    "mixed",
    "mixskd",
    "mutual",
    "noisy_student",
    "okddip",
    "ols",
    "one",
    "pi_model",
    "plain",
    "ps_kd",
    "pseudo_label",
    "rankup",
    "recipes",
    "reweight",
    "sad",
    "selc",
    "self_adaptive",
    "self_training",
    "selfie",
    "simsiam",
    "sla_sd",
    "snapshot_distillation",
    "soft_bootstrapping",
    "softmatch",
    "temporal_ensembling",
    "tf_kd",
    "tf_kd_reg",
    "tri_training",
    "ucvme",
    "uda",
    "ups",
    "uskd",
    "vat",
    "zipf_smoothing",
]

globals().update(recipes())  # in Python, too, a recipe refuses arguments outside the range that it declares
