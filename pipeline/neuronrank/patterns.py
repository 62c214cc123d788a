"""A pattern: a mask rule, its parameters, and which modules it prunes."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any

from neuronrank import registry
from neuronrank.errors import ParamsError, UnknownName
from neuronrank.masks import PatternParams
from neuronrank.params import validate


@dataclass(frozen=True)
class Pattern:
    """A rule with its parameters."""

    rule: ModuleType
    params: PatternParams

    def selects(self, part: str, layer: int, n_layers: int) -> bool:
        """Say whether a module of this part and layer is pruned."""
        wanted = self.params.attention if part == "attention" else self.params.mlp
        last = self.params.pruning_last
        return wanted and (last is None or layer >= n_layers - last)


def read_pattern(value: Any, where: str) -> Pattern:
    """Validate one pattern of params.yaml.

    Raises:
        ParamsError: one message with all faults.
    """
    if not isinstance(value, dict) or not isinstance(value.get("rule"), str):
        raise ParamsError(f"{where}: found {value!r}, expected a mapping with a rule and its parameters")
    try:
        rule = registry.load("masks", value["rule"])
    except UnknownName as err:
        raise ParamsError(f"{where}.rule: {err}") from err
    return Pattern(rule, validate(rule.Params, value, where))
