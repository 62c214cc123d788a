"""Mahalanobis distance: |W_ij|^weight_exp * max(D_c / mean(D), 1e-6), D = sum_k p_k (m_k - mu)^2 / (variance + eps).

The squared distance of the class means from the joint mean, one channel at a time. The variance is that within
classes, or with `pooled: true` the total variance over all tokens. With `element: false` the score is D alone.

Source: METHODS section 3.6.
Differs: without `pooled` it equals the Fisher ratio.
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
    pooled: bool = False
    """Divide by the total variance instead of the variance within classes."""


def class_score(tap: TapStatistics, params: Params) -> NDArray[np.float64]:
    """Return D per neuron, (C,)."""
    between, within = (tap.of_classes(of, params.classes) for of in (ClassMoments.between, ClassMoments.within))
    return np.asarray(between / ((between + within if params.pooled else within) + params.eps))


element, channel_factor, neuron_score = ranked_by(class_score)
