"""One layer's accumulators, and the threads that divide the channels of every tapped tensor among them."""

from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from neuronrank.statistics import Context, Tapped, class_moments, document_sums, gram, magnitude_sketch, topic_sums

_FEWEST = 64
"""Channels that are worth a thread."""


class Accumulation:
    """All statistics of one layer. A context manager: its threads end with it."""

    def __init__(self, context: Context) -> None:
        modules = (document_sums, magnitude_sketch, class_moments, topic_sums, gram)
        self._all: list[Any] = [module.Accumulator(context) for module in modules]
        self._of_tap: dict[str, list[Any]] = {}
        self._n_threads = torch.get_num_threads()
        self._others = ThreadPoolExecutor(max(1, self._n_threads - 1))

    def __enter__(self) -> "Accumulation":
        """Return itself."""
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        """End the threads."""
        self._others.shutdown()

    def add(self, tap: str, tapped: Tapped) -> None:
        """Add a micro-batch of one tap to all that keep something of it."""
        if tap not in self._of_tap:
            self._of_tap[tap] = [accumulator for accumulator in self._all if accumulator.open(tap, tapped.values)]
        if not self._of_tap[tap]:
            return
        n_channels = tapped.values.shape[-1]
        n_strips = max(1, min(self._n_threads, n_channels // _FEWEST)) if tapped.on_cpu else 1
        edges = [n_channels * strip // n_strips for strip in range(n_strips + 1)]
        if tapped.on_cpu:
            _ = tapped.bits  # once, before threads ask for them
        waiting = [
            self._others.submit(self._update, tap, tapped, (edges[strip], edges[strip + 1]))
            for strip in range(1, n_strips)
        ]
        self._update(tap, tapped, (edges[0], edges[1]))
        for strip in waiting:
            strip.result()

    def _update(self, tap: str, tapped: Tapped, channels: tuple[int, int]) -> None:
        for accumulator in self._of_tap[tap]:
            accumulator.update(tap, tapped, channels)

    def result(self) -> dict[tuple[str, str], Tensor]:
        """Return (tap, array) -> values on the CPU."""
        found: dict[tuple[str, str], Tensor] = {}
        for accumulator in self._all:
            found |= accumulator.result()
        return found
