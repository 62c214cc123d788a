"""What `neuronrank verify` checks of a statistics artifact."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from neuronrank.errors import ArtifactError, NeuronrankError
from neuronrank.files import read_json
from neuronrank.findings import Checked
from neuronrank.headers import is_listed
from neuronrank.planned_arrays import PROJECTED
from neuronrank.seals import FIELD
from neuronrank.sketch import N_BINS
from neuronrank.statistics_schema import ARRAYS, OF_ALL_LAYERS, QUANTILES
from neuronrank.statistics_store import MANIFEST, TAPS, WEIGHTS_FILE, Statistics, read_manifest
from neuronrank.tap_names import EXPERT_TAPS, base, n_experts
from neuronrank.verified_store import read_listed

_RUN = "dvc repro collect"
_VECTORS = [f"{axis}_{name}" for axis in ("row", "column") for name in ("sum_abs", "sum_sq", "max_abs")]


def check_statistics(directory: Path) -> Checked:
    """Check manifest, files, arrays and vectors of the weights.

    Raises:
        ArtifactError: there is no manifest that could be read.
    """
    checked = Checked(directory, "statistics")
    try:
        manifest = read_manifest(directory)
    except NeuronrankError as err:
        checked.fault(str(err))
        _check_files(checked, _listed_at_least(directory))
        return checked
    checked.identity, checked.made_from = manifest[FIELD], manifest["made_from"]
    checked.ok(f"statistics: seal {manifest[FIELD][:12]}…, {manifest['schema']}, {len(manifest['modules'])} modules")
    if _check_files(checked, manifest["files"]):
        try:
            statistics = Statistics(directory)
            _check_arrays(checked, statistics)
            _check_weights(checked, statistics)
        except NeuronrankError as err:
            checked.fault(str(err))
    return checked


def _listed_at_least(directory: Path) -> dict[str, dict[str, Any]]:
    """Return what a manifest lists that is not sound itself, as far as it can be read."""
    manifest = read_json(directory / MANIFEST, _RUN)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    return {name: entry for name, entry in files.items() if is_listed(name, entry)} if isinstance(files, dict) else {}


def _check_files(checked: Checked, files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Check size and checksum of every file; return whether all are right."""
    before, n_bytes = len(checked.findings), 0
    for name, entry in sorted(files.items()):
        try:
            n_bytes += len(read_listed(checked.path / name, entry, _RUN))
        except ArtifactError as err:
            checked.fault(str(err))
    beside = (path for path in checked.path.rglob("*") if path.is_symlink() or not path.is_dir())
    present = {path.relative_to(checked.path).as_posix() for path in beside}
    for name in sorted(present - files.keys() - {MANIFEST}):
        checked.fault(f"{name}: the manifest does not list this file; delete it, or collect again")
    if len(checked.findings) > before:
        return False
    checked.ok(f"{len(files)} files, {n_bytes / 2**20:.1f} MiB: sizes and checksums; no others")
    return True


def _check_arrays(checked: Checked, statistics: Statistics) -> None:
    held, lengths, n = statistics.array_paths, _lengths(statistics), 0
    inside = {name.removeprefix(f"{TAPS}/").partition("/c/")[0] for name in statistics.manifest["files"]}
    stored = {path.removesuffix("/zarr.json") for path in inside - {"zarr.json", WEIGHTS_FILE}}
    groups = {path.partition("/")[0] for path in held if "/" in path}
    for path in sorted(stored - set(held) - groups):
        checked.fault(f"{path}: stored, although the manifest names no such array")
    for path in held:
        try:
            n += _check_array(statistics, path, lengths)
        except NeuronrankError as err:
            checked.fault(str(err))
    checked.ok(f"{n} of {len(held)} arrays: shapes, axes and units as their schema has them; all values finite")


