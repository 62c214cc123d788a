"""A model and calibration windows -> the statistics artifact."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import neuronrank
from neuronrank import __version__
from neuronrank.checkpoint import Checkpoint, ModelArtifact
from neuronrank.collection import Classes, CollectParams, LayerStatistics, Route, collect_layers, find_classes
from neuronrank.files import canonical_json, resumable_directory, sha256_file, sha256_text
from neuronrank.skeleton import manifest_of
from neuronrank.statistics_writer import StatisticsWriter
from neuronrank.streaming import StreamedModel
from neuronrank.windows import Windows

log = logging.getLogger("neuronrank")
Layers = Iterator[LayerStatistics]


@dataclass(frozen=True)
class Propagation:
    """How documents run on from a layer to the next one when not with its weights as they are."""

    described: dict[str, Any]
    """What the manifest says of it; `propagation` among it."""
    prune: Callable[[dict[str, Any], StatisticsWriter, Classes, LayerStatistics], Checkpoint]
    """Given manifest, writer and classes of the artifact and the statistics of a layer: the weights to go on with."""


def collect_statistics(
    model: ModelArtifact,
    windows: Windows,
    options: CollectParams,
    out: Path,
    shown: Callable[[Layers, int], Layers] = lambda layers, _n: layers,
    propagation: Propagation | None = None,
) -> torch.device:
    """Run the windows through the model once and write what is kept; `out` appears whole or not at all.

    When it was interrupted, the same call goes on with the layer that was not complete.

    Args:
        model: of `open_model`.
        windows: of the model's tokenizer.
        options: what to keep.
        out: directory to write.
        shown: given the layers and their number, yields them on, for a progress bar.
        propagation: how documents run on from layer to layer; None is dense, with the weights as they are.

    Returns:
        The device that it ran on: CUDA when there is one.

    Raises:
        UnknownName: no layout for this architecture.
        MismatchError, SourceError, NotFiniteError: the weights are not what they should be.
        StorageError: the disk refused a write.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    streamed = StreamedModel(model.checkpoint(), getattr(torch, options.dtype), device)
    n_layers = len(streamed.layers)
    token_ids = torch.from_numpy(windows.token_ids).long()
    classes = find_classes(token_ids, options)
    manifest = _manifest(model, windows, options, streamed)
    manifest["collect"] |= propagation.described if propagation else {"propagation": "dense"}
    with resumable_directory(out, _key(manifest, options, device)) as work:
        writer = StatisticsWriter(work, n_layers, options.profile)
        writer.write_tokens(windows.token_ids)
        if len(classes.token_ids):
            writer.write_classes(classes.token_ids, classes.count)
        first = writer.n_complete
        if first:
            log.info("going on with layer %d of %d: an interrupted run completed those before", first, n_layers)
        prune = partial(propagation.prune, manifest, writer, classes) if propagation else None
        layers = collect_layers(streamed, token_ids, options, classes, Route(work, first, prune))
        for layer in shown(layers, n_layers - first):
            writer.write_layer(layer.index, layer.arrays, layer.weights)
        writer.finish(manifest)
    return device


def _key(manifest: dict[str, Any], options: CollectParams, device: torch.device) -> str:
    """Return the SHA-256 of all that an artifact's bytes follow from, the code included."""
    root = Path(neuronrank.__file__).parent
    sources = {str(path.relative_to(root)): sha256_file(path) for path in sorted(root.rglob("*.py"))}
    made_from = {
        "manifest": manifest,
        "options": options.model_dump(mode="json"),
        "device": str(device),
        "threads": torch.get_num_threads(),
        "versions": [torch.__version__, transformers.__version__, np.__version__],
        "sources": sources,
    }
    return sha256_text(canonical_json(made_from))


def _manifest(
    model: ModelArtifact, windows: Windows, options: CollectParams, streamed: StreamedModel
) -> dict[str, Any]:
    return {
        "model": {"fingerprint": model.fingerprint, "tokenizer_sha256": model.tokenizer_sha256},
        "calibration": {
            "n_windows": len(windows.token_ids),
            "window_tokens": windows.token_ids.shape[1],
            "sha256": windows.sha256,
            **{key: windows.header[key] for key in ("seed", "source", "origins")},
        },
        "collect": {
            "dtype": options.dtype,
            "classes": options.classes,
            "topics": options.topics.model_dump(),
            "gram": options.gram,
            "neuronrank": __version__,
        },
        **manifest_of(streamed.skeleton),
    }
