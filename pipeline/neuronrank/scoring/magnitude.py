"""Magnitude: |W_ij|^weight_exp. Reads no statistics.

Source: Han et al. 2015, arXiv:1506.02626; METHODS section 3.1.
Differs: nothing; compared within a module unless the pattern says otherwise. Any weight_exp > 0 gives the same mask
(a power keeps the order), and weight_exp 0 is refused, since it leaves nothing to rank by.
"""

from neuronrank.scoring import Element, WeightedParams

PARTS = ("attention", "mlp")
READS = "nothing"
DEFAULT_GROUP = "module"


class Params(WeightedParams):
    """No further knobs."""


def element(part: str, params: Params) -> Element:
    """Score single weights by their magnitude."""
    del part
    return Element(params.weight_exp, None)
