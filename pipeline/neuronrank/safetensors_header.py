"""The header of a safetensors file, read and checked before anything is allocated or mapped by what it says."""

import json
import math
import os
from pathlib import Path
from typing import Any, TypeGuard

from neuronrank.regular_files import open_regular

METADATA = "__metadata__"
LARGEST_HEADER_BYTES = 100_000_000
"""As in the safetensors library."""
_ITEM_BITS = {"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32}
_ITEM_BITS |= {"F16": 16, "BF16": 16, "I16": 16, "U16": 16}
_ITEM_BITS |= {"I8": 8, "U8": 8, "BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8}
_MOST_AXES, _MOST_VALUES = 32, 2**48


def header_text(path: Path) -> bytes:
    """Return the header as it is stored: 8 bytes of length come before it, the data after it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the stated length is not that of a header of this file.
    """
    with open_regular(path) as file:
        n_bytes = os.fstat(file.fileno()).st_size
        stated = file.read(8)
        if not stated:
            raise ValueError("it is empty")
        length = int.from_bytes(stated, "little")
        if len(stated) < 8 or not 2 <= length <= min(n_bytes - 8, LARGEST_HEADER_BYTES):
            raise ValueError(f"it has {n_bytes} bytes, its first 8 state a header of {length}")
        return file.read(length)


def read_safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return a safetensors file's header and where its data start.

    The header is name -> `dtype`, `shape` and `data_offsets` of each tensor, and `__metadata__`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the header is not sound, or not that of this file.
    """
    text = header_text(path)
    header = parse_json(text.decode("utf-8"))
    start = 8 + len(text)
    n_data = path.stat().st_size - start
    if not isinstance(header, dict):
        raise ValueError(f"its header is a {type(header).__name__}, expected an object")
    metadata = header.get(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{METADATA} of its header is no object of texts")
    end = 0
    entries = [(name, entry) for name, entry in header.items() if name != METADATA]
    for name, entry in entries:
        _check_entry(name, entry)
    for name, entry in sorted(entries, key=lambda item: item[1]["data_offsets"]):
        first, last = entry["data_offsets"]
        if first != end:
            raise ValueError(f"{name} begins at byte {first} of the data, the tensor before it ends at {end}")
        end = last
    if end != n_data:
        raise ValueError(f"its tensors take {end} bytes, the file holds {n_data} of data")
    return header, start


def parse_json(text: str) -> Any:
    """Parse JSON from elsewhere.

    Raises:
        ValueError: not valid, nested too deeply, or with two values of one key.
    """
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("its JSON is nested too deeply") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in found if names.count(name) > 1)!r} stands twice in one object")
    return found


def _check_entry(name: str, entry: Any) -> None:
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        raise ValueError(f"{name}: its entry in the header has no dtype")
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not (_are_sizes(shape) and len(shape) <= _MOST_AXES):
        raise ValueError(f"{name}: its shape is no list of sizes")
    if not (_are_sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise ValueError(f"{name}: its data_offsets are not two that follow each other")
    if math.prod(size for size in shape if size) > _MOST_VALUES:  # libraries multiply before they see a zero
        raise ValueError(f"{name}: its shape {shape} is of more values than there can be")
    bits = _ITEM_BITS.get(entry["dtype"])
    stated = offsets[1] - offsets[0]
    if bits is not None and 8 * stated != bits * math.prod(shape):
        raise ValueError(f"{name}: {shape} values of {entry['dtype']} do not fit {stated} bytes")


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**62 for item in value)
