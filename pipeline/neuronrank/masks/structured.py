"""Structured: remove whole MLP neurons, the floor(sparsity * F) with the lowest neuron score of each layer.

A neuron is a row of gate, the same row of up, and the same column of down: all three go together, so that the network
computes exactly what it would without the neuron. Every pruned layer loses the same number of neurons, which keeps
`intermediate_size` one number: `neuronrank export --compact` can then cut them out of the saved model.

Source: METHODS section 4.
Differs: nothing. It ranks the method's neuron score, not the scores of the weights: two methods that rank weights alike
may rank neurons differently, and a method without a neuron score cannot be used. Among equal scores the lowest neuron
is removed first.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from neuronrank.masks import MaskedModule, PatternParams, lowest, n_removed

RANKS = "neurons"


class Params(PatternParams):
    """How many neurons to remove."""

    attention: bool = False
    """Must be false: attention has no MLP neurons."""
    sparsity: float = Field(ge=0, lt=1)
    """Share of each layer's neurons to remove."""

    @model_validator(mode="after")
    def _prunes_neurons_only(self) -> "Params":
        if self.attention or self.lm_head or not self.mlp:
            raise ValueError("structured removes MLP neurons only: set attention: false, lm_head: false and mlp: true")
        return self


def group(params: Params, module: MaskedModule) -> str:
    """Return what a neuron competes with: the others of its layer's MLP."""
    del params, module
    return "module"


def sparsity(params: Params, module: MaskedModule) -> float:
    """Return the share of neurons that is removed."""
    del module
    return params.sparsity


def tolerance(params: Params, module: MaskedModule, shape: tuple[int, ...]) -> float:
    """Return by how many neurons the result may miss the share."""
    del params, module, shape
    return 1


def keep(scores: NDArray[np.float32], params: Params, module: MaskedModule) -> NDArray[np.bool_]:
    """Return which neurons of a layer stay.

    Args:
        scores: (F,), finite; higher is kept.
        params: sparsity.
        module: not used: all modules of the layer are given the same scores.

    Returns:
        (F,), True = kept; exactly floor(sparsity * F + 1e-9) False.
    """
    del module
    return ~lowest(scores.reshape(1, -1), n_removed(params.sparsity, scores.size)).reshape(-1)
