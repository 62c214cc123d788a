"""Writes the statistics artifact that `statistics_store.py` reads: layer by layer, the manifest last."""

import math
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, TransposeCodec

from neuronrank.derived import derived_arrays
from neuronrank.document_frequency import DEFAULT_QUANTILE, active_means, document_frequency
from neuronrank.errors import MismatchError
from neuronrank.files import read_tensors, write_sealed_json, write_tensors
from neuronrank.profiles import PROFILES, ProfileName
from neuronrank.provenance import file_entries, made_from, versions
from neuronrank.seals import check_tensor_file
from neuronrank.statistics_schema import ARRAYS, SCHEMA, TOTALS, Spec
from neuronrank.statistics_store import MANIFEST
from neuronrank.tap_names import base, expert

Arrays = Mapping[tuple[str, str], NDArray[Any]]

_WRITERS = 4
_LEVEL = 2
"""Of zstd. Six takes six times as long for 3 % less."""

WEIGHT_UNITS = {"sum_abs": "weight", "sum_sq": "weight^2", "max_abs": "weight"}


class StatisticsWriter:
    """Fills a directory with the statistics of one model, layer after layer.

    A layer's large arrays are chunks of their own; its small ones and its weight vectors wait in a file,
    whose presence says that the layer is complete. So a run that was interrupted goes on with the first incomplete
    layer.
    """

    def __init__(self, directory: Path, n_layers: int, profile: ProfileName) -> None:
        """Begin, or go on where an earlier writer was interrupted.

        Args:
            directory: holds `artifact/`, which is the artifact in the end, and `layers/`.
            n_layers: of the model.
            profile: decides what is kept and how it is rounded.
        """
        self._directory, self._layers = directory / "artifact", directory / "layers"
        self._n_layers, self._profile = n_layers, profile
        self._root = zarr.open_group(self._directory / "taps.zarr", mode="a", zarr_format=3)
        self._open: dict[str, Any] = {}
        self._class_count: NDArray[np.int64] = np.zeros(1, dtype=np.int64)

    @property
    def n_complete(self) -> int:
        """How many layers, from the first, are written."""
        return next(index for index in range(self._n_layers + 1) if not self._waiting(index).exists())

    def restart(self) -> None:
        """Begin with the first layer, whatever an earlier writer has written."""
        shutil.rmtree(self._layers, ignore_errors=True)

    def _waiting(self, index: int) -> Path:
        return self._layers / f"{index:05d}.safetensors"

    def write_tokens(self, token_ids: NDArray[np.int32]) -> None:
        """Keep the (N, T) calibration tokens, so that every document axis can be read back as text."""
        self._write("token_ids", token_ids, ("document", "token"), "token id")

    def write_classes(self, token_ids: NDArray[np.int32], count: NDArray[np.int64]) -> None:
        """Keep which token ids the classes are, (M,), and the tokens of each and of all others, (M + 1,).

        Called before the first layer, also when going on: what is derived of classes needs them.
        """
        self._class_count = count
        self._write("classes/token_ids", token_ids, ("class",), "token id")
        self._write("classes/count", count, ("class",), "token")

    def write_layer(
        self,
        index: int,
        arrays: Arrays,
        weights: Mapping[str, NDArray[np.float32]],
    ) -> None:
        """Write one layer, each large array as one chunk; small ones wait for `finish`.

        Args:
            index: which layer; layers come in order.
            arrays: (tap or `topics`, array) -> values without the layer axis.
            weights: name -> vector.

        Raises:
            MismatchError: an array has another shape than in an earlier layer.
        """
        kept = self._kept(arrays)
        chunks: list[tuple[Any, NDArray[Any]]] = []
        waiting: dict[str, NDArray[Any]] = {f"weights/{name}": values for name, values in weights.items()}
        for (group, name), values in _experts_together(kept).items():
            spec = ARRAYS[name]
            if spec.stacked:
                waiting[f"stacked/{group}/{name}"] = values
                continue
            path = f"{group}/{name}"
            array = self._array(path, (self._n_layers, *values.shape), (1, *values.shape), values.dtype, spec)
            if array.shape[1:] != values.shape:
                raise MismatchError(f"layer {index}: {path} has shape {values.shape}, earlier layers {array.shape[1:]}")
            chunks.append((array, values))
        with ThreadPoolExecutor(_WRITERS) as pool:  # compressing and linear algebra let go of the interpreter's lock
            writes = [pool.submit(array.__setitem__, index, values) for array, values in chunks]
            derived = self._derived(kept)  # in this thread, the one whose limits on threads linear algebra heeds
            for write in writes:
                write.result()
        for (group, name), values in _experts_together(derived).items():
            waiting[f"stacked/{group}/{name}"] = values
        write_tensors(self._waiting(index), waiting, {})

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the small arrays, the weight vectors and, last, the manifest.

        Args:
            manifest: provenance and modules; the schema, the profile, the taps, the versions of libraries and the
                list of files are added here.

        Raises:
            MismatchError: an array has another shape in some layer.
        """
        weights: dict[str, NDArray[Any]] = {}
        stacked: dict[str, list[NDArray[Any]]] = {}
        for index in range(self._n_layers):
            check_tensor_file(self._waiting(index), "dvc repro collect")
            for name, values in read_tensors(self._waiting(index)).items():
                kind, _, path = name.partition("/")
                if kind == "weights":
                    weights[path] = values
                else:
                    stacked.setdefault(path, []).append(values)
        for path, layers in sorted(stacked.items()):
            if len({values.shape for values in layers}) > 1:
                raise MismatchError(f"{path}: shapes differ between layers: {[values.shape for values in layers]}")
            together = np.stack(layers)
            spec = ARRAYS[path.partition("/")[2]]
            self._array(path, together.shape, together.shape, together.dtype, spec)[:] = together
        groups = {group: sorted(name for name, _ in content.arrays()) for group, content in self._root.groups()}
        write_tensors(self._directory / "weights.safetensors", weights, {"schema": SCHEMA, "units": WEIGHT_UNITS})
        held = {"profile": self._profile, "arrays": dict(sorted(groups.items()))}
        (self._directory / MANIFEST).unlink(missing_ok=True)  # of a run that was interrupted after it
        files = file_entries(self._directory, (path for path in self._directory.rglob("*") if path.is_file()))
        whole = {"versions": versions(), "made_from": made_from(manifest), "files": files}
        write_sealed_json(self._directory / MANIFEST, {"schema": SCHEMA, **manifest, **held, **whole})

    def stored(self, arrays: Arrays) -> dict[tuple[str, str], NDArray[Any]]:
        """Return what is stored of a layer: rounded, with totals and derived arrays, without what is not kept."""
        kept = self._kept(arrays)
        return kept | self._derived(kept)

    def _kept(self, arrays: Arrays) -> dict[tuple[str, str], NDArray[Any]]:
        kept: dict[tuple[str, str], NDArray[Any]] = {}
        for (group, name), values in arrays.items():
            rounded = self._rounded(name, values)
            if name in TOTALS:
                kept[group, TOTALS[name]] = (
                    rounded.max(axis=0) if name == "max_abs" else rounded.sum(axis=0, dtype=np.float64)
                )
                if name == "sum_abs":
                    activity = active_means(rounded, arrays.get((group, "n_tokens")))
                    kept[group, "df_count"] = document_frequency(activity, DEFAULT_QUANTILE).astype(np.int32)
                if name not in PROFILES[self._profile].documents.get(base(group), ()):
                    continue
            kept[group, name] = rounded
        return kept

    def _derived(self, kept: Arrays) -> dict[tuple[str, str], NDArray[Any]]:
        derived = derived_arrays(kept, self._class_count)
        return {key: self._rounded(key[1], values) for key, values in derived.items()}

    def _rounded(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        bits = ARRAYS[name].kept_bits if PROFILES[self._profile].rounded else None
        return values if bits is None else round_mantissa(values, bits)

    def _write(self, path: str, values: NDArray[Any], axes: tuple[str, ...], units: str) -> None:
        about = {"axes": list(axes), "units": units}
        self._array(path, values.shape, values.shape, values.dtype, about)[:] = values

    def _array(self, path: str, shape: Any, chunks: Any, dtype: Any, about: Spec | dict[str, Any]) -> Any:
        """Return an array of the store; made, with its description at once, when it is not there."""
        if path in self._open:
            return self._open[path]
        if "/" in path:  # written with the array at once: a full disk may have left that alone, to be listed nowhere
            self._root.require_group(path.rpartition("/")[0])
        if path in self._root:
            self._open[path] = self._root[path]
            return self._open[path]
        # A chunk that is missing reads as the fill value: one that no sum and no count can have.
        fill = {"f": math.nan, "i": -1, "u": np.iinfo(dtype).max if dtype.kind == "u" else 0}[dtype.kind]
        # Rounded floats and counts: bit shuffling puts their constant bits side by side.
        codec = BloscCodec(cname="zstd", clevel=_LEVEL, shuffle="bitshuffle")
        # The documents and the classes of a channel are alike: side by side they compress better.
        alike = isinstance(about, Spec) and about.axes in (("document", "channel"), ("class", "channel"))
        outer = range(len(shape) - 2)
        self._open[path] = self._root.create_array(
            path,
            shape=shape,
            chunks=chunks,
            dtype=dtype,
            fill_value=fill,
            filters=[TransposeCodec(order=(*outer, len(shape) - 1, len(shape) - 2))] if alike else [],
            compressors=[codec],
            attributes=about if isinstance(about, dict) else _attributes(about, len(shape)),
            config={"write_empty_chunks": True},  # no chunk is: looking for one takes as long as compressing
        )
        return self._open[path]


def _experts_together(arrays: Arrays) -> Arrays:
    """Return arrays of taps inside experts stacked, the experts in order, each tap by its name without the number."""
    together: dict[tuple[str, str], Any] = {}
    for (tap, name), values in sorted(arrays.items(), key=lambda item: expert(item[0][0]) or 0):
        if expert(tap) is None:
            together[tap, name] = values
        else:
            together.setdefault((base(tap), name), []).append(values)
    return {key: np.stack(values) if isinstance(values, list) else values for key, values in together.items()}


def _attributes(spec: Spec, n_axes: int) -> dict[str, Any]:
    of_experts = ["expert"] if n_axes > len(spec.axes) + 1 else []
    about = {"axes": ["layer", *of_experts, *spec.axes], "units": spec.units, "definition": spec.definition}
    return {**about, "derived": spec.derived}


def round_mantissa(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Round float32 to so many bits after the leading one, halves to even; the rest of the mantissa becomes zero.

    The relative error is at most 2^-(bits + 1). Values near the largest float32 must not occur.
    """
    dropped = 23 - bits
    pattern = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    last_kept = (pattern >> np.uint32(dropped)) & np.uint32(1)
    rounded = pattern + (np.uint32((1 << (dropped - 1)) - 1) + last_kept)
    return np.asarray((rounded & ~np.uint32((1 << dropped) - 1)).view(np.float32))
