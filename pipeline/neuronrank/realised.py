"""What masks removed: counts by part, shares of three denominators, log lines, and the check against the request."""

from collections.abc import Sequence
from typing import Any

from neuronrank.errors import MismatchError

Entry = dict[str, Any]
"""Of one masked module: `name`, `part`, `layer` (None for the output head), `shape` (O, I), `n_removed`."""


def module_line(entry: Entry) -> str:
    """Return one module's log line, for example `layer 0 self_attn.q_proj: pruned 165888/331776`."""
    name, layer = entry["name"], entry["layer"]
    where = name if layer is None else f"layer {layer} {name.partition(f'.{layer}.')[2] or name}"
    return f"{where}: pruned {entry['n_removed']}/{_size(entry)}"


def part_counts(entries: Sequence[Entry]) -> dict[str, dict[str, int]]:
    """Return, for every part that was pruned, how many weights were `removed` of how many `weights`."""
    counts: dict[str, dict[str, int]] = {}
    for entry in entries:
        count = counts.setdefault(entry["part"], {"removed": 0, "weights": 0})
        count["removed"] += entry["n_removed"]
        count["weights"] += _size(entry)
    return counts


def summary_lines(entries: Sequence[Entry]) -> list[str]:
    """Return a line for every part and one for the total: `attention: pruned 4/8 (50.00 %)`."""
    counts = part_counts(entries)
    total = {key: sum(count[key] for count in counts.values()) for key in ("removed", "weights")}
    return [
        f"{part}: pruned {count['removed']}/{count['weights']} ({100 * count['removed'] / count['weights']:.2f} %)"
        for part, count in {**counts, "total": total}.items()
    ]


def realised_sparsity(masks: Sequence[Entry], header: dict[str, Any], n_parameters: int) -> dict[str, float]:
    """Return the share of weights removed, of three denominators.

    Args:
        masks: one entry per masked module.
        header: of the scores; its modules are all decoder linears.
        n_parameters: of the whole model as it then is, embeddings and norms included: tied weights once, an output
            head that was untied in addition.

    Returns:
        `selected`: of the masked modules; `linears`: of all decoder linears, without what was removed from the output
        head; `model`: of the whole model.
    """
    removed = sum(entry["n_removed"] for entry in masks)
    decoder = sum(entry["n_removed"] for entry in masks if entry["layer"] is not None)
    return {
        "selected": removed / sum(_size(entry) for entry in masks),
        "linears": decoder / sum(_size(entry) for entry in header["modules"]),
        "model": removed / n_parameters,
    }


def require_share(what: str, n_removed: int, size: int, sparsity: float, tolerance: float) -> None:
    """Hold a result to what was asked for.

    Args:
        what: for the message.
        n_removed: how many weights (or neurons) were removed.
        size: of how many.
        sparsity: the share that was asked for.
        tolerance: by how many the result may miss it.

    Raises:
        MismatchError: it misses by more.
    """
    if abs(n_removed - sparsity * size) > tolerance * (1 + 1e-9):
        raise MismatchError(
            f"{what}: {n_removed} of {size} are removed, sparsity {sparsity} asks for {sparsity * size:.1f}, "
            f"within {tolerance:g}. This is a fault of the mask rule; no mask is written"
        )


def _size(entry: Entry) -> int:
    return int(entry["shape"][0] * entry["shape"][1])
