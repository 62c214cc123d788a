"""Base model + mask of whole neurons -> a smaller Hugging Face directory: the neurons are cut out, not zeroed.

Rows of gate and up (and of their biases) and columns of down go; everything else is copied byte for byte. One tensor
is in memory at a time. The result computes what the zeroed model computes: a removed neuron only reaches the rest of
the network through its column of down, which is zero there.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from neuronrank import registry
from neuronrank.checkpoint import ModelArtifact
from neuronrank.errors import MismatchError
from neuronrank.export import change_config, copy_all_but_weights, describe_export, open_for_export
from neuronrank.mask_store import MaskFile
from neuronrank.module_views import Rows
from neuronrank.outputs import new_output, output_directory
from neuronrank.shards import INDEX, rewrite_shard, write_index

_EXPERT_BYTES = 16
"""`torch.nn.functional.grouped_mm`, with which transformers runs experts, refuses other strides."""


def export_compact(model: ModelArtifact, masks: MaskFile, out: Path) -> tuple[int, int]:
    """Write the model without its removed neurons.

    Returns:
        Neurons of a layer before and after.

    Raises:
        MismatchError: the mask does not remove the same number of whole neurons from every layer, or was made for
            another model.
        SourceError: `out` already exists.
        StorageError: the disk refused a write.
    """
    with new_output(out):
        return _cut_out(model, masks, out)


def _cut_out(model: ModelArtifact, masks: MaskFile, out: Path) -> tuple[int, int]:
    neurons = _kept_neurons(masks)
    before, after, entry_name = _sizes(neurons, model, masks)
    checkpoint = open_for_export(model, masks)
    kept: dict[str, tuple[int, NDArray[np.intp]]] = {}
    for entry in masks.modules:
        is_row = entry["neuron_axis"] == "row"
        stay = neurons[entry["block"]]
        if entry["rows"] is not None:  # gate and up in one weight
            stay = Rows(*entry["rows"]).of(masks.header["shapes"][entry["weight"]][0])[stay]
            stay = np.concatenate([kept.get(entry["weight"], (0, stay[:0]))[1], stay])
        kept[entry["weight"]] = (int(is_row == entry["transposed"]), stay)
        bias = f"{entry['weight'].removesuffix('.weight')}.bias"
        if is_row and bias in checkpoint.names:
            kept[bias] = (0, stay)
    with output_directory(out) as partial:
        copy_all_but_weights(model, partial)
        names = [shard.name for shard in checkpoint.shards]
        for shard, name in zip(checkpoint.shards, names, strict=True):
            rewrite_shard(shard, partial / name, kept)
        if (partial / INDEX).exists():
            write_index(partial, names)
        change_config(partial, **{entry_name: after})
        describe_export(partial, masks, compact={entry_name: after})
    return before, after


def _kept_neurons(masks: MaskFile) -> dict[str, NDArray[np.intp]]:
    """Return block -> indices of the neurons that stay."""
    rule = masks.header["pattern"]["rule"]
    neurons: dict[str, NDArray[np.intp]] = {}
    for entry in masks.modules:
        if "neuron_axis" not in entry:
            raise MismatchError(
                f"{masks.path}: made by rule {rule!r}, which leaves scattered zeros that cannot be cut out; only masks "
                f"of whole neurons (rule: structured) can. Export it without --compact"
            )
        keep = masks.module_keep(entry)
        lines = keep if entry["neuron_axis"] == "row" else keep.T
        kept = np.flatnonzero(lines[:, 0])
        if not (lines == lines[:, :1]).all() or not np.array_equal(kept, neurons.setdefault(entry["block"], kept)):
            raise MismatchError(
                f"{masks.path}: {entry['weight']} does not remove the same whole neurons as the rest of "
                f"{_called(entry['block'])}. Make it again: dvc repro prune"
            )
    return neurons


def _called(block: str) -> str:
    """Return how messages call the MLP of a layer or an expert."""
    layer, _, expert = block.partition(".")
    return f"layer {layer}, expert {expert}" if expert else f"layer {layer}"


def _sizes(neurons: dict[str, NDArray[np.intp]], model: ModelArtifact, masks: MaskFile) -> tuple[int, int, str]:
    """Return the neurons of a layer before and after, and which entry of the configuration states them."""
    config, n_layers = model.description["config"], masks.header["n_layers"]
    counts = sorted({kept.size for kept in neurons.values()})
    name = registry.load("models", config["model_type"]).LAYOUT.intermediate
    if name is None:
        raise MismatchError(
            f"{model.weights_directory}/config.json: a {config['model_type']} has no entry for the width of its MLP. "
            f"Export without --compact"
        )
    n_pruned = len({block.partition(".")[0] for block in neurons})
    if n_pruned != n_layers or len(counts) != 1:
        raise MismatchError(
            f"{masks.path}: removes neurons from {n_pruned} of {n_layers} layers and leaves {counts}; config.json "
            f"has one {name} for all layers. Prune without pruning_last, or export without --compact"
        )
    item_bytes = {"float32": 4}.get(str(config.get("dtype") or config.get("torch_dtype")), 2)
    if registry.load("models", config["model_type"]).LAYOUT.experts and counts[0] * item_bytes % _EXPERT_BYTES:
        raise MismatchError(
            f"{masks.path}: leaves {counts[0]} neurons of every expert, which transformers cannot run: it needs a "
            f"multiple of {_EXPERT_BYTES // item_bytes}. Prune another share, or export without --compact"
        )
    gate = next(entry for entry in masks.modules if entry["neuron_axis"] == "row")
    return int(gate["shape"][0]), int(counts[0]), str(name)
