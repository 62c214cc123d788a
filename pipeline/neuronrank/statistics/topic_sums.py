"""S4: sums over the tokens of each micro-topic, per channel. `topics.py` says which topic a token belongs to.

Accuracy: on the CPU 32 tokens at a time in float32, those in float64; float64 elsewhere. Kept as float32 rounded to 9
bits after the leading one (1e-3 of each entry at most), so that they compress. A topic's mean that near to the
threshold may then count or not, which was measured to move a TF-IDF factor by up to 10 %. Topics merge: sums add,
maxima take the larger.
"""

import torch
from torch import Tensor

from neuronrank import kernels
from neuronrank.statistics import Context, Tapped


class Accumulator:
    """The topic sums of one layer."""

    def __init__(self, context: Context) -> None:
        self._topic_of_token, self._n_topics = context.topic_of_token, context.n_topics
        self._kept = context.profile.topical if context.n_topics else {}
        self._found: dict[tuple[str, str], Tensor] = {}

    def open(self, tap: str, values: Tensor) -> bool:
        """Make room for a tap, of which `values` is the first; say whether it is summed by topic."""
        for statistic in self._kept.get(tap, ()):
            dtype = torch.float32 if statistic == "max_abs" else torch.float64
            self._found[tap, f"topic_{statistic}"] = torch.zeros(
                self._n_topics, values.shape[-1], dtype=dtype, device=values.device
            )
        return tap in self._kept

    def update(self, tap: str, tapped: Tapped, channels: tuple[int, int]) -> None:
        """Add some channels of whole documents."""
        topics = self._topic_of_token[tapped.rows].reshape(-1)
        for statistic in self._kept[tap]:
            compiled = statistic == "sum_abs" and tapped.on_cpu
            (add_compiled if compiled else add_plain)(
                statistic, tapped, channels, topics, self._found[tap, f"topic_{statistic}"]
            )

    def result(self) -> dict[tuple[str, str], Tensor]:
        """Return (tap, `topic_<statistic>`) -> (K, C) float32 on the CPU; 0 where a topic has no token."""
        return {key: value.float().cpu() for key, value in self._found.items()}


def add_compiled(statistic: str, tapped: Tapped, channels: tuple[int, int], group: Tensor, found: Tensor) -> None:
    """Add |a| of some channels to the float64 sums (G, C) of each token's group."""
    del statistic
    bits = tapped.bits.reshape(-1, tapped.bits.shape[-1])
    kernels.add_magnitudes(bits, tapped.shift, channels, kernels.grouped(group), found.numpy())


def add_plain(statistic: str, tapped: Tapped, channels: tuple[int, int], group: Tensor, found: Tensor) -> None:
    """Add a, |a| or its maximum of some channels to the sums or maxima (G, C) of each token's group."""
    strip = slice(*channels)
    x, group = tapped.values.flatten(0, 1)[:, strip].float(), group.to(found.device)
    if statistic == "max_abs":
        found[:, strip].scatter_reduce_(0, group[:, None].expand_as(x), x.abs(), "amax")
    else:
        found[:, strip].index_add_(0, group, (x if statistic == "sum" else x.abs()).double())
