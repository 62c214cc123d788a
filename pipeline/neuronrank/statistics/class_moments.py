"""S3: sums and squared deviations over the tokens of each class, a frequent calibration token id, per channel.

Classes are sorted by frequency, so that fewer classes are the first rows; one last row holds all other tokens.
Deviations are from the class's own mean: a variance taken later from sums of a and a^2 of so few tokens, once those are
rounded, is mostly rounding error. They merge: those of two classes add, and so do count * (mean - joint mean)^2.
Accuracy: on the CPU 32 tokens at a time as float32 differences from one of them, those in float64; float64 elsewhere.
Kept as float32, `class_sum` rounded to 11 and `class_centred_sq` to 8 bits after the leading one (2.4e-4 and 2e-3 of
each entry at most), so that they compress. Measured on the trained model, that moves Fisher ratios by up to 2e-3 and
quadratic discriminants by up to 2e-2.
"""

import torch
from torch import Tensor

from neuronrank import kernels
from neuronrank.statistics import Context, Labels, Tapped
from neuronrank.tap_names import base, expert


def given_classes(token_ids: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the tokens of each class and of all others, (M + 1,), and the class of every token, (N, T).

    Args:
        token_ids: (N, T).
        ids: (M,) the classes' token ids.
    """
    known, position = torch.unique(token_ids, return_inverse=True)
    at = {token: number for number, token in enumerate(ids.tolist())}
    of_known = torch.tensor([at.get(token, len(ids)) for token in known.tolist()])
    of_token = of_known[position]
    return torch.bincount(of_token.reshape(-1), minlength=len(ids) + 1), of_token


def token_classes(token_ids: Tensor, n_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Choose the classes.

    Args:
        token_ids: (N, T).
        n_classes: at most so many.

    Returns:
        The class's token ids, (M,), most frequent first, the lower id first among equals; the number of tokens of
        each class and of all others, (M + 1,); and the class of every token, (N, T), M for the others.
    """
    ids, counts = torch.unique(token_ids, return_counts=True)
    chosen = ids[torch.argsort(counts, descending=True, stable=True)[:n_classes]]
    return chosen, *given_classes(token_ids, chosen)


class Accumulator:
    """The class sums of one layer."""

    def __init__(self, context: Context) -> None:
        self._classes, self._n_rows = Labels(context.class_of_token), context.n_classes + 1
        self._taps = context.profile.classed if context.n_classes else frozenset[str]()
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._count: dict[str, Tensor] = {}

    def open(self, tap: str, values: Tensor) -> bool:
        """Make room for a tap, of which `values` is the first; say whether it is classed."""
        if base(tap) not in self._taps:
            return False
        shape = (self._n_rows, values.shape[-1])
        sums, sums_sq = (torch.zeros(shape, dtype=torch.float64, device=values.device) for _ in range(2))
        self._sums[tap] = sums, sums_sq
        self._count[tap] = torch.zeros(self._n_rows, dtype=torch.int64)
        return True

    def update(self, tap: str, tapped: Tapped, channels: tuple[int, int]) -> None:
        """Add some channels of whole documents."""
        if channels[0] == 0:  # once, whichever threads divide the channels
            self._count[tap] += torch.bincount(self._classes.of(tapped), minlength=self._n_rows)
        (add_compiled if tapped.on_cpu else add_plain)(tapped, channels, self._classes, *self._sums[tap])

    def result(self) -> dict[tuple[str, str], Tensor]:
        """Return (tap, `class_sum` or `class_centred_sq`) -> (M + 1, C) float32 on the CPU.

        Of an expert's tap `class_count` too, (M + 1,) int32.
        """
        found = {}
        for tap, (sums, sums_sq) in self._sums.items():
            if expert(tap) is not None:
                found[tap, "class_count"] = self._count[tap].int()
            found[tap, "class_sum"] = sums.float().cpu()
            centred = sums_sq - sums.square() / self._count[tap].clamp(min=1)[:, None].to(sums.device)
            found[tap, "class_centred_sq"] = centred.clamp(min=0).float().cpu()
        return found


def add_compiled(tapped: Tapped, channels: tuple[int, int], classes: Labels, sums: Tensor, sums_sq: Tensor) -> None:
    """Add a and a^2 of some channels to the float64 sums (G, C) of each token's group; see `kernels.add_moments`."""
    kernels.add_moments(tapped.bits, channels, classes.grouped(tapped), sums.numpy(), sums_sq.numpy())


def add_plain(tapped: Tapped, channels: tuple[int, int], classes: Labels, sums: Tensor, sums_sq: Tensor) -> None:
    """As `add_compiled`, in plain PyTorch, of all channels."""
    del channels
    x = tapped.values.double()
    group = classes.of(tapped)
    sums.index_add_(0, group.to(x.device), x)
    sums_sq.index_add_(0, group.to(x.device), x.square())
