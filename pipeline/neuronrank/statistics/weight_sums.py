"""S5: sums over each row and each column of a weight, so that row and column norms need no second reading.

Accuracy: float32 sums of the stored weights, by pairwise summation along rows, and down columns as those of a document
(`document_sums.py`); relative error below 1e-6.
"""

import numpy as np
import torch
from torch import Tensor

from neuronrank import kernels


def weight_sums(weight: Tensor) -> dict[str, Tensor]:
    """Reduce a weight along both axes.

    Args:
        weight: (O, I), any float type.

    Returns:
        `row_sum_abs`, `row_sum_sq`, `row_max_abs`: (O,) float32, over the inputs of each output channel;
        `column_sum_abs`, `column_sum_sq`, `column_max_abs`: (I,) float32, over the outputs of each input channel.
    """
    magnitude = weight.float().abs()
    rows = magnitude.sum(dim=1), magnitude.square().sum(dim=1), magnitude.amax(dim=1)
    columns = _compiled_columns(weight) if weight.device.type == "cpu" else _plain_columns(magnitude)
    names = ("sum_abs", "sum_sq", "max_abs")
    return {f"row_{name}": values for name, values in zip(names, rows, strict=True)} | {
        f"column_{name}": values for name, values in zip(names, columns, strict=True)
    }


def _compiled_columns(weight: Tensor) -> tuple[Tensor, ...]:
    """Reduce columns as the channels of one document are, whose tokens are the rows."""
    n_columns = weight.shape[1]
    sums = torch.empty(4, 1, n_columns)
    found = sums.numpy(), torch.empty(n_columns).numpy(), torch.empty(2, n_columns, dtype=torch.int32).numpy()
    bits, shift = kernels.bits_of(weight)
    starts = np.array([0, len(weight)])
    wanted = (False, True, True, True, False, False)
    kernels.reduce_documents(bits, starts, shift, (0, n_columns), wanted, found)
    return tuple(sums[1:, 0])


def _plain_columns(magnitude: Tensor) -> tuple[Tensor, ...]:
    sums = magnitude.sum(dim=0, dtype=torch.float64), magnitude.square().sum(dim=0, dtype=torch.float64)
    return *(values.float() for values in sums), magnitude.amax(dim=0)
