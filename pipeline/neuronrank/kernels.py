"""Loops over the elements of a tapped tensor, compiled for the CPU: one read of the tensor each.

PyTorch has no histogram per channel and its indexed adds run element by element; these are over ten times faster.
`statistics/` holds the same operations in plain PyTorch, which other devices use and tests compare with.

A tensor is read as its bits, so that bfloat16 needs no copy in float32: shifted up they are those of the float32. Each
step over a row of channels is a loop of its own, which becomes vector instructions (one with many targets would not),
and takes four tokens at once. Every loop is given some channels, so that threads can divide them: each sum is added by
one thread, in one order whatever their number. Loops let go of the interpreter's lock.
"""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from neuronrank.compiled import compiled

RUN = 32
"""Tokens that are added in float32 before they are added in float64."""
FLOOR = np.float32(1e-6)
"""Magnitudes up to this count as zero in `n_above_floor`."""
_STRIP = 512
"""Channels taken at once: as many as stay in the first cache with their sums."""
_SKETCHED = 64
"""The same for counts, of which each channel has several hundred."""

Bits = NDArray[Any]
"""uint16 of bfloat16 or uint32 of float32."""


def bits_of(values: torch.Tensor) -> Bits:
    """Return a CPU tensor's bits, without a copy where it is bfloat16 or float32."""
    if values.dtype == torch.bfloat16:
        return values.contiguous().view(torch.uint16).numpy()
    return values.float().contiguous().view(torch.uint32).numpy()


