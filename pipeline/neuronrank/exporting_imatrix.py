"""A statistics artifact -> an importance matrix that llama.cpp reads. Needs neither the model nor torch."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.errors import MismatchError, NotFiniteError
from neuronrank.files import canonical_json
from neuronrank.imatrix import Entry, Imatrix, write_imatrix
from neuronrank.imatrix_names import TapEntries, entries_of_unknown
from neuronrank.outputs import new_output
from neuronrank.scores import SEQUENTIAL
from neuronrank.seals import FIELD
from neuronrank.statistics_schema import IMPORTED
from neuronrank.statistics_store import Statistics
from neuronrank.tap_names import of_expert


def export_imatrix(directory: Path, out: Path) -> Imatrix:
    """Write the total sums of squares of all modules' inputs, and counts of tokens, rounded once to float32.

    The entries of modules that were imported come out bit for bit as they went in; what was left out then, such as
    those of routers, does not. Sums that were collected are float64: they are rounded to the nearest float32 here,
    and keep those bits from then on.

    Args:
        directory: of the artifact, of any profile.
        out: file to write; must not exist.

    Returns:
        What was written, counts before they were rounded (`imatrix.rounded_counts`).

    Raises:
        SourceError: `out` exists; or a count of tokens is larger than can be imported.
        ArtifactError: no statistics artifact, or one that is incomplete or corrupt.
        UnknownName: of an architecture whose importance matrices are not supported.
        MismatchError: measured behind pruned layers.
        NotFiniteError: a sum is larger than float32 reaches.
        StorageError: the disk refused a write.
    """
    with new_output(out):
        imatrix = _importance_matrix(directory)
        write_imatrix(out, imatrix)
    return imatrix


def _importance_matrix(directory: Path) -> Imatrix:
    statistics = Statistics(directory)
    manifest = statistics.manifest
    if manifest["collect"]["propagation"] == SEQUENTIAL:
        raise MismatchError(
            f"{directory}: was measured behind layers that were pruned already, and is not what enters the weights of "
            f"the model itself. Export dense statistics: dvc repro collect"
        )
    taps = entries_of_unknown(manifest["modules"], manifest["n_layers"])
    calibration = manifest["calibration"]
    n_tokens = calibration["n_windows"] * calibration["window_tokens"]
    entries: dict[str, Entry] = {}
    for tap in taps:
        entries |= dict.fromkeys(tap.names, _entry(statistics, tap, n_tokens))
    return Imatrix(entries, *_measured_on(calibration), made_from=_made_from(manifest))


def _entry(statistics: Statistics, tap: TapEntries, n_tokens: int) -> Entry:
    if tap.n_experts is None:
        sums = statistics.layer_values(tap.layer, tap.tap, "wanda_sum_sq")[None]
        counts = np.array([n_tokens], dtype=np.int64)
    else:
        every = [of_expert(tap.tap, number) for number in range(tap.n_experts)]
        sums = np.stack([statistics.layer_values(tap.layer, name, "wanda_sum_sq") for name in every])
        counts = np.array([statistics.layer_values(tap.layer, name, "n_tokens").sum(dtype=np.int64) for name in every])
    return Entry(_rounded(sums, f"{statistics.directory}: layer {tap.layer}, tap {tap.tap!r}"), counts)


def _rounded(sums: NDArray[Any], where: str) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):  # refused below, by name
        found = sums.astype(np.float32)
    if not np.isfinite(found).all():
        raise NotFiniteError(f"{where}: a sum of squares is {sums.max():.3g}, more than float32 reaches")
    return found


def _measured_on(calibration: dict[str, Any]) -> tuple[tuple[str, ...], int, int]:
    """Return datasets, number of chunks and tokens of each: as they were imported, or what was collected."""
    source = calibration["source"]
    if source.get("source") == IMPORTED:
        return tuple(source["datasets"]), source["chunk_count"], source["chunk_size"]
    text = " ".join(canonical_json(source).split())
    return (text,), calibration["n_windows"], calibration["window_tokens"]


def _made_from(manifest: dict[str, Any]) -> dict[str, str]:
    """Return model and statistics, or what was imported of them: nothing is added to what others measured."""
    earlier, model = manifest["made_from"], manifest["model"]["fingerprint"]
    if manifest["calibration"]["source"].get("source") != IMPORTED:
        return {"model": model, "exported": manifest[FIELD]}
    return {"model": model, "exported": earlier["exported"]} if "exported" in earlier else {}
