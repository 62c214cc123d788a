"""A mergeable sketch of how |a| is distributed in each channel: counts in log-spaced bins, sums in octaves.

The edges lie on the bfloat16 grid, 19 to an octave from 2^-24 to 2^16, so that the bin of a value follows from the top
bits of its float. A bin is (low, high]; the first holds everything up to 2^-24, zeros included, the last everything
above 2^16. Two sketches add.

Accuracy: high <= 1.04 low in every bin, so that any quantile is known within 2 % (`quantile`). Counts above an edge are
exact: thresholds are rounded to edges. Sums of whole octaves are exact; a top mean estimates the part of the octave in
which it ends. That of the top tenth was measured within 1.1 % in every channel of the trained model at 2048 tokens
(0.02 % in the median one, over 1 % in 5 of 100,000), that of the top hundredth within 2.7 %. No values bring it above
4 %.
Numpy only: `statistics/magnitude_sketch.py` fills it.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

LOWEST_OCTAVE, HIGHEST_OCTAVE = -24, 16
# Of the 128 bfloat16 steps in an octave, as few edges as keep neighbours within a factor of 1.04.
_STEPS = (128, 133, 138, 143, 148, 153, 159, 165, 171, 177, 184, 191, 198, 205, 213, 221, 229, 238, 247)
PER_OCTAVE = len(_STEPS)
EDGES: NDArray[np.float64] = np.array(
    [step / 128 * 2.0**octave for octave in range(LOWEST_OCTAVE, HIGHEST_OCTAVE) for step in _STEPS]
    + [2.0**HIGHEST_OCTAVE]
)
"""(E,) rising; bin b is (EDGES[b-1], EDGES[b]]."""
N_BINS = EDGES.size + 1
N_OCTAVES = HIGHEST_OCTAVE - LOWEST_OCTAVE + 2
"""Octaves, with one below and one above."""
OCTAVE_OF_BIN: NDArray[np.int64] = np.concatenate(
    [[0], 1 + np.arange(EDGES.size - 1) // PER_OCTAVE, [N_OCTAVES - 1]]
).astype(np.int64)


def nearest_edge(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the index of the edge nearest in ratio to each positive value; a tie goes to the lower edge."""
    with np.errstate(divide="ignore"):
        logs = np.log(values)
    upper = np.clip(np.searchsorted(_LOG_EDGES, logs), 1, EDGES.size - 1)
    nearer_below = logs - _LOG_EDGES[upper - 1] <= _LOG_EDGES[upper] - logs
    return np.asarray(np.where(nearer_below, upper - 1, upper))


_LOG_EDGES = np.log(EDGES)


@dataclass(frozen=True)
class MagnitudeSketch:
    """The sketch of one tap of one layer."""

    count: NDArray[np.int64]
    """(C, N_BINS) values of |a| in each bin."""
    octave_sum_abs: NDArray[np.float64]
    """(C, N_OCTAVES) sum of |a| over the values of each octave, in activation."""

    @cached_property
    def _at_most(self) -> NDArray[np.int64]:
        """(C, N_BINS): how many values lie in bins up to and including each."""
        return np.cumsum(self.count, axis=1)

    @property
    def n(self) -> int:
        """Values per channel."""
        return int(self._at_most[0, -1])

    def count_above(self, edge: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (C,) exact counts of |a| > EDGES[edge].

        Args:
            edge: (C,) or (1,) indices into `EDGES`.
        """
        edges = np.broadcast_to(edge, (len(self.count),))
        return np.asarray(self.n - self._at_most[np.arange(len(edges)), edges])

    def pooled_edge(self, quantile: float) -> int:
        """Return the edge that the share of values nearest to `quantile` does not exceed, over all channels together.

        Of two edges that are equally near, the lower one.
        """
        at_most = self._at_most[:, :-1].sum(axis=0)
        return int(np.argmin(np.abs(at_most - quantile * self.n * len(self.count))))

    def quantile(self, quantile: float) -> NDArray[np.float64]:
        """Return (C,) quantiles of |a|, linearly interpolated between order statistics, each within 2 %.

        Order statistics beyond the ends of the grid are given as 0 and as the mean of the last bin.
        """
        position = quantile * (self.n - 1)
        low, share = int(np.floor(position)), position - np.floor(position)
        high = min(low + 1, self.n - 1)
        return np.asarray((1 - share) * self._order_statistic(low) + share * self._order_statistic(high))

    def _order_statistic(self, rank: int) -> NDArray[np.float64]:
        bins = (self._at_most <= rank).sum(axis=1)
        inner = np.clip(bins, 1, N_BINS - 2)
        low, high = EDGES[inner - 1], EDGES[inner]
        middle = 2 * low * high / (low + high)  # the same relative distance to both ends
        in_last = np.maximum(self.count[:, -1], 1)
        middle = np.where(bins == N_BINS - 1, self.octave_sum_abs[:, -1] / in_last, middle)
        return np.asarray(np.where(bins == 0, 0.0, middle))

    def top_mean(self, quantile: float) -> NDArray[np.float64]:
        """Return (C,) means of the ceil((1 - quantile) n) largest |a|.

        Whole octaves enter with their exact sums. In the octave where the count is reached, a bin counts with its
        middle, scaled so that the octave's sum is met; the bin that is cut is taken as evenly filled.
        """
        wanted = int(np.ceil((1 - quantile) * self.n - 1e-9))
        channels = np.arange(len(self.count))
        above = self.n - self._at_most  # values in bins above each
        cut = np.argmax(above < wanted, axis=1)
        octave = OCTAVE_OF_BIN[cut]
        exact = self.octave_sum_abs[:, ::-1].cumsum(axis=1)[:, ::-1]
        whole = np.where(octave + 1 < N_OCTAVES, exact[channels, np.minimum(octave + 1, N_OCTAVES - 1)], 0.0)
        same_octave = OCTAVE_OF_BIN[None, :] == octave[:, None]
        middles = self.count * _MIDDLES
        estimated = np.where(same_octave, middles, 0).sum(axis=1)
        scale = self.octave_sum_abs[channels, octave] / np.where(estimated > 0, estimated, 1)
        higher = np.arange(N_BINS)[None, :] > cut[:, None]
        in_octave = np.where(same_octave & higher, middles, 0).sum(axis=1)
        rest = wanted - above[channels, cut]
        filled = rest / np.maximum(self.count[channels, cut], 1)
        upper_part = _HIGHS[cut] - filled / 2 * (_HIGHS[cut] - _LOWS[cut])
        return np.asarray((whole + scale * (in_octave + rest * upper_part)) / wanted)


# The first bin's values may all be zero, the last has no end: there the scale alone decides.
_LOWS = np.concatenate([[EDGES[0]], EDGES[:-1], [EDGES[-1]]])
_HIGHS = np.concatenate([[EDGES[0]], EDGES[1:], [EDGES[-1]]])
_MIDDLES = (_LOWS + _HIGHS) / 2
