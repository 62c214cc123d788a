"""The statistics artifact, read without torch and without the model; `statistics_writer.py` writes it.

    artifacts/statistics/
      manifest.json        schema, provenance, modules and taps; written last, so that its presence means "complete"
      taps.zarr/           Zarr v3: <tap>/<statistic>, (layer, document, channel) float32, one chunk a layer
      weights.safetensors  <module>.<row|column>_<statistic> float32 vectors

Every array says its axes and units in its attributes. Beside the per-document sums each tap has small arrays at
default settings, for people who open the store with plain zarr: `wanda_sum_sq`, `tf_sum`, `df_count`.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from neuronrank.errors import ArtifactError, MismatchError
from neuronrank.files import check_schema, read_json
from neuronrank.statistics.document_frequency import DEFAULT_QUANTILE, document_frequency

SCHEMA = "neuronrank.statistics/1"
_REQUIRED = ("model", "calibration", "collect", "n_layers", "modules", "taps")
MANIFEST = "manifest.json"
_RUN = "dvc repro collect"
_BLOCK_BYTES = 256 << 20
"""How much of one array is read at once, unless one layer alone is larger."""


TOTALS = {"sum_sq": "wanda_sum_sq", "sum_abs": "tf_sum"}
"""Sums over documents that are kept beside the per-document sums."""


_DERIVED_FROM = {**{derived: source for source, derived in TOTALS.items()}, "df_count": "sum_abs"}


def total(documents: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum over documents in float64."""
    return np.asarray(documents.sum(axis=0, dtype=np.float64))


@dataclass(frozen=True)
class Module:
    """One linear module, as the manifest lists it."""

    name: str
    """As in the model, for example `model.layers.3.mlp.down_proj`."""
    layer: int
    part: str
    shape: tuple[int, int]
    """(O, I) of its weight."""
    input_tap: str
    neuron_tap: str
    neuron_axis: str


@dataclass(frozen=True)
class TapStatistics:
    """One tap of one layer, over the first `n_documents` documents."""

    where: str
    """For messages, for example `layer 3, tap 'neuron'`."""
    n_documents: int
    n_tokens: int
    """Per document."""
    _store: "Statistics"
    _layer: int
    _tap: str

    def documents(self, statistic: str) -> NDArray[np.float32]:
        """Return (D, C) sums over the tokens of each document.

        Raises:
            ArtifactError: the artifact does not hold this statistic of this tap.
        """
        return self._store.layer_values(self._layer, self._tap, statistic)[: self.n_documents]

    def total(self, statistic: str) -> NDArray[np.float64]:
        """Return (C,) sums over all tokens of the documents.

        Raises:
            ArtifactError: the artifact does not hold this statistic of this tap.
        """
        derived = TOTALS.get(statistic)
        if derived and self.n_documents == self._store.n_documents:
            return np.asarray(self._store.layer_values(self._layer, self._tap, derived))
        return total(self.documents(statistic))

    def document_frequency(self, quantile: float) -> NDArray[np.int64]:
        """Return (C,) counts of documents whose mean |a| reaches the quantile pooled over the tap.

        Raises:
            ArtifactError: the artifact does not hold `sum_abs` of this tap.
        """
        if quantile == DEFAULT_QUANTILE and self.n_documents == self._store.n_documents:
            return np.asarray(self._store.layer_values(self._layer, self._tap, "df_count"))
        return document_frequency(self.documents("sum_abs"), quantile)


class Statistics:
    """A complete statistics artifact, opened for reading."""

    def __init__(self, directory: Path) -> None:
        """Read the manifest; arrays are read, and found missing or corrupt, when they are asked for.

        Raises:
            ArtifactError: missing, incomplete, corrupt, or of another schema.
        """
        self.directory = directory
        self.manifest: dict[str, Any] = read_json(directory / MANIFEST, run=_RUN)
        check_schema(directory / MANIFEST, self.manifest, SCHEMA, _RUN, _REQUIRED)
        try:
            self._root = zarr.open_group(directory / "taps.zarr", mode="r", zarr_format=3)
        except (FileNotFoundError, ValueError) as err:
            raise ArtifactError(f"{directory / 'taps.zarr'}: not a readable Zarr group ({err}). Run: {_RUN}") from err
        self.modules = [Module(**{**entry, "shape": tuple(entry["shape"])}) for entry in self.manifest["modules"]]
        self.n_documents: int = self.manifest["calibration"]["n_windows"]
        self._arrays: dict[str, Any] = {}
        self._blocks: dict[str, tuple[int, NDArray[Any]]] = {}

    def tap(self, layer: int, tap: str, n_documents: int | None) -> TapStatistics:
        """Return one tap of one layer, over the first `n_documents` documents or all.

        Raises:
            MismatchError: more documents are asked for than were collected.
        """
        n = self.n_documents if n_documents is None else n_documents
        if n > self.n_documents:
            raise MismatchError(
                f"{self.directory}: holds {self.n_documents} documents, nsamples {n} were asked for. "
                f"Raise prepare.calibration_windows and run: {_RUN}"
            )
        n_tokens = self.manifest["calibration"]["window_tokens"]
        return TapStatistics(f"layer {layer}, tap {tap!r}", n, n_tokens, self, layer, tap)

    def layer_values(self, layer: int, tap: str, statistic: str) -> NDArray[Any]:
        """Return one layer of an array, without its layer axis; neighbouring layers are read along with it.

        Raises:
            ArtifactError: the artifact does not hold this statistic, or its data are corrupt or missing.
        """
        array = self._array(tap, statistic)
        per_block = max(1, _BLOCK_BYTES // (array.dtype.itemsize * math.prod(array.shape[1:])))
        block, offset = divmod(layer, per_block)
        if self._blocks.get(array.name, (None,))[0] != block:
            values = self._read(array, slice(block * per_block, (block + 1) * per_block))
            self._blocks[array.name] = (block, values)
        return np.asarray(self._blocks[array.name][1][offset])

    def _array(self, tap: str, statistic: str) -> Any:
        name = f"{tap}/{statistic}"
        if name not in self._arrays:
            if name not in self._root:
                held = ", ".join(self.manifest["taps"].get(tap, {}).get("statistics", [])) or "nothing"
                needed = _DERIVED_FROM.get(statistic, statistic)
                raise ArtifactError(f"{self.directory}: tap {tap!r} holds {held}, {needed!r} is needed. Run: {_RUN}")
            self._arrays[name] = self._root[name]
        return self._arrays[name]

    def _read(self, array: Any, layers: slice) -> NDArray[Any]:
        try:
            values = np.asarray(array[layers])
        except (OSError, ValueError, RuntimeError) as err:
            raise ArtifactError(f"{self.directory}: {array.name} is corrupt ({err}). Run: {_RUN}") from err
        if not np.isfinite(values).all() or (values.dtype.kind == "i" and (values < 0).any()):
            raise ArtifactError(f"{self.directory}: {array.name} has missing or impossible values. Run: {_RUN}")
        return values
