"""N of M: keep `keep_n` of every `group_m` consecutive input columns of a row.

Source: METHODS section 4; Mishra et al. 2021, arXiv:2104.08378 for 2:4.
Differs: n counts what is kept, here and everywhere in this project. Some other tools count what is removed; the two
agree for 2:4 and 4:8 only. Among equal scores the lowest column is removed first.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from neuronrank.errors import MismatchError
from neuronrank.masks import MaskedModule, PatternParams, lowest


class Params(PatternParams):
    """How many to keep of how many."""

    keep_n: PositiveInt
    group_m: PositiveInt
    sparsity: float | None = Field(default=None, ge=0, lt=1)
    """Not needed; when given it must be 1 - keep_n / group_m."""

    @model_validator(mode="after")
    def _agrees(self) -> "Params":
        if self.keep_n > self.group_m:
            raise ValueError(f"keep_n {self.keep_n} is more than group_m {self.group_m}")
        implied = 1 - self.keep_n / self.group_m
        if self.sparsity is not None and abs(self.sparsity - implied) > 1e-9:
            raise ValueError(
                f"keeping {self.keep_n} of {self.group_m} removes {implied}, sparsity says {self.sparsity}"
            )
        return self


RANKS = "weights"


def group(params: Params, module: MaskedModule) -> str:
    """Return what a weight competes with: others of its row."""
    del params, module
    return "row"


def sparsity(params: Params, module: MaskedModule) -> float:
    """Return the share that is removed."""
    del module
    return 1 - params.keep_n / params.group_m


def tolerance(params: Params, module: MaskedModule, shape: tuple[int, ...]) -> float:
    """Return by how many weights the result may miss the share: one in each group of m."""
    del module
    return shape[0] * shape[1] / params.group_m


def keep(scores: NDArray[np.float32], params: Params, module: MaskedModule) -> NDArray[np.bool_]:
    """Return the mask of one module.

    Args:
        scores: (O, I), finite; higher is kept.
        params: n and m.
        module: for the message.

    Returns:
        (O, I), True = kept; exactly `keep_n` True in every `group_m` consecutive columns.

    Raises:
        MismatchError: I is not divisible by `group_m`.
    """
    if scores.shape[1] % params.group_m:
        raise MismatchError(
            f"{module.name}: {scores.shape[1]} input columns are not divisible by group_m {params.group_m}. "
            f"Choose a pattern that divides it, or leave the part out"
        )
    removed = lowest(scores.reshape(-1, params.group_m), params.group_m - params.keep_n)
    return np.logical_not(removed, out=removed).reshape(scores.shape)
