"""S6: the Gram matrix X^T X of each input tap, over all calibration tokens. Large, and only made on request.

It serves reconstruction updates and the exact output error of any mask: |(W - V) X^T|^2 = trace((W - V) G (W - V)^T).
Accuracy: float32 products within a micro-batch, float64 across them, kept as float32.
"""

import torch
from torch import Tensor

from neuronrank.profiles import INPUTS
from neuronrank.statistics import Context, Tapped
from neuronrank.tap_names import base


class Accumulator:
    """The Gram matrices of one layer."""

    def __init__(self, context: Context) -> None:
        self._taps = frozenset(INPUTS) if context.gram else frozenset[str]()
        self._found: dict[tuple[str, str], Tensor] = {}

    def open(self, tap: str, values: Tensor) -> bool:
        """Make room for a tap, of which `values` is the first; say whether its matrix is wanted."""
        if base(tap) not in self._taps:
            return False
        shape = (values.shape[-1], values.shape[-1])
        self._found[tap, "gram"] = torch.zeros(shape, dtype=torch.float64, device=values.device)
        return True

    def update(self, tap: str, tapped: Tapped, channels: tuple[int, int]) -> None:
        """Add the rows of some channels, of whole documents."""
        x, strip = tapped.values.float(), slice(*channels)
        self._found[tap, "gram"][strip] += torch.mm(x[:, strip].T, x).double()

    def result(self) -> dict[tuple[str, str], Tensor]:
        """Return (tap, "gram") -> (C, C) float32 on the CPU."""
        return {key: value.float().cpu() for key, value in self._found.items()}
