"""Wanda x spikiness: |W_ij|^weight_exp * ||x_j||_2 * R_j^spikiness_exp.

R_j is the mean of the largest |x_tj|, those above their quantile spike_quantile, over the mean of all, clipped to
[1, spike_max]. Absolute values, never signed ones. With an idf_exp it is `wanda_select`.

Source: METHODS section 3.2, on Wanda (Sun et al. 2023, arXiv:2306.11695).
Differs: earlier single-script versions took quantiles of signed values; R is here one of magnitudes, within 1.1 %.
"""

from pydantic import Field

from neuronrank import selectivity

PARTS = ("attention", "mlp")
READS = "sum_sq, sum_abs and sketch of inputs"
DEFAULT_GROUP = "row"


class Params(selectivity.SelectivityParams):
    """The other exponent is 0 unless it is given."""

    idf_exp: float = Field(default=0.0, allow_inf_nan=False)
    """Exponent of IDF; 0 leaves it out."""


element, channel_factor = selectivity.element, selectivity.channel_factor
