"""Loops over the elements of a tapped tensor, compiled for the CPU: one read of the tensor each.

PyTorch has no histogram per channel and its indexed adds run element by element; these are over ten times faster.
`statistics/` holds the same operations in plain PyTorch, which other devices use and tests compare with.
Channels are divided among threads, so that the sums of a channel are added in one order whatever the machine.
"""

from collections.abc import Callable
from typing import TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

_CHANNELS_PER_BLOCK = 64

Loop = TypeVar("Loop", bound=Callable[..., None])
_compiled: Callable[[Loop], Loop] = numba.njit(parallel=True, cache=True)


@_compiled
def add_sketch(
    x: NDArray[np.float32],
    bin_of_code: NDArray[np.int16],
    octave_of_bin: NDArray[np.int16],
    count: NDArray[np.int32],
    octave_sum_abs: NDArray[np.float64],
) -> None:
    """Add to the counts (S, C, N_BINS) and sums (C, N_OCTAVES) of |x|, x being (tokens, C).

    With S = 2 the counts of negative x are the second half; with S = 1 signs are not told apart.
    """
    n_tokens, n_channels = x.shape
    bits = x.view(np.int32)
    signed = count.shape[0] - 1
    for block in numba.prange((n_channels + _CHANNELS_PER_BLOCK - 1) // _CHANNELS_PER_BLOCK):
        first = block * _CHANNELS_PER_BLOCK
        last = min(first + _CHANNELS_PER_BLOCK, n_channels)
        for token in range(n_tokens):
            for channel in range(first, last):
                pattern = bits[token, channel]
                code = (max((pattern & 0x7FFFFFFF) - 1, 0)) >> 16
                found = bin_of_code[code]
                count[(pattern >> 31) & signed, channel, found] += 1
                octave_sum_abs[channel, octave_of_bin[found]] += abs(x[token, channel])


@_compiled
def add_moments(
    x: NDArray[np.float32], group: NDArray[np.int64], sums: NDArray[np.float64], sums_sq: NDArray[np.float64]
) -> None:
    """Add x, (tokens, C), and its squares to the sums (G, C) of each token's group."""
    n_tokens, n_channels = x.shape
    for block in numba.prange((n_channels + _CHANNELS_PER_BLOCK - 1) // _CHANNELS_PER_BLOCK):
        first = block * _CHANNELS_PER_BLOCK
        last = min(first + _CHANNELS_PER_BLOCK, n_channels)
        for token in range(n_tokens):
            row = group[token]
            for channel in range(first, last):
                value = np.float64(x[token, channel])
                sums[row, channel] += value
                sums_sq[row, channel] += value * value


@_compiled
def add_magnitudes(x: NDArray[np.float32], group: NDArray[np.int64], sums: NDArray[np.float64]) -> None:
    """Add |x|, x being (tokens, C), to the sums (G, C) of each token's group."""
    n_tokens, n_channels = x.shape
    for block in numba.prange((n_channels + _CHANNELS_PER_BLOCK - 1) // _CHANNELS_PER_BLOCK):
        first = block * _CHANNELS_PER_BLOCK
        last = min(first + _CHANNELS_PER_BLOCK, n_channels)
        for token in range(n_tokens):
            row = group[token]
            for channel in range(first, last):
                sums[row, channel] += abs(x[token, channel])


@_compiled
def add_counts(x: NDArray[np.float32], floor: float, positive: NDArray[np.int32], above: NDArray[np.int32]) -> None:
    """Add the numbers of x > 0 and of |x| > floor, x being (tokens, C), to those of each channel, (C,)."""
    n_tokens, n_channels = x.shape
    lowest = np.float32(floor)
    for block in numba.prange((n_channels + _CHANNELS_PER_BLOCK - 1) // _CHANNELS_PER_BLOCK):
        first = block * _CHANNELS_PER_BLOCK
        last = min(first + _CHANNELS_PER_BLOCK, n_channels)
        for token in range(n_tokens):
            for channel in range(first, last):
                value = x[token, channel]
                positive[channel] += np.int32(value > 0)
                above[channel] += np.int32(abs(value) > lowest)


@_compiled
def document_sums(
    x: NDArray[np.float32],
    sums: NDArray[np.float64],
    sums_abs: NDArray[np.float64],
    sums_sq: NDArray[np.float64],
    max_abs: NDArray[np.float64],
) -> None:
    """Add over the tokens of each document, x being (B, T, C), to four (B, C) arrays."""
    n_documents, n_tokens, n_channels = x.shape
    for block in numba.prange((n_channels + _CHANNELS_PER_BLOCK - 1) // _CHANNELS_PER_BLOCK):
        first = block * _CHANNELS_PER_BLOCK
        last = min(first + _CHANNELS_PER_BLOCK, n_channels)
        for document in range(n_documents):
            for token in range(n_tokens):
                for channel in range(first, last):
                    value = np.float64(x[document, token, channel])
                    magnitude = abs(value)
                    sums[document, channel] += value
                    sums_abs[document, channel] += magnitude
                    sums_sq[document, channel] += value * value
                    max_abs[document, channel] = max(max_abs[document, channel], magnitude)
