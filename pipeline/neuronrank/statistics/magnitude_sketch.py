"""S2: how |a| is distributed in each channel, as `sketch.py` reads it; and exact counts of a > 0 and |a| > 1e-6.

Accuracy: counts are exact (int32), sums of octaves float64 over float32 values, kept as float32
rounded to 8 bits after the leading one (0.2 %).
"""

import numpy as np
import torch
from torch import Tensor

from neuronrank import kernels
from neuronrank.sketch import EDGES, N_BINS, N_OCTAVES, OCTAVE_OF_BIN
from neuronrank.statistics import Context

FLOOR = 1e-6
"""Magnitudes up to this count as zero in `n_above_floor`."""


def _bin_of_code() -> Tensor:
    """Map the top 15 bits of a positive float32, its bfloat16 truncation, to a bin.

    Of the bits one is subtracted first, so that a value on the grid belongs to the cell below it: bins are (low, high].
    """
    codes = torch.arange(1 << 15, dtype=torch.int32)
    lowest = (codes << 16).view(torch.float32).double().numpy()
    bins = np.searchsorted(EDGES, lowest, side="right")
    return torch.from_numpy(np.minimum(bins, N_BINS - 1).astype(np.int16))


class Accumulator:
    """The sketches and counts of one layer."""

    def __init__(self, context: Context) -> None:
        self._sketched, self._signed = context.profile.sketched, context.profile.signed
        self._counted = context.profile.taps
        self._bin_of_code, self._octave_of_bin = _bin_of_code(), torch.from_numpy(OCTAVE_OF_BIN.astype(np.int16))
        self._plain: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._octaves: dict[str, Tensor] = {}
        self._lowest: dict[str, Tensor] = {}

    def update(self, rows: slice, tap: str, values: Tensor) -> None:
        """Add whole documents.

        Args:
            rows: which documents; not needed here.
            tap: which tap; one that the profile does not count is ignored.
            values: (B, T, C) float32; read only.
        """
        del rows
        flat = values.reshape(-1, values.shape[-1])
        if tap in self._counted:
            self._count(tap, flat)
        if tap not in self._sketched:
            return
        if tap not in self._counts:
            n_signs, n_channels, device = 1 + (tap in self._signed), flat.shape[1], flat.device
            self._counts[tap] = torch.zeros(n_signs, n_channels, N_BINS, dtype=torch.int32, device=device)
            self._octaves[tap] = torch.zeros(n_channels, N_OCTAVES, dtype=torch.float64, device=device)
            self._bin_of_code, self._octave_of_bin = self._bin_of_code.to(device), self._octave_of_bin.to(device)
        lowest = flat.amin(dim=0)
        self._lowest[tap] = torch.minimum(self._lowest[tap], lowest) if tap in self._lowest else lowest
        add = _add_compiled if flat.device.type == "cpu" else add_plain
        add(flat, self._bin_of_code, self._octave_of_bin, self._counts[tap], self._octaves[tap])

    def _count(self, tap: str, x: Tensor) -> None:
        if tap not in self._plain:
            self._plain[tap] = torch.zeros(2, x.shape[1], dtype=torch.int32, device=x.device)
        positive, above = self._plain[tap]
        if x.device.type == "cpu":
            kernels.add_counts(x.contiguous().numpy(), FLOOR, positive.numpy(), above.numpy())
        else:
            positive += (x > 0).sum(dim=0)
            above += (x.abs() > FLOOR).sum(dim=0)

    def result(self) -> dict[tuple[str, str], Tensor]:
        """Return (tap, array) -> (C,), (C, N_BINS) or (C, N_OCTAVES): int32 counts, float32 sums, on the CPU."""
        found = {}
        for tap, counts in self._plain.items():
            found[tap, "n_positive"], found[tap, "n_above_floor"] = counts.cpu()
        for tap, count in self._counts.items():
            found[tap, "sketch_count"] = count.sum(dim=0, dtype=torch.int32).cpu()
            found[tap, "sketch_octave_sum_abs"] = self._octaves[tap].float().cpu()
            found[tap, "total_min"] = self._lowest[tap].cpu()
            if tap in self._signed:
                found[tap, "sketch_negative_count"] = count[1].cpu()
        return found


def _add_compiled(x: Tensor, bin_of_code: Tensor, octave_of_bin: Tensor, count: Tensor, octave_sum_abs: Tensor) -> None:
    arrays = (x.contiguous(), bin_of_code, octave_of_bin, count, octave_sum_abs)
    kernels.add_sketch(*(array.numpy() for array in arrays))


def add_plain(x: Tensor, bin_of_code: Tensor, octave_of_bin: Tensor, count: Tensor, octave_sum_abs: Tensor) -> None:
    """Add to the counts (S, C, N_BINS) and octave sums (C, N_OCTAVES) of |x|, x being (tokens, C)."""
    n_signs, n_channels, _ = count.shape
    magnitude = x.abs()
    codes = (magnitude.view(torch.int32) - 1).clamp_(min=0) >> 16
    bins = bin_of_code[codes].int()
    channels = torch.arange(n_channels, dtype=torch.int32, device=x.device)
    signs = (x.view(torch.int32) >> 31) & (n_signs - 1)
    cells = (signs * n_channels + channels) * N_BINS + bins
    count += torch.bincount(cells.reshape(-1), minlength=count.numel()).view_as(count)
    octaves = channels * N_OCTAVES + octave_of_bin[bins]
    octave_sum_abs.view(-1).index_add_(0, octaves.reshape(-1), magnitude.reshape(-1).double())
