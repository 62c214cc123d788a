"""Document frequency: in how many documents a channel is active, against one threshold for the whole tap.

The threshold is a quantile pooled over all channels and documents. A quantile of each channel's own values would be
exceeded by the same share of documents for every channel, and the inverse document frequency would be a constant.
Numpy only: `collect` stores it at the default quantile, scoring computes it at any other.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.errors import ParamsError

DEFAULT_QUANTILE = 0.6


def active_means(sums: NDArray[np.floating[Any]], n_tokens: NDArray[np.integer[Any]] | None) -> NDArray[Any]:
    """Return what ranks documents by activity: their means; as they are when all documents are equally long.

    Args:
        sums: (D, C) of |a| over the tokens of each document.
        n_tokens: (D,) of each document, those without tokens are left out; None when all have as many.
    """
    if n_tokens is None:
        return sums
    held = n_tokens > 0
    return np.asarray(sums[held].astype(np.float64) / n_tokens[held, None])


def document_frequency(activity: NDArray[np.floating[Any]], quantile: float) -> NDArray[np.int64]:
    """Count, per channel, the documents whose activity reaches the pooled quantile.

    Args:
        activity: (D, C), mean of |a| over the tokens of each document, or their sum: all documents are equally long,
            so that both rank alike.
        quantile: in (0, 1); linearly interpolated between order statistics, as `numpy.quantile` does.

    Returns:
        (C,) counts in [0, D]; 0 without a document.

    Raises:
        ParamsError: no such quantile.

    Source: METHODS section 3.4, `DF_c = #{d : A_dc >= tau}`.
    """
    if not 0 < quantile < 1:
        raise ParamsError(f"quantile is {quantile}; expected one between 0 and 1, without these")
    if not activity.size:
        return np.zeros(activity.shape[1], dtype=np.int64)
    # An entry reaches the interpolated quantile exactly when it reaches the order statistic at or above it, so that
    # no rounding of the threshold can move an entry across it.
    position = math.ceil(quantile * (activity.size - 1) - 1e-9)
    reached = np.partition(activity, position, axis=None)[position]
    return np.asarray(np.count_nonzero(activity >= reached, axis=0))
