"""The GGUF container: named values and float32 tensors, read with every length checked against the file first.

Not by the `gguf` package's reader: that one believes the header, and loops over an array of 2^60 elements. A file of
strangers is bounded here before anything is allocated, so that it ends in an error or is read, in time and memory that
its own size bounds. Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import os
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from neuronrank.errors import SourceError
from neuronrank.outputs import output_file
from neuronrank.regular_files import open_regular

MAGIC = b"GGUF"
VERSIONS = (2, 3)
FLOAT32 = 0
"""The type of a tensor, as its entry states it."""
_UINT32, _STRING, _ARRAY = 4, 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type of a value -> its code in `struct`."""
_ALIGNMENT = 32
_MOST_AXES = 4
_LONGEST_NAME, _LONGEST_KEY = 63, 65535
"""Bytes, of a tensor's name in ggml and of a key in the format."""
_LEAST_VALUE, _LEAST_TENSOR = 13, 32
"""Bytes that an entry takes at least: an empty key with one byte; a tensor of one axis without a name."""
_MOST = 1 << 20
"""Tensors, values, or texts of one value: ten times what the largest models have."""

Value = str | int | float | bool | tuple[str, ...] | None


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies."""

    shape: tuple[int, ...]
    """Slowest axis first, as in numpy; the file states the fastest first."""
    type: int
    start: int
    """In the file."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Container:
    """The header of a GGUF file."""

    path: Path
    values: Mapping[str, Value]
    """Key -> value; None for an array of numbers."""
    tensors: Mapping[str, TensorEntry]

    def read(self, names: Iterable[str]) -> dict[str, NDArray[np.float32]]:
        """Read float32 tensors, those of `names` that the file has.

        Raises:
            SourceError: one is of another type, lies outside the file, or all together are larger than it.
        """
        wanted = {name: self.tensors[name] for name in names if name in self.tensors}
        found: dict[str, NDArray[np.float32]] = {}
        with _opened(self.path) as file:
            size = os.fstat(file.fileno()).st_size
            for name, entry in wanted.items():
                if entry.type != FLOAT32:
                    raise SourceError(f"{self.path}: tensor {name!r} has type {entry.type}, expected {FLOAT32} (F32)")
                if entry.start + 4 * entry.size > size:
                    raise SourceError(
                        f"{self.path}: tensor {name!r} of shape {entry.shape} ends behind the file's {size} bytes. "
                        f"Cut short? Fetch it again"
                    )
            if 4 * sum(entry.size for entry in wanted.values()) > size:
                raise SourceError(f"{self.path}: its tensors overlap: together they are larger than the file")
            for name, entry in wanted.items():
                file.seek(entry.start)
                values = np.frombuffer(file.read(4 * entry.size), dtype="<f4")
                if values.size != entry.size:
                    raise SourceError(f"{self.path}: became shorter while it was read")
                found[name] = values.reshape(entry.shape)
        return found


