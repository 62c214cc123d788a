"""The k lowest of many arrays at once, exactly, with one array in memory at a time.

Non-negative float32 numbers sort like their bits read as uint32. One pass counts the high 16 bits, which finds the
bucket that holds the k-th lowest; one pass counts the low 16 bits within that bucket, which finds the k-th lowest
itself; the caller's pass over the arrays then takes everything below it, and of what equals it the first few.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BINS = 1 << 16
_BLOCK = 1 << 20
"""Scores counted at once: bounds the temporary copies."""


@dataclass
class Cut:
    """Where the k lowest end: the bits of the k-th lowest, and how many equal to it are still to be removed."""

    threshold: int
    n_ties: int

    def remove(self, scores: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Mark what is removed from the next array; call it once for each array, in order.

        Args:
            scores: any shape, one of the arrays the cut was found in.

        Returns:
            The same shape, True = removed; ties lowest flat index first.
        """
        bits = _bits(scores)
        removed: NDArray[np.bool_] = bits < self.threshold
        if self.n_ties:
            tied = np.flatnonzero(bits == self.threshold)[: self.n_ties]
            removed[tied] = True
            self.n_ties -= tied.size
        return removed.reshape(scores.shape)


def find_cut(arrays: Callable[[], Iterable[NDArray[np.float32]]], k: int) -> Cut:
    """Find where the k lowest of all arrays together end.

    Args:
        arrays: gives the arrays anew, in the same order, each time it is called (twice); finite, >= 0.
        k: in [0, total size].
    """
    if k == 0:
        return Cut(threshold=0, n_ties=0)
    counts = np.zeros(_BINS, dtype=np.int64)
    for block in _blocks(arrays()):
        counts += np.bincount(block >> 16, minlength=_BINS)
    high, k_within = _bin_of(counts, k)
    counts[:] = 0
    for block in _blocks(arrays()):
        counts += np.bincount(block[block >> 16 == high] & (_BINS - 1), minlength=_BINS)
    low, n_ties = _bin_of(counts, k_within)
    return Cut(threshold=high << 16 | low, n_ties=n_ties)


def _bin_of(counts: NDArray[np.int64], k: int) -> tuple[int, int]:
    """Return the bin of the k-th lowest (k >= 1) and its place, from 1, within that bin."""
    reached = np.cumsum(counts)
    found = int(np.searchsorted(reached, k))
    return found, k - int(reached[found] - counts[found])


def _bits(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    return np.ascontiguousarray(scores, dtype=np.float32).reshape(-1).view(np.uint32)


def _blocks(arrays: Iterable[NDArray[np.float32]]) -> Iterator[NDArray[np.uint32]]:
    for scores in arrays:
        bits = _bits(scores)
        for first in range(0, bits.size, _BLOCK):
            yield bits[first : first + _BLOCK]
