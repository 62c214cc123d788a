"""S5: sums over each row and each column of a weight, so that row and column norms need no second reading.

Accuracy: float64 sums of the stored weights, kept as float32; relative error below 1e-6.
"""

import torch
from torch import Tensor


def weight_sums(weight: Tensor) -> dict[str, Tensor]:
    """Reduce a weight along both axes.

    Args:
        weight: (O, I), any float type.

    Returns:
        `row_sum_abs`, `row_sum_sq`, `row_max_abs`: (O,) float32, over the inputs of each output channel;
        `column_sum_abs`, `column_sum_sq`, `column_max_abs`: (I,) float32, over the outputs of each input channel.
    """
    magnitude = weight.float().abs()
    square = magnitude.square()
    sums = {}
    for axis, over in (("row", 1), ("column", 0)):
        sums[f"{axis}_sum_abs"] = magnitude.sum(dim=over, dtype=torch.float64).float()
        sums[f"{axis}_sum_sq"] = square.sum(dim=over, dtype=torch.float64).float()
        sums[f"{axis}_max_abs"] = magnitude.amax(dim=over)
    return sums
