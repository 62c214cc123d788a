"""S4: sums over the tokens of each micro-topic, per channel. `topics.py` says which topic a token belongs to.

Accuracy: float64 sums of float32 values; kept as float32 rounded to 9 bits after the leading one
(1e-3 of each entry at most), so that they compress. A topic's mean that near to the threshold may then count or not,
which was measured to move a TF-IDF factor by up to 10 %. Topics merge: sums add, maxima take the larger.
"""

import torch
from torch import Tensor

from neuronrank import kernels
from neuronrank.statistics import Context


class Accumulator:
    """The topic sums of one layer."""

    def __init__(self, context: Context) -> None:
        self._topic_of_token, self._n_topics = context.topic_of_token, context.n_topics
        self._kept = context.profile.topical if context.n_topics else {}
        self._found: dict[tuple[str, str], Tensor] = {}

    def update(self, rows: slice, tap: str, values: Tensor) -> None:
        """Add whole documents.

        Args:
            rows: which documents.
            tap: which tap; one that the profile does not sum by topic is ignored.
            values: (B, T, C), any float type; read only.
        """
        kept = self._kept.get(tap, ())
        if not kept:
            return
        flat = values.reshape(-1, values.shape[-1])
        topics = self._topic_of_token[rows].reshape(-1).to(flat.device)
        for statistic in kept:
            key = (tap, f"topic_{statistic}")
            if key not in self._found:
                dtype = torch.float32 if statistic == "max_abs" else torch.float64
                shape = (self._n_topics, flat.shape[1])
                self._found[key] = torch.zeros(shape, dtype=dtype, device=flat.device)
            if statistic == "sum_abs" and flat.device.type == "cpu":
                add_compiled(flat, topics, self._found[key])
            else:
                add_plain(statistic, flat, topics, self._found[key])

    def result(self) -> dict[tuple[str, str], Tensor]:
        """Return (tap, `topic_<statistic>`) -> (K, C) float32 on the CPU; 0 where a topic has no token."""
        return {key: value.float().cpu() for key, value in self._found.items()}


def add_compiled(values: Tensor, group: Tensor, found: Tensor) -> None:
    """Add |values|, (tokens, C), to the float64 sums (G, C) of each token's group."""
    bits, shift = kernels.bits_of(values)
    order = torch.argsort(group, stable=True)
    kernels.add_magnitudes(bits, shift, *(array.numpy() for array in (group, order, found)))


def add_plain(statistic: str, values: Tensor, group: Tensor, found: Tensor) -> None:
    """Add values, (tokens, C), to the sums or maxima (G, C) of each token's group."""
    x = values.float()
    if statistic == "max_abs":
        found.scatter_reduce_(0, group[:, None].expand_as(x), x.abs(), "amax")
    else:
        found.index_add_(0, group, (x if statistic == "sum" else x.abs()).double())
