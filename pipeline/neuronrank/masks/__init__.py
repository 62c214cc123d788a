"""Mask rules, one file each; the file's name is the rule's name.

A file provides

- `Params`: a subclass of `PatternParams`;
- `keep(scores, params, module)`: the mask of one module, (O, I) bool, True = kept, with exact counts;
- `within_rows(params, module)`: whether weights compete within a row only, so that a factor of the row changes nothing.
"""

from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt, model_validator

from neuronrank.params import Section


@dataclass(frozen=True)
class MaskedModule:
    """What a rule may know of the module besides its scores."""

    name: str
    part: str
    default_group: str
    """Of the scoring method: "row" or "module"."""


class PatternParams(Section):
    """What every rule understands: which modules are pruned."""

    rule: str
    attention: bool = True
    """Prune q, k, v, o."""
    mlp: bool = True
    """Prune gate, up, down."""
    pruning_last: PositiveInt | None = None
    """Prune only the MLPs of the last so many layers; attention must then be false."""

    @model_validator(mode="after")
    def _selects_something(self) -> "PatternParams":
        if not (self.attention or self.mlp):
            raise ValueError("attention and mlp are both false: nothing would be pruned")
        if self.pruning_last is not None and (self.attention or not self.mlp):
            raise ValueError("pruning_last prunes MLPs only: set attention: false and mlp: true")
        return self


class PartSparsity(Section):
    """The share of weights to remove from each part."""

    attention: float = Field(ge=0, lt=1)
    mlp: float = Field(ge=0, lt=1)


def n_removed(sparsity: float, size: int) -> int:
    """Return floor(sparsity * size + 1e-9), with the sparsity taken as the decimal number that was written.

    In floats 0.29 * 100 is below 29, and beyond 10**7 weights the rounding error exceeds 1e-9.
    """
    return int(Decimal(repr(sparsity)) * size + Decimal("1e-9"))


def lowest(scores: NDArray[np.float32], k: int) -> NDArray[np.bool_]:
    """Mark the k lowest scores of each row; among equal scores the lowest index is marked first.

    Args:
        scores: (G, S), finite.
        k: in [0, S].

    Returns:
        (G, S), exactly k True in each row: what a stable ascending sort would put first.
    """
    if k == 0:
        return np.zeros(scores.shape, dtype=np.bool_)
    threshold = np.partition(scores, k - 1, axis=1)[:, k - 1 : k]
    marked: NDArray[np.bool_] = scores <= threshold
    crowded = np.flatnonzero(np.count_nonzero(marked, axis=1) > k)  # ties at the threshold
    if crowded.size:
        below = scores[crowded] < threshold[crowded]
        tied = scores[crowded] == threshold[crowded]
        missing = k - np.count_nonzero(below, axis=1)
        marked[crowded] = below | (tied & (np.cumsum(tied, axis=1, dtype=np.int32) <= missing[:, None]))
    return marked
