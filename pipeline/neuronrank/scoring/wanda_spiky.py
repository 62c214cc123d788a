"""Wanda x spikiness: |W_ij|^weight_exp * ||x_j||_2 * R_j^spikiness_exp.

p_j is the share of tokens with |x_tj| above the threshold, IDF_j = clip(ln(1/p_j), 0, idf_max); R_j is the mean of the
largest tenth of |x_tj| over their mean, clipped to [1, spike_max]. Absolute values, never signed ones.

Source: METHODS section 3.2, on Wanda (Sun et al. 2023, arXiv:2306.11695).
Differs: earlier single-script versions took quantiles of signed values; R is here one of magnitudes, within 1.1 %.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from neuronrank.scoring import Element, WeightedParams
from neuronrank.selectivity import SelectivityParams, wanda_selectivity
from neuronrank.tap_statistics import TapStatistics

PARTS = ("attention", "mlp")
READS = "sum_sq, sketch and counts of inputs"
DEFAULT_GROUP = "row"


class Params(WeightedParams, SelectivityParams):
    """Exponents, threshold and clips."""

    idf_exp: float = Field(default=0.0, allow_inf_nan=False)
    """Exponent of IDF; 0 leaves it out."""
    spikiness_exp: float = Field(default=1.0, allow_inf_nan=False)
    """Exponent of R; 0 leaves it out."""


def element(part: str, params: Params) -> Element:
    """Score single weights, with a factor per input channel."""
    del part
    return Element(params.weight_exp, "input")


def channel_factor(tap: TapStatistics, params: Params) -> NDArray[np.float64]:
    """Return ||x_j||_2 * IDF_j^idf_exp * R_j^spikiness_exp per input channel, (I,)."""
    return wanda_selectivity(tap, params.idf_exp, params.spikiness_exp, params)
