"""The arrays of a statistics artifact as they lie on disk: shapes, types, and how many bytes each takes."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from neuronrank.array_bounds import chunk_files
from neuronrank.errors import ArtifactError
from neuronrank.planned_arrays import WEIGHTS
from neuronrank.statistics_schema import ARRAYS, TOKEN_IDS, TOTALS
from neuronrank.statistics_store import Statistics

KINDS = ("document sums", "totals and counts", "sketches", "classes", "topics", "Gram matrices", "labels", "weights")


@dataclass(frozen=True)
class StoredArray:
    """One array of an artifact."""

    path: str
    """`<tap>/<array>`, `token_ids`, or `weights` for all vectors of the weights together."""
    shape: tuple[int, ...]
    dtype: str
    units: str
    stored_bytes: int
    """Compressed, without the description beside it."""

    @property
    def raw_bytes(self) -> int:
        """Bytes without compression."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def kind_of(path: str) -> str:
    """Return which of `KINDS` an array is."""
    group, _, name = path.rpartition("/")
    if path in (TOKEN_IDS, "topics/labels"):
        return "labels"
    for prefix, kind in (("class", "classes"), ("topic", "topics"), ("sketch", "sketches"), ("gram", "Gram matrices")):
        if group.startswith(prefix) or name.startswith(prefix):
            return kind
    if path == WEIGHTS:
        return "weights"
    return "document sums" if name in TOTALS else "totals and counts"


def stored_arrays(statistics: Statistics) -> list[StoredArray]:
    """Return every array of an artifact, by path, the vectors of the weights last.

    Raises:
        ArtifactError: files of an array, or those of the weights, are missing or corrupt.
    """
    found = [_stored(statistics, path) for path in statistics.array_paths]
    weights = sum(
        statistics.weight_sums(module.name, f"{axis}_{name}").size
        for module in statistics.modules
        for axis in ("row", "column")
        for name in ("sum_abs", "sum_sq", "max_abs")
    )
    return [*found, StoredArray(WEIGHTS, (weights,), "float32", "weight, weight^2", 4 * weights)]


def total_bytes(directory: Path) -> int:
    """Return the size of all files below a directory."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def _stored(statistics: Statistics, path: str) -> StoredArray:
    array: Any = statistics.stored(path)
    name = path.rpartition("/")[2]
    units = str(array.attrs.get("units", ARRAYS[name].units if name in ARRAYS else ""))
    chunks = chunk_files(path, statistics.manifest["files"])
    whole = [name for name, n in chunks.items() if _size(statistics.directory / name) == n]
    if len(whole) < len(chunks):
        where = statistics.directory / "taps.zarr" / path
        raise ArtifactError(f"{where}: has {len(whole)} of {len(chunks)} chunks. Run: dvc repro collect")
    return StoredArray(path, tuple(array.shape), str(array.dtype), units, sum(chunks.values()))


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
