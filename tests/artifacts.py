"""Statistics artifacts with numbers that a test writes by hand."""

from pathlib import Path

import numpy as np

from neuronrank.statistics_store import Statistics
from neuronrank.statistics_writer import StatisticsWriter

WINDOW_TOKENS = 10


def module(name: str, part: str, shape: tuple[int, int], input_tap: str, neuron_tap: str, axis: str) -> dict:
    """One entry of a manifest's modules, in layer 0."""
    return {
        "name": name,
        "layer": 0,
        "part": part,
        "shape": list(shape),
        "input_tap": input_tap,
        "neuron_tap": neuron_tap,
        "neuron_axis": axis,
        "weight": f"{name}.weight",
        "rows": None,
        "transposed": False,
    }


def statistics(
    directory: Path, sums: dict[tuple[str, str], list], modules: list[dict], weights: dict | None = None, profile="full"
) -> Statistics:
    """Write one layer of (tap, statistic) -> (D, C) sums and open it."""
    types = {"topics": np.int32}  # counts and clusters
    arrays = {key: np.asarray(values, dtype=types.get(key[0], np.float32)) for key, values in sums.items()}
    n_documents = len(next(iter(arrays.values())))
    writer = StatisticsWriter(directory, 1, profile)
    vectors = {name: np.asarray(vector, dtype=np.float32) for name, vector in (weights or {}).items()}
    writer.write_layer(0, arrays, vectors)
    writer.finish(
        {
            "model": {"fingerprint": "f" * 64},
            "calibration": {"n_windows": n_documents, "window_tokens": WINDOW_TOKENS, "sha256": "c" * 64},
            "collect": {"dtype": "float32", "propagation": "dense"},
            "n_layers": 1,
            "modules": modules,
            "lm_head": {"module": "lm_head", "embeddings": "model.embed_tokens"},
        }
    )
    return Statistics(directory / "artifact")
