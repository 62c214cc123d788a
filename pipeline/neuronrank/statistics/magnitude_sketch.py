"""S2: how |a| is distributed in each channel, as `sketch.py` reads it.

Accuracy: counts are exact (int32).
"""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuronrank import kernels
from neuronrank.sketch import EDGES, N_BINS
from neuronrank.statistics import Context


@cache
def bin_of_code() -> NDArray[np.uint16]:
    """Map the top 16 bits of a float32, the bits of |a| less one, to a bin; (65536,), negative ones N_BINS higher.

    Less one, so that a value on the grid belongs to the cell below it: bins are (low, high].
    """
    with np.errstate(invalid="ignore"):  # the highest are NaN, which no sound tensor holds
        lowest = (np.arange(1 << 15, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
    bins = np.minimum(np.searchsorted(EDGES, lowest, side="right"), N_BINS - 1)
    return np.concatenate([bins, bins + N_BINS]).astype(np.uint16)


@cache
def bin_of_bfloat16() -> NDArray[np.uint16]:
    """Map the bits of a bfloat16 to a bin, as `bin_of_code` does those of a float32."""
    codes = np.arange(1 << 16)
    magnitude = codes & 0x7FFF
    return np.asarray(bin_of_code()[(codes & 0x8000) | np.maximum(magnitude - 1, 0)])


class Accumulator:
    """The sketches of one layer."""

    def __init__(self, context: Context) -> None:
        self._sketched, self._signed = context.profile.sketched, context.profile.signed
        self._counts: dict[str, Tensor] = {}

    def update(self, rows: slice, tap: str, values: Tensor) -> None:
        """Add whole documents.

        Args:
            rows: which documents; not needed here.
            tap: which tap; one that the profile does not sketch is ignored.
            values: (B, T, C), any float type; read only.
        """
        del rows
        if tap not in self._sketched:
            return
        flat = values.reshape(-1, values.shape[-1])
        if tap not in self._counts:
            shape = (flat.shape[1], (1 + (tap in self._signed)) * N_BINS)
            self._counts[tap] = torch.zeros(shape, dtype=torch.int32, device=flat.device)
        add = add_compiled if flat.device.type == "cpu" else add_plain
        add(flat, self._counts[tap])

    def result(self) -> dict[tuple[str, str], Tensor]:
        """Return (tap, array) -> (C, N_BINS) int32 counts on the CPU."""
        found = {}
        for tap, count in self._counts.items():
            by_sign = count.view(len(count), -1, N_BINS).cpu()
            found[tap, "sketch_count"] = by_sign.sum(dim=1, dtype=torch.int32)
            if tap in self._signed:
                found[tap, "sketch_negative_count"] = by_sign[:, 1].contiguous()
        return found


def add_compiled(x: Tensor, count: Tensor) -> None:
    """Add the bins of x, (tokens, C), to the counts (C, N_BINS), or (C, 2 N_BINS) with those of negative x apart."""
    bits, _ = kernels.bits_of(x)
    table = bin_of_bfloat16() if bits.dtype == np.uint16 else bin_of_code()
    if bits.dtype != np.uint16:
        code = np.empty(bits.shape, np.uint16)
        kernels.truncated(bits, code)
        bits = code
    kernels.add_counts(bits, _folded(table, count.shape[1]), count.numpy())


def add_plain(x: Tensor, count: Tensor) -> None:
    """As `add_compiled`, in plain PyTorch."""
    bits = x.float().view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    code = (((magnitude - 1).clamp_(min=0) >> 16) | ((bits >> 16) & 0x8000)).long()
    bins = torch.from_numpy(_folded(bin_of_code(), count.shape[1]).astype(np.int64)).to(x.device)[code]
    cells = torch.arange(len(count), device=x.device) * count.shape[1] + bins
    count += torch.bincount(cells.reshape(-1), minlength=count.numel()).view_as(count)


def _folded(table: NDArray[np.uint16], n_cells: int) -> NDArray[np.uint16]:
    """Return a table without signs when there are no cells for them."""
    return table if n_cells == 2 * N_BINS else table % np.uint16(N_BINS)
