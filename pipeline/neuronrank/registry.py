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
        UnknownName: no such file (the message lists the known names and the nearest one), or one that cannot be
            imported or lacks what its room's `PROVIDES` asks for.
    """
    known = names(room)
    if name not in known:
        raise UnknownName(f"{room}: unknown name {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    provides = importlib.import_module(f"neuronrank.{room}").PROVIDES
    try:
        module = importlib.import_module(f"neuronrank.{room}.{name}")
    except Exception as err:  # whatever is wrong with a file, its name is what a user needs
        raise UnknownName(f"{room}/{name}.py: cannot be imported: {type(err).__name__}: {err}") from err
    missing = [what for what in provides if not hasattr(module, what)]
    if missing:
        raise UnknownName(f"{room}/{name}.py: has no {', '.join(missing)}; a file there has {', '.join(provides)}")
    return module


def nearest(name: str, known: list[str]) -> str:
    """Return `, did you mean 'x'?` for a near miss, else an empty string."""
    close = difflib.get_close_matches(name, known, n=1)
    return f", did you mean {close[0]!r}?" if close else ""
