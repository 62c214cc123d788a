"""llama.cpp's importance matrix as a GGUF file: sums of squares of what enters each weight, and of how many tokens.

As llama.cpp writes it since July 2025 (tools/imatrix/imatrix.cpp, `collect_imatrix` and `save_imatrix`; it is read by
common/imatrix-loader.cpp): `general.type` is "imatrix"; `imatrix.datasets` (texts), `imatrix.chunk_count` and
`imatrix.chunk_size` (uint32) say what was run; and for each weight, by its name in a GGUF model, two float32 tensors,
`<name>.in_sum2` of n_mat x n_per_row and `<name>.counts` of n_mat x 1, where n_mat is 1, or the number of experts whose
weights lie in one tensor. `in_sum2` is the plain sum of x^2, and `counts` counts the rows that were added: tokens, for
an expert those that were routed to it, not chunks. Other tensors (`.in_sum`, `.stats` of later versions) are optional
there, and are left out here.

Of keys of our own, which llama.cpp passes over, `neuronrank.model_fingerprint` and `neuronrank.statistics` name the
model and the statistics that an exported file came from.

In the older `.dat` files sums are scaled to chunks, (sum / count) * chunks, and an expert without tokens has 1: counts
of tokens are lost, and such a file is refused.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.errors import NotFiniteError, SourceError
from neuronrank.gguf_container import Container, open_container, write_container

SUMS, COUNTS = ".in_sum2", ".counts"
_TYPE, _DATASETS = "general.type", "imatrix.datasets"
_CHUNK_COUNT, _CHUNK_SIZE = "imatrix.chunk_count", "imatrix.chunk_size"
_KIND = "imatrix"
_MADE_FROM = {"model": "neuronrank.model_fingerprint", "exported": "neuronrank.statistics"}
"""As in `made_from` of artifacts -> the key that holds it."""
_LARGEST_COUNT = 2**31 - 1
"""Counts are int32 in a statistics artifact."""


@dataclass(frozen=True)
class Entry:
    """What entered one weight, or the weights of all experts in one tensor."""

    sums: NDArray[np.float32]
    """(n_mat, I) sums of x^2, activation^2."""
    counts: NDArray[np.int64]
    """(n_mat,) tokens."""


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix."""

    entries: Mapping[str, Entry]
    """Name of the weight in a GGUF model, `blk.0.attn_q.weight` -> what entered it."""
    datasets: tuple[str, ...]
    """What it was measured on, as its maker called it."""
    chunk_count: int
    chunk_size: int
    """Tokens."""
    other_tensors: tuple[str, ...] = ()
    """Names of tensors that are neither sums of squares nor counts."""
    made_from: Mapping[str, str] = field(default_factory=dict)
    """Of a file that was exported from statistics: `model`, its fingerprint, and `exported`, their seal. Else empty."""


def read_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix.

    Raises:
        SourceError: not one, of the older format, corrupt, or with sums, counts or shapes that cannot be.
        NotFiniteError: a sum or a count is NaN or infinite.
    """
    container = open_container(
        path,
        f"If it is an importance matrix of llama.cpp's older format, convert it: llama-imatrix --model any.gguf "
        f"--in-file {path.name} -o converted.gguf (it asks for a model, any will do)",
    )
    values = container.values
    if values.get(_TYPE) != _KIND:
        raise SourceError(f"{path}: {_TYPE} is {values.get(_TYPE)!r}, that of an importance matrix is {_KIND!r}")
    datasets = values.get(_DATASETS)
    if not isinstance(datasets, tuple):
        raise SourceError(f"{path}: {_DATASETS} is {datasets!r}, expected a list of texts")
    of_weights = [name for name in container.tensors if name.endswith((SUMS, COUNTS))]
    tensors = container.read(of_weights)
    names = sorted({name.removesuffix(SUMS).removesuffix(COUNTS) for name in of_weights})
    if not names:
        raise SourceError(f"{path}: holds no tensor <weight>{SUMS}, so that nothing was measured")
    return Imatrix(
        {name: _entry(path, name, tensors) for name in names},
        datasets,
        _number(container, _CHUNK_COUNT),
        _number(container, _CHUNK_SIZE),
        tuple(sorted(set(container.tensors) - set(of_weights))),
        _made_from(container),
    )


def rounded_counts(entry: Entry) -> int:
    """Return how many counts float32 does not hold: those that `write_imatrix` rounds to the nearest, as llama.cpp."""
    return int(np.count_nonzero(entry.counts.astype(np.float32).astype(np.int64) != entry.counts))


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write an importance matrix, its weights by name, as llama.cpp does; other tensors are not written.

    Raises:
        SourceError: a count is so large that, rounded to float32, `read_imatrix` refuses it.
        StorageError: the disk refused a write.
    """
    tensors: dict[str, NDArray[np.float32]] = {}
    for name, entry in sorted(imatrix.entries.items()):
        tensors[name + SUMS] = entry.sums
        tensors[name + COUNTS] = _stated(path, name, entry.counts)[:, None]
    values: dict[str, str | int | tuple[str, ...]] = {
        _TYPE: _KIND,
        _DATASETS: imatrix.datasets,
        _CHUNK_COUNT: imatrix.chunk_count,
        _CHUNK_SIZE: imatrix.chunk_size,
        **{_MADE_FROM[what]: identity for what, identity in imatrix.made_from.items()},
    }
    write_container(path, values, tensors)


