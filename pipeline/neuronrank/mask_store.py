"""Masks on disk: one bit per weight, and what was removed where.

artifacts/masks/<recipe>/<pattern>.safetensors
  <weight name>   (ceil(n/8),) uint8: of the n values of the tensor as it is stored, row-major, eight a byte, highest
                  bit first, 1 = kept
  header          schema, recipe, pattern, `shapes` of the weights, per module shape, count and which rows of which
                  weight it is, realised sparsity, provenance, and `untied`: an output head's weight -> the embeddings
                  that it must become a copy of before it is masked
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from neuronrank.errors import ArtifactError, MismatchError
from neuronrank.files import read_header, write_tensors
from neuronrank.module_views import view_of

SCHEMA = "neuronrank.masks/3"
_REQUIRED = (
    "recipe",
    "pattern",
    "modules",
    "shapes",
    "n_layers",
    "model",
    "sparsity",
    "untied",
    "calibration",
    "collect",
)
_RUN = "dvc repro prune"


def pack(keep: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a mask as bits, row-major."""
    return np.packbits(keep.reshape(-1))


def write_masks(path: Path, packed: dict[str, NDArray[np.uint8]], header: dict[str, Any]) -> None:
    """Write packed masks and header.

    Raises:
        StorageError: the disk refused a write.
    """
    write_tensors(path, packed, {"schema": SCHEMA, **header})


class MaskFile:
    """Masks opened for reading; each is unpacked when asked for."""

    def __init__(self, path: Path) -> None:
        """Read the header.

        Raises:
            ArtifactError: missing, corrupt, or of another schema.
        """
        self.path = path
        self.header = read_header(path, SCHEMA, _RUN, _REQUIRED)
        self.modules: list[dict[str, Any]] = self.header["modules"]
        self._file: Any = safetensors.safe_open(path, framework="numpy")

    @property
    def weights(self) -> list[str]:
        """Names of the masked weights."""
        return sorted(self.header["shapes"])

    @property
    def untied(self) -> dict[str, str]:
        """A masked weight that the model shares -> the weight that it must become a copy of before it is masked."""
        return dict(self.header["untied"])

    def require_model(self, fingerprint: str, directory: Path) -> None:
        """Refuse a model that the mask was not made for.

        Raises:
            MismatchError: names both models.
        """
        made_for = self.header["model"]["fingerprint"]
        if made_for != fingerprint:
            raise MismatchError(
                f"{self.path}: made for model {made_for[:12]}…, {directory} holds {fingerprint[:12]}…. Run: {_RUN}"
            )

    def keep(self, weight: str) -> NDArray[np.bool_]:
        """Return the mask of one weight, in the shape that it is stored in, True = kept.

        Raises:
            ArtifactError: the mask does not hold as many zeros as its header says.
        """
        shape = self.header["shapes"][weight]
        size, packed = math.prod(shape), self._file.get_tensor(weight)
        if packed.size != (size + 7) // 8:
            raise ArtifactError(f"{self.path}: {weight} has {packed.size} bytes for a mask of {shape}. Run: {_RUN}")
        keep = np.unpackbits(packed, count=size).astype(np.bool_).reshape(shape)
        removed = keep.size - int(np.count_nonzero(keep))
        stated = sum(entry["n_removed"] for entry in self.modules if entry["weight"] == weight)
        if removed != stated:
            raise ArtifactError(
                f"{self.path}: {weight} removes {removed} weights, its header says {stated}. Run: {_RUN}"
            )
        return keep

    def module_keep(self, entry: dict[str, Any]) -> NDArray[np.bool_]:
        """Return the (O, I) mask of one module, an entry of `modules`.

        Raises:
            ArtifactError: see `keep`.
        """
        return np.asarray(view_of(self.keep(entry["weight"]), entry))
