"""Fisher ratio: |W_ij|^weight_exp * max(J_c / mean(J), 1e-6), J = between / (within + eps).

Over token classes k, all others being one more: between = sum_k p_k (m_k - mu)^2, within = sum_k p_k v_k, p_k the
class's share of the tokens, m_k and v_k its mean and variance, mu the mean over all tokens. With `element: false` the
score is J alone, per neuron.

Source: METHODS section 3.6.
Differs: both sums run over the same tokens, the others included; some earlier versions left them out of one.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from neuronrank.class_scores import ranked_by
from neuronrank.scoring import ClassParams
from neuronrank.tap_statistics import TapStatistics
from neuronrank.token_classes import ClassMoments

PARTS = ("mlp",)
READS = "class moments of neurons"
DEFAULT_GROUP = "module"


class Params(ClassParams):
    """Number of classes, and whether single weights count."""

    eps: float = Field(default=1e-10, gt=0, allow_inf_nan=False)
    """Added to a variance before dividing by it."""


def class_score(tap: TapStatistics, params: Params) -> NDArray[np.float64]:
    """Return J per neuron, (C,)."""
    between, within = (tap.of_classes(of, params.classes) for of in (ClassMoments.between, ClassMoments.within))
    return np.asarray(between / (within + params.eps))


element, channel_factor, neuron_score = ranked_by(class_score)
