"""S5: sums over each row and each column of a weight, so that row and column norms need no second reading.

Accuracy: float32 sums of a few stored weights, those in float64; relative error below 1e-6.
"""

import numpy as np
import torch
from torch import Tensor

from neuronrank import kernels

_NAMES = ("sum_abs", "sum_sq", "max_abs")


def weight_sums(weight: Tensor) -> dict[str, Tensor]:
    """Reduce a weight along both axes.

    Args:
        weight: (O, I), any float type.

    Returns:
        `row_sum_abs`, `row_sum_sq`, `row_max_abs`: (O,) float32, over the inputs of each output channel;
        `column_sum_abs`, `column_sum_sq`, `column_max_abs`: (I,) float32, over the outputs of each input channel.
    """
    rows, columns = (_compiled if weight.device.type == "cpu" else _plain)(weight)
    return {f"row_{name}": values for name, values in zip(_NAMES, rows, strict=True)} | {
        f"column_{name}": values for name, values in zip(_NAMES, columns, strict=True)
    }


def _compiled(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Reduce columns as the channels of one document are, whose tokens are the rows."""
    n_rows, n_columns = weight.shape
    bits = kernels.bits_of(weight)
    rows, columns = torch.empty(3, n_rows), torch.empty(4, 1, n_columns)
    kernels.reduce_rows(bits, rows.numpy())
    unused = torch.empty(n_columns).numpy(), torch.empty(2, n_columns, dtype=torch.int32).numpy()
    wanted, starts = (False, True, True, True, False, False), np.array([0, n_rows])
    kernels.reduce_documents(bits, starts, (0, n_columns), wanted, (columns.numpy(), *unused))
    return rows, columns[1:, 0]


def _plain(weight: Tensor) -> tuple[Tensor, Tensor]:
    magnitude = weight.double().abs()
    rows, columns = (
        torch.stack([magnitude.sum(dim=dim), magnitude.square().sum(dim=dim), magnitude.amax(dim=dim)]).float()
        for dim in (1, 0)
    )
    return rows, columns
