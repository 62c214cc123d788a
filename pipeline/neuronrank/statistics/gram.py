"""S6: the Gram matrix X^T X of each input tap, over all calibration tokens. Large, and only made on request.

It serves reconstruction updates and the exact output error of any mask: |(W - V) X^T|^2 = trace((W - V) G (W - V)^T).
Accuracy: float32 products within a micro-batch, float64 across them, kept as float32.
"""

import torch
from torch import Tensor

from neuronrank.profiles import INPUTS
from neuronrank.statistics import Context


class Accumulator:
    """The Gram matrices of one layer."""

    def __init__(self, context: Context) -> None:
        self._taps = frozenset(INPUTS) if context.gram else frozenset[str]()
        self._found: dict[tuple[str, str], Tensor] = {}

    def update(self, rows: slice, tap: str, values: Tensor) -> None:
        """Add whole documents.

        Args:
            rows: which documents; not needed here.
            tap: which tap; one that is no module's input is ignored.
            values: (B, T, C), any float type; read only.
        """
        del rows
        if tap not in self._taps:
            return
        x = values.reshape(-1, values.shape[-1]).float()
        product = torch.mm(x.T, x).double()
        known = self._found.get((tap, "gram"))
        self._found[tap, "gram"] = product if known is None else known.add_(product)

    def result(self) -> dict[tuple[str, str], Tensor]:
        """Return (tap, "gram") -> (C, C) float32 on the CPU."""
        return {key: value.float().cpu() for key, value in self._found.items()}
