"""What `collect` accumulates, one file each; METHODS section 2 gives every statistic its number.

| file                  | id | content                                                                           |
|-----------------------|----|-----------------------------------------------------------------------------------|
| `document_sums.py`    | S1 | per document and channel: sum, sum_abs, sum_sq, max_abs; counts by channel        |
| `magnitude_sketch.py` | S2 | per channel: log-spaced counts of abs(a)                                          |
| `class_moments.py`    | S3 | per token class and channel: sum, squared deviations                             |
| `topic_sums.py`       | S4 | per micro-topic and channel: sum, sum_abs, max_abs                                |
| `weight_sums.py`      | S5 | per row and column of a weight: sum_abs, sum_sq, max_abs                          |
| `gram.py`             | S6 | per input tap: the matrix of sums of products of channels; only on request        |

An activation statistic is a class `Accumulator(context)` with `open(tap, values)`, `update(tap, tapped, channels)` and
`result()`; the collection loop makes one for each layer. Of every tap that `open` accepts it gives each micro-batch,
whole documents in their own float type, to `update`, the channels divided among threads; on a GPU all at once.
`result` gives (tap, array) -> a tensor on the CPU; `statistics_schema.py` states axes and units of every array.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from neuronrank import kernels
from neuronrank.profiles import Profile


@dataclass(frozen=True)
class Context:
    """What an accumulator may know of the layer's calibration tokens."""

    n_documents: int
    profile: Profile
    class_of_token: Tensor
    """(N, T) int64: token class, `n_classes` for all others."""
    n_classes: int
    topic_of_token: Tensor
    """(N, T) int64: micro-topic in this layer."""
    n_topics: int
    gram: bool


@dataclass(frozen=True)
class Tapped:
    """A tapped tensor of one micro-batch."""

    values: Tensor
    """(n, C), any float type; read only: the tokens of whole documents, one document after the other."""
    rows: slice
    """Which documents."""
    starts: NDArray[np.int64]
    """(B + 1,): where in `values` each document begins, and where the last one ends."""
    tokens: Tensor | None = None
    """(n,): which of the documents' tokens, counted through all of them; None is all."""

    @classmethod
    def of(cls, values: Tensor, rows: slice, n_tokens: int, tokens: Tensor | None = None) -> "Tapped":
        """Return values of some documents.

        Args:
            values: (…, C).
            rows: which documents.
            n_tokens: of each document.
            tokens: (n,), rising, which of their tokens; None is all.
        """
        ends = np.arange(rows.stop - rows.start + 1) * n_tokens
        starts = ends if tokens is None else np.searchsorted(tokens.cpu().numpy(), ends)
        return cls(values.reshape(-1, values.shape[-1]), rows, starts, tokens)

    def of_tokens(self, labels: Tensor) -> Tensor:
        """Return the labels of its tokens, (n,), of those of all documents, (N, T)."""
        found = labels[self.rows].reshape(-1)
        return found if self.tokens is None else found[self.tokens.to(found.device)]

    @property
    def on_cpu(self) -> bool:
        """Whether the compiled loops can read it."""
        return self.values.device.type == "cpu"

    @cached_property
    def bits(self) -> kernels.Bits:
        """(n, C) bits, on the CPU."""
        return kernels.bits_of(self.values)


class Labels:
    """One label for every token, and those of a micro-batch as the accumulators of a layer ask for them."""

    def __init__(self, of_token: Tensor) -> None:
        """Keep (N, T) int64 labels."""
        self._of_token = of_token
        self._last: tuple[slice, tuple[NDArray[np.int64], NDArray[np.int64]]] | None = None

    def of(self, tapped: Tapped) -> Tensor:
        """Return the labels of a tapped tensor's tokens, (n,)."""
        return tapped.of_tokens(self._of_token)

    def grouped(self, tapped: Tapped) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the order that puts tokens of a label side by side, and their labels; see `kernels.grouped`."""
        if tapped.tokens is not None:
            return kernels.grouped(self.of(tapped))
        last = self._last  # the same for every tap and strip of a micro-batch; threads that meet here find the same
        if last is None or last[0] != tapped.rows:
            last = self._last = tapped.rows, kernels.grouped(self.of(tapped))
        return last[1]
