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
from neuronrank.files import one_version, read_header, write_tensors
from neuronrank.headers import Masks, check_header
from neuronrank.module_views import view_of
from neuronrank.safetensors_header import METADATA, read_safetensors_header

SCHEMA = "neuronrank.masks/4"
_RUN = "dvc repro prune"


def pack(keep: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a mask as bits, row-major."""
    return np.packbits(keep.reshape(-1))


def write_masks(path: Path, packed: dict[str, NDArray[np.uint8]], header: dict[str, Any]) -> str:
    """Write packed masks and header, and return the file's seal.

    Raises:
        StorageError: the disk refused a write.
    """
    return write_tensors(path, packed, {"schema": SCHEMA, **header})


class MaskFile:
    """Masks opened for reading; each is unpacked when asked for."""

    def __init__(self, path: Path) -> None:
        """Check every byte of the file, in pieces, and read the header.

        Raises:
            ArtifactError: missing, corrupt, of another schema, or with bits that do not fit its shapes.
        """
        self.path = path
        with one_version(path):
            self.header = read_header(path, SCHEMA, _RUN)
            check_header(path, self.header, Masks, _RUN)
            _require_fitting(path, self.header)
            self._file: Any = safetensors.safe_open(path, framework="numpy")  # maps this version, whatever follows
        self.modules: list[dict[str, Any]] = self.header["modules"]

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

    @property
    def seal(self) -> str:
        """SHA-256 of the file's own bytes."""
        return str(self.header["file_sha256"])

    def keep(self, weight: str) -> NDArray[np.bool_]:
        """Return the mask of one weight, in the shape that it is stored in, True = kept.

        Raises:
            ArtifactError: the mask does not hold as many zeros as its header says.
        """
        shape = self.header["shapes"][weight]
        size, packed = math.prod(shape), self._file.get_tensor(weight)
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


def _require_fitting(path: Path, header: dict[str, Any]) -> None:
    """Refuse bits that are not those of the stated shapes, or modules of weights that there are not."""
    shapes = header["shapes"]
    stored, _ = read_safetensors_header(path)
    found = {name: (stored[name]["dtype"], stored[name]["shape"]) for name in stored if name != METADATA}
    for name in sorted(found.keys() | shapes.keys()):
        wanted = ("U8", [(math.prod(shapes[name]) + 7) // 8]) if name in shapes else "nothing by that name"
        if found.get(name) != wanted:
            raise ArtifactError(
                f"{path}: {name} holds {found.get(name, 'nothing')}, its shapes ask for {wanted}. Make it again: {_RUN}"
            )
    absent = [entry["weight"] for entry in header["modules"] if entry["weight"] not in shapes]
    if absent:
        raise ArtifactError(f"{path}: has no mask of {absent[0]}, which its modules name. Make it again: {_RUN}")
