"""NeuronRank by class variance, structured: V_c, the population variance over token classes of the class means.

Ranks whole MLP neurons only: it needs a structured pattern.

Source: METHODS section 3.6.
Differs: nothing.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import PositiveInt

from neuronrank.scoring import Element, MethodParams
from neuronrank.tap_statistics import TapStatistics
from neuronrank.token_classes import ClassMoments

PARTS = ("mlp",)
READS = "class moments of neurons"
DEFAULT_GROUP = "module"


class Params(MethodParams):
    """Number of classes."""

    classes: PositiveInt = 512
    """The most frequent token ids; all other tokens are left out."""


def element(part: str, params: Params) -> Element | None:
    """Return None: single weights have no score."""
    del part, params
    return None


def neuron_score(tap: TapStatistics, gate_norm: NDArray[np.float64], params: Params) -> NDArray[np.float64]:
    """Return V_c per neuron, (F,), activation^2."""
    del gate_norm
    return tap.of_classes(ClassMoments.variance_of_means, params.classes)
