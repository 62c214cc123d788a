"""The scores of a module's weights, compiled for the CPU: one pass over the rows, and what is unsound counted with it.

A loop over a row of its own becomes vector instructions; see `kernels.py`. It lets go of the interpreter's lock.
Nothing compiled is taken from another file: what is kept compiled beside this one would not notice its changes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.compiled import compiled
from neuronrank.kernels import Bits

_LARGEST = np.finfo(np.float32).max


@compiled
def _read_magnitudes(magnitudes: Any, values: Any) -> None:
    shift = np.uint32(32 - 8 * values.itemsize)
    for j in range(len(values)):
        magnitudes[j] = (np.uint32(values[j]) << shift) & np.uint32(0x7FFFFFFF)


@compiled
def _write_scores(scores: Any, magnitudes: Any, weight_multi: Any, row: Any, columns: Any) -> None:
    (factor, term), (factors, terms) = row, columns
    for j in range(len(scores)):
        scores[j] = magnitudes[j] * weight_multi * factor * factors[j] + term + terms[j]


@compiled
def _count_unsound(scores: Any) -> Any:
    n = np.int32(0)
    for j in range(len(scores)):
        unsound = np.int32(not (scores[j] >= 0)) | np.int32(not (scores[j] <= _LARGEST))  # NaN is neither
        n = np.int32(n + unsound)  # stays an int32: twice as many at once as of int64
    return n


@compiled
def _count_lost(scores: Any, weight: Any, factors: Any) -> Any:
    n = np.int32(0)
    for j in range(len(scores)):
        lost = np.int32(scores[j] == 0) & np.int32(weight[j] != 0) & np.int32(factors[j] > 0)
        n = np.int32(n + lost)
    return n


@compiled
def write_scores(
    weight: Bits,
    powered: Bits,
    weight_multi: np.float32,
    rows: tuple[NDArray[np.float32], NDArray[np.float32]],
    columns: tuple[NDArray[np.float32], NDArray[np.float32]],
    scores: NDArray[np.float32],
) -> tuple[int, int]:
    """Write weight_multi * |W_ij|^e * row_i * column_j + row_term_i + column_term_j, in float32 and in this order.

    Args:
        weight: W, (O, I), as `bits_of` returns it.
        powered: |W|^e likewise; W itself where e is 1.
        weight_multi: see above.
        rows: factors and terms, (O,) each.
        columns: factors and terms, (I,) each.
        scores: (O, I), written.

    Returns:
        How many scores are not finite or are negative; and how many are zero although weight and factors are not.
    """
    bits = np.empty(scores.shape[1], np.uint32)
    magnitudes = bits.view(np.float32)
    n_unsound, n_lost = 0, 0
    for i in range(len(scores)):
        row = rows[0][i], rows[1][i]
        _read_magnitudes(bits, powered[i])
        _write_scores(scores[i], magnitudes, weight_multi, row, columns)
        n_unsound += _count_unsound(scores[i])
        if row[0] > 0:
            _read_magnitudes(bits, weight[i])
            n_lost += _count_lost(scores[i], bits, columns[0])
    return n_unsound, n_lost
