"""What the methods that compare token classes share."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.scoring import ClassParams, Element
from neuronrank.tap_statistics import TapStatistics

Vector = NDArray[np.float64]
LOWEST = 1e-6


def ranked_by(
    class_score: Callable[[TapStatistics, Any], Vector],
) -> tuple[
    Callable[[str, ClassParams], Element],
    Callable[[TapStatistics, ClassParams], Vector],
    Callable[[TapStatistics, Vector, ClassParams], Vector],
]:
    """Return `element`, `channel_factor` and `neuron_score` of a method that scores neurons by their class moments.

    Args:
        class_score: tap and the method's parameters -> (C,).
    """

    def element(_part: str, params: ClassParams) -> Element:
        return Element(params.weight_exp if params.element else 0.0, "neuron")

    def channel_factor(tap: TapStatistics, params: ClassParams) -> Vector:
        score = tap.remembered(class_score, params)
        return relative_to_mean(score) if params.element else score

    def neuron_score(tap: TapStatistics, _gate_norm: Vector, params: ClassParams) -> Vector:
        return tap.remembered(class_score, params)

    return element, channel_factor, neuron_score


def relative_to_mean(score: Vector) -> Vector:
    """Return max(J / mean(J), 1e-6); what is not finite or all zero stays so, to be refused by name."""
    mean = score.mean()
    return np.maximum(score / mean, LOWEST) if mean > 0 and np.isfinite(mean) else score
