"""Unstructured: remove the lowest floor(sparsity * size) scores of each group, a row or a whole module.

Source: METHODS section 4. Row groups are Wanda's comparison per output (Sun et al. 2023, arXiv:2306.11695).
Differs: nothing. Among equal scores the lowest flat index is removed first, as a stable ascending sort does.
"""

from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator

from neuronrank.masks import MaskedModule, PartSparsity, PatternParams, lowest, n_removed

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Params(PatternParams):
    """How much to remove, and what competes with what."""

    sparsity: Fraction | PartSparsity
    """Share of the weights to remove, in [0, 1); one number, or one for each part."""
    group: Literal["row", "module"] | None = None
    """Null takes the scoring method's own default."""

    @field_validator("sparsity", mode="wrap")
    @classmethod
    def _one_fault(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError as err:  # one fault for each form it could have had
            raise ValueError("expected a share in [0, 1), or {attention: share, mlp: share}") from err


def within_rows(params: Params, module: MaskedModule) -> bool:
    """Say whether weights compete within a row only, so that a factor of the row changes nothing."""
    return (params.group or module.default_group) == "row"


def keep(scores: NDArray[np.float32], params: Params, module: MaskedModule) -> NDArray[np.bool_]:
    """Return the mask of one module.

    Args:
        scores: (O, I), finite; higher is kept.
        params: sparsity and group.
        module: its part chooses the sparsity, its method the default group.

    Returns:
        (O, I), True = kept; exactly floor(sparsity * size + 1e-9) False in every group.
    """
    sparsity = params.sparsity if isinstance(params.sparsity, float) else getattr(params.sparsity, module.part)
    group = params.group or module.default_group
    grouped = scores if group == "row" else scores.reshape(1, -1)
    removed = lowest(grouped, n_removed(sparsity, grouped.shape[1]))
    return ~removed.reshape(scores.shape)
