"""Writes the statistics artifact that `statistics_store.py` reads: layer by layer, the manifest last."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, TransposeCodec

from neuronrank.document_frequency import DEFAULT_QUANTILE, document_frequency
from neuronrank.errors import MismatchError
from neuronrank.files import write_json, write_tensors
from neuronrank.profiles import PROFILES, ProfileName
from neuronrank.sketch import MagnitudeSketch
from neuronrank.statistics_schema import ARRAYS, QUANTILES, SCHEMA, TOTALS, Spec
from neuronrank.statistics_store import MANIFEST

Arrays = Mapping[tuple[str, str], NDArray[Any]]

WEIGHT_UNITS = {"sum_abs": "weight", "sum_sq": "weight^2", "max_abs": "weight"}


class StatisticsWriter:
    """Fills a directory with the statistics of one model, layer after layer."""

    def __init__(self, directory: Path, n_layers: int, profile: ProfileName) -> None:
        self._directory = directory
        self._n_layers, self._profile = n_layers, profile
        self._root = zarr.open_group(directory / "taps.zarr", mode="w", zarr_format=3)
        self._weights: dict[str, NDArray[np.float32]] = {}
        self._stacked: dict[tuple[str, str], list[NDArray[Any]]] = {}

    def write_tokens(self, token_ids: NDArray[np.int32]) -> None:
        """Keep the (N, T) calibration tokens, so that every document axis can be read back as text."""
        self._write("token_ids", token_ids, ("document", "token"), "token id")

    def write_classes(self, token_ids: NDArray[np.int32], count: NDArray[np.int64]) -> None:
        """Keep which token ids the classes are, (M,), and the tokens of each and of all others, (M + 1,)."""
        self._write("classes/token_ids", token_ids, ("class",), "token id")
        self._write("classes/count", count, ("class",), "token")

    def write_layer(self, index: int, arrays: Arrays, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Write one layer, each large array as one chunk; small ones wait for `finish`.

        Args:
            index: which layer; layers come in order.
            arrays: (tap or `topics`, array) -> values without the layer axis.
            weights: name -> vector.

        Raises:
            MismatchError: an array has another shape than in an earlier layer.
        """
        for (group, name), values in self._derived(arrays).items():
            spec = ARRAYS[name]
            if spec.stacked:
                self._stacked.setdefault((group, name), []).append(values)
                continue
            path = f"{group}/{name}"
            if path not in self._root:
                self._create(path, (self._n_layers, *values.shape), (1, *values.shape), values.dtype, spec)
            array: Any = self._root[path]
            if array.shape[1:] != values.shape:
                raise MismatchError(f"layer {index}: {path} has shape {values.shape}, earlier layers {array.shape[1:]}")
            array[index] = values
        self._weights.update(weights)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the small arrays, the weight vectors and, last, the manifest.

        Args:
            manifest: provenance and modules; the schema, the profile and the taps are added here.

        Raises:
            MismatchError: an array has another shape in some layer.
        """
        for (group, name), layers in sorted(self._stacked.items()):
            if len({values.shape for values in layers}) > 1:
                raise MismatchError(f"{group}/{name}: shapes differ between layers: {[v.shape for v in layers]}")
            stacked = np.stack(layers)
            self._create(f"{group}/{name}", stacked.shape, stacked.shape, stacked.dtype, ARRAYS[name])[:] = stacked
        groups = {group: sorted(name for name, _ in content.arrays()) for group, content in self._root.groups()}
        write_tensors(self._directory / "weights.safetensors", self._weights, {"schema": SCHEMA, "units": WEIGHT_UNITS})
        held = {"profile": self._profile, "arrays": dict(sorted(groups.items()))}
        write_json(self._directory / MANIFEST, {"schema": SCHEMA, **manifest, **held})

    def _derived(self, arrays: Arrays) -> dict[tuple[str, str], NDArray[Any]]:
        """Round, add totals and derived arrays, and drop the document sums that the profile does not keep."""
        kept: dict[tuple[str, str], NDArray[Any]] = {}
        for (group, name), values in arrays.items():
            rounded = self._rounded(name, values)
            if name in TOTALS:
                kept[group, TOTALS[name]] = (
                    rounded.max(axis=0) if name == "max_abs" else rounded.sum(axis=0, dtype=np.float64)
                )
                if name == "sum_abs":
                    kept[group, "df_count"] = document_frequency(rounded, DEFAULT_QUANTILE).astype(np.int32)
                if name not in PROFILES[self._profile].documents.get(group, ()):
                    continue
            if name == "sketch_count":
                sketch = MagnitudeSketch(values, arrays[group, "sum_abs"].sum(axis=0, dtype=np.float64))
                quantiles = [sketch.quantile(quantile) for quantile in QUANTILES]
                kept[group, "quantiles"] = self._rounded("quantiles", np.stack(quantiles).astype(np.float32))
            kept[group, name] = rounded
        return kept

    def _rounded(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        bits = ARRAYS[name].kept_bits if PROFILES[self._profile].rounded else None
        return values if bits is None else round_mantissa(values, bits)

    def _write(self, path: str, values: NDArray[Any], axes: tuple[str, ...], units: str) -> None:
        created = self._create(path, values.shape, values.shape, values.dtype, None)
        created.attrs.update({"axes": list(axes), "units": units})
        created[:] = values

    def _create(self, path: str, shape: Any, chunks: Any, dtype: Any, spec: Spec | None) -> Any:
        # A chunk that is missing reads as the fill value: one that no sum and no count can have.
        fill = {"f": math.nan, "i": -1, "u": np.iinfo(dtype).max if dtype.kind == "u" else 0}[dtype.kind]
        # Rounded floats and counts: bit shuffling puts their constant bits side by side.
        codec = BloscCodec(cname="zstd", clevel=6, shuffle="bitshuffle")
        # The documents and the classes of a channel are alike: side by side they compress better.
        alike = spec is not None and spec.axes in (("document", "channel"), ("class", "channel"))
        filters = [TransposeCodec(order=(0, 2, 1))] if alike else []
        array = self._root.create_array(
            path, shape=shape, chunks=chunks, dtype=dtype, fill_value=fill, filters=filters, compressors=[codec]
        )
        if spec:
            about = {"axes": ["layer", *spec.axes], "units": spec.units, "definition": spec.definition}
            array.attrs.update({**about, "derived": spec.derived})
        return array


def round_mantissa(values: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """Round float32 to so many bits after the leading one, halves to even; the rest of the mantissa becomes zero.

    The relative error is at most 2^-(bits + 1). Values near the largest float32 must not occur.
    """
    dropped = 23 - bits
    pattern = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    last_kept = (pattern >> np.uint32(dropped)) & np.uint32(1)
    rounded = pattern + (np.uint32((1 << (dropped - 1)) - 1) + last_kept)
    return np.asarray((rounded & ~np.uint32((1 << dropped) - 1)).view(np.float32))
