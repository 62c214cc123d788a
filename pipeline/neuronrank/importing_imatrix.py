"""An importance matrix of llama.cpp and the model that it was measured on -> a statistics artifact that Wanda reads."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from neuronrank.checkpoint import ModelArtifact
from neuronrank.collection import layer_weight_sums
from neuronrank.errors import MismatchError, SourceError
from neuronrank.files import sha256_file
from neuronrank.imatrix import Entry, Imatrix, read_imatrix
from neuronrank.imatrix_names import TapEntries, names_without_tap, tap_entries
from neuronrank.outputs import new_output, resumable_directory
from neuronrank.provenance import key_of
from neuronrank.skeleton import Skeleton, manifest_of
from neuronrank.statistics_schema import IMPORTED
from neuronrank.statistics_writer import StatisticsWriter
from neuronrank.tap_names import of_expert

_NAMED = 3
_EXACT = 2**24
"""Below, every count is a float32."""
Arrays = dict[tuple[str, str], NDArray[Any]]


@dataclass(frozen=True)
class Imported:
    """What an import found."""

    n_tokens: int
    n_entries: int
    """Entries that are kept."""
    left_out: tuple[str, ...]
    """Entries of weights that are not pruned, and tensors that are neither sums of squares nor counts."""
    n_empty_experts: int
    """Experts that saw no token: they cannot be scored."""
    names_its_model: bool
    """Whether the file said which model it was measured on, as those that were exported here do."""


def import_imatrix(path: Path, model: ModelArtifact, out: Path) -> Imported:
    """Write a statistics artifact of profile `wanda`: an importance matrix's sums, and those of a model's weights.

    A file of llama.cpp does not say which model it was measured on: names and shapes are all that can be compared. One
    that was exported here does, and is of that model alone.

    Args:
        path: of the importance matrix.
        model: that it was measured on, of `open_model`.
        out: directory to write; must not exist.

    Raises:
        SourceError: `out` exists; or the file is no importance matrix, or not a sound one.
        NotFiniteError: a sum or a weight is NaN or infinite.
        UnknownName: an architecture without a layout, or whose importance matrices are not supported.
        MismatchError: entries are missing, or are of another model; or modules with one input have different sums; or
            experts count tokens that no router can have sent them.
        StorageError: the disk refused a write.
    """
    with new_output(out):
        return _import(path, model, out)


def _import(path: Path, model: ModelArtifact, out: Path) -> Imported:
    imatrix = read_imatrix(path)
    if imatrix.made_from.get("model", model.fingerprint) != model.fingerprint:
        raise MismatchError(
            f"{path}: was exported from statistics of model {imatrix.made_from['model'][:12]}…, and "
            f"{model.directory} holds {model.fingerprint[:12]}…. Give that model"
        )
    skeleton = Skeleton(model.checkpoint(), torch.bfloat16)
    described = manifest_of(skeleton)
    modules, n_layers = described["modules"], described["n_layers"]
    taps = tap_entries(skeleton.model.config.model_type, modules, n_layers)
    outside = _require_complete(path, imatrix, taps, n_layers)
    for tap in taps:
        _require_fitting(path, imatrix, tap)
    n_tokens = _n_tokens(path, imatrix, taps)
    _require_possible_routing(path, imatrix, taps, n_tokens, skeleton.model.config)
    left_out = (*outside, *imatrix.other_tensors)
    calibration = _calibration(path, imatrix, n_tokens, left_out)
    manifest = {
        "model": {"fingerprint": model.fingerprint, "tokenizer_sha256": model.tokenizer_sha256},
        "calibration": calibration,
        "collect": {"dtype": "unknown", "propagation": IMPORTED},
        "made_from": {**imatrix.made_from, "model": model.fingerprint, "imatrix": calibration["source"]["sha256"]},
        **described,
    }
    with resumable_directory(out, key_of(manifest)) as work:
        writer = StatisticsWriter(work, n_layers, "wanda")
        for layer in range(writer.n_complete, n_layers):
            weights = layer_weight_sums(modules, layer, skeleton.read_layer(layer))
            writer.write_layer(layer, _arrays(imatrix, [tap for tap in taps if tap.layer == layer]), weights)
        writer.finish(manifest)
    n_empty = sum(int(np.count_nonzero(_first(imatrix, tap).counts == 0)) for tap in taps if tap.tap == "mlp_in")
    n_entries = len(imatrix.entries) - len(outside)
    return Imported(n_tokens, n_entries, left_out, n_empty, "model" in imatrix.made_from)


def _calibration(path: Path, imatrix: Imatrix, n_tokens: int, left_out: Sequence[str]) -> dict[str, Any]:
    """Return what is known of the calibration text: its tokens are counted, as one document; which they are is not."""
    return {
        "n_windows": 1,
        "window_tokens": n_tokens,
        "sha256": None,
        "seed": None,
        "source": {
            "source": IMPORTED,
            "id": path.name,
            "sha256": sha256_file(path),
            "datasets": list(imatrix.datasets),
            "chunk_count": imatrix.chunk_count,
            "chunk_size": imatrix.chunk_size,
            "left_out": list(left_out),
        },
        "origins": [],
    }


def _require_complete(path: Path, imatrix: Imatrix, taps: Sequence[TapEntries], n_layers: int) -> list[str]:
    """Refuse entries that are missing or of no module; return those of weights that are not pruned."""
    wanted = {name for tap in taps for name in tap.names}
    missing = sorted(wanted - imatrix.entries.keys())
    known = names_without_tap(taps)
    foreign = sorted(imatrix.entries.keys() - wanted - known)
    if missing or foreign:
        faults = [f"has no {_some(missing)}"] * bool(missing) + [f"has {_some(foreign)} of no module"] * bool(foreign)
        raise MismatchError(f"{path}: {', and '.join(faults)}. Was it measured on this model, of {n_layers} layers?")
    return sorted(imatrix.entries.keys() & known)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _require_fitting(path: Path, imatrix: Imatrix, tap: TapEntries) -> None:
    """Refuse entries of another shape, and those that differ although the same tensor entered their weights."""
    first = _first(imatrix, tap)
    wanted = (tap.n_experts or 1, tap.n_channels)
    for name in tap.names:
        entry = imatrix.entries[name]
        if entry.sums.shape != wanted:
            one_count = len(entry.counts) == 1 and entry.sums.size == wanted[0] * wanted[1]
            why = ". Tokens of each expert are not known: was it converted from a .dat file? Measure it anew"
            raise MismatchError(
                f"{path}: {name} has {entry.sums.shape[0]} x {entry.sums.shape[1]} sums, the model's weight needs "
                f"{wanted[0]} x {wanted[1]} (experts x input channels){why if one_count else ''}"
            )
        if not _same(first, entry):
            raise MismatchError(
                f"{path}: {tap.names[0]} and {name} have different sums or counts, although the same tensor enters "
                f"both. Was it put together from several files? Measure it anew"
            )


def _same(one: Entry, other: Entry) -> bool:
    return one.sums.tobytes() == other.sums.tobytes() and np.array_equal(one.counts, other.counts)


def _n_tokens(path: Path, imatrix: Imatrix, taps: Sequence[TapEntries]) -> int:
    """Return how many tokens entered every weight outside experts."""
    counted = {tap.names[0]: int(_first(imatrix, tap).counts[0]) for tap in taps if tap.n_experts is None}
    first, n_tokens = next(iter(counted.items()))
    for name, count in counted.items():
        if count != n_tokens:
            raise MismatchError(f"{path}: {first} counts {n_tokens} tokens, {name} {count}: some text is missing there")
    if n_tokens == 0:
        raise SourceError(f"{path}: counts no token, so that nothing was measured")
    return n_tokens


def _require_possible_routing(
    path: Path, imatrix: Imatrix, taps: Sequence[TapEntries], n_tokens: int, config: Any
) -> None:
    """Refuse counts of experts unless every token went through so many experts as the router chooses.

    Counts are float32 in the file: from 2^24 on each, and that of all tokens, is rounded.
    """
    entering: dict[int, TapEntries] = {}
    for tap in taps:
        if tap.n_experts is None:
            continue
        counts, where = _first(imatrix, tap).counts, f"{path}: layer {tap.layer}"
        first = entering.setdefault(tap.layer, tap)
        for expert, (one, other) in enumerate(
            zip(_first(imatrix, first).counts.tolist(), counts.tolist(), strict=True)
        ):
            if one != other:
                raise MismatchError(
                    f"{where}, expert {expert}: {first.names[0]} counts {one} tokens, {tap.names[0]} {other}, although "
                    f"the same tokens pass both. Measure it anew"
                )
        expert = int(counts.argmax())
        if counts[expert] > n_tokens:
            raise MismatchError(
                f"{where}, expert {expert}: {tap.names[0]} counts {counts[expert]} tokens in one expert, of {n_tokens} "
                f"in all. Measure it anew"
            )
        chosen = int(config.num_experts_per_tok)
        found, expected = int(counts.sum()), chosen * n_tokens
        if abs(found - expected) > _rounded_away(counts) + chosen * _rounded_away(np.array([n_tokens])):
            raise MismatchError(
                f"{where}, experts 0 to {tap.n_experts - 1}: {tap.names[0]} counts {found} tokens together, expected "
                f"{expected}: {chosen} experts for each of {n_tokens}. Measure it anew"
            )


def _rounded_away(counts: NDArray[np.int64]) -> int:
    """Return how far the sum of counts may be from what was counted; a sum over files is rounded more than once."""
    steps = np.spacing(counts.astype(np.float32)).astype(np.int64)
    return int(steps[counts >= _EXACT].sum())


def _first(imatrix: Imatrix, tap: TapEntries) -> Entry:
    return imatrix.entries[tap.names[0]]


def _arrays(imatrix: Imatrix, taps: Sequence[TapEntries]) -> Arrays:
    """Return one layer's arrays, (tap, array) -> values; sums as float64, which holds every float32."""
    return {key: values for tap in taps for key, values in _of_tap(_first(imatrix, tap), tap)}


def _of_tap(entry: Entry, tap: TapEntries) -> Iterator[tuple[tuple[str, str], NDArray[Any]]]:
    for number, sums in enumerate(entry.sums):
        name = of_expert(tap.tap, None if tap.n_experts is None else number)
        yield (name, "wanda_sum_sq"), sums.astype(np.float64)
        if tap.n_experts is not None:
            yield (name, "n_tokens"), entry.counts[number : number + 1].astype(np.int32)
