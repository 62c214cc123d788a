"""A Zarr store that hands out only what the manifest lists: each file's size and SHA-256 are checked as it is read."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from pathlib import Path
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype

from neuronrank.array_bounds import ChunkBytes, require_values
from neuronrank.errors import ArtifactError
from neuronrank.regular_files import open_regular

METADATA = "zarr.json"


def read_listed(path: Path, entry: Mapping[str, Any], run: str) -> bytes:
    """Return a file's content once it is what the manifest lists.

    Args:
        path: the file.
        entry: its `bytes` and `sha256`.
        run: the command that makes it.

    Raises:
        ArtifactError: it is missing, cannot be read, or has another size or content.
    """
    try:
        with open_regular(path) as file:
            n_bytes = os.fstat(file.fileno()).st_size
            content = file.read(n_bytes) if n_bytes == entry["bytes"] else b""
    except FileNotFoundError as err:
        raise ArtifactError(f"{path}: missing, although the manifest lists it. Run dvc pull for it, or: {run}") from err
    except OSError as err:
        raise ArtifactError(f"{path}: cannot be read ({err}). Run: {run}") from err
    if n_bytes != entry["bytes"]:
        raise ArtifactError(f"{path}: corrupt, it has {n_bytes} bytes, the manifest lists {entry['bytes']}. Run: {run}")
    found = hashlib.sha256(content).hexdigest()
    if found != entry["sha256"]:
        raise ArtifactError(
            f"{path}: corrupt, its bytes have sha256 {found[:12]}…, the manifest lists {entry['sha256'][:12]}…. "
            f"Run: {run}"
        )
    return content


class VerifiedStore(Store):
    """Read-only; a file that is not listed is refused, one that is listed and missing is no empty chunk."""

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, root: Path, files: Mapping[str, Mapping[str, Any]], run: str) -> None:
        """Take what may be read.

        Args:
            root: directory of the store.
            files: path inside it -> `bytes` and `sha256`.
            run: the command that makes it, for messages.
        """
        super().__init__(read_only=True)
        self._root, self._files, self._run = root, files, run
        self._chunk_bytes: dict[str, ChunkBytes] = {}

    def expect(self, array: str, chunk: ChunkBytes) -> None:
        """Take what a chunk of an array has to hold; none of its chunks is handed out before."""
        self._chunk_bytes[array] = chunk

    def __eq__(self, other: object) -> bool:
        return isinstance(other, VerifiedStore) and (other._root, other._files) == (self._root, self._files)

    def __hash__(self) -> int:
        return hash(self._root)

    def __str__(self) -> str:
        return str(self._root)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return a file's content, or part of it; None where Zarr only asks whether there is an array.

        Raises:
            ArtifactError: the file is not what the manifest lists, or is a chunk or a file that it does not list.
        """
        content = await asyncio.to_thread(self._content, key)
        return None if content is None else prototype.buffer.from_bytes(_part(content, byte_range))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return parts of files, as `get` does."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    def _content(self, key: str) -> bytes | None:
        if key in self._files:
            content = read_listed(self._root / key, self._files[key], self._run)
            if key.rpartition("/")[2] != METADATA:
                self._require_values(key, content)
            return content
        if (self._root / key).exists():
            raise ArtifactError(f"{self._root / key}: the manifest does not list this file. Run: {self._run}")
        if key.rpartition("/")[2] != METADATA:
            raise ArtifactError(f"{self._root / key}: missing, and the manifest does not list it. Run: {self._run}")
        return None

    def _require_values(self, key: str, content: bytes) -> None:
        array = key.partition("/c/")[0]
        if array not in self._chunk_bytes:
            raise ArtifactError(f"{self._root / key}: is no chunk of an array that was opened. Run: {self._run}")
        require_values(self._root / key, content, self._chunk_bytes[array], self._run)

    async def exists(self, key: str) -> bool:
        """Say whether the manifest lists a file."""
        return key in self._files

    async def list(self) -> AsyncIterator[str]:
        """Yield every file that the manifest lists."""
        for key in self._files:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield every listed file below a prefix."""
        for key in self._files:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names of files and directories directly below a prefix."""
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        for name in sorted({key[len(start) :].partition("/")[0] for key in self._files if key.startswith(start)}):
            yield name

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse to write."""
        del key, value
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse to delete."""
        del key
        self._check_writable()


def _part(content: bytes, byte_range: ByteRequest | None) -> bytes:
    if byte_range is None:
        return content
    if isinstance(byte_range, RangeByteRequest):
        return content[byte_range.start : byte_range.end]
    if isinstance(byte_range, OffsetByteRequest):
        return content[byte_range.offset :]
    return content[max(0, len(content) - byte_range.suffix) :]
