"""What the methods that compare token classes share."""

import numpy as np
from numpy.typing import NDArray

from neuronrank.scoring import ClassParams, Element

LOWEST = 1e-6


def element_of(params: ClassParams) -> Element:
    """Return how single weights are scored: times the factor, or the factor alone."""
    return Element(params.weight_exp if params.element else 0.0, "neuron")


def relative_to_mean(score: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return max(J / mean(J), 1e-6); what is not finite or all zero stays so, to be refused by name."""
    mean = score.mean()
    return np.maximum(score / mean, LOWEST) if mean > 0 and np.isfinite(mean) else score
