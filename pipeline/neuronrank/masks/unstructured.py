"""Unstructured: remove the lowest floor(sparsity * size) scores of each group: row, module, layer or the whole model.

A pool (group `layer` or `global`) holds weights whose scores can be compared: of all selected modules that are scored
by the same method with the same parameters and have the same requested sparsity. In a hybrid, attention and MLP are
scored in different units and are therefore two pools, each with its exact count. The output head, scored by |W|,
never joins a pool; it is a group of its own. `global` compares layers with each other, which only means something
where the scores of different layers are in the same unit (sums over the same tokens are, and norms inside an expert
are scaled to as many).

Source: METHODS section 4. Row groups are Wanda's comparison per output (Sun et al. 2023, arXiv:2306.11695).
Differs: nothing. Among equal scores the first module of the model, and in it the lowest flat index, is removed first,
as a stable ascending sort does.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from neuronrank.masks import MaskedModule, SparsityParams, lowest, n_removed

RANKS = "weights"


class Params(SparsityParams):
    """How much to remove, and what competes with what."""

    group: Literal["row", "module", "layer", "global"] | None = None
    """Null takes the scoring method's own default."""


def group(params: Params, module: MaskedModule) -> str:
    """Return what a weight competes with; the output head is always one group."""
    return "module" if module.part == "lm_head" else params.group or module.default_group


def sparsity(params: Params, module: MaskedModule) -> float:
    """Return the share that is removed from the module's part."""
    return params.share(module.part)


def tolerance(params: Params, module: MaskedModule, shape: tuple[int, ...]) -> float:
    """Return by how many weights the result may miss the share: one in each group; a pool is one group."""
    return shape[0] if group(params, module) == "row" else 1


def keep(scores: NDArray[np.float32], params: Params, module: MaskedModule) -> NDArray[np.bool_]:
    """Return the mask of one module, for the groups row and module.

    Args:
        scores: (O, I), finite; higher is kept.
        params: sparsity and group.
        module: its part chooses the sparsity, its method the default group.

    Returns:
        (O, I), True = kept; exactly floor(sparsity * size + 1e-9) False in every group.
    """
    grouped = scores if group(params, module) == "row" else scores.reshape(1, -1)
    removed = lowest(grouped, n_removed(sparsity(params, module), grouped.shape[1]))
    return np.logical_not(removed, out=removed).reshape(scores.shape)
