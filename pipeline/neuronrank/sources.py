"""The `model` and `text` sections of params.yaml: which file of a source room, with which parameters."""

from types import ModuleType
from typing import Any

from neuronrank import registry
from neuronrank.errors import ParamsError, UnknownName
from neuronrank.params import require_names, validate
from neuronrank.text_sources import TextParams

Source = tuple[ModuleType, Any]


def read_source(room: str, section: Any, where: str) -> Source:
    """Validate a mapping that names a source; return the source's module and its parameters.

    Raises:
        ParamsError: no or an unknown source, or faults in its parameters.
    """
    known = registry.names(room)
    if not isinstance(section, dict) or not isinstance(section.get("source"), str):
        found = repr(section)[:60]
        raise ParamsError(f"{where}: found {found}, expected a mapping with a source; known: {', '.join(known)}")
    try:
        source = registry.load(room, section["source"])
    except UnknownName as err:
        raise ParamsError(f"{where}.source: {err}") from err
    return source, validate(source.Params, section, where)


def read_texts(section: Any, where: str) -> dict[str, Source]:
    """Validate the `text` section; return a source for `calibration` and for every `evaluation/<name>`.

    Raises:
        ParamsError: one message with the faults of all texts.
    """
    texts = validate(TextParams, section, where)
    wanted = {"calibration": texts.calibration}
    wanted |= {f"evaluation/{name}": value for name, value in texts.evaluation.items()}
    sources: dict[str, Source] = {}
    faults = require_names(texts.evaluation, f"{where}.evaluation")
    for name, value in wanted.items():
        try:
            sources[name] = read_source("text_sources", value, f"{where}.{name.replace('/', '.')}")
        except ParamsError as err:
            faults.append(str(err))
    if faults:
        raise ParamsError("\n".join(faults))
    return sources
