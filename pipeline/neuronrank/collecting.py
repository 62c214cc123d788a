"""A model and calibration windows -> the statistics artifact."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from neuronrank import __version__
from neuronrank.checkpoint import ModelArtifact
from neuronrank.collection import CollectParams, LayerStatistics, collect_layers, find_classes
from neuronrank.files import output_directory
from neuronrank.statistics_writer import StatisticsWriter
from neuronrank.streaming import StreamedModel
from neuronrank.windows import Windows

Layers = Iterator[LayerStatistics]


def collect_statistics(
    model: ModelArtifact,
    windows: Windows,
    options: CollectParams,
    out: Path,
    shown: Callable[[Layers, int], Layers] = lambda layers, _n: layers,
) -> torch.device:
    """Run the windows through the model once and write what is kept; `out` appears whole or not at all.

    Args:
        model: of `open_model`.
        windows: of the model's tokenizer.
        options: what to keep.
        out: directory to write.
        shown: given the layers and their number, yields them on, for a progress bar.

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
    modules: list[dict[str, Any]] = []
    token_ids = torch.from_numpy(windows.token_ids).long()
    classes = find_classes(token_ids, options)
    with output_directory(out) as partial:
        writer = StatisticsWriter(partial, n_layers, options.profile)
        writer.write_tokens(windows.token_ids)
        if len(classes.token_ids):
            writer.write_classes(classes.token_ids, classes.count)
        for layer in shown(collect_layers(streamed, token_ids, options, classes), n_layers):
            writer.write_layer(layer.index, layer.arrays, layer.weights)
            modules += layer.modules
        writer.finish(_manifest(model, windows, options, modules, streamed))
    return device


def _manifest(
    model: ModelArtifact,
    windows: Windows,
    options: CollectParams,
    modules: list[dict[str, Any]],
    streamed: StreamedModel,
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
            "propagation": "dense",
            "classes": options.classes,
            "topics": options.topics.model_dump(),
            "gram": options.gram,
            "neuronrank": __version__,
        },
        "n_layers": len(streamed.layers),
        "lm_head": {"module": streamed.layout.lm_head, "embeddings": streamed.layout.embeddings},
        "modules": modules,
    }
