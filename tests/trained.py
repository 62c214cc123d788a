"""Some layers of the trained model: collected once, written in two profiles, and found again from plain hooks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from neuronrank import collection
from neuronrank.checkpoint import open_model
from neuronrank.collection import CollectParams, LayerStatistics, collect_layers, find_classes
from neuronrank.documents import read_documents
from neuronrank.profiles import PROFILES, smallest_with
from neuronrank.skeleton import Skeleton
from neuronrank.statistics_schema import TOTALS
from neuronrank.statistics_store import Statistics
from neuronrank.statistics_writer import StatisticsWriter
from neuronrank.streaming import StreamedModel
from neuronrank.tokenisation import calibration_windows, load_tokenizer
from tests.imports import ROOT

MODEL = ROOT / "artifacts/model"
LAYERS = [0, 14, 29]
"""In the artifacts they are layers 0, 1, 2."""
PER_BATCH = 3
CLASSES, TOPICS = 512, 128


def windows() -> np.ndarray:
    """Eight documents of 256 tokens."""
    documents = read_documents(ROOT / "artifacts/text/calibration.jsonl")
    tokenizer = load_tokenizer(open_model(MODEL).weights_directory)
    return calibration_windows(documents, tokenizer, n=8, window_tokens=256, seed=0)[0]


def collect(monkeypatch, token_ids: np.ndarray) -> list[LayerStatistics]:
    """All layers run in float32, profile full; the layers between are counted with profile lean, to save time."""
    find, count = collection.topics_of_all, collection._count

    def topics_of_all(entering, params, index, *others):
        return find(entering, params, index, *others) if index in LAYERS else None

    def _count(model, layer, index, batches, hidden, context):
        kept = context if index in LAYERS else replace(context, profile=PROFILES["lean"])
        return count(model, layer, index, batches, hidden, kept)

    monkeypatch.setattr(collection, "topics_of_all", topics_of_all)
    monkeypatch.setattr(collection, "_count", _count)
    topics = {"micro_topics": TOPICS, "iterations": 8, "seed": 0}
    options = CollectParams.model_validate(
        {
            "dtype": "float32",
            "documents_per_batch": PER_BATCH,
            "profile": "full",
            "classes": CLASSES,
            "topics": topics,
        }
    )
    model = StreamedModel(open_model(MODEL).checkpoint(), torch.float32, torch.device("cpu"))
    tokens = torch.from_numpy(token_ids).long()
    layers = collect_layers(model, tokens, options, find_classes(tokens, options))
    return [layer for layer in layers if layer.index in LAYERS]


def write(directory: Path, profile: str, layers: list[LayerStatistics], token_ids: np.ndarray) -> Statistics:
    """Write what a profile holds of the layers, and open it."""
    kept = PROFILES[profile]

    def held(tap: str, name: str) -> bool:
        if name in TOTALS:
            return name in kept.totals.get(tap, ())
        return tap == "topics" or list(PROFILES).index(smallest_with(tap, name)) <= list(PROFILES).index(profile)

    options = CollectParams.model_validate(
        {
            "dtype": "float32",
            "documents_per_batch": 1,
            "profile": profile,
            "classes": CLASSES,
            "topics": {"micro_topics": TOPICS, "iterations": 4, "seed": 0},
        }
    )
    classes = find_classes(torch.from_numpy(token_ids).long(), options)
    writer = StatisticsWriter(directory, len(layers), profile)
    writer.write_tokens(token_ids)
    writer.write_classes(classes.token_ids, classes.count)
    for position, layer in enumerate(layers):
        arrays = {key: values for key, values in layer.arrays.items() if held(*key)}
        writer.write_layer(position, arrays, layer.weights)
    entries = Skeleton(open_model(MODEL).checkpoint(), torch.float32).modules()
    modules = [{**entry, "layer": LAYERS.index(entry["layer"])} for entry in entries if entry["layer"] in LAYERS]
    writer.finish(
        {
            "model": {"fingerprint": "f" * 64},
            "calibration": {"n_windows": token_ids.shape[0], "window_tokens": token_ids.shape[1], "sha256": "c" * 64},
            "collect": {"dtype": "float32", "propagation": "dense"},
            "n_layers": len(layers),
            "lm_head": {},
            "modules": modules,
        }
    )
    return Statistics(directory / "artifact")


def role_of(module) -> str:
    """Return for example `down`."""
    return module.name.rpartition(".")[2].removesuffix("_proj")
