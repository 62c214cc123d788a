"""S1: sums over the tokens of each document, per channel; and exact counts of a > 0 and |a| > 1e-6.

Sum of squares feeds Wanda's norms, sum of absolute values the term frequency and document frequency, plain sum the
variance over documents. Means are never stored: sums add across documents, workers and runs.
Accuracy: 32 tokens at a time in float32, those in float64, on the CPU (2.3e-7 of the sum of magnitudes, measured);
float32 by pairwise summation elsewhere (about 1e-7 times the logarithm of T). Kept as float32, and by
profiles that round with 16 bits after the leading one, 7.7e-6, so that they compress. Readers add documents in float64.
The float32 forward itself was measured to be up to 1.6e-5 (squares: 1.0e-4) away from a float64 one, in the last layer
of the trained model.
"""

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from neuronrank import kernels
from neuronrank.statistics import Context, Tapped
from neuronrank.tap_names import base, expert

SUMS = ("sum", "sum_abs", "sum_sq", "max_abs")


class Accumulator:
    """The sums and counts of one layer."""

    def __init__(self, context: Context) -> None:
        self._n_documents, self._profile = context.n_documents, context.profile
        self._sums: dict[str, Tensor] = {}
        self._lowest: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor] = {}
        self._n_tokens: dict[str, Tensor] = {}

    def open(self, tap: str, values: Tensor) -> bool:
        """Make room for a tap, of which `values` is the first; say whether anything is kept of it."""
        if base(tap) not in self._profile.totals:
            return False
        n_channels, device = values.shape[-1], values.device
        self._sums[tap] = torch.full((len(SUMS), self._n_documents, n_channels), torch.nan, device=device)
        self._lowest[tap] = torch.full((n_channels,), torch.inf, device=device)
        self._counts[tap] = torch.zeros(2, n_channels, dtype=torch.int32, device=device)
        if expert(tap) is not None:
            self._n_tokens[tap] = torch.zeros(self._n_documents, dtype=torch.int32)
        return True

    def update(self, tap: str, tapped: Tapped, channels: tuple[int, int]) -> None:
        """Add some channels of whole documents."""
        if tap in self._n_tokens and channels[0] == 0:  # once, whichever threads divide the channels
            self._n_tokens[tap][tapped.rows] = torch.from_numpy(np.diff(tapped.starts)).int()
        add = add_compiled if tapped.on_cpu else add_plain
        add(tapped, channels, self._wanted(tap), self._sums[tap], (self._lowest[tap], self._counts[tap]))

    def _wanted(self, tap: str) -> tuple[bool, ...]:
        of, profile = base(tap), self._profile
        return (*(name in profile.totals[of] for name in SUMS), of in profile.sketched, of in profile.counted)

    def result(self) -> dict[tuple[str, str], Tensor]:
        """Return (tap, array) -> (N, C) float32 sums, (C,) int32 counts and float32 lowest values, on the CPU.

        The sums of a document that was never added are NaN. Of an expert's tap `n_tokens` too, (N,) int32; the lowest
        value is the largest float where it has no token at all.
        """
        found = {(tap, "n_tokens"): n_tokens for tap, n_tokens in self._n_tokens.items()}
        for tap, sums in self._sums.items():
            *kept, has_lowest, is_counted = self._wanted(tap)
            for position, name in enumerate(SUMS):
                if kept[position]:
                    found[tap, name] = sums[position].cpu()
            if has_lowest:
                found[tap, "total_min"] = self._lowest[tap].cpu().clamp(max=torch.finfo(torch.float32).max)
            if is_counted:
                found[tap, "n_positive"], found[tap, "n_above_floor"] = self._counts[tap].cpu()
        return found


Across = tuple[Tensor, Tensor]
"""(C,) lowest value so far, and (2, C) counts of a > 0 and |a| > 1e-6."""


def add_compiled(
    tapped: Tapped, channels: tuple[int, int], wanted: tuple[bool, ...], sums: Tensor, across: Across
) -> None:
    """Write the sums of some documents, (4, N, C), and add to what goes across; see `kernels.reduce_documents`."""
    lowest, counts = across
    kernels.reduce_documents(
        tapped.bits,
        tapped.starts,
        channels,
        wanted,
        (sums[:, tapped.rows].numpy(), lowest.numpy(), counts.numpy()),
    )


def add_plain(
    tapped: Tapped, channels: tuple[int, int], wanted: tuple[bool, ...], sums: Tensor, across: Across
) -> None:
    """As `add_compiled`, in plain PyTorch, of all channels."""
    del channels, wanted
    x = tapped.values.float()  # before squaring: half precision overflows at 65504
    lowest, counts = across
    sums[:, tapped.rows] = 0
    for document, (begin, end) in enumerate(pairwise(tapped.starts.tolist()), tapped.rows.start):
        if begin < end:
            one = x[begin:end]
            found = one.sum(dim=0), one.abs().sum(dim=0), one.square().sum(dim=0), one.abs().amax(dim=0)
            sums[:, document] = torch.stack(found)
            torch.minimum(lowest, one.amin(dim=0), out=lowest)
    counts += torch.stack([(x > 0).sum(dim=0), (x.abs() > float(kernels.FLOOR)).sum(dim=0)]).int()
