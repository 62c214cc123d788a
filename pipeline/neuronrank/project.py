"""The whole parameter file at once: every section, every recipe, every pattern."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from neuronrank.collection import CollectParams
from neuronrank.errors import ParamsError
from neuronrank.evaluation import EvalParams
from neuronrank.params import lookup, read_params, validate
from neuronrank.patterns import read_pattern
from neuronrank.recipes import read_recipe
from neuronrank.registry import nearest
from neuronrank.reporting.params import ReportParams, SweepParams
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
    if not faults:
        faults += _dangling(params)
    if faults:
        raise ParamsError("\n".join(faults))
    return len(params["recipes"]), len(params["patterns"])


def _each(read: Callable[[Any, str], Any], values: Any, where: str) -> None:
    if not isinstance(values, dict) or not values:
        raise ParamsError(f"{where}: found {values!r}, expected a mapping of names")
    faults = []
    for name, value in values.items():
        try:
            read(value, f"{where}.{name}")
        except ParamsError as err:
            faults.append(str(err))
    if faults:
        raise ParamsError("\n".join(faults))


def _dangling(params: dict[str, Any]) -> list[str]:
    """Return a fault for every recipe or pattern that is named but not defined."""
    used = [("recipes", name, "sweep.recipes") for name in params["sweep"]["recipes"]]
    used += [("patterns", name, "sweep.patterns") for name in params["sweep"]["patterns"]]
    faults = [
        f"{where}: {name!r} is not in {section}{nearest(name, list(params[section]))}; there are: "
        f"{', '.join(params[section])}"
        for section, name, where in used
        if name not in params[section]
    ]
    reference = params["report"]["reference"]
    if reference not in params["sweep"]["recipes"]:
        faults.append(f"report.reference: {reference!r} is not in sweep.recipes, so it is never evaluated")
    return faults
