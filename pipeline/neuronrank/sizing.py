"""How large a statistics artifact will be: raw from shapes alone, as stored from what another artifact takes.

Raw sizes are exact: they follow from `profiles.py` and `statistics_schema.py`. Stored sizes are an estimate: every
array is taken to need as many bits a value as the same array of the other artifact does. Counts of a sketch are mostly
zero and are taken to need as many bits a channel, and for every doubling of the tokens one bit more in each bin that is
not empty; more tokens also fill more bins, so that eight times the tokens take about 4 % more than estimated (measured
by thinning the counts of a 135M model).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from neuronrank.model_shape import Sizes
from neuronrank.profiles import INPUTS, PROFILES, ProfileName, holds
from neuronrank.sketch import N_BINS
from neuronrank.statistics_schema import ARRAYS, QUANTILES
from neuronrank.statistics_store import Statistics
from neuronrank.stored_arrays import KINDS, TOKEN_IDS, WEIGHTS, StoredArray, kind_of, stored_arrays, total_bytes

_PROJECTED, _NEAREST = 128, 12
"""As in `topics.py`, which needs torch; a test compares them."""
_WEIGHT_STATISTICS = 3
_FLOAT64 = {"total_sum", "tf_sum", "wanda_sum_sq"}
_INTEGERS = {"token": "int32", "document": "int32", "cluster": "int32", "index": "uint32", "micro-topic": "uint16"}
"""Units -> type of the arrays that are no sums."""


@dataclass(frozen=True)
class PlannedArray:
    """An array that an artifact would hold."""

    path: str
    """As in `StoredArray`."""
    shape: tuple[int, ...]
    dtype: str

    @property
    def raw_bytes(self) -> int:
        """Bytes without compression."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def planned_arrays(sizes: Sizes, profile_name: ProfileName) -> list[PlannedArray]:
    """Return every array that an artifact of this profile holds, by path, the vectors of the weights last."""
    profile = PROFILES[profile_name]
    paths = {f"{tap}/{name}" for tap in profile.taps for name in ARRAYS if holds(profile, tap, name)}
    paths = {path for path in paths if sizes.classes or "/class_" not in path}
    paths = {path for path in paths if sizes.micro_topics or "/topic_" not in path}
    if sizes.micro_topics and profile.topical:
        paths |= {f"topics/{name}" for name in ("labels", "centroids", "count", "merges", "nearest")}
    if sizes.gram:
        paths |= {f"{tap}/gram" for tap in INPUTS}
    planned = [_planned(path, sizes) for path in sorted(paths)]
    if sizes.classes and profile.classed:
        planned.append(PlannedArray("classes/count", (sizes.classes + 1,), "int64"))
        planned.append(PlannedArray("classes/token_ids", (sizes.classes,), "int32"))
    planned.append(PlannedArray(TOKEN_IDS, (sizes.windows, sizes.window_tokens), "int32"))
    vectors = sum(n_out + n_in for n_out, n_in in sizes.module_shapes)
    return [*planned, PlannedArray(WEIGHTS, (sizes.layers * _WEIGHT_STATISTICS * vectors,), "float32")]


def _planned(path: str, sizes: Sizes) -> PlannedArray:
    tap, _, name = path.partition("/")
    spec = ARRAYS[name]
    lengths = {
        "document": sizes.windows,
        "token": sizes.window_tokens,
        "channel": sizes.tap_width.get(tap, 0),
        "bin": N_BINS,
        "quantile": len(QUANTILES),
        "class": sizes.classes + 1,
        "topic": sizes.micro_topics,
        "projected": _PROJECTED,
        "step": sizes.micro_topics - 1,
        "pair": 2,
        "rank": _NEAREST,
        "document and token": 2,
    }
    dtype = "float64" if name in _FLOAT64 else _INTEGERS.get(spec.units, "float32")
    return PlannedArray(path, (sizes.layers, *(lengths[axis] for axis in spec.axes)), dtype)


@dataclass(frozen=True)
class Measured:
    """What the arrays of an artifact take, to estimate another's from."""

    arrays: Mapping[str, StoredArray]
    profile: ProfileName
    n_tokens: int
    occupied: Mapping[str, float]
    """Path of a sketch -> bins of a channel that are not empty, on average over a layer in the middle."""
    around: int
    """Bytes of all that is no array: manifest and descriptions."""


