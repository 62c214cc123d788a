"""NeuronRank by variance, structured: variance_multi * V^variance_exp + magnitude_multi * ||gate row||_2 per neuron.

V = V_s + token_weight * V_t + V_c: the unbiased variance over documents of the document means of a; the population
variance of a over tokens; the population variance over token classes of the class means. With classes: 0 V_c is left
out. Ranks whole MLP neurons only: it needs a structured pattern.

Source: METHODS section 3.6.
Differs: V_s and V_t are computed in float64 from per-document float32 sums, never from half precision.
"""

import numpy as np
from numpy.typing import NDArray

from neuronrank.neuron_variance import VarianceParams, neuron_variance
from neuronrank.scoring import Element, MethodParams
from neuronrank.tap_statistics import TapStatistics

PARTS = ("mlp",)
READS = "sum per document, total sum_sq and class moments of neurons; gate-row norms"
DEFAULT_GROUP = "module"


class Params(MethodParams, VarianceParams):
    """Multipliers, exponent and number of classes."""


def element(part: str, params: Params) -> Element | None:
    """Return None: single weights have no score."""
    del part, params
    return None


def neuron_score(tap: TapStatistics, gate_norm: NDArray[np.float64], params: Params) -> NDArray[np.float64]:
    """Return variance_multi * V^variance_exp + magnitude_multi * gate-row norm per neuron, (F,)."""
    varied = params.variance_multi * neuron_variance(tap, params) ** params.variance_exp
    return np.asarray(varied + params.magnitude_multi * gate_norm)
