"""Moments of a tap's activations per token class, and variances from them. Needs no torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class ClassMoments:
    """One tap of one layer: the chosen classes, most frequent first, and a last row for all other tokens."""

    count: Vector
    """(K + 1,) tokens."""
    sum: Vector
    """(K + 1, C), activation."""
    centred_sq: Vector
    """(K + 1, C) sum of (a - mean of the row)^2, activation^2."""

    @property
    def share(self) -> Vector:
        """(K + 1, 1) share of all tokens."""
        return np.asarray((self.count / self.count.sum())[:, None])

    @property
    def mean(self) -> Vector:
        """(K + 1, C) mean of each row; 0 where it has no token."""
        return np.asarray(self.sum / np.maximum(self.count, 1)[:, None])

    @property
    def variance(self) -> Vector:
        """(K + 1, C) population variance of each row; 0 where it has no token."""
        return np.asarray(self.centred_sq / np.maximum(self.count, 1)[:, None])

    @property
    def joint_mean(self) -> Vector:
        """(C,) mean over all tokens."""
        return np.asarray(self.sum.sum(axis=0) / self.count.sum())

    def between(self) -> Vector:
        """Return sum_k p_k (m_k - mu)^2, (C,), over all rows."""
        return np.asarray((self.share * (self.mean - self.joint_mean) ** 2).sum(axis=0))

    def within(self) -> Vector:
        """Return sum_k p_k v_k, (C,), over all rows."""
        return np.asarray((self.share * self.variance).sum(axis=0))

    def variance_of_means(self) -> Vector:
        """Return the unweighted population variance over the classes, without the others, of their means, (C,)."""
        seen = self.count[:-1] > 0
        return np.asarray(self.mean[:-1][seen].var(axis=0))


def fewer_classes(moments: ClassMoments, n: int) -> ClassMoments:
    """Keep the n most frequent classes and add the rest to the others."""
    count, sums = (
        np.concatenate([part[:n], part[n:].sum(axis=0, keepdims=True)]) for part in (moments.count, moments.sum)
    )
    apart = moments.mean[n:] - sums[n] / max(count[n], 1)
    others = (moments.centred_sq[n:] + moments.count[n:, None] * apart**2).sum(axis=0, keepdims=True)
    return ClassMoments(count, sums, np.concatenate([moments.centred_sq[:n], others]))