def measure(directory: Path) -> Measured:
    """Measure an artifact.

    Raises:
        ArtifactError: missing, incomplete or corrupt.
    """
    statistics = Statistics(directory)
    arrays = {array.path: array for array in stored_arrays(statistics)}
    occupied = {}
    for path in arrays:
        tap, _, name = path.partition("/")
        if name in ("sketch_count", "sketch_negative_count"):
            counts = statistics.layer_values(statistics.manifest["n_layers"] // 2, tap, name)
            occupied[path] = float(np.count_nonzero(counts) / len(counts))
    calibration = statistics.manifest["calibration"]
    around = total_bytes(directory) - sum(array.stored_bytes for array in arrays.values())
    n_tokens = calibration["n_windows"] * calibration["window_tokens"]
    return Measured(arrays, statistics.manifest["profile"], n_tokens, occupied, around)


def estimated_bytes(planned: PlannedArray, sizes: Sizes, profile: ProfileName, like: Measured) -> float | None:
    """Return how many bytes an array would take on disk, or None: nothing like it was measured."""
    name = planned.path.rpartition("/")[2]
    alike = [array for path, array in sorted(like.arrays.items()) if path.rpartition("/")[2] == name]
    reference = like.arrays.get(planned.path, alike[0] if alike else None)
    rounded_alike = PROFILES[profile].rounded == PROFILES[like.profile].rounded
    if reference is None or not (rounded_alike or "int" in planned.dtype):
        return None
    if reference.path not in like.occupied:
        return reference.stored_bytes / math.prod(reference.shape) * math.prod(planned.shape)
    doublings = math.log2(sizes.windows * sizes.window_tokens / like.n_tokens)
    a_channel = reference.stored_bytes / math.prod(reference.shape[:-1]) + like.occupied[reference.path] * doublings / 8
    return a_channel * math.prod(planned.shape[:-1])


def size_lines(sizes: Sizes, like: Measured | None) -> list[str]:
    """Return a table for every profile: MiB and share of the weights by kind, raw and, given an artifact, as stored."""
    lines = [f"bfloat16 weights: {sizes.weight_bytes / 2**20:.1f} MiB"]
    for profile in PROFILES:
        planned = planned_arrays(sizes, profile)
        raw = {kind: sum(one.raw_bytes for one in planned if kind_of(one.path) == kind) for kind in KINDS}
        columns: dict[str, Mapping[str, float]] = {"raw": raw}
        guessed: list[str] = []
        if like:
            columns["stored"], guessed = _stored(planned, sizes, profile, like)
        lines += ["", f"{profile:<20}" + "".join(f"{f'{name} MiB':>14}{'share':>9}" for name in columns)]
        for kind in [*KINDS, "descriptions"]:
            if any(column.get(kind) for column in columns.values()):
                lines.append(_row(kind, [column.get(kind, 0) for column in columns.values()], sizes))
        lines.append(_row("total", [sum(column.values()) for column in columns.values()], sizes))
        if guessed:
            lines.append(f"At most: not measured in the artifact given, taken as raw: {', '.join(guessed)}")
    if like:
        lines += ["", "Stored sizes are an estimate: the bits that each array takes in the artifact given."]
    return lines


def _row(name: str, cells: list[float], sizes: Sizes) -> str:
    return f"{name:<20}" + "".join(f"{cell / 2**20:>14.2f}{cell / sizes.weight_bytes:>9.2%}" for cell in cells)


def _stored(
    planned: list[PlannedArray], sizes: Sizes, profile: ProfileName, like: Measured
) -> tuple[dict[str, float], list[str]]:
    """Return stored bytes by kind, and the kinds of which some arrays were not measured."""
    stored = dict.fromkeys(KINDS, 0.0) | {"descriptions": float(like.around)}
    guessed = set()
    for one in planned:
        estimate = estimated_bytes(one, sizes, profile, like)
        if estimate is None:
            guessed.add(kind_of(one.path))
        stored[kind_of(one.path)] += one.raw_bytes if estimate is None else estimate
    return stored, [kind for kind in KINDS if kind in guessed]
