"""Base model + mask -> an ordinary Hugging Face directory with exact zeros.

Each shard is copied and then zeroed in place through a memory map, tensor by tensor: all other bytes stay those of
the base model, and no tensor is ever held twice.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from neuronrank.checkpoint import MODEL_FILE, ModelArtifact
from neuronrank.errors import MismatchError, SourceError
from neuronrank.files import output_directory, write_json
from neuronrank.mask_store import MaskFile

_WEIGHTS = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx"}
"""Only the shards that belong to the model are taken along; other copies of the weights would stay unpruned."""
_UNSIGNED = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32, "F64": np.uint64}
"""Zero bits are +0.0 in all of them."""


def export_model(model: ModelArtifact, masks: MaskFile, out: Path) -> int:
    """Write the pruned model and return how many weights were removed.

    Raises:
        MismatchError: the mask was made for another model, or names a weight that the model lacks.
        SourceError: `out` already exists, or a weight has a type that cannot be masked.
        StorageError: the disk refused a write.
    """
    if out.exists():
        raise SourceError(f"{out}: already exists; choose another place or delete it first")
    masks.require_model(model.fingerprint, model.directory)
    checkpoint = model.checkpoint()
    for name in masks.weights:
        checkpoint.tensor(name)  # checked as it is read
    with output_directory(out) as partial:
        for source in sorted(model.weights_directory.iterdir()):
            if source.is_file() and source.suffix not in _WEIGHTS and source.name != MODEL_FILE:
                shutil.copyfile(source, partial / source.name)
        for shard in checkpoint.shards:
            shutil.copyfile(shard, partial / shard.name)
            _zero_shard(partial / shard.name, masks)
        write_json(partial / "neuronrank.json", masks.header)
    return int(sum(entry["n_removed"] for entry in masks.header["modules"]))


def _zero_shard(path: Path, masks: MaskFile) -> None:
    """Zero the masked weights of one shard in place."""
    header, data_start = _shard_header(path)
    for name in masks.weights:
        entry = header.get(name)
        if entry is None:
            continue
        if entry["dtype"] not in _UNSIGNED:
            raise SourceError(f"{path.name}: {name} has type {entry['dtype']}; can mask {', '.join(_UNSIGNED)}")
        keep = masks.keep(name)
        if tuple(entry["shape"]) != keep.shape:
            raise MismatchError(f"{path.name}: {name} has shape {entry['shape']}, its mask {list(keep.shape)}")
        offset = data_start + entry["data_offsets"][0]
        weight = np.memmap(path, dtype=_UNSIGNED[entry["dtype"]], mode="r+", offset=offset, shape=keep.shape)
        weight[~keep] = 0
        weight.flush()


def _shard_header(path: Path) -> tuple[dict[str, Any], int]:
    """Return a safetensors file's header and where its data start: 8 bytes of length, then JSON, then the data."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(length)), 8 + length
