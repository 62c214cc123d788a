"""Quadratic discriminant: |W_ij|^weight_exp * max(Q_c / mean(Q), 1e-6), Q = sum_k p_k (m_k - mu)^2 / (v_k + eps).

Over token classes k with more than one token, all others being one more; p_k is the class's share of the tokens, m_k
and v_k its mean and variance, mu the mean over all tokens. With `element: false` the score is Q alone, per neuron.

Source: METHODS section 3.6.
Differs: nothing.
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
    """Return Q per neuron, (C,)."""
    return tap.of_classes(ClassMoments.quadratic_discriminant, params.classes, eps=params.eps)


element, channel_factor, neuron_score = ranked_by(class_score)
