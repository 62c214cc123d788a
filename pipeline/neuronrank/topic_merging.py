"""Micro-topics merged to fewer, along the order that `collect` stored. Needs no torch."""

import numpy as np
from numpy.typing import NDArray


def merged_topics(merges: NDArray[np.int32], k: int) -> NDArray[np.int64]:
    """Return the topic of every micro-topic when there are k.

    Args:
        merges: (K_micro - 1, 2), as `topics.merge_order` gives them.
        k: in [1, K_micro].

    Returns:
        (K_micro,) in [0, k), numbered by the lowest micro-topic in each.
    """
    n_micro = len(merges) + 1
    members = {micro: [micro] for micro in range(n_micro)}
    for step in range(n_micro - k):
        one, other = (int(cluster) for cluster in merges[step])
        members[n_micro + step] = members.pop(one) + members.pop(other)
    topic = np.empty(n_micro, dtype=np.int64)
    for number, group in enumerate(sorted(members.values(), key=min)):
        topic[group] = number
    return topic
