"""A checkpoint whose tensors are read with the removed weights as zeros."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from neuronrank.checkpoint import Checkpoint, ModelArtifact
from neuronrank.errors import MismatchError


class Masks(Protocol):
    """What is read of masks: `mask_store.MaskFile`, or some that were just made."""

    @property
    def weights(self) -> list[str]:
        """Names of the masked weights."""

    @property
    def untied(self) -> dict[str, str]:
        """A masked weight -> the weight that it must become a copy of before it is masked."""

    def keep(self, weight: str) -> NDArray[np.bool_]:
        """Return the mask of one weight, in the shape that it is stored in, True = kept."""


class MaskedCheckpoint(Checkpoint):
    """As `Checkpoint`; an output head that the mask unties is a tensor of its own."""

    def __init__(self, model: ModelArtifact, masks: Masks) -> None:
        """Open the weights.

        Args:
            model: that the masks were made for.
            masks: which weights are read as zeros.

        Raises:
            SourceError: see `Checkpoint`.
        """
        super().__init__(model.weights_directory, model.tensors)
        self._masks = masks
        self._masked = set(masks.weights)

    @property
    def names(self) -> list[str]:
        """Names of all tensors, sorted."""
        return sorted({*super().names, *self._masks.untied})

    @property
    def untied(self) -> dict[str, str]:
        """A masked weight -> the weight that it is a copy of."""
        return self._masks.untied

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's shape, without reading it."""
        return super().shape(self.untied.get(name, name))

    def tensor(self, name: str) -> torch.Tensor:
        """Read one tensor in the type it is stored in.

        Raises:
            MismatchError: no such tensor, not the one that was fetched, or of another shape than its mask.
            NotFiniteError: see `Checkpoint`.
            ArtifactError: the mask is corrupt.
        """
        tensor = super().tensor(self.untied.get(name, name))
        if name not in self._masked:
            return tensor
        keep = self._masks.keep(name)
        if tensor.shape != keep.shape:
            raise MismatchError(
                f"{name}: its mask has shape {keep.shape}, the model's weight {tuple(tensor.shape)}. Of another model?"
            )
        return tensor.masked_fill(torch.from_numpy(np.logical_not(keep)), 0)
