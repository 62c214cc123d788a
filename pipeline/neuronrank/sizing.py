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
from neuronrank.planned_arrays import PlannedArray, planned_arrays
from neuronrank.profiles import PROFILES, ProfileName
from neuronrank.statistics_store import Statistics
from neuronrank.stored_arrays import KINDS, StoredArray, kind_of, stored_arrays, total_bytes


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
            occupied[path] = float(np.count_nonzero(counts) / math.prod(counts.shape[:-1]))
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
        planned = planned_arrays(sizes.shape, profile)
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
