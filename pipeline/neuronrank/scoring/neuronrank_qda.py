"""Quadratic discriminant: |W_ij|^weight_exp * max(Q_c / mean(Q), 1e-6), Q = sum_k p_k (m_k - mu)^2 / (v_k + eps).

Over token classes k with more than one token, all others being one more; p_k is the class's share of the tokens, m_k
and v_k its mean and variance, mu the mean over all tokens. With `element: false` the score is Q alone, per neuron.

Source: METHODS section 3.6.
Differs: nothing.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from neuronrank.class_scores import element_of, relative_to_mean
from neuronrank.scoring import ClassParams, Element
from neuronrank.tap_statistics import TapStatistics

PARTS = ("mlp",)
READS = "class moments of neurons"
DEFAULT_GROUP = "module"


class Params(ClassParams):
    """Number of classes, and whether single weights count."""

    eps: float = Field(default=1e-10, gt=0, allow_inf_nan=False)
    """Added to a variance before dividing by it."""


def element(part: str, params: Params) -> Element:
    """Score single weights, with a factor per neuron."""
    del part
    return element_of(params)


def channel_factor(tap: TapStatistics, params: Params) -> NDArray[np.float64]:
    """Return the class score per neuron, relative to its mean when it multiplies weights, (C,)."""
    return relative_to_mean(_score(tap, params)) if params.element else _score(tap, params)


def neuron_score(tap: TapStatistics, gate_norm: NDArray[np.float64], params: Params) -> NDArray[np.float64]:
    """Return the class score per neuron, (F,)."""
    del gate_norm
    return _score(tap, params)


@lru_cache(maxsize=2)  # asked for as factor and as neuron score
def _score(tap: TapStatistics, params: Params) -> NDArray[np.float64]:
    moments = tap.classes(params.classes)
    several = moments.count > 1
    distance = (moments.mean - moments.joint_mean)[several] ** 2 / (moments.variance[several] + params.eps)
    return np.asarray((moments.share[several] * distance).sum(axis=0))
