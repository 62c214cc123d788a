"""Write the frozen artifacts: python -m tests.frozen.make DIRECTORY, which must not exist.

Every number is small enough to be checked by hand; tests/test_frozen.py does.
"""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np

from neuronrank.mask_store import pack, write_masks
from neuronrank.provenance import made_from
from neuronrank.recipes import read_recipe
from neuronrank.score_store import read_scores, write_scores
from neuronrank.scores import compute_factors, score_header
from neuronrank.statistics_store import Statistics
from tests.artifacts import module, statistics

MODULES = [
    module("gate", "mlp", (3, 2), "mlp_in", "neuron", "row"),
    module("down", "mlp", (2, 3), "mlp_mid", "neuron", "column"),
]
WEIGHTS = {"gate": [[1, 2], [3, 1], [1, 1]], "down": [[1, 1, 1], [4, 1, 1]]}
KEEP = {"gate": [[0, 1], [1, 0], [0, 1]], "down": [[0, 1, 1], [1, 0, 1]]}
"""By |W| * sqrt(sum of squares), half of each row, rounded down, removed."""
WANDA = {"attention": {"method": "none"}, "mlp": {"method": "wanda"}}


def weight_sums() -> dict[str, np.ndarray]:
    """Return the vectors of the weights, as an artifact holds them."""
    found = {}
    for name, rows in WEIGHTS.items():
        values = np.abs(np.array(rows, dtype=np.float64))
        for axis, number in (("row", 1), ("column", 0)):
            found[f"{name}.{axis}_sum_abs"] = values.sum(axis=number)
            found[f"{name}.{axis}_sum_sq"] = (values**2).sum(axis=number)
            found[f"{name}.{axis}_max_abs"] = values.max(axis=number)
    return found


def make(out: Path) -> None:
    """Write `statistics/`, `scores.safetensors` and `mask.safetensors`."""
    sums = {
        (tap, name): [[1.0 + channel + document for channel in range(n)] for document in range(3)]
        for tap, n in (("mlp_in", 2), ("mlp_mid", 3), ("neuron", 3))
        for name in ("sum_sq", "sum_abs")
    }
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(statistics(Path(scratch), sums, MODULES, weight_sums()).directory, out / "statistics")
    opened = Statistics(out / "statistics")
    recipe = read_recipe(WANDA, "recipes.wanda")
    write_scores(
        out / "scores.safetensors", compute_factors(opened, recipe), score_header(opened.manifest, "wanda", recipe)
    )
    _, header = read_scores(out / "scores.safetensors")
    entries = []
    for one in MODULES:
        kept = {key: one[key] for key in ("name", "weight", "rows", "transposed", "part", "layer", "shape")}
        entries.append({**kept, "n_removed": int(np.size(KEEP[one["name"]]) - np.sum(KEEP[one["name"]]))})
    details = {
        "pattern": {"name": "50pct", "rule": "unstructured", "sparsity": 0.5},
        "modules": entries,
        "shapes": {one["weight"]: one["shape"] for one in MODULES},
        "sparsity": {"selected": 5 / 12, "linears": 5 / 12, "model": 5 / 12},
        "untied": {},
        "made_from": made_from(header, "scores"),
    }
    stated = {key: header[key] for key in ("recipe", "parts", "n_layers", "model", "calibration", "collect")}
    packed = {f"{name}.weight": pack(np.array(keep, dtype=np.bool_)) for name, keep in KEEP.items()}
    write_masks(out / "mask.safetensors", packed, {**stated, **details})


if __name__ == "__main__":
    make(Path(sys.argv[1]))
