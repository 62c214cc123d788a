"""Writes the statistics artifact that `statistics_store.py` reads: layer by layer, the manifest last."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from neuronrank.errors import MismatchError
from neuronrank.files import write_json, write_tensors
from neuronrank.statistics import weight_sums
from neuronrank.statistics.document_frequency import DEFAULT_QUANTILE, document_frequency
from neuronrank.statistics.document_sums import UNITS
from neuronrank.statistics_store import MANIFEST, SCHEMA, TOTALS, total


class StatisticsWriter:
    """Fills a directory with the statistics of one model, layer after layer."""

    def __init__(self, directory: Path, n_layers: int, n_documents: int) -> None:
        self._directory = directory
        self._n_layers, self._n_documents = n_layers, n_documents
        self._root = zarr.open_group(directory / "taps.zarr", mode="w", zarr_format=3)
        self._weights: dict[str, NDArray[np.float32]] = {}

    def write_tokens(self, token_ids: NDArray[np.int32]) -> None:
        """Keep the calibration tokens, so that every document axis can be read back as text."""
        array = self._create("token_ids", token_ids.shape, token_ids.shape, "int32")
        array.attrs.update({"axes": ["document", "token"], "units": "token id"})
        array[:] = token_ids

    def write_layer(
        self, index: int, documents: Mapping[tuple[str, str], NDArray[np.float32]], weights: Mapping[str, Any]
    ) -> None:
        """Write one layer's sums, each as one chunk.

        Args:
            index: which layer.
            documents: (tap, statistic) -> (N, C).
            weights: name -> vector.

        Raises:
            MismatchError: a tap has another width than in an earlier layer.
        """
        for (tap, statistic), values in documents.items():
            name = f"{tap}/{statistic}"
            if name not in self._root:
                shape = (self._n_layers, *values.shape)
                created = self._create(name, shape, (1, *values.shape), "float32")
                created.attrs.update(
                    {"axes": ["layer", "document", "channel"], "units": UNITS[statistic], "over": "tokens"}
                )
            array: Any = self._root[name]
            if array.shape[2] != values.shape[1]:
                raise MismatchError(
                    f"layer {index}: tap {tap!r} has {values.shape[1]} channels, {array.shape[2]} in earlier layers"
                )
            array[index] = values
        self._weights.update(weights)

    def finish(self, manifest: Mapping[str, Any]) -> None:
        """Write the derived arrays, the weight vectors and, last, the manifest.

        Args:
            manifest: provenance and modules; the schema and the taps are added here.
        """
        taps: dict[str, Any] = {}
        for tap, group in self._root.groups():
            arrays = dict(sorted(group.arrays()))
            taps[tap] = {"channels": next(iter(arrays.values())).shape[2], "statistics": list(arrays)}
            for name, array in arrays.items():
                self._derive(tap, name, array)
        write_tensors(
            self._directory / "weights.safetensors", self._weights, {"schema": SCHEMA, "units": weight_sums.UNITS}
        )
        write_json(self._directory / MANIFEST, {"schema": SCHEMA, **manifest, "taps": taps})

    def _derive(self, tap: str, statistic: str, source: Any) -> None:
        layers = range(self._n_layers)
        if statistic in TOTALS:
            totals = np.stack([total(source[layer]) for layer in layers])
            what = "a^2" if statistic == "sum_sq" else "|a|"
            definition = f"sum over all calibration tokens of {what}"
            self._write_derived(f"{tap}/{TOTALS[statistic]}", totals, source.attrs["units"], definition)
        if statistic == "sum_abs":
            counts = np.stack([document_frequency(source[layer], DEFAULT_QUANTILE) for layer in layers]).astype(
                np.int32
            )
            definition = f"documents whose mean |a| reaches the {DEFAULT_QUANTILE} quantile pooled over the tap"
            self._write_derived(f"{tap}/df_count", counts, "document", definition)

    def _write_derived(self, name: str, values: NDArray[Any], units: str, definition: str) -> None:
        array = self._create(name, values.shape, values.shape, str(values.dtype))
        array.attrs.update({"axes": ["layer", "channel"], "units": units, "definition": definition, "derived": True})
        array[:] = values

    def _create(self, name: str, shape: Any, chunks: Any, dtype: str) -> Any:
        # A chunk that is missing reads as the fill value: one that no sum and no count can have.
        fill = math.nan if dtype.startswith("float") else -1
        # lz4 with bit shuffling: 1.2 times smaller than raw float32 at over 600 MB/s; zarr's default gains less.
        codec = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle")
        return self._root.create_array(
            name, shape=shape, chunks=chunks, dtype=dtype, fill_value=fill, compressors=[codec]
        )
