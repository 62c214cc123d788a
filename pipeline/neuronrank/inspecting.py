"""What `neuronrank inspect` tells: statistics, scores, masks, losses or token windows. Needs no torch."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank import losses, mask_store, score_store, windows
from neuronrank.artifact_kinds import KINDS, stated_schema
from neuronrank.errors import ArtifactError
from neuronrank.realised import part_counts
from neuronrank.routing import describe_routing
from neuronrank.statistics_store import Statistics
from neuronrank.stored_arrays import stored_arrays, total_bytes

Description = dict[str, Any]
_MIB = 2**20
_RMS_TAPS = ("attn_in", "mlp_in", "mlp_mid")


def describe(path: Path) -> Description:
    """Return what an artifact holds, as JSON would have it.

    Args:
        path: the directory of a statistics artifact, or a file of scores, masks, losses or token windows.

    Raises:
        ArtifactError: missing, incomplete, corrupt, or none of ours.
    """
    schema = stated_schema(path)
    describers: dict[str, Callable[[Path], Description]] = {
        "statistics": _describe_statistics,
        "scores": _describe_scores,
        "masks": _describe_masks,
        "losses": _describe_losses,
        "token windows": _describe_windows,
    }
    kind = KINDS.get(schema)
    if kind not in describers:
        shown = ", ".join(one for one in KINDS if KINDS[one] in describers)
        raise ArtifactError(f"{path}: schema is {schema!r}; expected one that is shown: {shown}")
    return describers[kind](path)


def _describe_statistics(path: Path) -> Description:
    statistics = Statistics(path)
    manifest = statistics.manifest
    calibration = manifest["calibration"]
    n_tokens = calibration["n_windows"] * calibration["window_tokens"]
    arrays = stored_arrays(statistics)
    return {
        "artifact": "statistics",
        "schema": manifest["schema"],
        "profile": manifest["profile"],
        "model": manifest["model"],
        "calibration": {
            "source": calibration.get("source"),
            "n_windows": calibration["n_windows"],
            "window_tokens": calibration["window_tokens"],
            "n_tokens": n_tokens,
            "seed": calibration.get("seed"),
            "sha256": calibration["sha256"],
        },
        "collect": manifest["collect"],
        "n_layers": manifest["n_layers"],
        "arrays": [
            {
                "path": array.path,
                "shape": list(array.shape),
                "dtype": array.dtype,
                "units": array.units,
                "stored_mib": round(array.stored_bytes / _MIB, 3),
                "raw_mib": round(array.raw_bytes / _MIB, 3),
            }
            for array in arrays
        ],
        "size_mib": {
            "stored": round(total_bytes(path) / _MIB, 3),
            "raw": round(sum(array.raw_bytes for array in arrays) / _MIB, 3),
        },
        "experts": describe_routing(statistics),
        "layers": [_describe_layer(statistics, layer, n_tokens) for layer in range(manifest["n_layers"])],
    }


def _describe_layer(statistics: Statistics, layer: int, n_tokens: int) -> Description:
    """Summarise one layer: means over channels and tokens; None for what the artifact does not hold."""

    def values(tap: str, array: str) -> NDArray[Any] | None:
        held = array in statistics.manifest["arrays"].get(tap, [])
        return statistics.layer_values(layer, tap, array) if held else None

    def mean(tap: str, sums: NDArray[Any]) -> float:
        routed = values(tap, "n_tokens")
        if routed is None:
            return float(sums.mean() / n_tokens)
        return float(sums.sum(axis=0).mean() / routed.sum())  # over the tokens of all experts

    sums = {tap: values(tap, "wanda_sum_sq") for tap in _RMS_TAPS}
    magnitude, positive = values("neuron", "tf_sum"), values("neuron", "n_positive")
    frequency, count = values("neuron", "df_count"), values("topics", "count")
    return {
        "layer": layer,
        "rms": {tap: None if sum_sq is None else math.sqrt(mean(tap, sum_sq)) for tap, sum_sq in sums.items()},
        "neuron_mean_abs": None if magnitude is None else mean("neuron", magnitude),
        "neuron_positive_share": None if positive is None else mean("neuron", positive),
        "neuron_df": None
        if frequency is None
        else {"min": int(frequency.min()), "median": float(np.median(frequency)), "max": int(frequency.max())},
        "topics": None if count is None else {"non_empty": int(np.count_nonzero(count)), "of": len(count)},
    }


def _describe_scores(path: Path) -> Description:
    factors, header = score_store.read_scores(path)
    return {
        "artifact": "scores",
        **{key: header[key] for key in ("schema", "recipe", "parts", "model", "calibration", "collect", "n_layers")},
        "n_modules": len(header["modules"]),
        "vectors": {
            "row": sum(name.endswith((".row", ".row_term")) for name in factors),
            "column": sum(name.endswith((".column", ".column_term")) for name in factors),
            "neurons": sum(name.startswith("neurons.") for name in factors),
        },
    }


def _describe_masks(path: Path) -> Description:
    header = mask_store.MaskFile(path).header
    return {
        "artifact": "masks",
        **{key: header[key] for key in ("schema", "recipe", "pattern", "model", "calibration", "collect", "untied")},
        "parts": {
            part: {**count, "sparsity": count["removed"] / count["weights"]}
            for part, count in part_counts(header["modules"]).items()
        },
        "sparsity": header["sparsity"],
        "n_modules": len(header["modules"]),
    }


def _describe_losses(path: Path) -> Description:
    header, found = losses.read_losses_header(path), losses.read_losses(path)
    return {
        "artifact": "losses",
        **{key: header[key] for key in ("schema", "model", "dtype", "device")},
        "texts": {
            text: {
                "n_windows": len(values),
                "nat_per_token": float(values.mean()),
                "perplexity": float(np.exp(values.mean())),
            }
            for text, values in found.items()
        },
    }


def _describe_windows(path: Path) -> Description:
    found = windows.read_windows(path)
    header = {key: value for key, value in found.header.items() if key != "origins"}
    return {"artifact": "token windows", **header, "n_windows": len(found.token_ids), "n_tokens": found.n_tokens}
