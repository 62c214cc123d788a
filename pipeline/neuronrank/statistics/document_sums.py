"""S1: sums over the tokens of each document, per channel; and exact counts of a > 0 and |a| > 1e-6.

Sum of squares feeds Wanda's norms, sum of absolute values the term frequency and document frequency, plain sum the
variance over documents. Means are never stored: sums add across documents, workers and runs.
Accuracy: 32 tokens at a time in float32, those in float64, on the CPU; float32 by pairwise summation elsewhere
(relative error about 1e-7 times the logarithm of T). Kept as float32, relative to the sum of magnitudes 6e-8, and by
profiles that round with 16 bits after the leading one, 7.7e-6, so that they compress. Readers add documents in float64.
The float32 forward itself was measured to be up to 1.6e-5 (squares: 1.0e-4) away from a float64 one, in the last layer
of the trained model.
"""

import torch
from torch import Tensor

from neuronrank import kernels
from neuronrank.statistics import Context

SUMS = ("sum", "sum_abs", "sum_sq", "max_abs")


class Accumulator:
    """The sums and counts of one layer."""

    def __init__(self, context: Context) -> None:
        self._n_documents, self._profile = context.n_documents, context.profile
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._counts: dict[tuple[str, str], Tensor] = {}
        self._lowest: dict[str, Tensor] = {}

    def update(self, rows: slice, tap: str, values: Tensor) -> None:
        """Add whole documents.

        Args:
            rows: which documents.
            tap: which tap; one that the profile does not name is ignored.
            values: (B, T, C), any float type; read only.
        """
        if tap not in self._profile.totals:
            return
        kept, counted = self._profile.totals[tap], tap in self._profile.counted
        wanted = (*(name in kept for name in SUMS), tap in self._profile.sketched, counted)
        found = reduce_compiled(values, wanted) if values.device.type == "cpu" else reduce_plain(values)
        for statistic in self._profile.totals[tap]:
            target = self._sums.get((tap, statistic))
            if target is None:
                target = torch.full((self._n_documents, values.shape[-1]), torch.nan, device=values.device)
                self._sums[tap, statistic] = target
            target[rows] = found[statistic].float()
        for name in ("n_positive", "n_above_floor") if counted else ():
            count = found[name].sum(dim=0, dtype=torch.int32)
            self._counts[tap, name] = self._counts[tap, name] + count if (tap, name) in self._counts else count
        if tap in self._profile.sketched:
            lowest = found["min"].amin(dim=0)
            self._lowest[tap] = torch.minimum(self._lowest[tap], lowest) if tap in self._lowest else lowest

    def result(self) -> dict[tuple[str, str], Tensor]:
        """Return (tap, array) -> (N, C) float32 sums, (C,) int32 counts and float32 lowest values, on the CPU.

        The sums of a document that was never added are NaN.
        """
        lowest = {(tap, "total_min"): value for tap, value in self._lowest.items()}
        return {key: value.cpu() for key, value in (self._sums | self._counts | lowest).items()}


def reduce_compiled(x: Tensor, wanted: tuple[bool, ...]) -> dict[str, Tensor]:
    """As `reduce_plain`, but only what is wanted, in the order of `kernels.reduce_documents`."""
    n_documents, _, n_channels = x.shape
    sums = torch.zeros(3, n_documents, n_channels, dtype=torch.float64)
    extremes = torch.zeros(2, n_documents, n_channels)
    extremes[1] = torch.inf
    counts = torch.zeros(2, n_documents, n_channels, dtype=torch.int32)
    bits, shift = kernels.bits_of(x)
    kernels.reduce_documents(bits, shift, wanted, sums.numpy(), extremes.numpy(), counts.numpy())
    names = ("sum", "sum_abs", "sum_sq", "max_abs", "min", "n_positive", "n_above_floor")
    return dict(zip(names, (*sums, *extremes, *counts), strict=True))


def reduce_plain(values: Tensor) -> dict[str, Tensor]:
    """Reduce (B, T, C) over its tokens to (B, C) tensors."""
    x = values.float()  # before squaring: half precision overflows at 65504
    return {
        "sum": x.sum(dim=1),
        "sum_abs": x.abs().sum(dim=1),
        "sum_sq": x.square().sum(dim=1),
        "max_abs": x.abs().amax(dim=1),
        "min": x.amin(dim=1),
        "n_positive": (x > 0).sum(dim=1),
        "n_above_floor": (x.abs() > float(kernels.FLOOR)).sum(dim=1),
    }
