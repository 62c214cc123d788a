"""NeuronRank by variance, unstructured: magnitude_multi * |W_ij| + variance_multi * V^variance_exp.

V is that of the neuron (see `neuronrank`), on rows of gate and up and on columns of down. Attention is scored by
magnitude_multi * |W_ij|, and left dense when magnitude_multi is 0.

Source: METHODS section 3.6.
Differs: with magnitude_multi 0, the default, all weights of a neuron tie, and ties go by position; patterns that
compare within rows then refuse gate and up, where nothing is left to rank by. In attention magnitude_multi cannot
change the order, only whether there is one.
"""

import numpy as np
from numpy.typing import NDArray

from neuronrank.neuron_variance import VarianceParams, neuron_variance
from neuronrank.scoring import Element, MethodParams
from neuronrank.tap_statistics import TapStatistics

PARTS = ("attention", "mlp")
READS = "sum per document, total sum_sq and class moments of neurons"
DEFAULT_GROUP = "module"


class Params(MethodParams, VarianceParams):
    """Multipliers, exponent and number of classes."""


def element(part: str, params: Params) -> Element | None:
    """Score single weights: by magnitude in attention, by magnitude and variance in the MLP."""
    if part == "mlp":
        return Element(1.0, "neuron" if params.variance_multi else None, weight_multi=params.magnitude_multi)
    return Element(1.0, None, weight_multi=params.magnitude_multi) if params.magnitude_multi else None


def channel_term(tap: TapStatistics, params: Params) -> NDArray[np.float64]:
    """Return variance_multi * V^variance_exp per neuron, (C,), activation^(2 variance_exp)."""
    return np.asarray(params.variance_multi * neuron_variance(tap, params) ** params.variance_exp)
