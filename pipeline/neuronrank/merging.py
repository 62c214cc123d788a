"""Statistics of some documents and of others -> statistics of all of them, layer by layer.

Arrays are those that `collection` gives, or those of an artifact; axes and names are in `statistics_schema.py`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.errors import MismatchError
from neuronrank.statistics_schema import ARRAYS, TOTALS
from neuronrank.topics import NOWHERE

Arrays = dict[tuple[str, str], NDArray[Any]]

_SAME = ("centroids", "merges")


def merge_arrays(parts: Sequence[Arrays], class_counts: Sequence[NDArray[np.int64]]) -> Arrays:
    """Return one layer's arrays of all documents.

    Documents stand side by side, counts and sums add, extremes are compared. Squared deviations of a class add, and so
    does count * (mean - joint mean)^2 of every part.

    Args:
        parts: each part's (tap or `topics`, array) -> values without the layer axis; derived arrays left out.
        class_counts: each part's (M + 1,) tokens of a class; an expert's are among its arrays.

    Raises:
        MismatchError: the parts have not the same arrays, or not the same topics.
    """
    if any(part.keys() != parts[0].keys() for part in parts):
        raise MismatchError("the parts do not hold the same arrays. Collect them with the same collect section")
    merged: Arrays = {}
    for group, name in parts[0]:
        values = [part[group, name] for part in parts]
        if name == "class_centred_sq":
            sums = [part[group, "class_sum"] for part in parts]
            routed = [part[group, "class_count"] for part in parts if (group, "class_count") in part]
            merged[group, name] = _deviations(values, sums, routed or class_counts).astype(np.float32)
        elif name == "nearest":
            merged[group, name] = _nearest(values, [len(part["topics", "labels"]) for part in parts])
        else:
            merged[group, name] = _merge(f"{group}/{name}", name, values)
    return merged


def _merge(path: str, name: str, values: list[NDArray[Any]]) -> NDArray[Any]:
    if name in _SAME:
        if any(not np.array_equal(one, values[0]) for one in values):
            raise MismatchError(
                f"{path}: differs between the parts, so that their topics are not the same. Collect the later parts "
                f"with the first one's topics: python -m stages.collect --fitted-on FIRST"
            )
        return values[0]
    if ARRAYS[name].axes[0] == "document":
        return np.concatenate(values)
    if name == "total_min":
        return np.asarray(np.minimum.reduce(values))
    if name in (TOTALS["max_abs"], "topic_max_abs"):
        return np.asarray(np.maximum.reduce(values))
    dtype = values[0].dtype
    wide = np.float64 if dtype.kind == "f" else np.int64
    return np.asarray(np.sum(values, axis=0, dtype=wide).astype(dtype))


def _deviations(
    squares: list[NDArray[Any]], sums: list[NDArray[Any]], counts: Sequence[NDArray[np.int64]]
) -> NDArray[np.float64]:
    n = np.sum(counts, axis=0)[:, None]
    mean = np.sum(sums, axis=0, dtype=np.float64) / np.maximum(n, 1)
    found: NDArray[np.float64] = np.zeros(mean.shape)
    for centred, total, count in zip(squares, sums, counts, strict=True):
        own = total.astype(np.float64) / np.maximum(count, 1)[:, None]
        found += centred + count[:, None] * (own - mean) ** 2
    return found


def _nearest(values: list[NDArray[np.uint32]], n_documents: list[int]) -> NDArray[np.uint32]:
    """Return each topic's nearest tokens of the parts by turns: their cosines are not kept."""
    moved, before = [], 0
    for one, n in zip(values, n_documents, strict=True):
        shifted = one.copy()
        shifted[..., 0][one[..., 0] != NOWHERE] += np.uint32(before)
        moved.append(shifted)
        before += n
    turns = np.stack(moved, axis=2).reshape(len(values[0]), -1, 2)  # first of each part, then second of each, …
    order = np.argsort(turns[..., 0] == NOWHERE, axis=1, kind="stable")[:, : values[0].shape[1]]
    return np.asarray(np.take_along_axis(turns, order[..., None], axis=1))
