"""Loops over the elements of a tapped tensor, compiled for the CPU: one read of the tensor each.

PyTorch has no histogram per channel and its indexed adds run element by element; these are over ten times faster.
`statistics/` holds the same operations in plain PyTorch, which other devices use and tests compare with.

A tensor is read as its bits, so that bfloat16 needs no copy in float32: shifted up they are those of the float32. In a
strip of channels each step is a loop of its own, since one step becomes vector instructions and all together would
not. Channels or documents are divided among threads, so that every sum is added in one order whatever the machine.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import torch
from numpy.typing import NDArray

RUN = 32
"""Tokens that are added in float32 before they are added in float64."""
FLOOR = np.float32(1e-6)
"""Magnitudes up to this count as zero in `n_above_floor`."""
_STRIP = 256
"""Channels that a thread takes at once: as many as stay in its first cache with their sums."""
_SKETCHED = 64
"""The same for counts, of which each channel has several hundred."""

Loop = TypeVar("Loop", bound=Callable[..., Any])
_compiled: Callable[[Loop], Loop] = numba.njit(parallel=True, cache=True, error_model="numpy")

Bits = NDArray[Any]
"""uint16 of bfloat16 or uint32 of float32."""


def bits_of(values: torch.Tensor) -> tuple[Bits, np.uint32]:
    """Return a CPU tensor's bits, without a copy where it is bfloat16 or float32, and the shift to a float32's."""
    if values.dtype == torch.bfloat16:
        return values.contiguous().view(torch.uint16).numpy(), np.uint32(16)
    return values.float().contiguous().view(torch.uint32).numpy(), np.uint32(0)


@_compiled
def reduce_documents(
    x: Bits,
    shift: np.uint32,
    wanted: tuple[bool, ...],
    sums: NDArray[np.float64],
    extremes: NDArray[np.float32],
    counts: NDArray[np.int32],
) -> None:
    """Reduce x, (B, T, C), over the tokens of each document.

    Args:
        x: bits.
        shift: of `bits_of`.
        wanted: whether the sums of x, |x| and x^2, the largest |x|, the lowest x, and the counts are; what is not
            stays as it was.
        sums: (3, B, C), zeros; becomes the sums of x, |x| and x^2. So many tokens as `RUN` are added in float32 before
            they are added in float64.
        extremes: (2, B, C), zeros and infinities; becomes the largest |x| and the lowest x.
        counts: (2, B, C), zeros; becomes the numbers of x > 0 and of |x| > `FLOOR`.
    """
    n_documents, n_tokens, n_channels = x.shape
    wants_sum, wants_magnitude, wants_square, wants_largest, wants_lowest, wants_counts = wanted
    n_strips = (n_channels + _STRIP - 1) // _STRIP
    for piece in numba.prange(n_documents * n_strips):
        document, first = piece // n_strips, (piece % n_strips) * _STRIP
        width = min(_STRIP, n_channels - first)
        pattern = np.empty(width, np.uint32)
        value = pattern.view(np.float32)
        plain, magnitude, square = np.zeros(width, np.float32), np.zeros(width, np.float32), np.zeros(width, np.float32)
        largest, lowest = extremes[0, document, first : first + width], extremes[1, document, first : first + width]
        positive, above = counts[0, document, first : first + width], counts[1, document, first : first + width]
        for start in range(0, n_tokens, RUN):
            for token in range(start, min(start + RUN, n_tokens)):
                row = x[document, token, first : first + width]
                for c in range(width):
                    pattern[c] = np.uint32(row[c]) << shift
                if wants_sum:
                    for c in range(width):
                        plain[c] += value[c]
                if wants_magnitude:
                    for c in range(width):
                        magnitude[c] += abs(value[c])
                if wants_square:
                    for c in range(width):
                        square[c] += value[c] * value[c]
                if wants_largest:
                    for c in range(width):
                        largest[c] = largest[c] if largest[c] > abs(value[c]) else abs(value[c])
                if wants_lowest:
                    for c in range(width):
                        lowest[c] = lowest[c] if lowest[c] < value[c] else value[c]
                if wants_counts:
                    for c in range(width):
                        positive[c] += np.int32(value[c] > 0)
                    for c in range(width):
                        above[c] += np.int32(abs(value[c]) > FLOOR)
            for c in range(width):
                sums[0, document, first + c] += plain[c]
                plain[c] = 0
            for c in range(width):
                sums[1, document, first + c] += magnitude[c]
                magnitude[c] = 0
            for c in range(width):
                sums[2, document, first + c] += square[c]
                square[c] = 0


@_compiled
def add_counts(code: NDArray[np.uint16], bin_of_code: NDArray[np.uint16], count: NDArray[np.int32]) -> None:
    """Add to the counts (C, bins) of the bin of each code, code being (tokens, C).

    Args:
        code: any.
        bin_of_code: (65536,) bin.
        count: added to.
    """
    n_tokens, n_channels = code.shape
    n_bins = np.uint64(count.shape[1])
    cells = count.reshape(-1)
    for block in numba.prange((n_channels + _SKETCHED - 1) // _SKETCHED):
        first = block * _SKETCHED
        width = min(_SKETCHED, n_channels - first)
        begin = np.uint64(first) * n_bins
        for token in range(n_tokens):
            row = code[token, first : first + width]
            for c in range(np.uint64(width)):  # unsigned indices: a negative one would be looked for at the end
                cells[begin + c * n_bins + np.uint64(bin_of_code[np.uint64(row[c])])] += 1


@_compiled
def truncated(x: Bits, code: NDArray[np.uint16]) -> None:
    """Write the top 16 bits of |x| less one, the sign as it was, x being (tokens, C) bits of float32; of 0 they are 0.

    Less one of the 31 bits of |x|, so that a value whose lower bits are all zero gets the code below its own.
    """
    for token in numba.prange(x.shape[0]):
        for c in range(x.shape[1]):
            magnitude = x[token, c] & np.uint32(0x7FFFFFFF)
            magnitude -= np.uint32(magnitude > 0)
            code[token, c] = np.uint16(((x[token, c] & np.uint32(0x80000000)) | magnitude) >> np.uint32(16))


@_compiled
def add_moments(
    x: Bits,
    shift: np.uint32,
    group: NDArray[np.int64],
    order: NDArray[np.int64],
    sums: NDArray[np.float64],
    sums_sq: NDArray[np.float64],
) -> None:
    """Add x, (tokens, C) bits, and its squares to the sums (G, C) of each token's group.

    Up to `RUN` tokens of a group are taken together: differences from the first of them are added in float32, and what
    they come to in float64. So float32 rounds relative to how much the tokens differ, not to how large they are.

    Args:
        x: bits.
        shift: of `bits_of`.
        group: (tokens,) group of each token.
        order: (tokens,) tokens, those of a group side by side.
        sums: of x.
        sums_sq: of x^2.
    """
    n_tokens, n_channels = x.shape
    for block in numba.prange((n_channels + _STRIP - 1) // _STRIP):
        first = block * _STRIP
        width = min(_STRIP, n_channels - first)
        pattern = np.empty(width, np.uint32)
        value = pattern.view(np.float32)
        start, off, off_sq = np.empty(width, np.float32), np.zeros(width, np.float32), np.zeros(width, np.float32)
        begin = 0
        while begin < n_tokens:
            of = group[order[begin]]
            row = x[order[begin], first : first + width]
            for c in range(width):
                pattern[c] = np.uint32(row[c]) << shift
            for c in range(width):
                start[c] = value[c]
            n = 1
            while n < RUN and begin + n < n_tokens and group[order[begin + n]] == of:
                row = x[order[begin + n], first : first + width]
                for c in range(width):
                    pattern[c] = np.uint32(row[c]) << shift
                for c in range(width):
                    off[c] += value[c] - start[c]
                for c in range(width):
                    off_sq[c] += (value[c] - start[c]) * (value[c] - start[c])
                n += 1
            total, total_sq = sums[of, first : first + width], sums_sq[of, first : first + width]
            for c in range(width):
                total[c] += n * np.float64(start[c]) + np.float64(off[c])
            for c in range(width):
                base = np.float64(start[c])
                total_sq[c] += base * (n * base + 2 * np.float64(off[c])) + np.float64(off_sq[c])
            for c in range(width):
                off[c] = 0
            for c in range(width):
                off_sq[c] = 0
            begin += n


@_compiled
def add_magnitudes(
    x: Bits, shift: np.uint32, group: NDArray[np.int64], order: NDArray[np.int64], sums: NDArray[np.float64]
) -> None:
    """Add |x|, x being (tokens, C) bits, to the sums (G, C) of each token's group; see `add_moments`.

    Up to `RUN` tokens of a group are added in float32 before they are added in float64.
    """
    n_tokens, n_channels = x.shape
    for block in numba.prange((n_channels + _STRIP - 1) // _STRIP):
        first = block * _STRIP
        width = min(_STRIP, n_channels - first)
        pattern = np.empty(width, np.uint32)
        value = pattern.view(np.float32)
        part = np.zeros(width, np.float32)
        begin = 0
        while begin < n_tokens:
            of, n = group[order[begin]], 0
            while n < RUN and begin + n < n_tokens and group[order[begin + n]] == of:
                row = x[order[begin + n], first : first + width]
                for c in range(width):
                    pattern[c] = np.uint32(row[c]) << shift
                for c in range(width):
                    part[c] += abs(value[c])
                n += 1
            total = sums[of, first : first + width]
            for c in range(width):
                total[c] += np.float64(part[c])
            for c in range(width):
                part[c] = 0
            begin += n
