"""In which numbers two arrays, or two masks, differ: a chunk of each in memory at a time. Needs no torch."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from neuronrank.errors import ArtifactError
from neuronrank.export_description import RUN
from neuronrank.mask_store import MaskFile
from neuronrank.module_views import view_of
from neuronrank.regular_files import open_regular
from neuronrank.safetensors_header import METADATA, read_safetensors_header

_BLOCK = 1 << 22


@dataclass(frozen=True)
class ArraySource:
    """An array that is read part by part."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[slice], NDArray[Any]]
    """Some of the first axis -> values."""
    at_once: int
    """So much of the first axis is one chunk."""

    @classmethod
    def of(cls, values: NDArray[Any]) -> "ArraySource":
        """Return the source of an array in memory."""
        return cls(values.shape, str(values.dtype), lambda part: np.asarray(values[part]), max(1, len(values)))


def array_difference(name: str, one: ArraySource, two: ArraySource) -> dict[str, Any] | None:
    """Compare two arrays of one shape; NaN equals NaN.

    Returns:
        None when all values are equal. Else `array`, `shape`, `dtype`, `n` values, `n_differ`; `largest_absolute`
        |a - b| and, unless both hold integers, `largest_relative` |a - b| / max(|a|, |b|), each with `value`, `index`,
        `a`, `b`, over finite pairs; `not_finite`: of pairs that differ and are not both finite how many, and the
        first. What there is none of is None.
    """
    integers = all(np.dtype(source.dtype).kind in "iub" for source in (one, two))
    work = np.int64 if integers else np.float64
    absolute, relative, n_differ, not_finite = _Largest(), _Largest(), 0, None
    n_not_finite, step = 0, max(one.at_once, two.at_once)
    for start in range(0, one.shape[0], step):
        a, b = (source.read(slice(start, start + step)).astype(work) for source in (one, two))
        differ = ~((a == b) | (np.isnan(a) & np.isnan(b)))
        if not differ.any():
            continue
        n_differ += int(np.count_nonzero(differ))
        finite = np.isfinite(a) & np.isfinite(b)
        odd = np.argwhere(differ & ~finite)
        n_not_finite += len(odd)
        if len(odd) and not_finite is None:
            not_finite = _place(a, b, tuple(odd[0]), start)
        a, b = np.where(finite, a, 0), np.where(finite, b, 0)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            apart = np.minimum(np.abs(a - b), np.finfo(np.float64).max)
            absolute.take(apart, a, b, start)
            if not integers:
                relative.take(np.where(apart > 0, apart / np.maximum(np.abs(a), np.abs(b)), 0), a, b, start)
    if not n_differ:
        return None
    return {
        "array": name,
        "shape": list(one.shape),
        "dtype": one.dtype,
        "n": int(np.prod(one.shape)),
        "n_differ": n_differ,
        "largest_absolute": absolute.found(integers),
        "largest_relative": relative.found(False),
        "not_finite": None if not_finite is None else {"n": n_not_finite, **not_finite},
    }


class _Largest:
    """The largest value so far, and where."""

    def __init__(self) -> None:
        self._value: float = 0
        self._at: dict[str, Any] = {}

    def take(self, values: NDArray[Any], a: NDArray[Any], b: NDArray[Any], start: int) -> None:
        index = np.unravel_index(np.argmax(values), values.shape)
        if values[index] > self._value:
            self._value, self._at = float(values[index]), _place(a, b, index, start)

    def found(self, integer: bool) -> dict[str, Any] | None:
        return {"value": int(self._value) if integer else self._value, **self._at} if self._at else None


def _place(a: NDArray[Any], b: NDArray[Any], index: tuple[Any, ...], start: int) -> dict[str, Any]:
    first, *rest = (int(i) for i in index)
    pair = {"a": a[index].item(), "b": b[index].item()}
    shown = {name: value if np.isfinite(value) else str(value) for name, value in pair.items()}  # JSON has no NaN
    return {"index": [first + start, *rest], **shown}


