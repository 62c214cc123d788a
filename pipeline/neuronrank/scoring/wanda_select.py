"""Wanda x selectivity: |W_ij|^weight_exp * ||x_j||_2 * IDF_j^idf_exp * R_j^spikiness_exp.

p_j is the share of tokens with |x_tj| above the threshold, IDF_j = clip(ln(1/p_j), 0, idf_max); R_j is the mean of the
largest |x_tj|, those above their quantile spike_quantile, over the mean of all, clipped to [1, spike_max]. Absolute
values, never signed ones.

Source: METHODS section 3.2, on Wanda (Sun et al. 2023, arXiv:2306.11695).
Differs: earlier single-script versions took a quantile of each channel's own signed values as its
threshold, so that IDF was constant.
"""

from neuronrank import selectivity

PARTS = ("attention", "mlp")
READS = "sum_sq, sum_abs and sketch of inputs; their counts for threshold sign"
DEFAULT_GROUP = "row"


class Params(selectivity.SelectivityParams):
    """Both exponents are 1 unless they are given."""


element, channel_factor = selectivity.element, selectivity.channel_factor
