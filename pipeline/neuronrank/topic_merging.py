"""Micro-topics merged to fewer, along the order that `collect` stored. Needs no torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.document_frequency import document_frequency


@dataclass(frozen=True)
class TopicSums:
    """One tap of one layer by topic."""

    count: NDArray[np.int64]
    """(K,) tokens."""
    sums: NDArray[np.float64]
    """(K, C) of one statistic."""

    @property
    def means(self) -> NDArray[np.float64]:
        """(non-empty topics, C) means over the tokens of each topic."""
        seen = self.count > 0
        return np.asarray(self.sums[seen] / self.count[seen, None])

    def mean_of_means(self) -> NDArray[np.float64]:
        """Return (C,) means over the non-empty topics of their means."""
        return np.asarray(self.means.mean(axis=0))

    def frequency(self, quantile: float) -> NDArray[np.int64]:
        """Return (C,) counts of topics whose mean reaches the quantile pooled over non-empty topics and channels."""
        return document_frequency(self.means, quantile)


def merged_sums(
    merges: NDArray[np.int32], count: NDArray[np.integer[Any]], micro: NDArray[np.float32], k: int, statistic: str
) -> TopicSums:
    """Return what k topics have of a statistic.

    Args:
        merges: (K_micro - 1, 2), as `topics.merge_order` gives them.
        count: (K_micro,) tokens of each micro-topic.
        micro: (K_micro, C) of the statistic.
        k: in [1, K_micro].
        statistic: `sum`, `sum_abs` or `max_abs`.
    """
    add = np.maximum if statistic == "max_abs" else np.add
    sums = np.zeros((k, micro.shape[1]))
    for topic, row in zip(merged_topics(merges, k), micro, strict=True):  # row by row: several times as fast as add.at
        add(sums[topic], row, out=sums[topic])
    return TopicSums(merged_count(merges, count, k), sums)


def merged_count(merges: NDArray[np.int32], count: NDArray[np.integer[Any]], k: int) -> NDArray[np.int64]:
    """Return (k,) tokens of each topic; arguments as in `merged_sums`."""
    found = np.zeros(k, dtype=np.int64)
    np.add.at(found, merged_topics(merges, k), count)
    return found


def merged_topics(merges: NDArray[np.int32], k: int) -> NDArray[np.int64]:
    """Return the topic of every micro-topic when there are k.

    Args:
        merges: (K_micro - 1, 2), as `topics.merge_order` gives them.
        k: in [1, K_micro].

    Returns:
        (K_micro,) in [0, k), numbered by the lowest micro-topic in each.
    """
    n_micro = len(merges) + 1
    into = np.arange(2 * n_micro - k)  # cluster -> the one that it has become part of
    into[merges[: n_micro - k].ravel()] = np.repeat(into[n_micro:], 2)
    while (into[into] != into).any():
        into = into[into]
    _, lowest, topic = np.unique(into[:n_micro], return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(lowest))[topic])
