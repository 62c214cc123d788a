"""Statistics artifacts that were collected apart -> one, and what a later collection takes from an earlier one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.checkpoint import ModelArtifact
from neuronrank.collection import CollectParams, Fitted
from neuronrank.errors import ArtifactError, MismatchError
from neuronrank.files import sha256_file
from neuronrank.merging import Arrays, merge_arrays
from neuronrank.outputs import new_output, resumable_directory
from neuronrank.provenance import key_of
from neuronrank.seals import FIELD
from neuronrank.statistics_schema import ARRAYS, TOTALS
from neuronrank.statistics_store import MANIFEST, Statistics
from neuronrank.statistics_writer import StatisticsWriter
from neuronrank.windows import Windows

_APART = ("fitted_on", "neuronrank")
"""What may differ in the `collect` section of manifests that are merged."""


@dataclass(frozen=True)
class FittedOn:
    """An earlier artifact whose classes and topics a collection takes."""

    fitted: Fitted
    sha256: str
    """Of its manifest."""


def fitted_on(directory: Path, model: ModelArtifact, options: CollectParams) -> FittedOn:
    """Open what a collection takes from an earlier artifact, so that both can be merged.

    Args:
        directory: of the artifact.
        model: that is collected from.
        options: of the collection.

    Raises:
        ArtifactError: it is no statistics artifact.
        MismatchError: it is of another model, or was collected with other settings.
    """
    statistics = Statistics(directory)
    collect = statistics.manifest["collect"]
    wanted = {
        "classes": options.classes,
        "topics": options.topics.model_dump(),
        "dtype": options.dtype,
        "gram": options.gram,
    }
    found = {"profile": statistics.manifest["profile"], **{key: collect.get(key) for key in wanted}}
    wanted["profile"] = options.profile
    differing = [f"{key} {found[key]!r} there, {wanted[key]!r} here" for key in wanted if found[key] != wanted[key]]
    if statistics.manifest["model"]["fingerprint"] != model.fingerprint:
        differing.append("another model")
    if collect["propagation"] != "dense":
        differing.append(f"propagation {collect['propagation']}")
    if differing:
        raise MismatchError(f"{directory}: cannot be merged with what is collected here: {'; '.join(differing)}")
    classed = "classes" in statistics.manifest["arrays"]
    ids = statistics.class_token_ids() if classed else np.zeros(0, np.int32)
    fitted = Fitted(ids, lambda layer: statistics.layer_values(layer, "topics", "centroids"))
    return FittedOn(fitted, sha256_file(directory / MANIFEST))


def merge_artifacts(parts: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write the statistics of the documents of several artifacts, in their order.

    Returns:
        The manifest.

    Raises:
        ArtifactError: a part is missing, corrupt or of another schema.
        SourceError: `out` exists.
        MismatchError: parts of different models, settings, classes or topics; a window that two parts share, or of
            which that is not known; or a profile whose arrays do not merge.
        StorageError: the disk refused a write.
    """
    with new_output(out):
        return _merge(parts, out)


def _merge(parts: Sequence[Path], out: Path) -> dict[str, Any]:
    opened = [Statistics(part) for part in parts]
    _require_known_tokens(opened)
    token_ids = [one.token_ids() for one in opened]
    _require_mergeable(opened, token_ids)
    counts = [one.class_count() for one in opened] if "classes" in opened[0].manifest["arrays"] else []
    first = opened[0].manifest
    key = key_of({"parts": [one.manifest[FIELD] for one in opened]})
    with resumable_directory(out, key) as work:
        writer = StatisticsWriter(work, first["n_layers"], first["profile"])
        writer.write_tokens(np.concatenate(token_ids))
        if counts:
            writer.write_classes(opened[0].class_token_ids(), np.sum(counts, axis=0))
        for layer in range(writer.n_complete, first["n_layers"]):
            arrays = merge_arrays([_arrays(one, layer) for one in opened], counts)
            writer.write_layer(layer, arrays, _weights(opened[0], layer))
        merged = _provenance(opened, np.concatenate(token_ids))
        writer.finish(merged)
    return merged


def _require_known_tokens(parts: Sequence[Statistics]) -> None:
    for part in parts:
        if part.manifest["calibration"]["sha256"] is None:
            raise MismatchError(
                f"{part.directory}: does not know its calibration tokens, so that they could count twice; it was "
                f"imported. Combine the files that it came from, or collect"
            )


def _require_mergeable(parts: Sequence[Statistics], token_ids: Sequence[NDArray[np.int32]]) -> None:
    first, seen = parts[0], {row.tobytes(): (parts[0], n) for n, row in enumerate(token_ids[0])}
    for group, names in first.manifest["arrays"].items():
        if "df_count" in names and "sum_abs" not in names:
            raise MismatchError(
                f"{first.directory}: profile {first.manifest['profile']!r} keeps of {group} only how many documents "
                f"reach a threshold of its own, which does not add. Collect with profile standard, full or wanda"
            )
    for part, ids in zip(parts[1:], token_ids[1:], strict=True):
        ours, theirs = _comparable(first), _comparable(part)
        differing = [name for name in ours | theirs if ours.get(name) != theirs.get(name)]
        if differing:
            sequential = "propagation" in ours | theirs
            cure = f"Collect with the same collect section and --fitted-on {first.directory}"
            if sequential or {"model", "modules"} & set(differing):
                cure = "Only dense statistics of one model can be"
            raise MismatchError(
                f"{part.directory}: cannot be merged with {first.directory}: {', '.join(differing)} differ. {cure}"
            )
        for n, row in enumerate(ids):
            if row.tobytes() in seen:
                other, position = seen[row.tobytes()]
                raise MismatchError(
                    f"{part.directory}: window {n} is window {position} of {other.directory}; it would count twice"
                )
            seen[row.tobytes()] = part, n


def _comparable(part: Statistics) -> dict[str, Any]:
    manifest = part.manifest
    found = {f"collect.{key}": value for key, value in manifest["collect"].items() if key not in _APART}
    found |= {"model": manifest["model"], "profile": manifest["profile"], "modules": manifest["modules"]}
    found |= {"window_tokens": manifest["calibration"]["window_tokens"]}
    if manifest["collect"]["propagation"] != "dense":
        found["propagation"] = part.directory  # each its own
    classed = "classes" in manifest["arrays"]
    return found | {"token classes": part.class_token_ids().tolist() if classed else []}


def _provenance(parts: Sequence[Statistics], token_ids: NDArray[np.int32]) -> dict[str, Any]:
    """Return the manifest but for what `StatisticsWriter` adds."""
    first = parts[0].manifest
    calibrations = [part.manifest["calibration"] for part in parts]
    known = {key: [one[key] for one in calibrations] for key in ("seed", "source")}
    same = {key: values[0] if all(value == values[0] for value in values) else None for key, values in known.items()}
    apart = [{key: value for key, value in one.items() if key != "origins"} for one in calibrations]
    return {
        **{key: first[key] for key in ("model", "collect", "n_layers", "lm_head", "modules")},
        "calibration": {
            "n_windows": len(token_ids),
            "window_tokens": int(token_ids.shape[1]),
            "sha256": Windows(token_ids, {}).sha256,
            "seed": same["seed"],
            "source": same["source"] or {"source": "merged"},
            "parts": apart,
            "origins": [origin for one in calibrations for origin in one["origins"]],
        },
        "made_from": {
            "model": first["model"]["fingerprint"],
            "calibration": Windows(token_ids, {}).sha256,
            "parts": " ".join(part.manifest[FIELD] for part in parts),
        },
    }


def _arrays(statistics: Statistics, layer: int) -> Arrays:
    """Return a layer's arrays, those that follow from others left out.

    Raises:
        ArtifactError: one is none of the schema.
    """
    found: Arrays = {}
    for group, names in statistics.manifest["arrays"].items():
        if group == "classes":
            continue
        documents = {TOTALS[name] for name in names if name in TOTALS}
        for name in names:
            if name not in ARRAYS:
                raise ArtifactError(
                    f"{statistics.directory}: {group}/{name} is no array that this version knows. Merge with the "
                    f"version of neuronrank that collected it, or collect all parts again"
                )
            if not (ARRAYS[name].derived or name in documents):
                found |= {(tap, name): statistics.layer_values(layer, tap, name) for tap in statistics.taps_of(group)}
    return found


def _weights(statistics: Statistics, layer: int) -> dict[str, Any]:
    names = [f"{axis}_{kind}" for axis in ("row", "column") for kind in ("sum_abs", "sum_sq", "max_abs")]
    modules = [module.name for module in statistics.modules if module.layer == layer]
    return {f"{module}.{name}": statistics.weight_sums(module, name) for module in modules for name in names}
