"""The lines that `neuronrank diff` prints of a difference."""

from typing import Any

from neuronrank.differing import Difference

_ROWS = 20
"""So many rows of a table are printed, those that differ most first; --json has all."""
_WIDEST = 70
"""Longer values of settings are cut."""


def difference_lines(found: Difference) -> list[str]:
    """Return a difference as text: what was compared, settings, then numbers."""
    lines = [f"{key}: {found[key]}" for key in ("artifact", "schema", "a", "b")]
    lines.append(f"settings: {len(found['settings'])} differ")
    for entry in found["settings"]:
        lines += _setting(entry)
    for side in ("a", "b"):
        if found[f"only_in_{side}"]:
            names = found[f"only_in_{side}"]
            lines += [f"only in {side}: {len(names)}", *_cut([f"  {name}" for name in names])]
    if found["shapes"]:
        shown = [f"  {entry['array']}: {_shape(entry['a'])} | {_shape(entry['b'])}" for entry in found["shapes"]]
        lines += [f"shapes or types: {len(shown)} differ", *_cut(shown)]
    if "modules" in found:
        lines += _modules(found)
    elif "contents" in found:
        lines.append(f"tensors: {len(found['contents'])} of {found['n_compared']} hold other values")
        lines += _cut([f"  {name}" for name in found["contents"]])
    else:
        lines += _arrays(found)
    if "rank_correlation" in found:
        lines.append(_correlation(found["rank_correlation"]))
    return [*lines, "equal" if found["equal"] else "they differ"]


def _setting(entry: dict[str, Any], indent: str = "  ") -> list[str]:
    if "first" not in entry:
        a, b = (_value(entry[side]) if side in entry else "absent" for side in ("a", "b"))
        return [f"{indent}{entry['key']}: {a} | {b}"]
    counted = f"{entry['n_a']} | {entry['n_b']} entries, {entry['n_differ']} differ, the first:"
    return [f"{indent}{entry['key']}: {counted}", *_setting(entry["first"], indent + "  ")]


def _value(value: Any) -> str:
    shown = "none" if value is None else str(value)
    return shown if len(shown) <= _WIDEST else f"{shown[:_WIDEST]}…"


def _shape(entry: dict[str, Any]) -> str:
    return f"{' x '.join(map(str, entry['shape']))} {entry['dtype']}"


def _cut(lines: list[str]) -> list[str]:
    more = len(lines) - _ROWS
    return lines if more <= 0 else [*lines[:_ROWS], f"  … and {more} more; --json has all"]


def _arrays(found: Difference) -> list[str]:
    rows = sorted(found["arrays"], key=_how_far, reverse=True)
    lines = [f"arrays: {len(rows)} of {found['n_compared']} differ"]
    if not rows:
        return lines
    width = max(len(row["array"]) for row in rows) + 2
    columns = f"{'differ':>12}{'of':>12}{'largest |a-b|':>15}  {'at':<22}{'relative':>10}  at"
    shown = [f"{row['array']:<{width}}{row['n_differ']:>12}{row['n']:>12}{_places(row)}" for row in rows]
    return [*lines, "", f"{'array':<{width}}{columns}", *_cut(shown), "relative: |a-b| / max(|a|, |b|)", ""]


def _how_far(row: dict[str, Any]) -> tuple[bool, float]:
    largest = row["largest_relative"] or row["largest_absolute"] or {"value": 0.0}
    return row["not_finite"] is not None, largest["value"]


def _places(row: dict[str, Any]) -> str:
    absolute, relative, odd = row["largest_absolute"], row["largest_relative"], row["not_finite"]
    line = f"{_number(absolute):>15}  {_index(absolute):<22}{_number(relative):>10}  {_index(relative)}"
    if odd:
        line += f"  not finite: {odd['n']}, the first {_index(odd)}: {odd['a']} | {odd['b']}"
    return line


def _number(largest: dict[str, Any] | None) -> str:
    return (
        "-"
        if largest is None
        else f"{largest['value']:.4g}"
        if isinstance(largest["value"], float)
        else str(largest["value"])
    )


def _index(place: dict[str, Any] | None) -> str:
    return "-" if place is None else str(place["index"])


def _correlation(found: dict[str, Any]) -> str:
    undefined = (
        f"; undefined for {len(found['undefined'])} that are constant or not finite" if found["undefined"] else ""
    )
    if not found["n"]:
        return f"rank correlation (Spearman): none{undefined}"
    worst = found["worst"]
    return (
        f"rank correlation (Spearman) of {found['n']} vectors: worst {worst['value']:.6f} ({worst['array']}), "
        f"median {found['median']:.6f}{undefined}"
    )


def _modules(found: Difference) -> list[str]:
    rows = sorted((row for row in found["modules"] if row["n_differ"]), key=lambda row: row["jaccard"])
    total = found["total"]
    lines = [
        f"modules: {len(rows)} of {found['n_compared']} differ",
        f"bits: {total['n_differ']} of {total['bits']} differ; removed {total['removed_a']} | {total['removed_b']}, "
        f"Jaccard index of the removed {total['jaccard']:.6f}",
    ]
    if not rows:
        return lines
    width = max(len(row["module"]) for row in rows) + 2
    shown = [
        f"{row['module']:<{width}}{row['n_differ']:>12}{row['bits']:>12}{row['removed_a']:>12}{row['removed_b']:>12}"
        f"{row['jaccard']:>12.6f}"
        for row in rows
    ]
    columns = f"{'differ':>12}{'of':>12}{'removed a':>12}{'removed b':>12}{'Jaccard':>12}"
    return [*lines, "", f"{'module':<{width}}{columns}", *_cut(shown), ""]
