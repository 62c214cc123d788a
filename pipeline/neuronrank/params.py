"""params.yaml -> validated sections. All faults of a section are reported together, with the nearest known name."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from neuronrank.errors import ParamsError
from neuronrank.registry import nearest

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C where the library has it: ten times faster
S = TypeVar("S", bound=BaseModel)


class Section(BaseModel):
    """Base of every parameter section: unknown keys refused, frozen, no silent type conversion."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def read_params(path: Path) -> dict[str, Any]:
    """Read a whole parameter file.

    Raises:
        ParamsError: not valid YAML, or not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise ParamsError(f"{path}: not valid YAML: {' '.join(str(err).split())}") from err
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
        if fault["type"] == "extra_forbidden":
            known = _known_keys(section, [str(part) for part in fault["loc"][:-1]])
            lines.append(
                f"{location}: unknown key{nearest(str(fault['loc'][-1]), known)}; known here: {', '.join(known)}"
            )
        elif fault["type"] == "missing":
            lines.append(f"{location}: missing, it has no default")
        else:
            lines.append(f"{location}: found {fault['input']!r}; {fault['msg'][0].lower() + fault['msg'][1:]}")
    return lines


def _known_keys(section: type[BaseModel], path: list[str]) -> list[str]:
    current: Any = section
    for part in path:
        field = current.model_fields.get(part) if isinstance(current, type) and issubclass(current, BaseModel) else None
        if field is None:  # inside a union or a mapping: the discriminator is not a field
            break
        current = field.annotation
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []
