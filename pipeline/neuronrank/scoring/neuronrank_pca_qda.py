"""Quadratic discriminant on principal components of the class means, carried back to the neurons.

The rows sqrt(p_k) (m_k - mu) are decomposed; u_r are at most `components` principal directions. Each class mean is
projected on them, its variances by squared loadings: z_kr = (m_k - mu) u_r, v_kr = sum_c u_rc^2 v_kc; then
s_r = sum_k p_k z_kr^2 / (v_kr + eps) over classes with more than one token, and J_c = sum_r u_rc^2 s_r. The score is
|W_ij|^weight_exp * max(J_c / mean(J), 1e-6), or J alone with `element: false`.

Source: METHODS section 3.6.
Differs: scores are carried back by squared loadings only: a signed half would depend on an arbitrary eigenvector sign.
"""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt

from neuronrank.class_scores import ranked_by
from neuronrank.scoring import ClassParams
from neuronrank.tap_statistics import TapStatistics
from neuronrank.token_classes import ClassMoments

PARTS = ("mlp",)
READS = "class moments of neurons"
DEFAULT_GROUP = "module"


class Params(ClassParams):
    """Number of classes, and whether single weights count."""

    eps: float = Field(default=1e-10, gt=0, allow_inf_nan=False)
    """Added to a variance before dividing by it."""
    components: PositiveInt = 128
    """At most so many, and no more than the class means span."""


def class_score(tap: TapStatistics, params: Params) -> NDArray[np.float64]:
    """Return J per neuron, (C,)."""
    settings = {"eps": params.eps, "components": params.components}
    return tap.of_classes(ClassMoments.principal_discriminant, params.classes, **settings)


element, channel_factor, neuron_score = ranked_by(class_score)
