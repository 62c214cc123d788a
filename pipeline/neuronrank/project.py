"""The whole parameter file at once: every section, every recipe, every pattern."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from neuronrank import registry
from neuronrank.collection import CollectParams
from neuronrank.errors import ParamsError
from neuronrank.evaluation import EvalParams
from neuronrank.params import lookup, read_params, require_names, validate
from neuronrank.patterns import read_pattern
from neuronrank.planning import require_sufficient
from neuronrank.pruning import why_unfit
from neuronrank.recipes import Recipe, read_recipe
from neuronrank.registry import nearest
from neuronrank.reporting.params import ReportParams, SweepParams
from neuronrank.scores import scored_parts
from neuronrank.sources import read_source, read_texts
from neuronrank.tokenisation import PrepareParams

_SECTIONS: dict[str, Callable[[Any, str], Any]] = {
    "model": lambda value, where: read_source("model_sources", value, where),
    "text": read_texts,
    "prepare": lambda value, where: validate(PrepareParams, value, where),
    "collect": lambda value, where: validate(CollectParams, value, where),
    "recipes": lambda value, where: _each(read_recipe, value, where),
    "patterns": lambda value, where: _each(read_pattern, value, where),
    "sweep": lambda value, where: validate(SweepParams, value, where),
    "eval": lambda value, where: validate(EvalParams, value, where),
    "report": lambda value, where: validate(ReportParams, value, where),
}


def check_params(path: Path) -> tuple[int, int]:
    """Validate every section and the names that sections use of each other.

    Returns:
        The numbers of recipes and of patterns.

    Raises:
        ParamsError: one message with all faults.
    """
    params = read_params(path)
    faults = [
        f"{key}: unknown section{nearest(str(key), list(_SECTIONS))}; known: {', '.join(_SECTIONS)}"
        for key in params
        if key not in _SECTIONS
    ]
    for key, read in _SECTIONS.items():
        try:
            read(lookup(params, key), key)
        except ParamsError as err:
            faults.append(str(err))
    faults += _dangling(params)
    if not faults:
        recipes = {name: read_recipe(value, f"recipes.{name}") for name, value in params["recipes"].items()}
        faults = _insufficient(params, recipes) + _unfit(params, recipes)
    if faults:
        raise ParamsError("\n".join(faults))
    return len(params["recipes"]), len(params["patterns"])


def _each(read: Callable[[Any, str], Any], values: Any, where: str) -> None:
    if not isinstance(values, dict) or not values:
        raise ParamsError(f"{where}: found {values!r}, expected a mapping of names")
    faults = require_names(values, where)
    for name, value in values.items():
        try:
            read(value, f"{where}.{name}")
        except ParamsError as err:
            faults.append(str(err))
    if faults:
        raise ParamsError("\n".join(faults))


def _insufficient(params: dict[str, Any], recipes: dict[str, Recipe]) -> list[str]:
    """Return a fault for every recipe that reads what `collect` will not keep."""
    collect = validate(CollectParams, params["collect"], "collect")
    faults = []
    for name, recipe in recipes.items():
        try:
            require_sufficient(collect, params["prepare"]["calibration_windows"], recipe, f"recipes.{name}")
        except ParamsError as err:
            faults.append(str(err))
    return faults


def _unfit(params: dict[str, Any], recipes: dict[str, Recipe]) -> list[str]:
    """Return a fault for every pattern of the sweep that cannot prune by a recipe's scores."""
    patterns = {
        name: read_pattern(params["patterns"][name], f"patterns.{name}") for name in params["sweep"]["patterns"]
    }
    faults = []
    for name in params["sweep"]["recipes"]:
        parts = scored_parts(recipes[name])
        for pattern_name, pattern in patterns.items():
            why = why_unfit(parts, pattern)
            if why:
                faults.append(f"sweep: pattern {pattern_name!r} cannot prune recipe {name!r}: {why}")
    return faults


def _dangling(params: dict[str, Any]) -> list[str]:
    """Return a fault for every recipe, pattern or architecture that is named but does not exist."""

    def names(key: str) -> list[str]:
        try:
            return [str(name) for name in lookup(params, key) or ()]
        except (ParamsError, TypeError):  # told by the section itself
            return []

    uses = [
        (f"sweep.{section}", section, name) for section in ("recipes", "patterns") for name in names(f"sweep.{section}")
    ]
    faults = [
        f"{where}: {name!r} is not in {section}{nearest(name, names(section))}; there are: {', '.join(names(section))}"
        for where, section, name in uses
        if name not in names(section)
    ]
    reference = "".join(names("report.reference"))
    if reference not in names("sweep.recipes"):
        faults.append(f"report.reference: {reference!r} is not in sweep.recipes, so it is never evaluated")
    architecture, known = "".join(names("model.architecture")), registry.names("models")
    if architecture not in known:
        near = nearest(architecture, known)
        faults.append(f"model.architecture: {architecture!r} is not supported{near}; supported: {', '.join(known)}")
    return faults
