"""Wanda variant: remove from every row its smallest scores until they hold a share e of the row's score sum.

One e serves all rows of a module; it is bisected until the module's sparsity is the requested one. This is not row
sparsity: there every row loses the same number of weights, here every row loses (at most) the same share of its score.
A row whose score sits in a few large weights loses many of the others, a row of even scores loses few.

Source: METHODS section 3.1; option `use_variant` of the code of Sun et al. 2023, arXiv:2306.11695. Any score.
Differs: the reference stops at the first e within 0.001 of the request; the bisection here goes on to the closest
sparsity that an e can reach, and a module that cannot come within 0.001 is an error. Exactly the smallest scores are
removed, the lowest column first among equal ones, where the reference removes all that tie with the threshold.
"""

import numpy as np
from numpy.typing import NDArray

from neuronrank.errors import DegenerateError
from neuronrank.masks import MaskedModule, SparsityParams, n_removed

RANKS = "weights"
TOLERANCE = 0.001
"""Of a module's sparsity."""
_STEPS = 60
"""Bisections of e: more than the 53 bits of a share between 0 and 1."""


class Params(SparsityParams):
    """How much to remove."""


def group(params: Params, module: MaskedModule) -> str:
    """Return what a weight competes with: others of its row."""
    del params, module
    return "row"


def sparsity(params: Params, module: MaskedModule) -> float:
    """Return the share that is removed from the module's part."""
    return params.share(module.part)


def tolerance(params: Params, module: MaskedModule, shape: tuple[int, ...]) -> float:
    """Return by how many weights the result may miss the share: 0.001 of the module, or one weight of a tiny one."""
    del params, module
    return max(1.0, TOLERANCE * shape[0] * shape[1])


def keep(scores: NDArray[np.float32], params: Params, module: MaskedModule) -> NDArray[np.bool_]:
    """Return the mask of one module.

    Args:
        scores: (O, I), finite, >= 0; higher is kept.
        params: sparsity.
        module: its part chooses the sparsity.

    Returns:
        (O, I), True = kept; every row keeps what is left when its smallest scores hold at most the share e.

    Raises:
        DegenerateError: no e comes within 0.001 of the request; ties or zeros make the sparsity jump.
    """
    order, held = np.empty(scores.shape, dtype=np.int32), np.empty(scores.shape, dtype=np.float64)
    for row, values in enumerate(scores):
        order[row] = np.argsort(values, kind="stable")
        np.cumsum(values[order[row]], dtype=np.float64, out=held[row])
    totals = held[:, -1:].copy()
    np.divide(held, totals, out=held, where=totals > 0)  # a row of zeros holds a share of 0 throughout: all may go
    removed = np.empty(scores.shape, dtype=np.bool_)
    np.put_along_axis(removed, order, held <= _share(held, params, module), axis=1)
    return ~removed


def _share(held: NDArray[np.float64], params: Params, module: MaskedModule) -> float:
    """Return the e that removes floor(sparsity * size), or else the count closest to sparsity * size.

    `held` is (O, I) and rises along each row to 1.
    """
    wanted = n_removed(sparsity(params, module), held.size)
    low, n_low, high, n_high = -1.0, 0, 1.0, held.size  # nothing and all; scores of zero go at a share of 0
    for _ in range(_STEPS):
        if n_low == wanted:
            return low
        middle = (low + high) / 2
        n_middle = int(np.count_nonzero(held <= middle))
        if n_middle <= wanted:
            low, n_low = middle, n_middle
        else:
            high, n_high = middle, n_middle
    asked = sparsity(params, module) * held.size
    share, found = (low, n_low) if asked - n_low <= n_high - asked else (high, n_high)
    if abs(found - asked) > tolerance(params, module, held.shape):
        raise DegenerateError(
            f"{module.name}: no share of the rows' score sums removes {wanted} of {held.size} weights, within "
            f"{TOLERANCE} of the sparsity: equal or zero scores make it jump from {n_low} to {n_high}. "
            f"Use rule: unstructured, or another sparsity"
        )
    return share