def _stated(path: Path, name: str, counts: NDArray[np.int64]) -> NDArray[np.float32]:
    rounded = counts.astype(np.float32)
    if (rounded.astype(np.float64) > _LARGEST_COUNT).any():
        raise SourceError(
            f"{path}: not written: {name} counts {counts.max()} tokens, as float32 {rounded.max():.0f}; "
            f"{_LARGEST_COUNT} at most can be imported. Export statistics of less text"
        )
    return rounded


def _number(container: Container, key: str) -> int:
    found = container.values.get(key)
    if type(found) is not int or not 0 <= found < 2**32:
        raise SourceError(f"{container.path}: {key} is {found!r}, expected a uint32")
    return found


def _made_from(container: Container) -> dict[str, str]:
    held = {what: container.values[key] for what, key in _MADE_FROM.items() if key in container.values}
    found = {what: one for what, one in held.items() if isinstance(one, str) and re.fullmatch("[0-9a-f]{64}", one)}
    if held and len(found) < len(_MADE_FROM):
        stated = {key: container.values.get(key) for key in _MADE_FROM.values()}
        raise SourceError(f"{container.path}: states {stated}, expected two SHA-256, or neither key")
    return found


def _entry(path: Path, name: str, tensors: Mapping[str, NDArray[np.float32]]) -> Entry:
    missing = [name + suffix for suffix in (SUMS, COUNTS) if name + suffix not in tensors]
    if missing:
        raise SourceError(f"{path}: has no tensor {missing[0]!r}, although the other one of its pair is there")
    sums, counts = (tensors[name + suffix] for suffix in (SUMS, COUNTS))
    rows = _matrix(sums)
    if rows is None or _matrix(counts) is None or counts.shape[-1] != 1 or len(rows) != counts.size:
        raise SourceError(
            f"{path}: {name}: sums have shape {sums.shape} and counts {counts.shape}; expected (n_mat, n_per_row) and "
            f"(n_mat, 1)"
        )
    return Entry(rows, _counts(path, name, counts.reshape(-1), _sound(path, name, rows)))


def _matrix(tensor: NDArray[Any]) -> NDArray[Any] | None:
    """Return a tensor as (n_mat, n); None when it has more axes than that."""
    if tensor.ndim == 1:
        return tensor[None]
    return tensor if tensor.ndim == 2 else None


def _sound(path: Path, name: str, sums: NDArray[np.float32]) -> NDArray[np.float32]:
    n_bad = int(np.count_nonzero(~np.isfinite(sums)))
    if n_bad:
        raise NotFiniteError(f"{path}: {name}: {n_bad} of {sums.size} sums of squares are NaN or infinite")
    if (sums < 0).any():
        raise SourceError(f"{path}: {name}: a sum of squares is {sums.min()}, which is negative")
    return sums


def _counts(path: Path, name: str, stated: NDArray[np.float32], sums: NDArray[np.float32]) -> NDArray[np.int64]:
    if not np.isfinite(stated).all():
        raise NotFiniteError(f"{path}: {name}: counts {stated[~np.isfinite(stated)][:3]} are no numbers of tokens")
    exact = stated.astype(np.float64)  # as float32 the largest count would be one more
    impossible = (exact < 0) | (exact > _LARGEST_COUNT) | (exact != np.rint(exact))
    if impossible.any():
        raise SourceError(
            f"{path}: {name}: counts {exact[impossible][:3].tolist()} are no numbers of tokens from 0 to "
            f"{_LARGEST_COUNT}"
        )
    for matrix in np.flatnonzero((exact == 0) & (sums != 0).any(axis=1)).tolist():
        raise SourceError(f"{path}: {name}: counts[{matrix}] is 0, but its sums are not: of no token there are none")
    return exact.astype(np.int64)
