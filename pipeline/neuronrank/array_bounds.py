"""What a Zarr array claims to be, held against its listed files before anything is allocated for it."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from neuronrank.errors import ArtifactError

UNSOUND = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, MemoryError)
"""What reading Zarr may raise where its metadata are not sound: the library does not say."""
_CODECS = {"BloscCodec", "BytesCodec", "TransposeCodec"}
"""Those that statistics are written with."""
_MOST_RATIO, _FREE_BYTES = 10_000, 1 << 16
"""Zeros compress to a 2340th at most; what claims to be more is refused, unless it is small."""
_METADATA = "zarr.json"


def chunk_files(path: str, files: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Return the listed chunks of an array of `taps.zarr` and how many bytes each has.

    Args:
        path: of the array, `<tap>/<array>`.
        files: of the manifest.
    """
    start = f"taps.zarr/{path}/"
    return {
        name: entry["bytes"]
        for name, entry in files.items()
        if name.startswith(start) and name != f"{start}{_METADATA}"
    }


def require_stored(where: Path, array: Any, path: str, files: Mapping[str, Mapping[str, Any]], run: str) -> None:
    """Refuse an array whose shape, type or codecs its files cannot hold.

    Args:
        where: of the array, for the message.
        array: as Zarr opened it; no chunk was read.
        path: in `taps.zarr`.
        files: of the manifest.
        run: the command that makes the artifact.

    Raises:
        ArtifactError: what it claims cannot be.
    """
    codecs = {type(codec).__name__ for codec in getattr(array.metadata, "codecs", ())}
    if not hasattr(array, "chunks") or not codecs <= _CODECS or array.dtype.kind not in "fiu":
        raise ArtifactError(
            f"{where}: is no array of numbers in codecs that statistics are written with (found "
            f"{getattr(array, 'dtype', 'a group')}, {', '.join(sorted(codecs)) or 'none'}). Run: {run}"
        )
    chunks = chunk_files(path, files)
    if array.nchunks != len(chunks):
        raise ArtifactError(f"{where}: has {len(chunks)} of {array.nchunks} chunks. Run: {run}")
    n_bytes = math.prod(array.chunks) * array.dtype.itemsize
    for name, stored in chunks.items():
        if n_bytes > _MOST_RATIO * stored + _FREE_BYTES:
            raise ArtifactError(f"{where}: a chunk claims {n_bytes} bytes, {name} holds {stored}. Run: {run}")
