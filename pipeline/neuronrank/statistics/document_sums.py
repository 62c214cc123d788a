"""S1: sums over the tokens of each document, per channel.

Sum of squares feeds Wanda's norms, sum of absolute values the term frequency and document frequency, plain sum the
variance over documents. Means are never stored: sums add across documents, workers and runs.
Accuracy: float64 within a document on the CPU, float32 by pairwise summation elsewhere (relative error about 1e-7
times the logarithm of T); kept as float32, relative to the sum of magnitudes 6e-8, and by profiles that round with 16
bits after the leading one, 7.7e-6, so that they compress. Readers add documents in float64. The float32 forward itself
was measured to be up to 1.6e-5 (squares: 1.0e-4) away from a float64 one, in the last layer of the trained model.
"""

import torch
from torch import Tensor

from neuronrank import kernels
from neuronrank.statistics import Context


class Accumulator:
    """The sums of one layer."""

    def __init__(self, context: Context) -> None:
        self._n_documents, self._kept = context.n_documents, context.profile.totals
        self._sums: dict[tuple[str, str], Tensor] = {}

    def update(self, rows: slice, tap: str, values: Tensor) -> None:
        """Add whole documents.

        Args:
            rows: which documents.
            tap: which tap; one that the profile does not name is ignored.
            values: (B, T, C) float32; read only.
        """
        kept = self._kept.get(tap, ())
        found = _reduce_compiled(values) if values.device.type == "cpu" else reduce_plain(values)
        for statistic in kept:
            target = self._sums.get((tap, statistic))
            if target is None:
                target = torch.full((self._n_documents, values.shape[-1]), torch.nan, device=values.device)
                self._sums[tap, statistic] = target
            target[rows] = found[statistic].float()

    def result(self) -> dict[tuple[str, str], Tensor]:
        """Return (tap, statistic) -> (N, C) float32 on the CPU; a document that was never added is NaN."""
        return {key: value.cpu() for key, value in self._sums.items()}


def _reduce_compiled(x: Tensor) -> dict[str, Tensor]:
    sums = torch.zeros(4, x.shape[0], x.shape[2], dtype=torch.float64)
    kernels.document_sums(x.contiguous().numpy(), *sums.numpy())
    return dict(zip(("sum", "sum_abs", "sum_sq", "max_abs"), sums, strict=True))


def reduce_plain(x: Tensor) -> dict[str, Tensor]:
    """Reduce (B, T, C) over its tokens to four (B, C) tensors."""
    return {
        "sum": x.sum(dim=1),
        "sum_abs": x.abs().sum(dim=1),
        "sum_sq": x.square().sum(dim=1),
        "max_abs": x.abs().amax(dim=1),
    }
