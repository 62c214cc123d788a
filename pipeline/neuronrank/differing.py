"""What `neuronrank diff` tells: in which settings and numbers two artifacts of one kind differ. Needs no torch."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuronrank import losses, mask_store, score_store, windows
from neuronrank.artifact_kinds import KINDS, stated_schema
from neuronrank.differing_settings import differing_settings
from neuronrank.differing_values import (
    ArraySource,
    array_difference,
    jaccard,
    mask_differences,
    rank_correlations,
    tensor_digests,
)
from neuronrank.errors import ArtifactError, MismatchError
from neuronrank.export_description import read_export, require_listed
from neuronrank.imatrix import COUNTS, SUMS, read_imatrix
from neuronrank.model_description import MODEL_FILE, read_description
from neuronrank.statistics_store import Statistics

Difference = dict[str, Any]


@dataclass(frozen=True)
class _Opened:
    """An artifact of any kind."""

    artifact: str
    settings: dict[str, Any]
    arrays: dict[str, ArraySource]
    """Name -> numbers. Of masks and models the names and shapes alone, which are compared otherwise."""
    source: Any = None
    """What those are read from."""


def difference(a: Path, b: Path) -> Difference:
    """Compare two artifacts.

    Args:
        a: directory of statistics, of a model or of an exported one, or a file of scores, masks, losses or token
            windows, or an importance matrix.
        b: another of the same kind.

    Returns:
        As JSON would have it: `artifact`, `schema`, `a`, `b`, `equal`; `settings` (`differing_settings`); names that
        are `only_in_a` or `only_in_b`; `shapes` (and types) that differ; `n_compared`; `arrays` whose values differ
        (`differing_values`). Of scores also `rank_correlation`; of masks `modules`, in place of `arrays`, and `total`;
        of models and exported ones `contents`: names of tensors with another SHA-256.

    Raises:
        MismatchError: they are of different kinds or schemas.
        ArtifactError: one is missing, incomplete, corrupt, or none of ours.
        SourceError: a GGUF file that is no sound importance matrix.
        NotFiniteError: an importance matrix with sums that are NaN or infinite.
    """
    schemas = [stated_schema(path) for path in (a, b)]
    if schemas[0] != schemas[1]:
        raise MismatchError(
            f"{a} and {b}: schemas are {schemas[0]!r} and {schemas[1]!r}; only artifacts of one kind and schema can be "
            f"compared. Give another, or make the older one again: dvc repro"
        )
    if schemas[0] not in KINDS:
        raise ArtifactError(f"{a} and {b}: schema is {schemas[0]!r}; this version reads {', '.join(KINDS)}")
    one, two = (_READERS[KINDS[schemas[0]]](path) for path in (a, b))
    common = sorted(one.arrays.keys() & two.arrays.keys())
    shapes = [entry for name in common if (entry := _shapes(name, one.arrays[name], two.arrays[name]))]
    alike = [name for name in common if one.arrays[name].shape == two.arrays[name].shape]
    found: Difference = {
        "artifact": one.artifact,
        "schema": schemas[0],
        "a": str(a),
        "b": str(b),
        "settings": differing_settings(one.settings, two.settings),
        "only_in_a": sorted(one.arrays.keys() - two.arrays.keys()),
        "only_in_b": sorted(two.arrays.keys() - one.arrays.keys()),
        "shapes": shapes,
        "n_compared": len(alike),
        **_COMPARERS.get(one.artifact, _arrays)(one, two, alike),
    }
    parts = ("settings", "only_in_a", "only_in_b", "shapes", "arrays", "contents")
    n_differ = sum(module["n_differ"] for module in found.get("modules", []))
    return {**found, "equal": not n_differ and not any(found.get(part) for part in parts)}


def _shapes(name: str, one: ArraySource, two: ArraySource) -> dict[str, Any] | None:
    if (one.shape, one.dtype) == (two.shape, two.dtype):
        return None
    a, b = ({"shape": list(source.shape), "dtype": source.dtype} for source in (one, two))
    return {"array": name, "a": a, "b": b}


def _without(header: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in header.items() if key not in keys}


def _statistics(path: Path) -> _Opened:
    opened = Statistics(path)
    arrays = {name: _stored(opened, name) for name in opened.array_paths}
    weights = {f"weights/{name}": ArraySource.of(values) for name, values in opened.all_weight_sums().items()}
    return _Opened("statistics", _without(opened.manifest, "arrays"), {**arrays, **weights})


def _stored(opened: Statistics, name: str) -> ArraySource:
    stored = opened.stored(name)
    return ArraySource(
        tuple(stored.shape), str(stored.dtype), lambda layers: opened.read(name, layers), stored.chunks[0]
    )


def _scores(path: Path) -> _Opened:
    factors, header = score_store.read_scores(path)
    return _Opened("scores", header, {name: ArraySource.of(values) for name, values in factors.items()})


def _masks(path: Path) -> _Opened:
    masks = mask_store.MaskFile(path)
    bits = {entry["name"]: _unread(tuple(entry["shape"]), "bit") for entry in masks.modules}
    return _Opened("masks", _of_masks(masks.header), bits, masks)


def _of_masks(header: dict[str, Any]) -> dict[str, Any]:
    """Return settings alone of what the header of masks says, which that of an exported model repeats."""
    settings = _without(header, "sparsity", "shapes")  # they follow from the masks, as `n_removed` does
    return {**settings, "modules": [_without(entry, "n_removed") for entry in header["modules"]]}


def _losses(path: Path) -> _Opened:
    found = losses.read_losses(path)
    return _Opened("losses", losses.read_losses_header(path), {n: ArraySource.of(v) for n, v in found.items()})


def _windows(path: Path) -> _Opened:
    found = windows.read_windows(path)
    return _Opened("token windows", found.header, {"token_ids": ArraySource.of(found.token_ids)})


def _model(path: Path) -> _Opened:
    from neuronrank.verifying_models import check_model  # torch, which no other kind needs

    header = read_description(path)
    fault = next((finding.what for finding in check_model(path).findings if finding.is_fault), None)
    if fault:
        raise ArtifactError(f"{path}: is not what {MODEL_FILE} says: {fault}")
    tensors = header["tensors"]
    shapes = {name: _unread(tuple(entry["shape"]), entry["dtype"]) for name, entry in tensors.items()}
    return _Opened("model", _without(header, "tensors"), shapes, tensors)


def _export(path: Path) -> _Opened:
    header = read_export(path)
    settings = _of_masks(header)
    settings["sha256"] = {name: one["sha256"] for name, one in header["files"].items() if not _holds_weights(name)}
    shapes: dict[str, ArraySource] = {}
    digests: dict[str, dict[str, str]] = {}
    for name, entry in header["files"].items():
        require_listed(path / name, entry["bytes"], entry["sha256"])
        if _holds_weights(name):
            for tensor, dtype, shape, digest in tensor_digests(path / name):
                shapes[tensor], digests[tensor] = _unread(shape, dtype), {"sha256": digest}
    return _Opened("export", settings, shapes, digests)


def _holds_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def _imatrix(path: Path) -> _Opened:
    held = read_imatrix(path)
    settings = {
        "datasets": list(held.datasets),
        "chunk_count": held.chunk_count,
        "chunk_size": held.chunk_size,
        "made_from": dict(held.made_from),
        "other_tensors": list(held.other_tensors),
    }
    sums = {f"{name}{SUMS}": ArraySource.of(entry.sums) for name, entry in held.entries.items()}
    counts = {f"{name}{COUNTS}": ArraySource.of(entry.counts) for name, entry in held.entries.items()}
    return _Opened("imatrix", settings, {**sums, **counts})


def _unread(shape: tuple[int, ...], dtype: str) -> ArraySource:
    def refuse(_part: slice) -> Any:
        # reached by a fault of this file alone: `_COMPARERS` compares these kinds otherwise
        raise NotImplementedError("bits and tensors of a model are not compared as arrays")

    return ArraySource(shape, dtype, refuse, 1)


_READERS: dict[str, Callable[[Path], _Opened]] = {
    "statistics": _statistics,
    "scores": _scores,
    "masks": _masks,
    "losses": _losses,
    "token windows": _windows,
    "model": _model,
    "export": _export,
    "imatrix": _imatrix,
}


def _arrays(one: _Opened, two: _Opened, names: list[str]) -> Difference:
    compared = (array_difference(name, one.arrays[name], two.arrays[name]) for name in names)
    return {"arrays": [row for row in compared if row is not None]}


def _factors(one: _Opened, two: _Opened, names: list[str]) -> Difference:
    everything = slice(None)
    pairs = ((name, one.arrays[name].read(everything), two.arrays[name].read(everything)) for name in names)
    return {**_arrays(one, two, names), "rank_correlation": rank_correlations(pairs)}


def _bits(one: _Opened, two: _Opened, names: list[str]) -> Difference:
    modules = mask_differences(one.source, two.source, set(names))
    counted = ("bits", "n_differ", "removed_a", "removed_b", "removed_both")
    total: dict[str, Any] = {key: sum(module[key] for module in modules) for key in counted}
    return {"modules": modules, "total": {**total, "jaccard": jaccard(total)}}


def _contents(one: _Opened, two: _Opened, names: list[str]) -> Difference:
    return {"contents": [name for name in names if one.source[name]["sha256"] != two.source[name]["sha256"]]}


_COMPARERS = {"scores": _factors, "masks": _bits, "model": _contents, "export": _contents}