def is_container(path: Path) -> bool:
    """Whether a file begins as a GGUF file does; False also for what is no file, or cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):
        return False


def open_container(path: Path, remedy: str = "Fetch it again") -> Container:
    """Read the header of a GGUF file.

    Args:
        path: of the file.
        remedy: what to do about a file of another format, for the message.

    Raises:
        SourceError: not a GGUF file of version 2 or 3, or a header that is not sound; says what and where.
    """
    with _opened(path) as file:
        cursor = _Cursor(path, file)
        magic = cursor.bytes(4, "the magic") if cursor.left >= 4 else b""
        if magic != MAGIC:
            raise SourceError(f"{path}: starts with {magic!r}, a GGUF file starts with {MAGIC!r}. {remedy}")
        version = cursor.number("I", "the version")
        if version not in VERSIONS:
            order = ", or in big-endian byte order" if version & 0xFFFF == 0 else ""
            raise SourceError(f"{path}: is of GGUF version {version}{order}; little-endian 2 and 3 are read")
        n_tensors, n_values = cursor.number("Q", "the number of tensors"), cursor.number("Q", "the number of values")
        promised = f"{n_tensors} tensors, {n_values} values"
        cursor.require(n_tensors * _LEAST_TENSOR + n_values * _LEAST_VALUE, promised)
        cursor.require_few(max(n_tensors, n_values), promised)
        values: dict[str, Value] = {}
        for _ in range(n_values):
            key = cursor.string("a key", _LONGEST_KEY)
            if key in values:
                raise SourceError(f"{path}: key {key[:_LONGEST_NAME]!r} comes twice")
            values[key] = cursor.value(key)
        entries = [cursor.tensor() for _ in range(n_tensors)]
        start = _aligned(cursor.at, _alignment(path, values))
    tensors: dict[str, TensorEntry] = {}
    for name, entry in entries:
        if name in tensors:
            raise SourceError(f"{path}: tensor {name!r} comes twice")
        tensors[name] = TensorEntry(entry.shape, entry.type, start + entry.start)
    return Container(path, values, tensors)


def write_container(
    path: Path, values: Mapping[str, str | int | Sequence[str]], tensors: Mapping[str, NDArray[np.float32]]
) -> None:
    """Write a GGUF file of version 3: texts, uint32 numbers and lists of texts, then float32 tensors, in their order.

    Axes of length 1 that are the slowest are left out, as ggml leaves them out.

    Raises:
        StorageError: the disk refused a write.
    """
    header = [MAGIC, struct.pack("<IQQ", VERSIONS[-1], len(tensors), len(values))]
    for key, value in values.items():
        header += [_text(key), _packed(value)]
    offset = 0
    for name, tensor in tensors.items():
        axes = list(tensor.shape)
        while len(axes) > 1 and axes[0] == 1:
            del axes[0]
        header += [_text(name), struct.pack(f"<I{len(axes)}QIQ", len(axes), *reversed(axes), FLOAT32, offset)]
        offset += _aligned(4 * tensor.size, _ALIGNMENT)
    with output_file(path) as partial, partial.open("wb") as file:
        file.write(_padded(b"".join(header)))
        for tensor in tensors.values():
            file.write(_padded(np.ascontiguousarray(tensor, dtype="<f4").tobytes()))


class _Cursor:
    """Reads a header from its beginning; nothing is read before it is known to lie in the file."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._size, self.at = os.fstat(file.fileno()).st_size, 0

    @property
    def left(self) -> int:
        """Bytes behind this place."""
        return self._size - self.at

    def require(self, n_bytes: int, what: str) -> None:
        if n_bytes > self.left:
            raise SourceError(
                f"{self._path}: corrupt or cut short: its header promises {what} at byte {self.at}, at least {n_bytes} "
                f"bytes, and {self.left} are left. Fetch it again"
            )

    def require_few(self, n: int, what: str) -> None:
        if n > _MOST:
            raise SourceError(f"{self._path}: its header promises {what}; expected {_MOST} at most")

    def bytes(self, n_bytes: int, what: str) -> bytes:
        self.require(n_bytes, what)
        found = self._file.read(n_bytes)
        if len(found) != n_bytes:
            raise SourceError(f"{self._path}: became shorter while it was read")
        self.at += n_bytes
        return found

    def number(self, code: str, what: str) -> Any:
        return struct.unpack(f"<{code}", self.bytes(struct.calcsize(f"<{code}"), what))[0]

    def string(self, what: str, longest: int | None = None) -> str:
        length = self.number("Q", what)
        if longest is not None and length > longest:
            raise SourceError(f"{self._path}: {what} at byte {self.at} has {length} bytes, expected {longest} at most")
        raw = self.bytes(length, what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as err:
            raise SourceError(f"{self._path}: {what} before byte {self.at} is not UTF-8 ({err.reason})") from err

    def value(self, key: str) -> Value:
        key = key[:_LONGEST_NAME]  # for messages
        what, kind = f"the value of {key!r}", self.number("I", f"the type of {key!r}")
        if kind == _STRING:
            return self.string(what)
        if kind != _ARRAY:
            found: Value = self.number(self._code(kind, key), what)
            return found
        kind, length = self.number("I", what), self.number("Q", what)
        if kind == _STRING:
            self.require(8 * length, f"{length} texts of {key!r}")
            self.require_few(length, f"{length} texts of {key!r}")
            return tuple(self.string(what) for _ in range(length))
        n_bytes = struct.calcsize(f"<{self._code(kind, key)}") * length
        self.require(n_bytes, f"{length} numbers of {key!r}")
        self._file.seek(n_bytes, os.SEEK_CUR)
        self.at += n_bytes
        return None

    def tensor(self) -> tuple[str, TensorEntry]:
        """Return a tensor's name and entry, its start counted from where the tensors begin."""
        name = self.string("a tensor's name", _LONGEST_NAME)
        if not name.isprintable():
            raise SourceError(f"{self._path}: a tensor's name is {name!r}, which cannot be printed")
        n_axes = self.number("I", f"the axes of {name!r}")
        if not 1 <= n_axes <= _MOST_AXES:
            raise SourceError(f"{self._path}: tensor {name!r} has {n_axes} axes, expected 1 to {_MOST_AXES}")
        shape = tuple(self.number("Q", f"the axes of {name!r}") for _ in range(n_axes))[::-1]
        if not all(shape):
            raise SourceError(f"{self._path}: tensor {name!r} has shape {shape}, an empty axis")
        return name, TensorEntry(shape, self.number("I", name), self.number("Q", name))

    def _code(self, kind: int, key: str) -> str:
        if kind not in _SCALARS:
            raise SourceError(f"{self._path}: {key!r} has values of unknown type {kind}")
        return _SCALARS[kind]


def _opened(path: Path) -> BinaryIO:
    try:
        return open_regular(path)
    except OSError as err:
        raise SourceError(f"{path}: cannot be read: {err.strerror or err}") from err


def _alignment(path: Path, values: Mapping[str, Value]) -> int:
    found = values.get("general.alignment", _ALIGNMENT)
    if type(found) is not int or found <= 0 or found & (found - 1):
        raise SourceError(f"{path}: general.alignment is {found!r}, expected a power of two")
    return found


def _aligned(n_bytes: int, alignment: int) -> int:
    return -(-n_bytes // alignment) * alignment


def _padded(content: bytes) -> bytes:
    return content.ljust(_aligned(len(content), _ALIGNMENT), b"\0")


def _text(value: str) -> bytes:
    raw = value.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw


def _packed(value: str | int | Sequence[str]) -> bytes:
    """Return a value behind its type."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _text(value)
    if isinstance(value, int):
        return struct.pack("<II", _UINT32, value)
    return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_text, value))
