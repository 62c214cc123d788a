"""S1: sums over the tokens of each document, per channel.

Sum of squares feeds Wanda's norms, sum of absolute values the term frequency and document frequency, plain sum and
sum of squares the variances. Means are never stored: sums add across documents, workers and runs.
Accuracy: float32 within a document (torch sums by pairwise summation: relative error about 1e-7 times the logarithm
of T), never across documents; readers add documents in float64.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

STATISTICS: Mapping[str, tuple[str, ...]] = {
    "attn_in": ("sum_sq",),
    "q_out": ("sum_abs",),
    "k_out": ("sum_abs",),
    "v_out": ("sum_abs",),
    "attn_ctx": ("sum_sq", "sum_abs"),
    "mlp_in": ("sum_sq",),
    "neuron": ("sum", "sum_abs", "sum_sq"),
    "mlp_mid": ("sum_sq",),
}
"""Which sums are kept of which tap: those that a method needs, since each is documents x channels large."""

UNITS = {"sum": "activation", "sum_abs": "activation", "sum_sq": "activation^2"}


class Accumulator:
    """The sums of one layer."""

    def __init__(self, n_documents: int) -> None:
        self._n_documents = n_documents
        self._sums: dict[tuple[str, str], Tensor] = {}

    def update(self, rows: slice, tap: str, values: Tensor) -> None:
        """Add whole documents.

        Args:
            rows: which documents.
            tap: which tap; one that `STATISTICS` does not name is ignored.
            values: (B, T, C), any float type; read only.
        """
        x = values.float()  # before squaring: half precision overflows at 65504
        for statistic in STATISTICS.get(tap, ()):
            target = self._sums.get((tap, statistic))
            if target is None:
                target = torch.full((self._n_documents, x.shape[-1]), torch.nan, device=x.device)
                self._sums[tap, statistic] = target
            target[rows] = _REDUCE[statistic](x)

    def result(self) -> dict[tuple[str, str], Tensor]:
        """Return (tap, statistic) -> (N, C) float32 on the CPU; a document that was never added is NaN."""
        return {key: value.cpu() for key, value in self._sums.items()}


_REDUCE = {
    "sum": lambda x: x.sum(dim=1),
    "sum_abs": lambda x: x.abs().sum(dim=1),
    "sum_sq": lambda x: x.square().sum(dim=1),
}
