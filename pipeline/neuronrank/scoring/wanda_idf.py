"""Wanda x IDF: |W_ij|^weight_exp * ||x_j||_2 * IDF_j^idf_exp.

p_j is the share of tokens with |x_tj| above the threshold, IDF_j = clip(ln(1/p_j), 0, idf_max). Absolute values, never
signed ones. With a spikiness_exp it is `wanda_select`.

Source: METHODS section 3.2, on Wanda (Sun et al. 2023, arXiv:2306.11695).
Differs: earlier single-script versions took a quantile of each channel's own signed values as its
threshold, so that IDF was constant.
"""

from pydantic import Field

from neuronrank import selectivity

PARTS = ("attention", "mlp")
READS = "sum_sq and sketch of inputs; their counts or sum_abs for thresholds sign and relative"
DEFAULT_GROUP = "row"


class Params(selectivity.SelectivityParams):
    """The other exponent is 0 unless it is given."""

    spikiness_exp: float = Field(default=0.0, allow_inf_nan=False)
    """Exponent of R; 0 leaves it out."""


element, channel_factor = selectivity.element, selectivity.channel_factor
