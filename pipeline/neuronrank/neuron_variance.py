"""The variance of a neuron's activation over documents, tokens and token classes. Needs no torch."""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt

from neuronrank.errors import MismatchError
from neuronrank.params import Section
from neuronrank.tap_statistics import TapStatistics
from neuronrank.token_classes import ClassMoments


class VarianceParams(Section):
    """Of the methods that rank by variance."""

    variance_exp: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Exponent of V."""
    variance_multi: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Multiplies V^variance_exp."""
    magnitude_multi: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Multiplies the weight: |W_ij|, or the L2 norm of the neuron's gate row."""
    token_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Of the variance over tokens."""
    classes: NonNegativeInt = 512
    """Token classes of the variance over class means; 0 leaves it out."""


def neuron_variance(tap: TapStatistics, params: VarianceParams) -> NDArray[np.float64]:
    """Return V_s + token_weight * V_t + V_c, (C,), activation^2 (METHODS section 3.6).

    V_t comes from document sums, which profiles `lean` and `standard` round: where a neuron's mean is r times its
    standard deviation, V_t is off by up to about 2e-5 r^2 of itself.

    Raises:
        ArtifactError: the artifact does not hold sums of every document, or classes, of this tap.
        MismatchError: one document only, over which nothing varies; or more classes than are stored.
    """
    means = tap.document_means("sum")  # where there are none, more documents would not help
    if tap.n_documents < 2:
        raise MismatchError(
            f"{tap.where}: the variance over documents needs at least 2 of them, found 1. "
            f"Raise prepare.calibration_windows and run: dvc repro collect"
        )
    variance = means.var(axis=0, ddof=1)
    if params.token_weight:
        mean = tap.total("sum") / tap.n
        variance = variance + params.token_weight * np.maximum(tap.total("sum_sq") / tap.n - mean**2, 0)
    if params.classes:
        variance = variance + tap.of_classes(ClassMoments.variance_of_means, params.classes)
    return np.asarray(variance)