def rank_correlations(pairs: Iterator[tuple[str, NDArray[Any], NDArray[Any]]]) -> dict[str, Any]:
    """Return Spearman's rank correlation of vectors: the `worst`, the `median`, `n`, and the `undefined` by name.

    It is undefined where a vector is constant or not finite.
    """
    found: dict[str, float] = {}
    undefined: list[str] = []
    for name, one, two in pairs:
        if np.array_equal(one, two, equal_nan=True) and np.isfinite(one).all() and np.ptp(one) > 0:
            found[name] = 1.0
        elif all(np.isfinite(values).all() and np.ptp(values) > 0 for values in (one, two)):
            found[name] = float(spearmanr(one, two).statistic)
        else:
            undefined.append(name)
    worst = min(found, key=lambda name: found[name]) if found else None
    return {
        "n": len(found),
        "worst": None if worst is None else {"array": worst, "value": found[worst]},
        "median": float(np.median(list(found.values()))) if found else None,
        "undefined": undefined,
    }


def tensor_digests(path: Path) -> Iterator[tuple[str, str, tuple[int, ...], str]]:
    """Yield of every tensor of a safetensors file name, type, shape and the SHA-256 of its bytes.

    Raises:
        ArtifactError: no sound safetensors file.
    """
    try:
        header, start = read_safetensors_header(path)
        with open_regular(path) as file:
            for name, entry in header.items():
                if name != METADATA:
                    first, end = entry["data_offsets"]
                    file.seek(start + first)
                    digest = _sha256(file, end - first)
                    yield name, str(entry["dtype"]), tuple(entry["shape"]), digest
    except (OSError, ValueError) as err:
        raise ArtifactError(f"{path}: not a readable safetensors file ({err}). Make it again: {RUN}") from err


def _sha256(file: BinaryIO, n_bytes: int) -> str:
    digest = hashlib.sha256()
    for done in range(0, n_bytes, _BLOCK):
        digest.update(file.read(min(_BLOCK, n_bytes - done)))
    return digest.hexdigest()


def mask_differences(one: MaskFile, two: MaskFile, names: set[str]) -> list[dict[str, Any]]:
    """Compare masks module by module, one weight in memory at a time.

    Args:
        one: masks.
        two: others.
        names: of modules that both hold, in the same shapes.

    Returns:
        For every module `module`, `bits`, `n_differ`, `removed_a`, `removed_b`, `removed_both`, and `jaccard`, the
        share of the weights removed by either that are removed by both; 1 where neither removes any.

    Raises:
        ArtifactError: a mask does not hold as many zeros as its header says.
    """
    entries_of_two: Mapping[str, Any] = {entry["name"]: entry for entry in two.modules}
    rows: list[dict[str, Any]] = []
    held: dict[int, tuple[str, NDArray[np.bool_]]] = {}
    for entry in one.modules:  # modules of one weight come one after the other
        if entry["name"] not in names:
            continue
        kept = []
        for number, (masks, its) in enumerate(((one, entry), (two, entries_of_two[entry["name"]]))):
            if number not in held or held[number][0] != its["weight"]:
                held[number] = its["weight"], masks.keep(its["weight"])
            kept.append(view_of(held[number][1], its))
        removed_a, removed_b = ~kept[0], ~kept[1]
        both = int(np.count_nonzero(removed_a & removed_b))
        rows.append(
            {
                "module": entry["name"],
                "bits": int(removed_a.size),
                "n_differ": int(np.count_nonzero(removed_a != removed_b)),
                "removed_a": int(np.count_nonzero(removed_a)),
                "removed_b": int(np.count_nonzero(removed_b)),
                "removed_both": both,
            }
        )
        rows[-1]["jaccard"] = jaccard(rows[-1])
    return rows


def jaccard(row: Mapping[str, Any]) -> float:
    """Return the Jaccard index of two sets of removed weights from their sizes; 1 when both are empty."""
    either = row["removed_a"] + row["removed_b"] - row["removed_both"]
    return float(row["removed_both"] / either) if either else 1.0
