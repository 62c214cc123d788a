"""A model and calibration windows -> the statistics artifact."""

import contextlib
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from neuronrank.checkpoint import Checkpoint, ModelArtifact
from neuronrank.collection import Classes, CollectParams, LayerStatistics, Route, collect_layers, find_classes
from neuronrank.errors import ParamsError
from neuronrank.merging_artifacts import FittedOn
from neuronrank.outputs import boot_id, resumable_directory
from neuronrank.prediction import Needs, collected_shape, predict
from neuronrank.provenance import key_of
from neuronrank.ranks import ALONE, Ranks
from neuronrank.routing import routing_lines
from neuronrank.skeleton import manifest_of
from neuronrank.statistics_store import Statistics
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


@dataclass(frozen=True)
class Setup:
    """How a collection runs, and what it begins with."""

    shown: Callable[[Layers, int], Layers] = lambda layers, _n: layers
    """Given the layers and their number, yields them on, for a progress bar."""
    propagation: Propagation | None = None
    """How documents run on from layer to layer; None is dense, with the weights as they are."""
    fitted_on: FittedOn | None = None
    """An earlier artifact, whose classes and topics are taken; None finds them."""
    ranks: Ranks = ALONE


def collect_statistics(
    model: ModelArtifact, windows: Windows, options: CollectParams, out: Path, setup: Setup = Setup()
) -> torch.device:
    """Run the windows through the model once and write what is kept; `out` appears whole or not at all.

    When it was interrupted, the same call goes on with the layer that was not complete.

    Args:
        model: of `open_model`.
        windows: of the model's tokenizer; in every process all of them.
        options: what to keep.
        out: directory that the first process writes; beside it every process keeps its work.
        setup: how it runs.

    Returns:
        The device that it ran on: CUDA when there is one.

    Raises:
        UnknownName: no layout for this architecture.
        MismatchError, SourceError, NotFiniteError: the weights are not what they should be.
        ParamsError: more processes than micro-batches; or several with a propagation that needs one.
        StorageError: the disk refused a write.
    """
    if setup.propagation and setup.ranks.size > 1:
        raise ParamsError("propagation through pruned layers runs in one process. Start it without torchrun")
    shares = setup.ranks.shares(len(windows.token_ids), options.documents_per_batch)
    if any(share.start == share.stop for share in shares):
        raise ParamsError(
            f"{len(windows.token_ids)} calibration windows, {options.documents_per_batch} at once, cannot be divided "
            f"among {len(shares)} processes. Start fewer, or lower collect.documents_per_batch"
        )
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    streamed = StreamedModel(model.checkpoint(), getattr(torch, options.dtype), device)
    token_ids = torch.from_numpy(windows.token_ids).long()
    fitted = setup.fitted_on.fitted if setup.fitted_on else None
    classes = find_classes(token_ids, options, fitted)
    manifest = _manifest(model, windows, options, streamed)
    manifest["collect"] |= setup.propagation.described if setup.propagation else {"propagation": "dense"}
    manifest["collect"] |= {"fitted_on": setup.fitted_on.sha256 if setup.fitted_on else None}
    ranks = setup.ranks
    each = f", each of {ranks.size} processes" if ranks.size > 1 else ""
    log.info("%s%s", _needs(streamed, shares[ranks.rank], windows, options), each)

    def layers(work: Path, writer: StatisticsWriter | None) -> Layers:
        prune = partial(setup.propagation.prune, manifest, writer, classes) if setup.propagation and writer else None
        directory = work if ranks.first else work / f"rank-{ranks.rank}"
        n_complete = _agreed(ranks, directory, writer, len(streamed.layers))
        route = Route(directory, n_complete, prune, fitted, ranks)
        left = len(streamed.layers) - n_complete
        return setup.shown(collect_layers(streamed, token_ids, options, classes, route), left)

    if not ranks.first:
        _assist(ranks, layers)
        return device
    with resumable_directory(out, _key(manifest, options, device, ranks)) as work:
        ranks.text_from_first(str(work.absolute()))
        writer = StatisticsWriter(work, len(streamed.layers), options.profile)
        writer.write_tokens(windows.token_ids)
        if len(classes.token_ids):
            writer.write_classes(classes.token_ids, classes.count)
        for layer in layers(work, writer):
            writer.write_layer(layer.index, layer.arrays, layer.weights)
        writer.finish(manifest)
    ranks.wait()
    for line in routing_lines(Statistics(out)):
        log.info("%s", line)
    return device


def _needs(streamed: StreamedModel, share: slice, windows: Windows, options: CollectParams) -> Needs:
    kept = {"classes": options.classes, "micro_topics": options.topics.micro_topics, "gram": options.gram}
    kept["experts_per_token"] = getattr(streamed.skeleton.model.config, "num_experts_per_tok", 0)
    n_tokens = windows.token_ids.shape[1]
    shape = collected_shape(streamed.modules, (share.stop - share.start, n_tokens), kept)
    item_bytes = getattr(torch, options.dtype).itemsize
    return predict(shape, options.profile, item_bytes, options.documents_per_batch, streamed.skeleton.outside_bytes)


def _agreed(ranks: Ranks, directory: Path, writer: StatisticsWriter | None, n_layers: int) -> int:
    """Return how many layers an interrupted run completed: all, or none unless every process has its hidden states."""
    mark = directory / "since"
    n_complete = ranks.number_from_first(writer.n_complete if writer else 0)
    held = ranks.first or n_complete == n_layers or (mark.exists() and mark.read_text() == boot_id())
    all_hold = ranks.all_hold(held)
    if not ranks.first:
        directory.mkdir(parents=True, exist_ok=True)
        mark.write_text(boot_id())
    if not all_hold:
        n_complete = 0
        if writer:
            writer.restart()
    if n_complete:
        log.info("going on with layer %d: an interrupted run completed those before", n_complete)
    return n_complete


def _assist(ranks: Ranks, layers: Callable[[Path, None], Layers]) -> None:
    """Run this process's documents; the first one writes what is found. Its hidden states are deleted at the end."""
    work = Path(ranks.text_from_first(""))
    for _ in layers(work, None):
        pass
    ranks.wait()  # killed before the artifact is whole, it is still needed
    shutil.rmtree(work / f"rank-{ranks.rank}", ignore_errors=True)
    with contextlib.suppress(OSError):  # another process's is still there, or on another machine nothing else is
        work.rmdir()


def _key(manifest: dict[str, Any], options: CollectParams, device: torch.device, ranks: Ranks) -> str:
    """Return the SHA-256 of all that an artifact's bytes follow from, the code included."""
    made_from = {
        "manifest": manifest,
        "options": options.model_dump(mode="json"),
        "device": device.type,
        "processes": ranks.size,
        "threads": torch.get_num_threads(),
    }
    return key_of(made_from)


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
        },
        **manifest_of(streamed.skeleton),
    }
