"""Cached statistics -> score factors: a vector for the rows or the columns of every module."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.errors import DegenerateError, MismatchError, NotFiniteError
from neuronrank.recipes import Recipe, RecipePart
from neuronrank.score_store import SCHEMA, Factors
from neuronrank.statistics_store import Module, Statistics, TapStatistics


def compute_factors(statistics: Statistics, recipe: Recipe) -> Factors:
    """Compute the row and column factors of every module.

    Args:
        statistics: an opened artifact.
        recipe: a method for each part.

    Returns:
        `<module>.row` (O,) or `<module>.column` (I,); a module whose method has no factor is absent.

    Raises:
        ArtifactError: the artifact lacks a statistic that the method needs.
        NotFiniteError: a factor is NaN or infinite.
        DegenerateError: a factor is all zero, or cannot rank.
        MismatchError: a factor's width is not the module's.
    """
    known: dict[tuple[str, int, str], NDArray[np.float32]] = {}
    factors: Factors = {}
    for module in statistics.modules:
        part = recipe[module.part]
        if part.method.TAP is None:
            continue
        tap, axis = _placement(module, part)
        key = (module.part, module.layer, tap)
        if key not in known:
            known[key] = _factor(statistics.tap(module.layer, tap, part.params.nsamples), part)
        width = module.shape[0 if axis == "row" else 1]
        if known[key].shape != (width,):
            raise MismatchError(
                f"{module.name}: its {axis} factor has {known[key].size} channels, its weight has {width}. "
                f"Statistics of another model? Run: dvc repro collect"
            )
        factors[f"{module.name}.{axis}"] = known[key]
    return factors


def _placement(module: Module, part: RecipePart) -> tuple[str, str]:
    if part.method.TAP == "input":
        return module.input_tap, "column"
    return module.neuron_tap, module.neuron_axis


def _factor(tap: TapStatistics, part: RecipePart) -> NDArray[np.float32]:
    with np.errstate(all="ignore"):  # what is not finite is refused below, by name
        factor: NDArray[np.float32] = part.method.channel_factor(tap, part.params).astype(np.float32)
    what = f"{tap.where}: the {part.params.method} factor"
    n_bad = np.count_nonzero(~np.isfinite(factor))
    if n_bad:
        raise NotFiniteError(
            f"{what} is NaN or infinite in {n_bad} of {factor.size} channels "
            f"(a silent channel with a negative exponent, or an exponent too large?)"
        )
    if not factor.any():
        raise DegenerateError(f"{what} is zero in all {factor.size} channels: the tap was silent, it cannot rank")
    if factor.size > 1 and factor[0] != 1 and (factor == factor[0]).all():
        raise DegenerateError(f"{what} is the same in all {factor.size} channels: it cannot rank")
    return factor


def score_header(statistics: Statistics, recipe_name: str, recipe: Recipe) -> dict[str, Any]:
    """Return what the scores say of themselves: methods, modules, and what they were made from."""
    manifest = statistics.manifest
    return {
        "schema": SCHEMA,
        "recipe": recipe_name,
        "parts": {
            name: {
                "method": part.params.method,
                "default_group": part.method.DEFAULT_GROUP,
                "weight_exp": part.params.weight_exp,
                "weight_multi": 1.0,
                "params": part.params.model_dump(mode="json"),
            }
            for name, part in recipe.items()
        },
        "modules": [
            {
                "name": module.name,
                "layer": module.layer,
                "part": module.part,
                "shape": list(module.shape),
                "neuron_tap": module.neuron_tap,
                "neuron_axis": module.neuron_axis,
            }
            for module in statistics.modules
        ],
        "lm_head": manifest.get("lm_head"),
        "n_layers": manifest["n_layers"],
        "model": manifest["model"],
        "calibration": {key: value for key, value in manifest["calibration"].items() if key != "origins"},
        "collect": manifest["collect"],
    }
