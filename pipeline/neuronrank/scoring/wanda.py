"""Wanda: |W_ij|^weight_exp * ||x_j||_2^activation_exp, with x the module's input over all calibration tokens.

Source: Sun et al. 2023, arXiv:2306.11695, eq. 1; METHODS section 3.1.
Differs: the statistics are those of the dense model for every layer ("one-shot dense"); the paper prunes layer by
layer and measures each layer's input behind the layers already pruned.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from neuronrank.scoring import Element, SampledParams
from neuronrank.tap_statistics import TapStatistics

PARTS = ("attention", "mlp")
READS = "sum_sq of inputs"
DEFAULT_GROUP = "row"


class Params(SampledParams):
    """Exponents; both 1 is the paper's score."""

    activation_exp: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Exponent of the input channel's L2 norm."""


def element(part: str, params: Params) -> Element:
    """Score single weights, with a factor per input channel."""
    del part
    return Element(params.weight_exp, "input" if params.activation_exp else None)


def channel_factor(tap: TapStatistics, params: Params) -> NDArray[np.float64]:
    """Return ||x_j||_2^activation_exp per input channel, (I,), activation^activation_exp."""
    return np.asarray(tap.l2_norm() ** params.activation_exp)
