"""The whole parameter file at once: every section, every recipe, every pattern."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from neuronrank import registry
from neuronrank.collection import CollectParams
from neuronrank.compatibility import why_not_by_layer, why_unfit
from neuronrank.errors import ParamsError
from neuronrank.evaluation import EvalParams
from neuronrank.params import lookup, read_params, require_names, validate
from neuronrank.patterns import read_pattern
from neuronrank.planning import require_sufficient
from neuronrank.recipes import read_recipe
from neuronrank.registry import nearest
from neuronrank.reporting.params import ReportParams, SequentialParams, SweepParams
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
    "sequential": lambda value, where: validate(SequentialParams, value, where),
    "eval": lambda value, where: validate(EvalParams, value, where),
    "report": lambda value, where: validate(ReportParams, value, where),
}
_PAIRS = ("sweep", "sequential")
"""Sections that name recipes and patterns, each with each."""


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
    sections: dict[str, Any] = {}
    for key, read in _SECTIONS.items():
        try:
            sections[key] = read(lookup(params, key), key)
        except ParamsError as err:
            faults.append(str(err))
    faults += _dangling(params, sections)
    if not faults:
        faults = _insufficient(sections) + _unfit(sections)
    if faults:
        raise ParamsError("\n".join(faults))
    return len(sections["recipes"]), len(sections["patterns"])


def _each(read: Callable[[Any, str], Any], values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, dict) or not values:
        raise ParamsError(f"{where}: found {values!r}, expected a mapping of names")
    found, faults = {}, require_names(values, where)
    for name, value in values.items():
        try:
            found[name] = read(value, f"{where}.{name}")
        except ParamsError as err:
            faults.append(str(err))
    if faults:
        raise ParamsError("\n".join(faults))
    return found


def _insufficient(sections: dict[str, Any]) -> list[str]:
    """Return a fault for every recipe that reads what `collect` will not keep."""
    n_documents, architecture = sections["prepare"].calibration_windows, sections["model"][1].architecture
    faults = []
    for name, recipe in sections["recipes"].items():
        try:
            require_sufficient(sections["collect"], n_documents, recipe, f"recipes.{name}", architecture)
        except ParamsError as err:
            faults.append(str(err))
    return faults


def _unfit(sections: dict[str, Any]) -> list[str]:
    """Return a fault for every pattern of the sweep that cannot prune by a recipe's scores."""
    faults = []
    for section in _PAIRS:
        for name in sections[section].recipes:
            for pattern_name in sections[section].patterns:
                pattern = sections["patterns"][pattern_name]
                why = why_unfit(sections["recipes"][name], pattern)
                if section == "sequential" and not why:
                    why = why_not_by_layer(pattern)
                if why:
                    faults.append(f"{section}: pattern {pattern_name!r} cannot prune recipe {name!r}: {why}")
    return faults


def _dangling(params: dict[str, Any], sections: dict[str, Any]) -> list[str]:
    """Return a fault for every recipe, pattern or architecture that is named by a sound section but does not exist.

    Args:
        params: the file.
        sections: of it, those that are sound.
    """
    faults, sweep = [], sections.get("sweep")
    for section, kind in product(_PAIRS, ("recipes", "patterns")):
        held = params.get(kind)
        known = [str(name) for name in held] if isinstance(held, dict) else []  # a faulty one is there all the same
        for name in getattr(sections.get(section), kind, ()) if known else ():
            if name not in known:
                near = nearest(name, known)
                faults.append(f"{section}.{kind}: {name!r} is not in {kind}{near}; there are: {', '.join(known)}")
    if sweep and "report" in sections and sections["report"].reference not in sweep.recipes:
        reference = sections["report"].reference
        faults.append(f"report.reference: {reference!r} is not in sweep.recipes, so it is never evaluated")
    if "model" in sections:
        architecture, known = sections["model"][1].architecture, registry.names("models")
        if architecture not in known:
            near = nearest(str(architecture), known)
            faults.append(f"model.architecture: {architecture!r} is not supported{near}; supported: {', '.join(known)}")
    return faults
