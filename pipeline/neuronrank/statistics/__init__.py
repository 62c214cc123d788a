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
    """(B, T, C), any float type; read only."""
    rows: slice
    """Which documents."""

    @property
    def on_cpu(self) -> bool:
        """Whether the compiled loops can read it."""
        return self.values.device.type == "cpu"

    @cached_property
    def _read(self) -> tuple[kernels.Bits, np.uint32]:
        return kernels.bits_of(self.values)

    @property
    def bits(self) -> kernels.Bits:
        """(B, T, C) bits, on the CPU."""
        return self._read[0]

    @property
    def shift(self) -> np.uint32:
        """By how much the bits are shifted to be those of a float32."""
        return self._read[1]
