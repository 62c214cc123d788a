"""Every array that a statistics artifact will hold, with its shape: from the shape of a model and a profile alone."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from neuronrank.profiles import INPUTS, PROFILES, ProfileName, holds
from neuronrank.sketch import N_BINS
from neuronrank.statistics_schema import ARRAYS, QUANTILES, TOKEN_IDS
from neuronrank.tap_names import EXPERT_TAPS, of_expert

WEIGHTS = "weights"
"""Path of all vectors of the weights together."""
PROJECTED, _NEAREST = 128, 12
"""As in `topics.py`, which needs torch; a test compares them."""
_WEIGHT_STATISTICS = 3
_FLOAT64 = {"total_sum", "tf_sum", "wanda_sum_sq", "top_tenth_mean", "topic_tf"}
_FLOAT64 |= {f"class_{name}" for name in ("between", "within", "mean_variance", "qda", "pca_qda")}
_INTEGERS = {
    "token": "int32",
    "document": "int32",
    "topic": "int32",
    "cluster": "int32",
    "index": "uint32",
    "micro-topic": "uint16",
}
"""Units -> type of the arrays that are no sums."""


@dataclass(frozen=True)
class Shape:
    """Of what is collected."""

    layers: int
    tap_width: Mapping[str, int]
    """Tap -> channels."""
    module_shapes: tuple[tuple[int, int], ...]
    """(O, I) of every linear module of one layer, those of all experts included."""
    windows: int
    window_tokens: int
    classes: int
    micro_topics: int
    gram: bool = False
    experts: int | None = None
    """Of every layer; None where the MLP is no mixture."""
    experts_per_token: int = 0


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


def planned_arrays(shape: Shape, profile_name: ProfileName) -> list[PlannedArray]:
    """Return every array that an artifact of this profile holds, by path, the vectors of the weights last."""
    profile = PROFILES[profile_name]
    inside = {tap: None if shape.experts is None or tap not in EXPERT_TAPS else 0 for tap in profile.taps}
    kept = [(tap, name) for tap in profile.taps for name in ARRAYS if holds(profile, of_expert(tap, inside[tap]), name)]
    paths = {f"{tap}/{name}" for tap, name in kept}
    paths = {path for path in paths if shape.classes or "/class_" not in path}
    paths = {path for path in paths if shape.micro_topics or "/topic_" not in path}
    if shape.micro_topics and profile.topical:
        paths |= {f"topics/{name}" for name in ("labels", "centroids", "count", "merges", "nearest")}
    if shape.gram:
        paths |= {f"{tap}/gram" for tap in INPUTS}
    planned = [_planned(path, shape) for path in sorted(paths)]
    if shape.classes and profile.classed:
        planned.append(PlannedArray("classes/count", (shape.classes + 1,), "int64"))
        planned.append(PlannedArray("classes/token_ids", (shape.classes,), "int32"))
    planned.append(PlannedArray(TOKEN_IDS, (shape.windows, shape.window_tokens), "int32"))
    vectors = sum(n_out + n_in for n_out, n_in in shape.module_shapes)
    return [*planned, PlannedArray(WEIGHTS, (shape.layers * _WEIGHT_STATISTICS * vectors,), "float32")]


def _planned(path: str, shape: Shape) -> PlannedArray:
    tap, _, name = path.partition("/")
    spec = ARRAYS[name]
    lengths = {
        "document": shape.windows,
        "token": shape.window_tokens,
        "channel": shape.tap_width.get(tap, 0),
        "bin": N_BINS,
        "quantile": len(QUANTILES),
        "class": shape.classes + 1,
        "topic": shape.micro_topics,
        "projected": PROJECTED,
        "step": shape.micro_topics - 1,
        "pair": 2,
        "rank": _NEAREST,
        "document and token": 2,
    }
    dtype = "float64" if name in _FLOAT64 else _INTEGERS.get(spec.units, "float32")
    experts = [shape.experts] if shape.experts is not None and tap in EXPERT_TAPS else []
    return PlannedArray(path, (shape.layers, *experts, *(lengths[axis] for axis in spec.axes)), dtype)
