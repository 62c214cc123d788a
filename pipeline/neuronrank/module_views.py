"""A linear module as a view of a stored weight: all of it, or some rows of one that several modules share.

A module's weight is (O, I) here, rows its outputs, however it is stored. Needs no torch: what is indexed may be an
array or a tensor.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Rows:
    """Rows that repeat: of every `period` those from `offset` on, `block` of them."""

    offset: int
    block: int
    period: int

    def of(self, n_all: int) -> NDArray[np.int64]:
        """Return the numbers of these rows among n_all, a multiple of the period."""
        return np.arange(n_all).reshape(-1, self.period)[:, self.offset : self.offset + self.block].reshape(-1)


def view_of(stored: Any, entry: Mapping[str, Any]) -> Any:
    """Return a module's (O, I) values of a stored array or tensor.

    Args:
        stored: two axes, as in the checkpoint.
        entry: of the module, with `rows` and `transposed`.
    """
    weight = stored.T if entry["transposed"] else stored
    return weight if entry["rows"] is None else weight[Rows(*entry["rows"]).of(len(weight))]


def write_view(stored: NDArray[Any], entry: Mapping[str, Any], values: NDArray[Any]) -> None:
    """Write a module's (O, I) values into a stored array; arguments as of `view_of`."""
    weight = stored.T if entry["transposed"] else stored
    weight[slice(None) if entry["rows"] is None else Rows(*entry["rows"]).of(len(weight))] = values
