"""Closed forms of self-distillation, as small functions of numpy that share no code with the engine.

One convention throughout: **target = xi x teacher + (1 - xi) x label**, for any real xi unless a function says
otherwise. Some papers write alpha = 1 - xi. ``lam`` is ridge's penalty beside the sum of squared errors, except in the
``flat_`` functions, where it stands beside their mean. Risks are excess risks.

`repeated_ridge` has the power law and the fixed point, `mixing_weight` the best weight of one step, also for noisy
labels, `multi_step` those of several steps, `repetition` the risk of self-training, round by round, and `identities`
the equations that hold for any model. `checks` measures each against a reference of its own; ``selfdistill theory``
prints the result.
"""

from __future__ import annotations

from .identities import (
    ambiguity,
    bald,
    cross_entropy,
    entropy,
    gaussian_kl,
    mixed_target,
    moment_matched,
    peers_fixed_point,
    softmax,
    squared_remainder,
    temperature_gradient,
    temperature_limit,
)
from .mixing_weight import (
    flat_risk,
    flat_turning,
    flat_weight,
    gcv_weight,
    held_out_weight,
    left_out_weight,
    noise_weight,
    noise_weight_limit,
    parameter_error,
    risk_gain,
    risk_weight,
    turning_noise,
    weight_from_risks,
)
from .multi_step import (
    best_kept,
    best_steps,
    equal_values_penalty,
    fitted_weights,
    fixed_design_excess,
    least_excess,
    step_imitation,
    step_shrinkage,
    step_weights,
    stepped,
)
from .repeated_ridge import (
    collapsed_after,
    contraction,
    degrees_of_freedom,
    fixed_point,
    power_law,
    ridge,
    rounds_to_collapse,
    shrinkage,
    smoother,
    spectrum,
)
from .repetition import (
    GOLDEN,
    accumulated_bound,
    accumulated_error,
    first_rise,
    mixing_variance,
    replaced_error,
    spike_forgetting,
    spike_noise,
    spike_risk,
    spike_risks,
    stopping_time,
)

__all__ = [
    "GOLDEN",
    "accumulated_bound",
    "accumulated_error",
    "ambiguity",
    "bald",
    "best_kept",
    "best_steps",
    "collapsed_after",
    "contraction",
    "cross_entropy",
    "degrees_of_freedom",
    "entropy",
    "equal_values_penalty",
    "first_rise",
    "fitted_weights",
    "fixed_design_excess",
    "fixed_point",
    "flat_risk",
    "flat_turning",
    "flat_weight",
    "gaussian_kl",
    "gcv_weight",
    "held_out_weight",
    "least_excess",
    "left_out_weight",
    "mixed_target",
    "mixing_variance",
    "moment_matched",
    "noise_weight",
    "noise_weight_limit",
    "parameter_error",
    "peers_fixed_point",
    "power_law",
    "replaced_error",
    "ridge",
    "risk_gain",
    "risk_weight",
    "rounds_to_collapse",
    "shrinkage",
    "smoother",
    "softmax",
    "spectrum",
    "spike_forgetting",
    "spike_noise",
    "spike_risk",
    "spike_risks",
    "squared_remainder",
    "step_imitation",
    "step_shrinkage",
    "step_weights",
    "stepped",
    "stopping_time",
    "temperature_gradient",
    "temperature_limit",
    "turning_noise",
    "weight_from_risks",
]
