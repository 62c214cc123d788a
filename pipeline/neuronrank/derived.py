"""What follows from sketches, topics and classes at default settings: `collect` keeps it, scoring reads it.

Reading those themselves takes seconds, so that what exponents are swept over lies beside them. Whoever needs a value
asks for the function that computes it, with its settings; `stored_as` says whether it is kept. It is computed of arrays
as they are stored, so that reading and computing give the same bits (of `class_pca_qda` with the same linear algebra
library on the same kind of processor); `quantiles` alone are rounded, and no method reads them. `df_count` is derived
as well. Of an expert that saw no token all of them are 0.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.document_frequency import DEFAULT_QUANTILE
from neuronrank.sketch import MagnitudeSketch
from neuronrank.statistics_schema import ARRAYS, QUANTILES
from neuronrank.tap_names import expert
from neuronrank.token_classes import ClassMoments, fewer_classes
from neuronrank.topic_merging import TopicSums, merged_sums

TOPICS, CLASSES = 64, 512
"""Or as many as there are, when they are fewer."""

Arrays = Mapping[tuple[str, str], NDArray[Any]]


@dataclass(frozen=True)
class Derived:
    """One array that is kept."""

    array: str
    compute: Callable[..., NDArray[Any]]
    """Source and settings -> (C,) values or counts; quantiles (Q, C)."""
    settings: Mapping[str, Any]
    """The methods' defaults."""


ADDED = frozenset({"class_pca_qda"})
"""Arrays that artifacts of this schema may lack: the first of them were collected before these were kept."""

OF_SKETCH = (
    Derived("top_tenth_mean", MagnitudeSketch.top_mean, {"quantile": 0.9}),
    Derived("n_above_pooled", MagnitudeSketch.count_above_pooled, {"quantile": DEFAULT_QUANTILE}),
    Derived("n_above_mean", MagnitudeSketch.count_above_mean, {"factor": 1.0}),
    Derived("quantiles", MagnitudeSketch.quantiles, {"quantiles": QUANTILES}),
)
OF_TOPICS = (
    Derived("topic_tf", TopicSums.mean_of_means, {}),
    Derived("topic_df_count", TopicSums.frequency, {"quantile": DEFAULT_QUANTILE}),
)
OF_CLASSES = (
    Derived("class_between", ClassMoments.between, {}),
    Derived("class_within", ClassMoments.within, {}),
    Derived("class_mean_variance", ClassMoments.variance_of_means, {}),
    Derived("class_qda", ClassMoments.quadratic_discriminant, {"eps": 1e-10}),
    Derived("class_pca_qda", ClassMoments.principal_discriminant, {"eps": 1e-10, "components": 128}),
)


def stored_as(compute: Callable[..., NDArray[Any]], settings: Mapping[str, Any]) -> str | None:
    """Return the array that holds what a function gives with these settings, None when it must be computed."""
    for derived in (*OF_SKETCH, *OF_TOPICS, *OF_CLASSES):
        if derived.compute is compute and derived.settings == settings and ARRAYS[derived.array].kept_bits is None:
            return derived.array
    return None


def derived_arrays(stored: Arrays, class_count: NDArray[np.int64]) -> dict[tuple[str, str], NDArray[Any]]:
    """Return what follows from the arrays of one layer.

    Args:
        stored: (tap or `topics`, array) -> values as they are stored.
        class_count: (M + 1,) tokens of each class and of all others.
    """
    found: dict[tuple[str, str], NDArray[Any]] = {}
    for tap, name in stored:
        if name == "sketch_count":
            count = _not_empty(stored[tap, name])
            found |= _computed(tap, OF_SKETCH, MagnitudeSketch(count, stored[tap, "tf_sum"]))
        elif name == "topic_sum_abs":
            merges = stored["topics", "merges"]
            count = _not_empty(stored["topics", "count"] if expert(tap) is None else stored[tap, "topic_count"])
            topics = merged_sums(merges, count, stored[tap, name], min(TOPICS, len(count)), "sum_abs")
            found |= _computed(tap, OF_TOPICS, topics)
        elif name == "class_sum":
            count = _not_empty(class_count if expert(tap) is None else stored[tap, "class_count"])
            moments = ClassMoments.of_stored(count, stored[tap, name], stored[tap, "class_centred_sq"])
            found |= _computed(tap, OF_CLASSES, fewer_classes(moments, min(CLASSES, len(count) - 1)))
    empty = {tap for tap, name in stored if name == "n_tokens" and not stored[tap, name].any()}
    return {key: np.zeros_like(values) if key[0] in empty else values for key, values in found.items()}


def _not_empty(count: NDArray[Any]) -> NDArray[Any]:
    """Return counts, (K,) or (C, K); of an expert that saw no token such that nothing is divided by zero."""
    if count.any():
        return count
    one = count.copy()
    one[..., 0] = 1
    return one


def _computed(tap: str, table: Iterable[Derived], source: Any) -> dict[tuple[str, str], NDArray[Any]]:
    values = {(tap, derived.array): derived.compute(source, **derived.settings) for derived in table}
    return {key: one.astype(np.int32) if one.dtype.kind == "i" else one for key, one in values.items()}
