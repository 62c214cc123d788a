"""Between-class variance: |W_ij|^weight_exp * max(B_c / mean(B), 1e-6), B = sum_k p_k (m_k - mu)^2.

Over token classes k, all others being one more; p_k is the class's share of the tokens, m_k its mean, mu the mean over
all tokens. With `element: false` the score is B alone, per neuron.

Source: METHODS section 3.6.
Differs: nothing.
"""

import numpy as np
from numpy.typing import NDArray

from neuronrank.class_scores import ranked_by
from neuronrank.scoring import ClassParams
from neuronrank.tap_statistics import TapStatistics
from neuronrank.token_classes import ClassMoments

PARTS = ("mlp",)
READS = "class moments of neurons"
DEFAULT_GROUP = "module"


class Params(ClassParams):
    """Number of classes, and whether single weights count."""


def class_score(tap: TapStatistics, params: Params) -> NDArray[np.float64]:
    """Return B per neuron, (C,)."""
    return tap.of_classes(ClassMoments.between, params.classes)


element, channel_factor, neuron_score = ranked_by(class_score)
