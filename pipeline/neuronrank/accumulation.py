"""One layer's accumulators, and the strips of channels in which threads take every tapped tensor."""

from collections import deque
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from neuronrank.statistics import Context, Tapped, class_moments, document_sums, gram, magnitude_sketch, topic_sums
from neuronrank.team import run_on_all_threads

_FEWEST = 64
"""Channels that are worth a thread."""


class Accumulation:
    """All statistics of one layer."""

    def __init__(self, context: Context) -> None:
        modules = (document_sums, magnitude_sketch, class_moments, topic_sums, gram)
        self._all: list[Any] = [module.Accumulator(context) for module in modules]
        self._of_tap: dict[str, list[Any]] = {}

    def add(self, tap: str, tapped: Tapped) -> None:
        """Add a micro-batch of one tap to all that keep something of it."""
        if tap not in self._of_tap:
            self._of_tap[tap] = [accumulator for accumulator in self._all if accumulator.open(tap, tapped.values)]
        if not self._of_tap[tap]:
            return
        n_channels = tapped.values.shape[-1]
        n_strips = max(1, min(torch.get_num_threads(), n_channels // _FEWEST)) if tapped.on_cpu else 1
        strips = deque(pairwise(n_channels * strip // n_strips for strip in range(n_strips + 1)))
        if n_strips == 1:
            self._update(tap, tapped, strips)
            return
        _ = tapped.bits  # once, before threads ask for them
        run_on_all_threads(lambda: self._update(tap, tapped, strips))

    def _update(self, tap: str, tapped: Tapped, strips: deque[tuple[int, int]]) -> None:
        """Take strips while there are any."""
        while (channels := _next(strips)) is not None:
            for accumulator in self._of_tap[tap]:
                accumulator.update(tap, tapped, channels)

    def result(self) -> dict[tuple[str, str], Tensor]:
        """Return (tap, array) -> values on the CPU."""
        found: dict[tuple[str, str], Tensor] = {}
        for accumulator in self._all:
            found |= accumulator.result()
        return found


def _next(strips: deque[tuple[int, int]]) -> tuple[int, int] | None:
    """Take the next strip. Another thread may take the last between a look and a grasp, so there is only a grasp."""
    try:
        return strips.popleft()
    except IndexError:
        return None
