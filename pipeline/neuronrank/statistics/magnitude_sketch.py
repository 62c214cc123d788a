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
from neuronrank.statistics import Context, Tapped
from neuronrank.tap_names import base


@cache
def bin_of_code(signed: bool) -> NDArray[np.uint16]:
    """Map the top 16 bits of a float32, the bits of |a| less one, to a bin, (65536,).

    With signs the bins of negative ones are N_BINS higher. Less one, so that a value on the grid belongs to the cell
    below it: bins are (low, high].
    """
    with np.errstate(invalid="ignore"):  # the highest are NaN, which no sound tensor holds
        lowest = (np.arange(1 << 15, dtype=np.uint32) << 16).view(np.float32).astype(np.float64)
    bins = np.minimum(np.searchsorted(EDGES, lowest, side="right"), N_BINS - 1)
    return np.concatenate([bins, bins + N_BINS if signed else bins]).astype(np.uint16)


@cache
def bin_of_bfloat16(signed: bool) -> NDArray[np.uint16]:
    """Map the bits of a bfloat16 to a bin, as `bin_of_code` does those of a float32."""
    codes = np.arange(1 << 16)
    magnitude = codes & 0x7FFF
    return np.asarray(bin_of_code(signed)[(codes & 0x8000) | np.maximum(magnitude - 1, 0)])


class Accumulator:
    """The sketches of one layer."""

    def __init__(self, context: Context) -> None:
        self._sketched, self._signed = context.profile.sketched, context.profile.signed
        self._counts: dict[str, Tensor] = {}

    def open(self, tap: str, values: Tensor) -> bool:
        """Make room for a tap, of which `values` is the first; say whether it is sketched."""
        if base(tap) not in self._sketched:
            return False
        shape = (values.shape[-1], (1 + (base(tap) in self._signed)) * N_BINS)
        self._counts[tap] = torch.zeros(shape, dtype=torch.int32, device=values.device)
        return True

    def update(self, tap: str, tapped: Tapped, channels: tuple[int, int]) -> None:
        """Add some channels of whole documents."""
        (add_compiled if tapped.on_cpu else add_plain)(tapped, channels, self._counts[tap])

    def result(self) -> dict[tuple[str, str], Tensor]:
        """Return (tap, array) -> (C, N_BINS) int32 counts on the CPU."""
        found = {}
        for tap, count in self._counts.items():
            by_sign = count.view(len(count), -1, N_BINS).cpu()
            signed = base(tap) in self._signed
            found[tap, "sketch_count"] = by_sign.sum(dim=1, dtype=torch.int32) if signed else by_sign[:, 0]
            if signed:
                found[tap, "sketch_negative_count"] = by_sign[:, 1].contiguous()
        return found


def add_compiled(tapped: Tapped, channels: tuple[int, int], count: Tensor) -> None:
    """Add the bins of some channels to the counts (C, N_BINS), or (C, 2 N_BINS) with those of negative a apart."""
    signed = count.shape[1] > N_BINS
    bits = tapped.bits
    if bits.dtype == np.uint16:
        code, table = bits, bin_of_bfloat16(signed)
    else:
        code, table = kernels.truncated(bits, channels), bin_of_code(signed)
    kernels.add_counts(code, channels, table, count.numpy())


def add_plain(tapped: Tapped, channels: tuple[int, int], count: Tensor) -> None:
    """As `add_compiled`, in plain PyTorch, of all channels."""
    del channels
    bits = tapped.values.float().view(torch.int32)
    magnitude = bits & 0x7FFFFFFF
    code = (((magnitude - 1).clamp_(min=0) >> 16) | ((bits >> 16) & 0x8000)).long()
    bins = torch.from_numpy(bin_of_code(count.shape[1] > N_BINS).astype(np.int64)).to(bits.device)[code]
    cells = torch.arange(len(count), device=bits.device) * count.shape[1] + bins
    count += torch.bincount(cells.reshape(-1), minlength=count.numel()).view_as(count)
