"""What a Zarr array claims to be, held against its listed files before anything is allocated for it."""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from neuronrank.errors import ArtifactError

UNSOUND = (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, MemoryError)
"""What reading Zarr may raise where its metadata are not sound: the library does not say."""
_CODECS = ("TransposeCodec", "BytesCodec", "BloscCodec")
"""Those that statistics are written with, in this order; each at most once, and bytes always."""
_MOST_RATIO, _FREE_BYTES = 1 << 15, 1 << 16
"""A gigabyte of zeros compresses to an 18,390th; what claims to be more is refused, unless it is small."""
_BLOSC_HEADER = struct.Struct("<4B3I")
"""Versions, flags and item size; bytes of values, bytes of a block, bytes of the chunk."""
_METADATA = "zarr.json"


class ChunkBytes(NamedTuple):
    """What one chunk of an array has to hold."""

    n_bytes: int
    """Of values."""
    compressed: bool
    """By Blosc, whose header says how much it becomes."""


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


def require_stored(where: Path, array: Any, path: str, files: Mapping[str, Mapping[str, Any]], run: str) -> ChunkBytes:
    """Refuse an array whose shape, type or codecs its files cannot hold; return what one of its chunks has to hold.

    Args:
        where: of the array, for the message.
        array: as Zarr opened it; no chunk was read.
        path: in `taps.zarr`.
        files: of the manifest.
        run: the command that makes the artifact.

    Raises:
        ArtifactError: what it claims cannot be.
    """
    codecs = [type(codec).__name__ for codec in getattr(array.metadata, "codecs", ())]
    sound = [known for known in _CODECS if known in codecs]
    if not hasattr(array, "chunks") or codecs != sound or "BytesCodec" not in codecs or array.dtype.kind not in "fiu":
        raise ArtifactError(
            f"{where}: is no array of numbers in codecs that statistics are written with (found "
            f"{getattr(array, 'dtype', 'a group')}, {', '.join(codecs) or 'none'}). Run: {run}"
        )
    axes = array.attrs.get("axes")
    if not (isinstance(axes, list) and [*map(type, axes)] == [str] * len(array.shape)):
        raise ArtifactError(f"{where}: names axes {axes!r} of {len(array.shape)}. Run: {run}")
    chunks = chunk_files(path, files)
    if array.nchunks != len(chunks):
        raise ArtifactError(f"{where}: has {len(chunks)} of {array.nchunks} chunks. Run: {run}")
    n_bytes: int = math.prod(array.chunks) * array.dtype.itemsize
    for name, stored in chunks.items():
        if n_bytes > _MOST_RATIO * stored + _FREE_BYTES:
            raise ArtifactError(f"{where}: a chunk claims {n_bytes} bytes, {name} holds {stored}. Run: {run}")
    return ChunkBytes(n_bytes, _CODECS[-1] in codecs)


def require_values(path: Path, content: bytes, wanted: ChunkBytes, run: str) -> None:
    """Refuse a compressed chunk that would become another number of bytes than its array has, before it does.

    Args:
        path: of the chunk, for the message.
        content: as it is stored.
        wanted: of `require_stored`.
        run: the command that makes the artifact.

    Raises:
        ArtifactError: it states another size, or blocks larger than that.
    """
    stated, block, length = len(content), 0, len(content)
    if wanted.compressed:
        padded = content[: _BLOSC_HEADER.size].ljust(_BLOSC_HEADER.size, b"\0")
        *_, stated, block, length = _BLOSC_HEADER.unpack(padded)
    if (stated, length) != (wanted.n_bytes, len(content)) or block > wanted.n_bytes:
        raise ArtifactError(
            f"{path}: states {stated} bytes in blocks of {block}, stored in {length}; its array has {wanted.n_bytes} a "
            f"chunk, and the file {len(content)}. Run: {run}"
        )
