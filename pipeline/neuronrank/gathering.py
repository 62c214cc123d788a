"""What the processes of one collection give each other of a layer: topics of all tokens, arrays of all documents."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from neuronrank.merging import Arrays, merge_arrays
from neuronrank.ranks import Ranks
from neuronrank.statistics_schema import ARRAYS
from neuronrank.topics import TopicParams, Topics, find_topics


def topics_of_all(
    projected: Tensor,
    params: TopicParams,
    layer: int,
    centroids: NDArray[np.float32] | None,
    shares: list[slice],
    ranks: Ranks,
) -> Topics:
    """Find the topics of the tokens of all processes.

    Args:
        projected: (n, T, 128), the projected residual stream of this process's documents.
        params: of the topics.
        layer: for the seed and for messages.
        centroids: (K, 128), fitted before; None fits them.
        shares: documents of every process.
        ranks: the processes.

    Returns:
        Labels of all documents, (N, T); the arrays in the first process only.
    """
    if ranks.size == 1:
        return find_topics(projected, params, layer, centroids)
    parts = ranks.to_first(projected, _lengths(shares))
    if ranks.first:
        topics = find_topics(torch.cat(parts), params, layer, centroids)
        ranks.from_first(topics.labels.contiguous())
        return topics
    labels = torch.empty((shares[-1].stop, projected.shape[1]), dtype=torch.int64, device=projected.device)
    return Topics(ranks.from_first(labels), {})


def arrays_of_all(
    arrays: dict[tuple[str, str], NDArray[Any]], class_of_token: Tensor, n_rows: int, shares: list[slice], ranks: Ranks
) -> Arrays:
    """Return a layer's arrays of the documents of all processes in the first one, nothing in the others.

    Args:
        arrays: of this process; the same names and types in all.
        class_of_token: (N, T), of all documents.
        n_rows: classes, and the others as one more.
        shares: documents of every process.
        ranks: the processes.
    """
    if ranks.size == 1:
        return arrays
    parts: list[Arrays] = [{} for _ in shares]
    for key in sorted(arrays):
        by_document = ARRAYS[key[1]].axes[0] == "document"
        values = ranks.to_first(torch.from_numpy(arrays[key]), _lengths(shares) if by_document else None)
        for part, one in zip(parts, values, strict=False):  # there are none but in the first process
            part[key] = one.numpy()
    if not ranks.first:
        return {}
    counts = [torch.bincount(class_of_token[share].reshape(-1), minlength=n_rows).numpy() for share in shares]
    return merge_arrays(parts, counts)


def _lengths(shares: list[slice]) -> list[int]:
    return [share.stop - share.start for share in shares]
