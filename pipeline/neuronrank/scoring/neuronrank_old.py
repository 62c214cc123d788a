"""NeuronRank-OLD: |W_ij|^weight_exp * TF_c^tf_exp * IDF_c^idf_exp, at the level of tokens.

TF_c is the mean of |a_c|, IDF_c = ln((n + 1) / (n_active + 1)) + 1, n_active the number of tokens with a_c > theta;
theta is 0. Other thresholds count |a_c| above the pooled quantile or above kappa times the channel's own mean.
`magnitude` chooses the weight: |W_ij|; the L2 norm of the module's own weights of the neuron (`row_norm`); or the L2
norm of the neuron's gate row in all three modules (`neuron_norm`). With the norms every weight of a neuron has the same
score. Structured: gate-row norm^weight_exp * TF^tf_exp * IDF^idf_exp ranks whole neurons.

Source: METHODS section 3.5.
Differs: a theta other than 0 is rounded to the nearest edge of the sketch's grid, at most 2 % away,
and below 0 an a that equals it counts as active; unless no a is
below -|theta| it needs profile `full`. `magnitude` does not change a neuron's score: its weight is always the gate
row's norm.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from neuronrank.scoring import Element, Weight, WeightedParams
from neuronrank.selectivity import active_tokens, require_varying
from neuronrank.sketch import nearest_edge
from neuronrank.tap_statistics import TapStatistics

PARTS = ("attention", "mlp")
READS = "sum_abs and counts of neurons; their sketch when the threshold is not a > 0; gate-row norms for neurons"
DEFAULT_GROUP = "module"


class Params(WeightedParams):
    """Exponents, threshold and kind of weight."""

    tf_exp: float = Field(default=1.0, allow_inf_nan=False)
    """Exponent of TF; 0 leaves it out."""
    idf_exp: float = Field(default=1.0, allow_inf_nan=False)
    """Exponent of IDF; above 0 favours specialists, below 0 generalists, 0 leaves it out."""
    threshold: Literal["theta", "pooled", "relative", "sign"] = "theta"
    """What counts as active: a > theta; |a| above the pooled quantile; |a| above kappa times its mean; a > 0."""
    theta: float = Field(default=0.0, allow_inf_nan=False)
    """Of threshold `theta`: a token is active when a > theta."""
    q_active: float = Field(default=0.6, gt=0, lt=1)
    """Of `pooled`: the quantile, over all channels together."""
    kappa: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Of `relative`: how many times the channel's own mean of |a|."""
    magnitude: Weight = "element"
    """|W_ij|; the L2 norm of the module's own weights of the neuron; or that of the neuron's gate row."""


def element(part: str, params: Params) -> Element:
    """Score single weights, with a factor per neuron."""
    del part
    has_factor = params.tf_exp or params.idf_exp or params.magnitude != "element"
    return Element(params.weight_exp, "neuron" if has_factor else None, weight=params.magnitude)


def channel_factor(tap: TapStatistics, params: Params) -> NDArray[np.float64]:
    """Return TF^tf_exp * IDF^idf_exp per neuron, (C,), activation^tf_exp.

    Raises:
        DegenerateError: every neuron is active on the same number of tokens, so that IDF ranks nothing.
    """
    factor = (tap.total("sum_abs") / tap.n) ** params.tf_exp
    if params.idf_exp != 0:
        n_active = _n_active(tap, params)
        require_varying(n_active, tap.where, f"{tap.n} tokens")
        factor = factor * (np.log((tap.n + 1) / (n_active + 1)) + 1) ** params.idf_exp
    return np.asarray(factor)


def neuron_score(tap: TapStatistics, gate_norm: NDArray[np.float64], params: Params) -> NDArray[np.float64]:
    """Return gate-row norm^weight_exp * TF^tf_exp * IDF^idf_exp per neuron, (F,)."""
    return np.asarray(gate_norm**params.weight_exp * tap.remembered(channel_factor, params))


def _n_active(tap: TapStatistics, params: Params) -> NDArray[np.float64]:
    """Return (C,) counts of active tokens."""
    if params.threshold != "theta":
        return active_tokens(tap, params.threshold, params.q_active, params.kappa)
    if params.theta == 0:
        return tap.n_positive().astype(np.float64)
    edge = nearest_edge(np.array([abs(params.theta)]))
    n_below = tap.n_below(int(edge[0]))
    return (tap.sketch().count_above(edge) - n_below if params.theta > 0 else tap.n - n_below).astype(np.float64)
