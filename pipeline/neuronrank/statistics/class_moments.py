"""S3: sums and squared deviations over the tokens of each class, a frequent calibration token id, per channel.

Classes are sorted by frequency, so that fewer classes are the first rows; one last row holds all other tokens.
Deviations are from the class's own mean: a variance taken later from sums of a and a^2 of so few tokens, once those are
rounded, is mostly rounding error. They merge: those of two classes add, and so do count * (mean - joint mean)^2.
Accuracy: float64 sums of float32 values; kept as float32, `class_sum` rounded to 11 and `class_centred_sq` to 8 bits
after the leading one (2.4e-4 and 2e-3 of each entry at most), so that they compress. Measured on the trained model,
that moves Fisher ratios by up to 2e-3 and quadratic discriminants by up to 2e-2.
"""

import torch
from torch import Tensor

from neuronrank import kernels
from neuronrank.statistics import Context


def token_classes(token_ids: Tensor, n_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the classes.

    Args:
        token_ids: (N, T).
        n_classes: at most so many.

    Returns:
        The class's token ids, (M,), most frequent first, the lower id first among equals; the number of tokens of
        each class and of all others, (M + 1,); and the class of every token, (N, T), M for the others.
    """
    ids, of_token, counts = torch.unique(token_ids, return_inverse=True, return_counts=True)
    order = torch.argsort(counts, descending=True, stable=True)[:n_classes]
    rank = torch.full_like(ids, len(order))
    rank[order] = torch.arange(len(order))
    others = counts.sum() - counts[order].sum()
    return ids[order], torch.cat([counts[order], others[None]]), rank[of_token]


class Accumulator:
    """The class sums of one layer."""

    def __init__(self, context: Context) -> None:
        self._class_of_token, self._n_rows = context.class_of_token, context.n_classes + 1
        self._taps = context.profile.classed if context.n_classes else frozenset[str]()
        self._sums: dict[str, tuple[Tensor, ...]] = {}

    def update(self, rows: slice, tap: str, values: Tensor) -> None:
        """Add whole documents.

        Args:
            rows: which documents.
            tap: which tap; one that the profile does not class is ignored.
            values: (B, T, C), any float type; read only.
        """
        if tap not in self._taps:
            return
        flat = values.reshape(-1, values.shape[-1])
        if tap not in self._sums:
            shape = (self._n_rows, flat.shape[1])
            self._sums[tap] = tuple(torch.zeros(shape, dtype=torch.float64, device=flat.device) for _ in range(2))
        classes = self._class_of_token[rows].reshape(-1).to(flat.device)
        add = add_compiled if flat.device.type == "cpu" else add_plain
        add(flat, classes, *self._sums[tap])

    def result(self) -> dict[tuple[str, str], Tensor]:
        """Return (tap, `class_sum` or `class_centred_sq`) -> (M + 1, C) float32 on the CPU."""
        count = torch.bincount(self._class_of_token.reshape(-1), minlength=self._n_rows).clamp(min=1)[:, None]
        found = {}
        for tap, (sums, sums_sq) in self._sums.items():
            found[tap, "class_sum"] = sums.float().cpu()
            centred = sums_sq - sums.square() / count.to(sums.device)
            found[tap, "class_centred_sq"] = centred.clamp(min=0).float().cpu()
        return found


def add_compiled(x: Tensor, group: Tensor, sums: Tensor, sums_sq: Tensor) -> None:
    """As `add_plain`; differences from a token of the group are added in float32."""
    bits, shift = kernels.bits_of(x)
    order = torch.argsort(group, stable=True)
    kernels.add_moments(bits, shift, *(array.numpy() for array in (group, order, sums, sums_sq)))


def add_plain(x: Tensor, group: Tensor, sums: Tensor, sums_sq: Tensor) -> None:
    """Add x, (tokens, C), and its squares to the float64 sums (G, C) of each token's group."""
    sums.index_add_(0, group, x.double())
    sums_sq.index_add_(0, group, x.double().square())
