"""Safetensors shards as files: headers, tensors through memory maps, and the index over several shards."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neuronrank.files import write_json
from neuronrank.safetensors_header import METADATA, read_safetensors_header

INDEX = "model.safetensors.index.json"
FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
"""Types of the safetensors format that a weight may have."""
TYPES = FLOATS | {"I64": torch.int64, "U8": torch.uint8, "BOOL": torch.bool}
"""And those of the masks and positions that older checkpoints keep beside the weights."""


def shard_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return a safetensors file's header and where its data start: 8 bytes of length, then JSON, then the data.

    Raises:
        ValueError: it is not sound, or not that of this file.
    """
    return read_safetensors_header(path)


def tensor_entries(header: dict[str, Any]) -> dict[str, Any]:
    """Return name -> `dtype`, `shape` and `data_offsets` of the tensors of a header."""
    return {name: entry for name, entry in header.items() if name != METADATA}


def mapped_tensor(path: Path, entry: dict[str, Any], data_start: int, dtype: torch.dtype) -> torch.Tensor:
    """Map one tensor; what is written to it stays in memory. No file stays open: a model may have thousands.

    Raises:
        FileNotFoundError: there is no such file.
        RuntimeError: it is shorter than the header says.
    """
    path.stat()  # PyTorch would call a missing file a RuntimeError
    first, last = (data_start + offset for offset in entry["data_offsets"])
    if first == last:
        return torch.empty(entry["shape"], dtype=dtype)
    raw = torch.from_file(str(path), shared=False, size=last, dtype=torch.uint8)[first:]
    if first % dtype.itemsize:
        raw = raw.clone()  # a type's values lie at multiples of its size
    return raw.view(dtype).reshape(entry["shape"])


def rewrite_shard(source: Path, target: Path, kept: dict[str, tuple[int, NDArray[np.intp]]]) -> None:
    """Copy a shard, tensor by tensor, with some tensors cut along one axis.

    Args:
        source: a safetensors file.
        target: to write.
        kept: name -> (axis, indices that stay). Names of other shards do not matter.
    """
    header, data_start = shard_header(source)
    entries = sorted(tensor_entries(header).items(), key=lambda item: item[1]["data_offsets"][0])
    new_header: dict[str, Any] = {METADATA: header[METADATA]} if METADATA in header else {}
    end = 0
    for name, entry in entries:
        first, last = entry["data_offsets"]
        shape, n_bytes = list(entry["shape"]), last - first
        if name in kept:
            axis, indices = kept[name]
            n_bytes = n_bytes // shape[axis] * indices.size
            shape[axis] = int(indices.size)
        new_header[name] = {"dtype": entry["dtype"], "shape": shape, "data_offsets": [end, end + n_bytes]}
        end += n_bytes
    encoded = json.dumps(new_header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with target.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, entry in entries:
            tensor = mapped_tensor(source, entry, data_start, TYPES[entry["dtype"]])
            if name in kept:
                axis, indices = kept[name]
                tensor = tensor.index_select(axis, torch.from_numpy(indices))
            file.write(tensor.reshape(-1).view(torch.uint8).numpy().data)


def write_index(directory: Path, shards: Sequence[str]) -> None:
    """Write the index over several shards of a directory."""
    weight_map, n_bytes, n_items = {}, 0, 0
    for name in shards:
        for tensor, entry in tensor_entries(shard_header(directory / name)[0]).items():
            weight_map[tensor] = name
            n_bytes += entry["data_offsets"][1] - entry["data_offsets"][0]
            n_items += math.prod(entry["shape"])
    metadata = {"total_parameters": n_items, "total_size": n_bytes}
    write_json(directory / INDEX, {"metadata": metadata, "weight_map": weight_map})
