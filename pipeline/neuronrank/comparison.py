"""Perplexities and their ratios from per-window losses, with confidence intervals. Needs no torch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from neuronrank.errors import MismatchError

CONFIDENCE = 0.95
N_RESAMPLES = 9999


def perplexity(losses: NDArray[np.float64]) -> float:
    """Return exp of the mean loss; every window predicts the same number of tokens."""
    return float(np.exp(losses.mean()))


@dataclass(frozen=True)
class Ratio:
    """One perplexity divided by another on the same windows, with its confidence interval."""

    value: float
    low: float
    high: float


def perplexity_ratio(losses: NDArray[np.float64], reference: NDArray[np.float64], seed: int) -> Ratio:
    """Compare two models window by window.

    The interval is a bias-corrected accelerated bootstrap (Efron 1987) of the mean paired difference in loss.

    Args:
        losses: (N,), nat/token.
        reference: (N,), of the same windows.
        seed: of the resampling.

    Raises:
        MismatchError: the two were measured on different numbers of windows.
    """
    if losses.shape != reference.shape:
        raise MismatchError(f"losses of {losses.size} windows cannot be paired with {reference.size}. Run: dvc repro")
    difference = losses - reference
    value = float(np.exp(difference.mean()))
    if difference.size < 2 or np.ptp(difference) == 0:
        return Ratio(value, value, value)
    interval = bootstrap(
        (difference,),
        np.mean,
        n_resamples=N_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="BCa",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Ratio(value, float(np.exp(interval.low)), float(np.exp(interval.high)))
