"""Write frozen statistics of all kinds: python -m tests.frozen.make_full DIRECTORY, which must not exist.

One layer, one tap of two channels, two documents of five tokens, written out; tests/test_frozen.py works out the
rest. Every activation is a power of two, so that it is an edge of the sketches.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np

from neuronrank.sketch import EDGES, N_BINS
from neuronrank.statistics_writer import StatisticsWriter

A = np.array(
    [
        [[1, 2], [-1, 2], [2, -4], [4, 4], [0.5, 1]],
        [[1, 4], [2, 4], [-2, 8], [8, -8], [-0.5, 16]],
    ]
)
"""(document, token, channel) activations."""
CLASSES = np.array([[0, 0, 1, 1, 2], [0, 0, 1, 1, 2]])
"""(document, token): token 3, token 7, all others."""
TOPICS = np.array([[0, 1, 0, 1, 2], [0, 0, 1, 1, 2]])
MODULE = {
    "name": "gate",
    "weight": "gate.weight",
    "layer": 0,
    "part": "mlp",
    "shape": [2, 2],
    "rows": None,
    "transposed": False,
    "input_tap": "neuron",
    "neuron_tap": "neuron",
    "neuron_axis": "row",
}
WEIGHT_SUMS = ("sum_abs", "sum_sq", "max_abs")


def sketch(x: np.ndarray) -> np.ndarray:
    """Return (C, bin) counts of values that are edges; (tokens, C) of them, NaN where none is."""
    found = np.zeros((x.shape[1], N_BINS), dtype=np.int32)
    for channel, column in enumerate(x.T):
        for value in column[~np.isnan(column)]:
            found[channel, EDGES.tolist().index(value)] += 1
    return found


def make(out: Path) -> None:
    """Write the statistics."""
    flat, classes, topics = A.reshape(-1, 2), CLASSES.reshape(-1), TOPICS.reshape(-1)
    of_class, of_topic = [flat[classes == k] for k in range(3)], [flat[topics == k] for k in range(3)]
    neuron = {
        "sum": A.sum(axis=1),
        "sum_abs": np.abs(A).sum(axis=1),
        "sum_sq": (A**2).sum(axis=1),
        "max_abs": np.abs(A).max(axis=1),
        "total_min": flat.min(axis=0),
        "n_positive": (flat > 0).sum(axis=0).astype(np.int32),
        "n_above_floor": np.array([10, 10], dtype=np.int32),
        "sketch_count": sketch(np.abs(flat)),
        "sketch_negative_count": sketch(np.where(flat < 0, -flat, np.nan)),
        "class_sum": np.array([rows.sum(axis=0) for rows in of_class]),
        "class_centred_sq": np.array([((rows - rows.mean(axis=0)) ** 2).sum(axis=0) for rows in of_class]),
        "topic_sum": np.array([rows.sum(axis=0) for rows in of_topic]),
        "topic_sum_abs": np.array([np.abs(rows).sum(axis=0) for rows in of_topic]),
        "topic_max_abs": np.array([np.abs(rows).max(axis=0) for rows in of_topic]),
    }
    merging = {
        "labels": TOPICS.astype(np.uint16),
        "centroids": np.eye(3, 128, dtype=np.float32),
        "count": np.array([4, 4, 2], dtype=np.int64),
        "merges": np.array([[0, 1], [2, 3]], dtype=np.int32),
    }
    arrays = {
        **{("neuron", name): one.astype(np.float32) if one.dtype == float else one for name, one in neuron.items()},
        **{("topics", name): one for name, one in merging.items()},
    }
    weights = {f"gate.{axis}_{name}": np.ones(2, np.float32) for axis in ("row", "column") for name in WEIGHT_SUMS}
    with tempfile.TemporaryDirectory() as scratch:
        writer = StatisticsWriter(Path(scratch), 1, "full")
        writer.write_classes(np.array([3, 7], dtype=np.int32), np.array([4, 4, 2]))
        writer.write_layer(0, arrays, weights)
        writer.finish(
            {
                "model": {"fingerprint": "f" * 64},
                "calibration": {"n_windows": 2, "window_tokens": 5, "sha256": "c" * 64},
                "collect": {"dtype": "float32", "propagation": "dense"},
                "n_layers": 1,
                "modules": [MODULE],
                "lm_head": {"module": "lm_head", "embeddings": "model.embed_tokens"},
            }
        )
        (Path(scratch) / "artifact").rename(out)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
