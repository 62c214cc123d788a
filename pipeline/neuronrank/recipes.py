"""A recipe: one scoring method and its parameters for each part of a decoder layer. Two methods make a hybrid."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from neuronrank import registry
from neuronrank.errors import ParamsError, UnknownName
from neuronrank.params import validate
from neuronrank.scoring import MethodParams

PARTS = ("attention", "mlp")


@dataclass(frozen=True)
class RecipePart:
    """A method with its parameters."""

    method: ModuleType
    params: MethodParams


Recipe = dict[str, RecipePart]


def read_recipe(value: Any, where: str) -> Recipe:
    """Validate one recipe of params.yaml.

    Raises:
        ParamsError: one message with the faults of all parts.
    """
    if not isinstance(value, dict):
        raise ParamsError(f"{where}: found {type(value).__name__}, expected a mapping with {' and '.join(PARTS)}")
    recipe, faults = {}, []
    for part in PARTS:
        try:
            recipe[part] = _read_part(value.get(part), f"{where}.{part}")
        except (ParamsError, UnknownName) as err:
            faults.append(str(err))
    for key in value:
        if key not in PARTS:
            near = registry.nearest(str(key), list(PARTS))
            faults.append(f"{where}.{key}: unknown key{near}; known here: {', '.join(PARTS)}")
    if faults:
        raise ParamsError("\n".join(faults))
    return recipe


def _read_part(value: Any, where: str) -> RecipePart:
    if not isinstance(value, dict) or not isinstance(value.get("method"), str):
        raise ParamsError(f"{where}: found {value!r}, expected a mapping with a method and its parameters")
    try:
        method = registry.load("scoring", value["method"])
    except UnknownName as err:
        raise ParamsError(f"{where}.method: {err}") from err
    part = where.rpartition(".")[2]
    if part not in method.PARTS:
        scored = " and ".join(method.PARTS)
        raise ParamsError(
            f"{where}.method: {value['method']!r} scores {scored} only. Use method: none to leave it dense"
        )
    return RecipePart(method, validate(method.Params, value, where))
