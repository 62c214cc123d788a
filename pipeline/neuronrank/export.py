"""Base model + mask -> an ordinary Hugging Face directory with exact zeros.

Each shard is copied and then zeroed in place through a memory map, tensor by tensor: all other bytes stay those of
the base model, and no tensor is ever held twice. An output head that the mask unties from the embeddings becomes one
more shard; the embeddings stay as they are.
"""

import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from neuronrank.checkpoint import Checkpoint, ModelArtifact
from neuronrank.errors import MismatchError, SourceError
from neuronrank.export_description import SCHEMA
from neuronrank.files import write_sealed_json
from neuronrank.mask_store import MaskFile
from neuronrank.model_description import EXPORT_FILE
from neuronrank.model_files import files_to_copy
from neuronrank.outputs import new_output, output_directory
from neuronrank.provenance import file_entries, made_from
from neuronrank.shards import shard_header, write_index
from neuronrank.storage import set_usual_mode

_UNSIGNED = {"BF16": np.uint16, "F16": np.uint16, "F32": np.uint32, "F64": np.uint64}
"""Zero bits are +0.0 in all of them."""


def export_model(model: ModelArtifact, masks: MaskFile, out: Path) -> int:
    """Write the pruned model and return how many weights were removed.

    Raises:
        MismatchError: the mask was made for another model, or names a weight that the model lacks.
        SourceError: `out` already exists, or a weight has a type that cannot be masked.
        StorageError: the disk refused a write.
    """
    with new_output(out):
        checkpoint = open_for_export(model, masks)
        with output_directory(out) as partial:
            _write_pruned(partial, model, checkpoint, masks)
    return int(sum(entry["n_removed"] for entry in masks.header["modules"]))


def _write_pruned(partial: Path, model: ModelArtifact, checkpoint: Checkpoint, masks: MaskFile) -> None:
    copy_all_but_weights(model, partial)
    names = [shard.name for shard in checkpoint.shards]
    untied = {name: source for name, source in masks.untied.items() if name not in checkpoint.names}
    if untied:
        total = len(names) + 1
        names = [f"model-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total)]
    for shard, name in zip(checkpoint.shards, names, strict=True):
        shutil.copyfile(shard, partial / name)
    if untied:
        names.append(f"model-{total:05d}-of-{total:05d}.safetensors")
        copies = {name: checkpoint.tensor(source) for name, source in untied.items()}
        save_file(copies, partial / names[-1], metadata={"format": "pt"})
        set_usual_mode(partial / names[-1])
        write_index(partial, names)
    for name in names:
        _zero_shard(partial / name, masks)
    if masks.untied:
        change_config(partial, tie_word_embeddings=False)
    describe_export(partial, masks)


def describe_export(directory: Path, masks: MaskFile, **more: object) -> None:
    """Write `neuronrank.json`: the mask's header, what all was made from, and the checksum of every other file.

    Args:
        directory: of the exported model, complete.
        masks: that were applied.
        **more: further entries.
    """
    files = file_entries(directory, (path for path in directory.rglob("*") if path.is_file()))
    whole = {"schema": SCHEMA, "made_from": made_from(masks.header, "masks"), "files": files, **more}
    write_sealed_json(directory / EXPORT_FILE, {**masks.header, **whole})


def open_for_export(model: ModelArtifact, masks: MaskFile) -> Checkpoint:
    """Open the base model's weights, after checking all of them and the tokenizer: what is not masked is passed on too.

    Raises:
        MismatchError: the mask was made for another model or names a weight that the model lacks, or a tensor or the
            tokenizer changed after it was fetched.
    """
    masks.require_model(model.fingerprint, model.directory)
    model.require_its_tokenizer()
    checkpoint = model.checkpoint()
    masked = (masks.untied.get(name, name) for name in masks.weights)
    for name in sorted({*checkpoint.names, *model.tensors, *masked}):
        checkpoint.tensor(name)  # checked as it is read
    return checkpoint


def copy_all_but_weights(model: ModelArtifact, target: Path) -> None:
    """Copy configuration, tokenizer, index, and texts about the model; nothing else that lies beside the weights.

    Raises:
        SourceError: one of them is a link to a file that is not the model's.
    """
    for source in files_to_copy(model.weights_directory):
        shutil.copyfile(source, target / source.name)


def change_config(directory: Path, **values: object) -> None:
    """Change entries of config.json; the others and their order stay."""
    path = directory / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **values}
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _zero_shard(path: Path, masks: MaskFile) -> None:
    """Zero the masked weights of one shard in place."""
    header, data_start = shard_header(path)
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
