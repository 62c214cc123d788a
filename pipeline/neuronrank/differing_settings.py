"""In which settings two headers differ. Needs no torch."""

import json
from collections.abc import Mapping
from typing import Any

FOLLOWING = ("file_sha256", "files")
"""Keys of a header that are no settings: digests, which follow from the contents."""
_SHORT = 8
"""So many plain values of a list are shown; of longer lists how many differ, and the first."""


def differing_settings(one: Mapping[str, Any], two: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every setting that differs, nested ones by dotted keys, sorted.

    Args:
        one: a header as JSON has it.
        two: another.

    Returns:
        `key`, `a` and `b`, of which the one that is absent there is left out. Of long lists, and lists of objects:
        `key`, `n_a`, `n_b` (entries), `n_differ`, and `first`, one such dictionary.
    """
    first, second = (
        _flat({key: value for key, value in header.items() if key not in FOLLOWING}) for header in (one, two)
    )
    found = [_compared(key, first, second) for key in sorted({*first, *second})]
    return [entry for entry in found if entry is not None]


def _flat(header: Any, prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> value; lists, and dictionaries without entries, are values."""
    if not isinstance(header, dict) or not header:
        return {prefix: header} if prefix else {}
    leaves: dict[str, Any] = {}
    for key, value in header.items():
        leaves |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def _same(one: Any, two: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)  # 1, 1.0 and true are not the same


def _compared(key: str, one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, Any] | None:
    found = {name: values[key] for name, values in (("a", one), ("b", two)) if key in values}
    if len(found) == 2 and _same(found["a"], found["b"]):
        return None
    a, b = found.get("a"), found.get("b")
    if not (isinstance(a, list) and isinstance(b, list)) or (_is_short(a) and _is_short(b)):
        return {"key": key, **found}
    differing = [i for i in range(max(len(a), len(b))) if i >= len(a) or i >= len(b) or not _same(a[i], b[i])]
    entries = [_flat(values[differing[0]], f"{key}.{differing[0]}") for values in (a, b) if differing[0] < len(values)]
    if len(entries) == 1:  # one list is longer: its first entry more, as a whole
        longer = {"a" if len(a) > len(b) else "b": (a if len(a) > len(b) else b)[differing[0]]}
        first: dict[str, Any] = {"key": f"{key}.{differing[0]}", **longer}
    else:
        leaves = (_compared(leaf, *entries) for leaf in sorted({*entries[0], *entries[1]}))
        first = next(leaf for leaf in leaves if leaf is not None)
    return {"key": key, "n_a": len(a), "n_b": len(b), "n_differ": len(differing), "first": first}


def _is_short(values: list[Any]) -> bool:
    return len(values) <= _SHORT and not any(isinstance(value, dict | list) for value in values)
