"""How selective a channel is: activity thresholds, inverse frequencies and spikiness. Needs no torch.

A threshold that is a quantile of each channel's own values would be exceeded equally often in every channel, and an
inverse frequency could not change any mask. So a threshold is one of (METHODS section 3.3)

- `pooled`: the q_active quantile over all channels and tokens (or documents, or topics) of the tap;
- `relative`: kappa times the channel's own mean |a|, over documents or topics the mean of their means;
- `sign`: a > 0.

Over tokens, thresholds are rounded to the nearest edge of the sketch's grid, at most 2 % away; the counts are exact.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from neuronrank.document_frequency import document_frequency
from neuronrank.errors import DegenerateError
from neuronrank.params import Section
from neuronrank.scoring import Element, WeightedParams
from neuronrank.sketch import MagnitudeSketch
from neuronrank.tap_statistics import TapStatistics

Vector = NDArray[np.float64]


class ThresholdParams(Section):
    """What counts as active."""

    threshold: Literal["pooled", "relative", "sign"] = "pooled"
    """Above the quantile q_active of the whole tap; above kappa times the channel's own mean; or a > 0."""
    q_active: float = Field(default=0.6, gt=0, lt=1)
    """Of `pooled`: the quantile, over all channels together."""
    kappa: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Of `relative`: how many times the channel's own mean of |a|."""


class SpikinessParams(Section):
    """How heavy a channel's tail is."""

    spike_quantile: float = Field(default=0.9, gt=0, lt=1)
    """The mean over the values above this quantile is compared with the mean."""
    spike_max: float = Field(default=10.0, gt=1, allow_inf_nan=False)
    """Upper clip; the lower one is 1."""
    eps: float = Field(default=1e-10, gt=0, allow_inf_nan=False)
    """The least mean, and share of tokens, that is divided by."""


def active_tokens(tap: TapStatistics, threshold: str, q_active: float, kappa: float) -> Vector:
    """Return (C,) counts of tokens on which the channel is active.

    Args:
        tap: whose channels.
        threshold: `pooled`, `relative` or `sign`.
        q_active: of `pooled`.
        kappa: of `relative`.
    """
    if threshold == "sign":
        return tap.n_positive().astype(np.float64)
    if threshold == "pooled":
        return tap.of_sketch(MagnitudeSketch.count_above_pooled, quantile=q_active).astype(np.float64)
    return tap.of_sketch(MagnitudeSketch.count_above_mean, factor=kappa).astype(np.float64)


def spikiness(tap: TapStatistics, params: SpikinessParams) -> Vector:
    """Return R, (C,): the mean of the ceil((1 - q) n) largest |a| over the mean of |a|, clipped to [1, spike_max].

    The mean counts as at least eps. The top mean comes from the sketch: at spike_quantile 0.9 measured within 1.1 %
    (see `sketch.py`).

    Raises:
        DegenerateError: clipped, it is the same in every channel.
    """
    mean = np.maximum(tap.total("sum_abs") / tap.n, params.eps)
    top = tap.of_sketch(MagnitudeSketch.top_mean, quantile=params.spike_quantile)
    found = np.asarray(np.clip(top / mean, 1, params.spike_max))
    _require_distinct(found, f"{tap.where}: spikiness", "Raise spike_max, or set spikiness_exp: 0")
    return found


def active_groups(
    means: NDArray[np.floating[Any]], signed: NDArray[np.floating[Any]] | None, params: ThresholdParams
) -> NDArray[np.int64]:
    """Return (C,) counts of groups (documents or topics) in which the channel is active.

    Args:
        means: (G, C) mean of |a| of each group.
        signed: (G, C) sum or mean of a, for `sign`.
        params: which threshold.
    """
    if params.threshold == "pooled":
        return document_frequency(means, params.q_active)
    if params.threshold == "relative":
        return np.asarray(np.count_nonzero(means >= params.kappa * means.mean(axis=0), axis=0))
    assert signed is not None
    return np.asarray(np.count_nonzero(signed > 0, axis=0))


def require_varying(counts: NDArray[np.generic], where: str, groups: str) -> None:
    """Refuse a frequency that is the same in every channel.

    Raises:
        DegenerateError: IDF would rank nothing.
    """
    if counts.size > 1 and (counts == counts[0]).all():
        raise DegenerateError(
            f"{where}: all {counts.size} channels are active in {counts[0]} of {groups}, so that IDF cannot rank them. "
            f"Use more text, another threshold, or idf_exp: 0"
        )


def _require_distinct(values: Vector, what: str, advice: str) -> None:
    """Refuse a factor that is the same in every channel: multiplied with others it would hide among them."""
    if values.size > 1 and (values == values[0]).all():
        raise DegenerateError(f"{what} is {values[0]:g} in all {values.size} channels, it cannot rank. {advice}")


class SelectivityParams(WeightedParams, ThresholdParams, SpikinessParams):
    """Of Wanda with inverse frequency and spikiness."""

    idf_exp: float = Field(default=1.0, allow_inf_nan=False)
    """Exponent of IDF; 0 leaves it out."""
    spikiness_exp: float = Field(default=1.0, allow_inf_nan=False)
    """Exponent of R; 0 leaves it out."""
    smooth: bool = False
    """ln(1/p) + 1 instead of ln(1/p)."""
    idf_max: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Upper clip of ln(1/p)."""


def element(_part: str, params: SelectivityParams) -> Element:
    """Score single weights, with a factor per input channel."""
    return Element(params.weight_exp, "input")


def channel_factor(tap: TapStatistics, params: SelectivityParams) -> Vector:
    """Return ||x_j||_2 * IDF_j^idf_exp * R_j^spikiness_exp, (I,); an exponent of 0 is a factor of exactly 1.

    IDF_j = clip(ln(1/p_j), 0, idf_max), p_j the share of tokens with |x_tj| above the threshold (METHODS 3.2).

    Raises:
        DegenerateError: every channel is active on the same number of tokens, so that IDF ranks nothing.
    """
    factor = tap.l2_norm()
    if params.idf_exp != 0:
        active = active_tokens(tap, params.threshold, params.q_active, params.kappa)
        require_varying(active, tap.where, f"{tap.n} tokens")
        idf = np.clip(np.log(1 / np.maximum(active / tap.n, params.eps)), 0, params.idf_max)
        _require_distinct(idf, f"{tap.where}: IDF", "Raise idf_max, or use another threshold")
        factor = factor * (idf + 1 if params.smooth else idf) ** params.idf_exp
    if params.spikiness_exp != 0:
        factor = factor * spikiness(tap, params) ** params.spikiness_exp
    return np.asarray(factor)
