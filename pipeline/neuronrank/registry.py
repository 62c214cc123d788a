"""The folder is the registry: `scoring/wanda.py` is the method `wanda`. Nothing to decorate, nothing to list."""

import difflib
import importlib
from importlib import resources
from types import ModuleType

from neuronrank.errors import UnknownName


def names(room: str) -> list[str]:
    """Return the names that a room provides: its Python files, `__init__` and private ones left out."""
    files = (entry.name for entry in resources.files(f"neuronrank.{room}").iterdir())
    return sorted(name.removesuffix(".py") for name in files if name.endswith(".py") and not name.startswith("_"))


def load(room: str, name: str) -> ModuleType:
    """Import exactly one file of a room.

    Raises:
        UnknownName: no such file; the message lists the known names and the nearest one.
    """
    known = names(room)
    if name not in known:
        raise UnknownName(f"{room}: unknown name {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    return importlib.import_module(f"neuronrank.{room}.{name}")


def nearest(name: str, known: list[str]) -> str:
    """Return `, did you mean 'x'?` for a near miss, else an empty string."""
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""
