"""Figures behind the table: sparsity by layer, and how the score factors are distributed."""

import numpy as np

from neuronrank.reporting.params import SweepParams
from neuronrank.reporting.results import Inputs
from neuronrank.score_store import read_scores

PERCENTILES = (0, 1, 5, 25, 50, 75, 95, 99, 100)
SPARSITY_COLUMNS = ("pattern", "recipe", "part", "layer", "sparsity")
FACTOR_COLUMNS = ("recipe", "part", "layer", "module", "axis", "zeros", "percentile", "relative")
Records = list[dict[str, str | float]]


def sparsity_by_layer(inputs: Inputs, sweep: SweepParams) -> Records:
    """Return the realised share of weights removed, for every pattern, recipe, part and layer.

    The output head lies in no layer and is left out.

    Raises:
        ArtifactError: a mask is missing or corrupt.
    """
    records: Records = []
    for pattern in sweep.patterns:
        for recipe in sweep.recipes:
            counts: dict[tuple[str, int], list[int]] = {}
            for module in inputs.mask(recipe, pattern).header["modules"]:
                if module["layer"] is None:
                    continue
                count = counts.setdefault((module["part"], module["layer"]), [0, 0])
                count[0] += module["n_removed"]
                count[1] += module["shape"][0] * module["shape"][1]
            records += [
                {"pattern": pattern, "recipe": recipe, "part": part, "layer": layer, "sparsity": removed / size}
                for (part, layer), (removed, size) in sorted(counts.items())
            ]
    return records


def factor_percentiles(inputs: Inputs, sweep: SweepParams) -> Records:
    """Return percentiles of every module's score factor, relative to the module's own median.

    A wide distribution means that the factor, not the weight, decides what is removed. Zeros are left out of the
    ratio and counted beside it. Methods without a factor, such as magnitude, have no rows.

    Raises:
        ArtifactError: scores are missing or corrupt.
    """
    records: Records = []
    for recipe in sweep.recipes:
        factors, header = read_scores(inputs.scores / f"{recipe}.safetensors")
        for module in header["modules"]:
            for axis in ("row", "column"):
                factor = factors.get(f"{module['name']}.{axis}")
                if factor is None:
                    continue
                positive = factor[factor > 0].astype(np.float64)
                relative = np.percentile(positive, PERCENTILES) / np.median(positive)
                records += [
                    {
                        "recipe": recipe,
                        "part": module["part"],
                        "layer": module["layer"],
                        "module": module["name"],
                        "axis": axis,
                        "zeros": int(factor.size - positive.size),
                        "percentile": percentile,
                        "relative": float(value),
                    }
                    for percentile, value in zip(PERCENTILES, relative, strict=True)
                ]
    return records
