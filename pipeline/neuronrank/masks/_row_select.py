"""The k lowest of every row, compiled for the CPU.

Non-negative float32 numbers sort like their bits read as an integer. The k-th lowest of a row is the lowest number
that k of the row do not exceed; counting how many do not exceed a number is a few vector instructions on a row in the
first cache. The search starts at the row before's, which lies close in a module, and takes under ten counts a row.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.compiled import compiled

_LARGEST = 0x7F7FFFFF
"""Bits of the largest finite float32."""
_STEP = 1 << 20
"""First distance from the row before's: an eighth of the number, or less."""


@compiled
def _n_up_to(bits: Any, threshold: Any) -> Any:
    n = np.int32(0)
    for i in range(len(bits)):
        n = np.int32(n + np.int32(bits[i] <= threshold))  # of two int32 the sum would be an int64, half as many at once
    return n


@compiled
def lowest_of_rows(scores: NDArray[np.float32], k: int) -> NDArray[np.bool_]:
    """Mark the k lowest of each row, of equal ones the first.

    Args:
        scores: (G, S), finite, >= 0, without -0.0.
        k: in [1, S].

    Returns:
        (G, S), exactly k True in each row.
    """
    n_rows, size = scores.shape
    marked = np.empty((n_rows, size), np.bool_)
    row = np.empty(size, np.float32)
    bits = row.view(np.int32)
    at = _LARGEST
    for r in range(n_rows):
        for i in range(size):
            row[i] = scores[r, i]
        low, high, n_high = -1, _LARGEST, size  # fewer than k are up to low; n_high, k or more, are up to high
        step = _STEP
        while high - low > 1 and n_high != k:
            n = _n_up_to(bits, np.int32(at))
            if n < k:
                low, at = at, at + step
            else:
                high, n_high, at = at, n, at - step
            step = min(4 * step, _LARGEST)
            if not low < at < high:
                at = (low + high) // 2
        at = high
        for i in range(size):
            marked[r, i] = bits[i] <= high
        last = size - 1
        while n_high > k:  # of those equal to the threshold the last ones stay
            if bits[last] == high:
                marked[r, last] = False
                n_high -= 1
            last -= 1
    return marked