def _check_array(statistics: Statistics, path: str, lengths: Mapping[str, int]) -> bool:
    array: Any = statistics.stored(path)
    group, _, name = path.rpartition("/")
    axes = list(array.attrs.get("axes", ()))
    if path not in OF_ALL_LAYERS:
        if name not in ARRAYS:
            raise ArtifactError(f"{statistics.directory}: {path} is no array of this schema. Run: {_RUN}")
        experts = ["expert"] if group in EXPERT_TAPS and "expert" in lengths else []
        expected, units = ["layer", *experts, *ARRAYS[name].axes], ARRAYS[name].units
        if axes != expected or array.attrs.get("units") != units:
            raise ArtifactError(
                f"{statistics.directory}: {path} has axes {axes} in {array.attrs.get('units')!r}, its schema has "
                f"{expected} in {units!r}. Run: {_RUN}"
            )
    of_tap = {**lengths, "channel": lengths.get(f"channel of {group}", -1)}
    wanted = [of_tap.get(axis, -1) for axis in axes]
    if path == "classes/token_ids" and wanted[0] > 0:
        wanted[0] -= 1  # all other tokens are a class that has none
    shape = list(array.shape)
    if len(shape) != len(wanted) or any(n not in (m, -1) for m, n in zip(shape, wanted, strict=True)):
        raise ArtifactError(
            f"{statistics.directory}: {path} has shape {shape}, its axes {axes} and the modules of the manifest ask "
            f"for {wanted}. Run: {_RUN}"
        )
    step = max(1, array.chunks[0])
    for first in range(0, shape[0], step):
        statistics.read(path, slice(first, first + step))  # refuses what is not finite
    return True


def _lengths(statistics: Statistics) -> dict[str, int]:
    """Return how long each axis is; what the artifact does not tell is absent."""
    manifest = statistics.manifest
    calibration = manifest["calibration"]
    lengths = {"layer": manifest["n_layers"], "document": calibration["n_windows"]}
    lengths |= {"token": calibration["window_tokens"], "bin": N_BINS, "quantile": len(QUANTILES)}
    lengths |= {"pair": 2, "document and token": 2, "projected": PROJECTED}
    for module in statistics.modules:
        neurons = module.shape[0 if module.neuron_axis == "row" else 1]
        widths = {base(module.input_tap): module.shape[1], base(module.neuron_tap): neurons}
        if base(module.neuron_tap) == "neuron":
            widths["gate_pre"] = neurons
        lengths |= {f"channel of {tap}": width for tap, width in widths.items()}
    experts = n_experts(module.input_tap for module in statistics.modules)
    if experts is not None:
        lengths["expert"] = experts
    if "count" in manifest["arrays"].get("classes", []):
        lengths["class"] = int(statistics.stored("classes/count").shape[0])
    if "count" in manifest["arrays"].get("topics", []):
        n_topics = int(statistics.stored("topics/count").shape[-1])
        lengths |= {"topic": n_topics, "step": n_topics - 1}
    return lengths


def _check_weights(checked: Checked, statistics: Statistics) -> None:
    held = statistics.all_weight_sums()
    before = len(checked.findings)
    wanted = {
        f"{module.name}.{name}": module.shape[0 if name.startswith("row") else 1]
        for module in statistics.modules
        for name in _VECTORS
    }
    for name in sorted(wanted.keys() | held.keys()):
        vector = held.get(name)
        if name not in wanted:
            checked.fault(f"{WEIGHTS_FILE}: {name} is of no module of the manifest")
        elif vector is None:
            checked.fault(f"{WEIGHTS_FILE}: has no {name}")
        elif vector.dtype != np.float32 or vector.shape != (wanted[name],):
            checked.fault(f"{WEIGHTS_FILE}: {name} is {vector.dtype} of {vector.shape}, not float32 of {wanted[name]}")
        elif not np.isfinite(vector).all() or (vector < 0).any():
            checked.fault(f"{WEIGHTS_FILE}: {name} holds NaN, infinity or negative sums")
    if len(checked.findings) == before:
        checked.ok(f"{len(held)} vectors of the weights: shapes, finite")
