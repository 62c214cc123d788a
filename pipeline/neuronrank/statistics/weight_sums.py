"""S5: sums over each row and each column of a weight, so that row and column norms need no second reading.

Accuracy: float32 sums of the stored weights, by pairwise summation along rows and 32 at a time down columns, those in
float64 on the CPU; relative error below 1e-6.
"""

from torch import Tensor

from neuronrank.statistics.document_sums import reduce_compiled, reduce_plain


def weight_sums(weight: Tensor) -> dict[str, Tensor]:
    """Reduce a weight along both axes.

    Args:
        weight: (O, I), any float type.

    Returns:
        `row_sum_abs`, `row_sum_sq`, `row_max_abs`: (O,) float32, over the inputs of each output channel;
        `column_sum_abs`, `column_sum_sq`, `column_max_abs`: (I,) float32, over the outputs of each input channel.
    """
    magnitude = weight.float().abs_() if weight.element_size() == 2 else weight.float().abs()
    rows = {"sum_abs": magnitude.sum(dim=1), "sum_sq": magnitude.square().sum(dim=1), "max_abs": magnitude.amax(dim=1)}
    # Columns are reduced as the channels of one document are, whose tokens are the rows.
    wanted = (False, True, True, True, False, False)
    on_cpu = weight.device.type == "cpu"
    columns = reduce_compiled(weight[None], wanted) if on_cpu else reduce_plain(weight[None])
    found = {f"row_{name}": values for name, values in rows.items()}
    return found | {f"column_{name}": columns[name][0].float() for name in rows}
