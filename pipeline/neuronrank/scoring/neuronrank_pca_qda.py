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
from neuronrank.token_classes import ClassMoments

PARTS = ("mlp",)
READS = "class moments of neurons"
DEFAULT_GROUP = "module"
_SPANNED = 1e-10
"""Directions with less than this share of the largest variance are rounding errors."""


class Params(ClassParams):
    """Number of classes, and whether single weights count."""

    eps: float = Field(default=1e-10, gt=0, allow_inf_nan=False)
    """Added to a variance before dividing by it."""
    components: PositiveInt = 128
    """At most so many, and no more than the class means span."""


def class_score(moments: ClassMoments, params: Params) -> NDArray[np.float64]:
    """Return J per neuron, (C,)."""
    several = moments.count > 1
    if not several.any():  # nothing varies within a class: refused by name, as every score of zeros is
        return np.zeros(moments.mean.shape[1])
    share, deviation = moments.share[several], (moments.mean - moments.joint_mean)[several]
    rows = np.sqrt(share) * deviation
    values, vectors = np.linalg.eigh(rows @ rows.T)  # smaller than the matrix over neurons
    chosen = np.argsort(values)[::-1][: params.components]
    chosen = chosen[values[chosen] > values[chosen[0]] * _SPANNED]
    directions = (rows.T @ vectors[:, chosen]) / np.sqrt(values[chosen])  # (C, R), unit columns
    projected_variance = moments.variance[several] @ directions**2
    scores = (share * (deviation @ directions) ** 2 / (projected_variance + params.eps)).sum(axis=0)
    return np.asarray(directions**2 @ scores)


element, channel_factor, neuron_score = ranked_by(class_score)
