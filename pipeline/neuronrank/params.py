"""params.yaml -> validated sections. All faults of a section are reported together, with the nearest known name."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from neuronrank.errors import ParamsError
from neuronrank.registry import nearest

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""What recipes, patterns and texts may be called: they become file names and parts of dotted keys."""

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where the library has it: ten times faster


class _Loader(_LOADER):  # type: ignore[misc]  # its base depends on how PyYAML was built
    """Refuses a key that comes twice; YAML itself would let the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.MarkedYAMLError(problem=f"key {twice[0]!r} comes twice", problem_mark=node.start_mark)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


# YAML 1.1 takes 1e-8 for a word; YAML 1.2, with which DVC reads the same file, for a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+"), list("-+.0123456789")
)

S = TypeVar("S", bound=BaseModel)


class Section(BaseModel):
    """Base of every parameter section: unknown keys refused, frozen, no silent type conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def read_yaml(text: str, where: str) -> Any:
    """Read YAML as params.yaml is read.

    Raises:
        ParamsError: not valid.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as err:
        raise ParamsError(f"{where}: not valid YAML: {' '.join(str(err).split())}") from err


def read_params(path: Path) -> dict[str, Any]:
    """Read a whole parameter file.

    Raises:
        ParamsError: not valid YAML, or not a mapping.
    """
    try:
        content = read_yaml(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as err:
        raise ParamsError(f"{path}: not valid UTF-8: {err}") from err
    if not isinstance(content, dict):
        raise ParamsError(f"{path}: found {type(content).__name__}, expected a mapping of sections")
    return content


def lookup(params: dict[str, Any], key: str) -> Any:
    """Return the value at a dotted key, for example `recipes.wanda`.

    Raises:
        ParamsError: a part of the key is missing; names what there is and the nearest name.
    """
    value: Any = params
    seen: list[str] = []
    for part in key.split("."):
        where = ".".join(seen) or "params"
        if not isinstance(value, dict):
            raise ParamsError(f"{where}: found {type(value).__name__}, expected a mapping that holds {part!r}")
        if part not in value:
            known = [str(name) for name in value]
            raise ParamsError(f"{where}: no {part!r}{nearest(part, known)}; there are: {', '.join(known)}")
        value = value[part]
        seen.append(part)
    return value


def require_names(names: Iterable[Any], where: str) -> list[str]:
    """Return a fault for every name that is no text, or cannot be part of a path or of a dotted key."""
    rule = "a name is letters, digits, '-' and '_', and starts with a letter or digit"
    return [
        f"{where}.{name}: {rule}" if isinstance(name, str) else f"{where}.{name}: a name is text; put it in quotes"
        for name in names
        if not (isinstance(name, str) and NAME.fullmatch(name))
    ]


def validate(section: type[S], value: Any, where: str) -> S:
    """Validate a mapping as a section.

    Raises:
        ParamsError: one message with every fault, one line each.
    """
    try:
        return section.model_validate({} if value is None else value)
    except ValidationError as err:
        raise ParamsError("\n".join(_fault_lines(section, err, where))) from err


def _fault_lines(section: type[BaseModel], err: ValidationError, where: str) -> list[str]:
    lines = []
    for fault in err.errors():
        location = ".".join([where, *(str(part) for part in fault["loc"])])
        if fault["loc"][-1:] == ("trust_remote_code",):
            lines.append(
                f"{location}: code that comes with a model is never run, and no setting allows it; remove the key"
            )
        elif fault["type"] == "extra_forbidden":
            known = _known_keys(section, [str(part) for part in fault["loc"][:-1]])
            lines.append(
                f"{location}: unknown key{nearest(str(fault['loc'][-1]), known)}; known here: {', '.join(known)}"
            )
        elif fault["type"] == "missing":
            lines.append(f"{location}: missing, it has no default")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            found = f"found {fault['input']!r}; " if fault["loc"] else ""  # of a whole section it would be all of it
            lines.append(f"{location}: {found}{message[0].lower() + message[1:]}")
    return lines


def _known_keys(section: type[BaseModel], path: list[str]) -> list[str]:
    current: Any = section
    for part in path:
        field = current.model_fields.get(part) if isinstance(current, type) and issubclass(current, BaseModel) else None
        if field is None:  # inside a union or a mapping: the discriminator is not a field
            break
        current = field.annotation
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []
