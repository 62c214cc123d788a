"""S5: sums over each row and each column of a weight, so that row and column norms need no second reading.

Accuracy: float32 sums of the stored weights, by pairwise summation along rows, and down columns as those of a document
(`document_sums.py`); relative error below 1e-6.
"""

import torch
from torch import Tensor

from neuronrank.statistics import Tapped
from neuronrank.statistics.document_sums import add_compiled, add_plain


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
    # Columns are reduced as the channels of one document are, whose tokens are the rows.
    as_document, n_columns = Tapped(weight[None], slice(0, 1)), weight.shape[1]
    sums = torch.empty(4, 1, n_columns, device=weight.device)
    nothing = (
        torch.zeros(n_columns, device=weight.device),
        torch.zeros(2, n_columns, dtype=torch.int32, device=weight.device),
    )
    add = add_compiled if as_document.on_cpu else add_plain
    add(as_document, (0, n_columns), (False, True, True, True, False, False), sums, nothing)
    columns = sums[1:, 0]
    names = ("sum_abs", "sum_sq", "max_abs")
    return {f"row_{name}": values for name, values in zip(names, rows, strict=True)} | {
        f"column_{name}": values for name, values in zip(names, columns, strict=True)
    }
