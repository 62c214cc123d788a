"""The import graph of the project's own files, from their syntax trees."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE_ROOTS = {"neuronrank": ROOT / "pipeline", "stages": ROOT}


def file_of(module: str) -> Path | None:
    """Return the file of a first-party module, or None."""
    top = module.partition(".")[0]
    if top not in SOURCE_ROOTS:
        return None
    base = SOURCE_ROOTS[top] / module.replace(".", "/")
    candidates = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in candidates if path.is_file()), None)


@cache
def imported_modules(path: Path) -> frozenset[str]:
    """Return every module that a file imports, anywhere in it, with the packages above each.

    What is imported for types alone is never loaded and left out.
    """
    found: set[str] = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    unloaded = {id(inner) for node in for_types for statement in node.body for inner in ast.walk(statement)}
    for node in ast.walk(tree):
        if id(node) in unloaded:
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    for name in list(found):
        parts = name.split(".")
        found.update(".".join(parts[:i]) for i in range(1, len(parts)))
    return frozenset(found)


def first_party_closure(start: Path) -> set[Path]:
    """Return every first-party file that importing `start` can load, `start` included."""
    seen: set[Path] = set()
    queue = [start]
    while queue:
        path = queue.pop()
        if path in seen:
            continue
        seen.add(path)
        queue += [found for name in imported_modules(path) if (found := file_of(name))]
    return seen


def rooms_loaded(files: set[Path]) -> set[str]:
    """Return the rooms that files load by name: the first argument of `registry.load` and `read_source`."""
    rooms = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in {"load", "read_source"} and isinstance(node.args[0].value, str):
                    rooms.add(node.args[0].value)
    return rooms
