"""Moments of a tap's activations per token class, and variances from them. Needs no torch."""

from dataclasses import dataclass
from functools import cache, cached_property
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from neuronrank.errors import NotFiniteError

if TYPE_CHECKING:
    from threadpoolctl import ThreadpoolController

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

    @classmethod
    def of_stored(
        cls, count: NDArray[np.int64], sums: NDArray[np.float32], centred_sq: NDArray[np.float32]
    ) -> "ClassMoments":
        """Return the moments of arrays as an artifact holds them; their layout in memory would change the last bits."""
        return cls(*(part.astype(np.float64, order="C") for part in (count, sums, centred_sq)))

    @property
    def share(self) -> Vector:
        """(K + 1,) share of all tokens."""
        return np.asarray(self.count / self.count.sum())

    @cached_property
    def mean(self) -> Vector:
        """(K + 1, C) mean of each row; 0 where it has no token."""
        return np.asarray(self.sum / np.maximum(self.count, 1)[:, None])

    @cached_property
    def variance(self) -> Vector:
        """(K + 1, C) population variance of each row; 0 where it has no token."""
        return np.asarray(self.centred_sq / np.maximum(self.count, 1)[:, None])

    @property
    def joint_mean(self) -> Vector:
        """(C,) mean over all tokens."""
        return np.asarray(self.sum.sum(axis=0) / self.count.sum())

    @cached_property
    def deviation(self) -> Vector:
        """(K + 1, C) mean of each row less the joint mean."""
        return np.asarray(self.mean - self.joint_mean)

    @cached_property
    def squared_deviation(self) -> Vector:
        """(K + 1, C) squares of them."""
        return np.asarray(self.deviation**2)

    def between(self) -> Vector:
        """Return sum_k p_k (m_k - mu)^2, (C,), over all rows."""
        return _weighted(self.share, self.squared_deviation)

    def within(self) -> Vector:
        """Return sum_k p_k v_k, (C,), over all rows."""
        return _weighted(self.share, self.variance)

    def variance_of_means(self) -> Vector:
        """Return the unweighted population variance over the classes, without the others, of their means, (C,)."""
        seen = self.count[:-1] > 0
        share = seen / max(seen.sum(), 1)
        return _weighted(share, (self.mean[:-1] - _weighted(share, self.mean[:-1])) ** 2)

    def quadratic_discriminant(self, eps: float) -> Vector:
        """Return sum_k p_k (m_k - mu)^2 / (v_k + eps), (C,), over rows with more than one token."""
        several = self.count > 1
        return _weighted(np.where(several, self.share, 0), self.squared_deviation / (self.variance + eps))

    def principal_discriminant(self, eps: float, components: int) -> Vector:
        """Return the same of projections on principal components of the means, carried back to the channels, (C,).

        The rows sqrt(p_k) (m_k - mu), of classes with more than one token, have principal directions u_r. With
        z_kr = (m_k - mu) u_r and v_kr = sum_c u_rc^2 v_kc it is sum_r u_rc^2 sum_k p_k z_kr^2 / (v_kr + eps).

        Args:
            eps: added to a variance before dividing by it.
            components: at most so many directions, and no more than the means span.

        Raises:
            NotFiniteError: sums of classes are so large that no directions can be computed.
        """
        # The same bits whatever the number of threads; the limit is the process's: one thread at a time sets it.
        with _ONE_AT_A_TIME, _blas().limit(limits=1, user_api="blas"):
            try:
                return self._principal_discriminant(eps, components)
            except np.linalg.LinAlgError as err:
                raise NotFiniteError(f"principal components of the means of token classes: {err}") from err

    def _principal_discriminant(self, eps: float, components: int) -> Vector:
        several = self.count > 1
        if not several.any():  # nothing varies within a class: refused by name, as every score of zeros is
            return np.zeros(self.mean.shape[1])
        rows = np.sqrt(self.share[several, None]) * self.deviation[several]
        values, vectors = np.linalg.eigh(rows @ rows.T)  # smaller than the matrix over channels
        chosen = np.arange(len(values))[::-1][:components]
        chosen = chosen[values[chosen] > values[chosen[0]] * _SPANNED]
        values, vectors = values[chosen], vectors[:, chosen]
        loadings = (rows.T @ vectors / np.sqrt(values)) ** 2  # (C, R) of unit directions
        projected_variance = self.variance[several] @ loadings
        # p_k z_kr^2 is the eigenvalue times the squared entry of its vector.
        scores = values * (vectors**2 / (projected_variance + eps)).sum(axis=0)
        return np.asarray(loadings @ scores)


_SPANNED = 1e-10
"""Directions with less than this share of the largest variance are rounding errors."""


_ONE_AT_A_TIME = Lock()


@cache
def _blas() -> "ThreadpoolController":
    """Return what sets the threads of NumPy's linear algebra; looking for it takes milliseconds."""
    from threadpoolctl import ThreadpoolController  # who only reads needs it not

    return ThreadpoolController()


def _weighted(share: Vector, values: Vector) -> Vector:
    """Return sum_k share_k values_kc, (C,), added in one order whatever the number of threads."""
    return np.asarray(np.einsum("k,kc->c", share, values))


def fewer_classes(moments: ClassMoments, n: int) -> ClassMoments:
    """Keep the n most frequent classes and add the rest to the others."""
    if n == len(moments.count) - 1:
        return moments
    count, sums = (
        np.concatenate([part[:n], part[n:].sum(axis=0, keepdims=True)]) for part in (moments.count, moments.sum)
    )
    apart = moments.mean[n:] - sums[n] / max(count[n], 1)
    others = (moments.centred_sq[n:] + moments.count[n:, None] * apart**2).sum(axis=0, keepdims=True)
    return ClassMoments(count, sums, np.concatenate([moments.centred_sq[:n], others]))
