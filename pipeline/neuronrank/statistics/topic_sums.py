"""S4: sums over the tokens of each micro-topic, per channel. `topics.py` says which topic a token belongs to.

Accuracy: on the CPU 32 tokens at a time in float32, those in float64; float64 elsewhere. Kept as float32 rounded to 9
bits after the leading one (1e-3 of each entry at most), so that they compress. A topic's mean that near to the
threshold may then count or not, which was measured to move a TF-IDF factor by up to 10 %. Topics merge: sums add,
maxima take the larger.
"""

import torch
from torch import Tensor

from neuronrank import kernels
from neuronrank.statistics import Context, Labels, Tapped
from neuronrank.tap_names import base, expert


class Accumulator:
    """The topic sums of one layer."""

    def __init__(self, context: Context) -> None:
        self._topics, self._n_topics = Labels(context.topic_of_token), context.n_topics
        self._kept = context.profile.topical if context.n_topics else {}
        self._found: dict[tuple[str, str], Tensor] = {}
        self._count: dict[str, Tensor] = {}

    def open(self, tap: str, values: Tensor) -> bool:
        """Make room for a tap, of which `values` is the first; say whether it is summed by topic."""
        kept = self._kept.get(base(tap), ())
        if kept and expert(tap) is not None:
            self._count[tap] = torch.zeros(self._n_topics, dtype=torch.int64)
        for statistic in kept:
            dtype = torch.float32 if statistic == "max_abs" else torch.float64
            self._found[tap, f"topic_{statistic}"] = torch.zeros(
                self._n_topics, values.shape[-1], dtype=dtype, device=values.device
            )
        return bool(kept)

    def update(self, tap: str, tapped: Tapped, channels: tuple[int, int]) -> None:
        """Add some channels of whole documents."""
        if tap in self._count and channels[0] == 0:  # once, whichever threads divide the channels
            self._count[tap] += torch.bincount(self._topics.of(tapped), minlength=self._n_topics).cpu()
        for statistic in self._kept[base(tap)]:
            compiled = statistic == "sum_abs" and tapped.on_cpu
            (add_compiled if compiled else add_plain)(
                statistic, tapped, channels, self._topics, self._found[tap, f"topic_{statistic}"]
            )

    def result(self) -> dict[tuple[str, str], Tensor]:
        """Return (tap, `topic_<statistic>`) -> (K, C) float32 on the CPU; 0 where a topic has no token.

        Of an expert's tap `topic_count` too, (K,) int32.
        """
        found = {key: value.float().cpu() for key, value in self._found.items()}
        return found | {(tap, "topic_count"): count.int() for tap, count in self._count.items()}


def add_compiled(statistic: str, tapped: Tapped, channels: tuple[int, int], topics: Labels, found: Tensor) -> None:
    """Add |a| of some channels to the float64 sums (G, C) of each token's group."""
    del statistic
    kernels.add_magnitudes(tapped.bits, channels, topics.grouped(tapped), found.numpy())


def add_plain(statistic: str, tapped: Tapped, channels: tuple[int, int], topics: Labels, found: Tensor) -> None:
    """Add a, |a| or its maximum of some channels to the sums or maxima (G, C) of each token's group."""
    strip = slice(*channels)
    x, group = tapped.values[:, strip].float(), topics.of(tapped).to(found.device)
    if statistic == "max_abs":
        found[:, strip].scatter_reduce_(0, group[:, None].expand_as(x), x.abs(), "amax")
    else:
        found[:, strip].index_add_(0, group, (x if statistic == "sum" else x.abs()).double())