@intrinsic  # type: ignore[untyped-decorator]  # numba states no types
def _value(_context: Any, bits: Any) -> Any:
    """Return the float32 that one of the bits of `bits_of` stands for."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        (given,) = arguments
        if bits.bitwidth == 16:  # numba itself would shift 64 bits, half as many numbers at once
            given = builder.shl(builder.zext(given, ir.IntType(32)), ir.Constant(ir.IntType(32), 16))
        return builder.bitcast(given, ir.FloatType())

    return types.float32(bits), generate


@compiled
def _add(total: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    for i in range(len(total)):
        total[i] += (_value(a[i]) + _value(b[i])) + (_value(c[i]) + _value(d[i]))


@compiled
def _add_magnitudes(total: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    for i in range(len(total)):
        total[i] += (abs(_value(a[i])) + abs(_value(b[i]))) + (abs(_value(c[i])) + abs(_value(d[i])))


@compiled
def _add_squares(total: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    for i in range(len(total)):
        p, q, r, s = _value(a[i]), _value(b[i]), _value(c[i]), _value(d[i])
        total[i] += (p * p + q * q) + (r * r + s * s)


@compiled
def _raise_to_magnitudes(largest: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    for i in range(len(largest)):
        p, q = abs(_value(a[i])), abs(_value(b[i]))
        r, s = abs(_value(c[i])), abs(_value(d[i]))
        largest[i] = max(max(max(p, q), max(r, s)), largest[i])


@compiled
def _lower_to_values(lowest: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    for i in range(len(lowest)):
        p, q, r, s = _value(a[i]), _value(b[i]), _value(c[i]), _value(d[i])
        lowest[i] = min(min(min(p, q), min(r, s)), lowest[i])


@compiled
def _count_positive(count: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    for i in range(len(count)):
        count[i] += (
            np.int32(_value(a[i]) > 0)
            + np.int32(_value(b[i]) > 0)
            + np.int32(_value(c[i]) > 0)
            + np.int32(_value(d[i]) > 0)
        )


@compiled
def _count_above_floor(count: Any, a: Any, b: Any, c: Any, d: Any) -> None:
    for i in range(len(count)):
        count[i] += (
            np.int32(abs(_value(a[i])) > FLOOR)
            + np.int32(abs(_value(b[i])) > FLOOR)
            + np.int32(abs(_value(c[i])) > FLOOR)
            + np.int32(abs(_value(d[i])) > FLOOR)
        )


@compiled
def _flush(total: Any, part: Any) -> None:
    for i in range(len(total)):
        total[i] += np.float64(part[i])
    for i in range(len(part)):
        part[i] = 0


@compiled
def reduce_documents(
    x: Bits,
    starts: NDArray[np.int64],
    channels: tuple[int, int],
    wanted: tuple[bool, ...],
    found: tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int32]],
) -> None:
    """Reduce x, (n, C), over the tokens of each of B documents.

    Args:
        x: bits.
        starts: (B + 1,): where each document begins, and where the last one ends.
        channels: the first, and the one behind the last.
        wanted: whether the sums of x, |x| and x^2, the largest |x|, the lowest x, and the counts are; what is not
            stays as it was.
        found: (4, B, C), becomes the sums of x, |x| and x^2, and the largest |x|; so many tokens as `RUN` are added in
            float32 before they are added in float64. (C,) lowest x so far, and (2, C) counts of x > 0 and of
            |x| > `FLOOR`, over documents.
    """
    n_documents = len(starts) - 1
    sums, lowest, counts = found
    wants_sum, wants_magnitude, wants_square, wants_largest, wants_lowest, wants_counts = wanted
    for piece in range(n_documents * ((channels[1] - channels[0] + _STRIP - 1) // _STRIP)):
        n, first = piece % n_documents, channels[0] + piece // n_documents * _STRIP
        end = starts[n + 1]
        last = min(first + _STRIP, channels[1])
        width = last - first
        parts, totals = np.zeros((4, width), np.float32), np.zeros((3, width), np.float64)
        nothing = np.zeros(width, x.dtype)
        for start in range(starts[n], end, RUN):
            for t in range(start, min(start + RUN, end), 4):
                a = x[t, first:last]  # beyond the last token zeros, which add nothing and count nowhere
                b = x[t + 1, first:last] if t + 1 < end else nothing
                c = x[t + 2, first:last] if t + 2 < end else nothing
                d = x[t + 3, first:last] if t + 3 < end else nothing
                if wants_sum:
                    _add(parts[0], a, b, c, d)
                if wants_magnitude:
                    _add_magnitudes(parts[1], a, b, c, d)
                if wants_square:
                    _add_squares(parts[2], a, b, c, d)
                if wants_largest:
                    _raise_to_magnitudes(parts[3], a, b, c, d)
                if wants_lowest and t + 3 < end:
                    _lower_to_values(lowest[first:last], a, b, c, d)
                elif wants_lowest:
                    for token in range(t, end):
                        one = x[token, first:last]
                        _lower_to_values(lowest[first:last], one, one, one, one)
                if wants_counts:
                    _count_positive(counts[0, first:last], a, b, c, d)
                    _count_above_floor(counts[1, first:last], a, b, c, d)
            for statistic in range(3):
                if wanted[statistic]:
                    _flush(totals[statistic], parts[statistic])
        for statistic in range(3):
            if wanted[statistic]:
                for i in range(width):
                    sums[statistic, n, first + i] = np.float32(totals[statistic, i])
        if wants_largest:
            for i in range(width):
                sums[3, n, first + i] = parts[3, i]


@compiled
def reduce_rows(x: Bits, found: NDArray[np.float32]) -> None:
    """Reduce x, (O, I), along each row.

    Args:
        x: bits.
        found: (3, O), becomes the sums of |x| and x^2, and the largest |x|; `_STRIP` at a time are added in float32,
            side by side as many as `RUN`, before they are added in float64.
    """
    n_columns = x.shape[1]
    magnitudes, squares, largest = np.zeros(RUN, np.float32), np.zeros(RUN, np.float32), np.zeros(RUN, np.float32)
    for row in range(x.shape[0]):
        sum_abs, sum_sq = 0.0, 0.0
        largest[:] = 0
        for strip in range(0, n_columns, _STRIP):
            for first in range(strip, min(strip + _STRIP, n_columns), RUN):
                line = x[row, first : min(first + RUN, n_columns)]
                for i in range(len(line)):
                    magnitude = abs(_value(line[i]))
                    magnitudes[i] += magnitude
                    squares[i] += magnitude * magnitude
                    largest[i] = max(largest[i], magnitude)
            for i in range(RUN):
                sum_abs += np.float64(magnitudes[i])
                sum_sq += np.float64(squares[i])
            magnitudes[:] = 0
            squares[:] = 0
        found[0, row], found[1, row], found[2, row] = sum_abs, sum_sq, largest.max()


@compiled
def add_counts(
    code: NDArray[np.uint16], channels: tuple[int, int], bin_of_code: NDArray[np.uint16], count: NDArray[np.int32]
) -> None:
    """Add to the counts (C, bins) of the bin of each code, code being (tokens, C).

    Args:
        code: any.
        channels: the first, and the one behind the last.
        bin_of_code: (65536,) bin.
        count: added to.
    """
    n_bins = np.uint64(count.shape[1])
    cells = count.reshape(-1)
    for first in range(channels[0], channels[1], _SKETCHED):
        last = min(first + _SKETCHED, channels[1])
        for token in range(code.shape[0]):
            row = code[token, first:last]
            cell = np.uint64(first) * n_bins
            for c in range(last - first):
                cells[cell + np.uint64(bin_of_code[row[c]])] += 1
                cell += n_bins


@compiled
def truncated(x: Bits, channels: tuple[int, int]) -> NDArray[np.uint16]:
    """Return the top 16 bits of |x| less one, the sign as it was, x being (tokens, C) bits of float32; of 0 they are 0.

    Less one of the 31 bits of |x|, so that a value whose lower bits are all zero gets the code below its own.
    """
    code = np.empty(x.shape, np.uint16)
    for token in range(x.shape[0]):
        for c in range(channels[0], channels[1]):
            magnitude = x[token, c] & np.uint32(0x7FFFFFFF)
            magnitude -= np.uint32(magnitude > 0)
            code[token, c] = np.uint16(((x[token, c] & np.uint32(0x80000000)) | magnitude) >> np.uint32(16))
    return code


@compiled
def _add_differences(off: Any, off_sq: Any, row: Any, start: Any) -> None:
    for i in range(len(off)):
        difference = _value(row[i]) - _value(start[i])
        off[i] += difference
        off_sq[i] += difference * difference


@compiled
def _add_from_start(totals: Any, n: Any, start: Any, offs: Any) -> None:
    (total, total_sq), (off, off_sq) = totals, offs
    for i in range(len(total)):
        total[i] += n * np.float64(_value(start[i])) + np.float64(off[i])
    for i in range(len(total)):
        base = np.float64(_value(start[i]))
        total_sq[i] += base * (n * base + 2 * np.float64(off[i])) + np.float64(off_sq[i])
    for i in range(len(off)):
        off[i] = 0
    for i in range(len(off)):
        off_sq[i] = 0


@compiled
def add_moments(
    x: Bits,
    channels: tuple[int, int],
    tokens: tuple[NDArray[np.int64], NDArray[np.int64]],
    sums: NDArray[np.float64],
    sums_sq: NDArray[np.float64],
) -> None:
    """Add x, (tokens, C) bits, and its squares to the sums (G, C) of each token's group.

    Up to `RUN` tokens of a group are taken together: differences from the first of them are added in float32, and what
    they come to in float64. So float32 rounds relative to how much the tokens differ, not to how large they are.

    Args:
        x: bits.
        channels: the first, and the one behind the last.
        tokens: of `grouped`.
        sums: of x.
        sums_sq: of x^2.
    """
    order, group = tokens
    n_tokens = x.shape[0]
    for first in range(channels[0], channels[1], _STRIP):
        last = min(first + _STRIP, channels[1])
        off, off_sq = np.zeros(last - first, np.float32), np.zeros(last - first, np.float32)
        begin = 0
        while begin < n_tokens:
            of = group[begin]
            start = x[order[begin], first:last]
            n = 1
            while n < RUN and begin + n < n_tokens and group[begin + n] == of:
                _add_differences(off, off_sq, x[order[begin + n], first:last], start)
                n += 1
            totals = sums[of, first:last], sums_sq[of, first:last]
            _add_from_start(totals, np.float64(n), start, (off, off_sq))
            begin += n


@compiled
def add_magnitudes(
    x: Bits,
    channels: tuple[int, int],
    tokens: tuple[NDArray[np.int64], NDArray[np.int64]],
    sums: NDArray[np.float64],
) -> None:
    """Add |x|, x being (tokens, C) bits, to the sums (G, C) of each token's group; see `add_moments`.

    Up to `RUN` tokens of a group are added in float32 before they are added in float64.
    """
    order, group = tokens
    n_tokens = x.shape[0]
    for first in range(channels[0], channels[1], _STRIP):
        last = min(first + _STRIP, channels[1])
        part, nothing = np.zeros(last - first, np.float32), np.zeros(last - first, x.dtype)
        begin = 0
        while begin < n_tokens:
            of = group[begin]
            end = begin + 1
            while end < n_tokens and end - begin < RUN and group[end] == of:
                end += 1
            for at in range(begin, end, 4):
                a = x[order[at], first:last]
                b = x[order[at + 1], first:last] if at + 1 < end else nothing
                c = x[order[at + 2], first:last] if at + 2 < end else nothing
                d = x[order[at + 3], first:last] if at + 3 < end else nothing
                _add_magnitudes(part, a, b, c, d)
            _flush(sums[of, first:last], part)
            begin = end


def grouped(group: torch.Tensor) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return tokens with those of a group side by side, and the group of each: of group, (tokens,)."""
    order = torch.argsort(group, stable=True)
    return order.numpy(), group[order].numpy()
