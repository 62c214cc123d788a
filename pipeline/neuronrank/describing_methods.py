"""What `neuronrank methods` prints: every scoring method and its parameters, read from the code itself.

The docstring under a field is read from the source here, and not with pydantic's `use_attribute_docstrings`: that
would be a change of `params.py`, on which every stage depends, and would read the source in every stage's start.
"""

import ast
import inspect
import textwrap
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from neuronrank import registry
from neuronrank.errors import UnknownName
from neuronrank.params import Section
from neuronrank.presets import ALIASES, PRESET_METHOD, PRESETS

_TYPES: dict[Any, str] = {float: "number", int: "whole number", str: "text"}


@dataclass(frozen=True)
class Parameter:
    """One parameter of a method."""

    name: str
    type: str
    default: str
    """As written in params.yaml."""
    allowed: str
    """Its range or choices; empty when every value of the type is allowed."""
    about: str
    """The docstring of its field."""


def methods_table() -> list[str]:
    """Return the lines of a table of every method, and of the other names that some have."""
    rows = [("method", "scores", "of parts", "group", "score; what it reads")]
    for name in registry.names("scoring"):
        try:
            method = registry.load("scoring", name)
        except UnknownName as err:  # one broken file does not hide the others
            rows.append((name, "", "", "", str(err)))
            continue
        parts, group = ", ".join(method.PARTS), method.DEFAULT_GROUP
        rows += [(name, _ranks(name, method), parts, group, _title(method)), ("", "", "", "", f"reads {method.READS}")]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip()
        for row in rows
    ]
    return [*lines, "", *(f"{alias}: another name of {name}" for alias, name in ALIASES.items())]


def method_description(name: str) -> list[str]:
    """Return the lines that explain one method: its docstring, what it scores, its parameters, presets, other names.

    Raises:
        UnknownName: no such method; names the nearest.
    """
    name = name.replace("-", "_")
    name = ALIASES.get(name, name)
    method = registry.load("scoring", name)
    lines = [name, "", *(inspect.getdoc(method) or "").splitlines(), ""]
    lines += [f"Scores: {_ranks(name, method)} of {' and '.join(method.PARTS)}, with default parameters"]
    lines += [f"Reads: {method.READS}", f"Default group: {method.DEFAULT_GROUP}"]
    aliases = [alias for alias, meant in ALIASES.items() if meant == name]
    if aliases:
        lines += [f"Also called: {', '.join(aliases)}"]
    parameters = method_parameters(method)
    lines += ["", "Parameters:" if parameters else "Parameters: none"]
    for parameter in parameters:
        allowed = f", {parameter.allowed}" if parameter.allowed else ""
        lines += [f"  {parameter.name}: {parameter.type}{allowed}; default {parameter.default}"]
        lines += textwrap.wrap(parameter.about, 112, initial_indent=" " * 6, subsequent_indent=" " * 6)
    if name == PRESET_METHOD:
        lines += ["", "Presets:"]
        for preset, values in PRESETS.items():
            lines += [f"  {preset}: " + ", ".join(f"{key} {value}" for key, value in values.items())]
    return lines


def method_parameters(method: ModuleType) -> list[Parameter]:
    """Return the parameters of a method, `method` itself left out."""
    about = _field_docstrings(method.Params)
    fields = {name: field for name, field in method.Params.model_fields.items() if name != "method"}
    parameters = []
    for name, field in sorted(fields.items()):
        kind, allowed = _type_of(field)
        parameters.append(Parameter(name, kind, _as_yaml(field.default), allowed, about.get(name, "")))
    return parameters


def _title(method: ModuleType) -> str:
    return (inspect.getdoc(method) or "").partition("\n")[0]


def _ranks(name: str, method: ModuleType) -> str:
    """Return what the method ranks with its default parameters."""
    params = method.Params(method=name)
    weights = any(method.element(part, params) is not None for part in method.PARTS)
    ranked = {"weights": weights, "neurons": hasattr(method, "neuron_score")}
    return ", ".join(what for what, is_ranked in ranked.items() if is_ranked) or "nothing"


def _field_docstrings(section: type[Section]) -> dict[str, str]:
    """Return field -> the string below it, of the class that says it last."""
    found: dict[str, str] = {}
    for owner in reversed(section.__mro__):
        if not issubclass(owner, Section) or owner is Section:
            continue
        definition = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(definition, ast.ClassDef)
        for field, below in pairwise(definition.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
                found[field.target.id] = " ".join(str(ast.literal_eval(below.value)).split())
    return found


def _type_of(field: FieldInfo) -> tuple[str, str]:
    """Return the type and what is allowed, in words."""
    annotation, limits = _unwrapped(field.annotation, list(field.metadata))
    nullable = False
    if get_origin(annotation) in (Union, UnionType):
        (inner,) = (kind for kind in get_args(annotation) if kind is not type(None))
        annotation, limits = _unwrapped(inner, limits)
        nullable = True
    if get_origin(annotation) is Literal:
        kind, allowed = "choice", " | ".join(map(str, get_args(annotation)))
    elif annotation is bool:
        kind, allowed = "true | false", ""
    else:
        kind, allowed = _TYPES[annotation], " and ".join(_limit(limit) for limit in limits if _limit(limit))
    return kind + (" or null" if nullable else ""), allowed


def _unwrapped(annotation: Any, limits: list[Any]) -> tuple[Any, list[Any]]:
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return inner, [*limits, *more]
    return annotation, limits


def _limit(limit: Any) -> str:
    for kind, sign in (
        (annotated_types.Ge, ">="),
        (annotated_types.Gt, ">"),
        (annotated_types.Le, "<="),
        (annotated_types.Lt, "<"),
    ):
        if isinstance(limit, kind):
            return f"{sign} {getattr(limit, kind.__name__.lower())}"
    return ""  # such as "no infinity", which goes without saying


def _as_yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
