"""Magnitude: |W_ij|^weight_exp. Reads no statistics.

Source: Han et al. 2015, arXiv:1506.02626; METHODS section 3.1.
Differs: nothing; compared within a module unless the pattern says otherwise.
"""

from neuronrank.scoring import MethodParams

TAP = None
STATISTICS = ()
DEFAULT_GROUP = "module"


class Params(MethodParams):
    """No further knobs."""
