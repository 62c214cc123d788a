"""Mask rules, one file each; the file's name is the rule's name. Numpy and compiled loops only.

A file provides

- `Params`: a subclass of `PatternParams`;
- `RANKS`: what the rule ranks, "weights" or "neurons". A rule that ranks neurons is given the neuron scores of a layer
  instead of weight scores, and only the modules of the MLP's neurons; the library lays its choice on the rows or
  columns of each. A recipe whose method has no neuron score is refused before;
- `group(params, module)`: what a weight competes with: "row", "module", "layer" or "global". For the first two the
  library calls `keep` of one module after another. For the last two the rule asks for a pool: the library selects over
  all modules that may be compared, exactly and with one module in memory at a time (`_radix_select.py`), and `keep`
  is not called;
- `sparsity(params, module)`: the share that is to be removed;
- `tolerance(params, module, shape)`: by how many weights (or neurons) of a module of this shape the result may miss
  that share: one for each group, unless the rule says why it needs more. The result is held to it;
- `keep(scores, params, module)`: the mask, True = kept, of the shape of the scores: (O, I), or (F,) for neurons.

Scores are float32, finite and >= 0, without -0.0; higher is kept.
"""

from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    Field,
    PositiveInt,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)

from neuronrank.masks._radix_select import find_cut
from neuronrank.masks._row_select import lowest_of_rows
from neuronrank.params import Section

PROVIDES = ("Params", "RANKS", "group", "sparsity", "tolerance", "keep")


@dataclass(frozen=True)
class MaskedModule:
    """What a rule may know of the module besides its scores."""

    name: str
    part: str
    """ "attention", "mlp" or "lm_head"."""
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
    """Of the decoder, prune only the MLPs of the last so many layers; attention must then be false."""
    lm_head: bool = False
    """Prune the output head as well, by |W| whatever the recipe. Refused when it is tied to the embeddings."""
    untie_lm_head: bool = False
    """Give a tied head a copy of the embeddings of its own, and prune that."""

    @model_validator(mode="after")
    def _selects_something(self) -> "PatternParams":
        if not (self.attention or self.mlp or self.lm_head):
            raise ValueError("attention, mlp and lm_head are all false: nothing would be pruned")
        if self.pruning_last is not None and (self.attention or not self.mlp):
            raise ValueError("pruning_last prunes MLPs only: set attention: false and mlp: true")
        if self.untie_lm_head and not self.lm_head:
            raise ValueError("untie_lm_head without lm_head changes nothing: set lm_head: true as well")
        return self


class PartSparsity(Section):
    """The share of weights to remove from each part."""

    attention: float = Field(ge=0, lt=1)
    mlp: float = Field(ge=0, lt=1)
    lm_head: float | None = Field(default=None, ge=0, lt=1)
    """Needed when the pattern prunes the output head."""


Fraction = Annotated[float, Field(ge=0, lt=1)]


class SparsityParams(PatternParams):
    """What a rule understands that removes a freely chosen share."""

    sparsity: Fraction | PartSparsity
    """Share of the weights to remove, in [0, 1); one number, or one for each part."""

    @field_validator("sparsity", mode="wrap")
    @classmethod
    def _one_fault(cls, value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            return validate(value)
        except ValidationError as err:  # one fault for each form it could have had
            raise ValueError("expected a share in [0, 1), or {attention: share, mlp: share}") from err

    @model_validator(mode="after")
    def _names_the_head(self) -> "SparsityParams":
        if self.lm_head and isinstance(self.sparsity, PartSparsity) and self.sparsity.lm_head is None:
            raise ValueError("lm_head is to be pruned: add lm_head to sparsity, beside attention and mlp")
        return self

    def share(self, part: str) -> float:
        """Return the share to remove from a part: "attention", "mlp" or "lm_head"."""
        return self.sparsity if isinstance(self.sparsity, float) else float(getattr(self.sparsity, part))


def n_removed(sparsity: float, size: int) -> int:
    """Return floor(sparsity * size + 1e-9), with the sparsity taken as the decimal number that was written.

    In floats 0.29 * 100 is below 29, and beyond 10**7 weights the rounding error exceeds 1e-9.
    """
    return int(Decimal(repr(sparsity)) * size + Decimal("1e-9"))


def lowest(scores: NDArray[np.float32], k: int) -> NDArray[np.bool_]:
    """Mark the k lowest scores of each row; among equal scores the lowest index is marked first.

    Args:
        scores: (G, S), finite, >= 0, without -0.0.
        k: in [0, S].

    Returns:
        (G, S), exactly k True in each row: what a stable ascending sort would put first.
    """
    if len(scores) == 1:
        return find_cut(lambda: [scores], k).remove(scores)
    return lowest_of_rows(scores, k) if k else np.zeros(scores.shape, dtype=np.bool_)
