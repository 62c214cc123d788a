"""The statistics artifact, read without torch and without the model; `statistics_writer.py` writes it.

    artifacts/statistics/
      manifest.json        schema, provenance, modules and taps; written last, so that its presence means "complete"
      taps.zarr/           Zarr v3: <tap>/<array>, topics/<array>, classes/<array>; the first axis is the layer
      weights.safetensors  <module>.<row|column>_<statistic> float32 vectors

Every array says its axes, units and definition in its attributes; `statistics_schema.py` lists them. Small arrays at
default settings are for people who open the store with plain zarr, `wanda_sum_sq`, `tf_sum`, `df_count`, `quantiles`,
and for scoring at them: `derived.py`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import zarr
from numpy.typing import NDArray

from neuronrank.array_bounds import UNSOUND, require_stored
from neuronrank.errors import ArtifactError, MismatchError
from neuronrank.files import UNREADABLE, read_sealed_json
from neuronrank.headers import Manifest, check_header
from neuronrank.profiles import PROFILES, smallest_with
from neuronrank.statistics_schema import IMPORTED, SCHEMA, TOKEN_IDS
from neuronrank.tap_names import EXPERT_TAPS, base, block, expert, n_experts, of_expert
from neuronrank.tap_statistics import TapStatistics
from neuronrank.verified_store import VerifiedStore, read_listed

MANIFEST = "manifest.json"
WEIGHTS_FILE = "weights.safetensors"
TAPS = "taps.zarr"
_RUN = "dvc repro collect"
_BLOCK_BYTES = 128 << 20
"""How much of one array is read at once, unless one layer alone is larger."""


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
    weight: str
    """Tensor of the checkpoint."""
    rows: tuple[int, int, int] | None
    """Offset, block and period of its rows, when several modules share the tensor; `module_views.Rows`."""
    transposed: bool
    """Whether the tensor is stored as (I, O)."""

    @property
    def block(self) -> str:
        """Which MLP its neurons belong to, when it has any: that of the layer, or of one expert."""
        return block(self.layer, self.neuron_tap)


def module_of(entry: dict[str, Any]) -> Module:
    """Return a module of its entry in the manifest."""
    return Module(**{**{name.name: entry[name.name] for name in fields(Module)}, "shape": tuple(entry["shape"])})


def read_manifest(directory: Path) -> dict[str, Any]:
    """Read and check the manifest of a statistics artifact.

    Raises:
        ArtifactError: missing, changed after it was written, of another schema, or not what its schema promises.
    """
    path = directory / MANIFEST
    manifest = read_sealed_json(path, SCHEMA, _RUN)
    check_header(path, manifest, Manifest, _RUN)
    if manifest["profile"] not in PROFILES:
        raise ArtifactError(f"{path}: profile is {manifest['profile']!r}, there are {', '.join(PROFILES)}. Run: {_RUN}")
    beyond = [module["name"] for module in manifest["modules"] if module["layer"] >= manifest["n_layers"]]
    if beyond:
        raise ArtifactError(f"{path}: {beyond[0]} is in no layer of {manifest['n_layers']}. Run: {_RUN}")
    return manifest


def _made_by(manifest: Mapping[str, Any]) -> str:
    """Return the command that makes such an artifact again."""
    return "neuronrank import-imatrix" if manifest["collect"]["propagation"] == IMPORTED else _RUN


def listed_store(directory: Path, manifest: Mapping[str, Any]) -> VerifiedStore:
    """Return the Zarr store of a statistics artifact; only what its manifest lists can be read of it."""
    start = f"{TAPS}/"
    listed = {path.removeprefix(start): entry for path, entry in manifest["files"].items() if path.startswith(start)}
    return VerifiedStore(directory / TAPS, listed, _made_by(manifest))


class Statistics:
    """A complete statistics artifact, opened for reading."""

    def __init__(self, directory: Path) -> None:
        """Read and check the manifest; arrays are read, and checked against it, when they are asked for.

        Raises:
            ArtifactError: missing, incomplete, corrupt, or of another schema.
        """
        self.directory = directory
        self.manifest: dict[str, Any] = read_manifest(directory)
        try:
            self._store = listed_store(directory, self.manifest)
            self._root = zarr.open_group(self._store, mode="r", zarr_format=3)
        except UNSOUND as err:
            raise ArtifactError(f"{directory / TAPS}: not a readable Zarr group ({err}). Run: {self._run}") from err
        self.modules = [module_of(entry) for entry in self.manifest["modules"]]
        self.n_documents: int = self.manifest["calibration"]["n_windows"]
        self._arrays: dict[str, Any] = {}
        self._weights: dict[str, NDArray[np.float32]] | None = None
        self._blocks: dict[str, tuple[range, NDArray[Any]]] = {}
        self._counted: NDArray[np.int64] | None = None

    @property
    def is_imported(self) -> bool:
        """Whether they come from an importance matrix."""
        return bool(self.manifest["collect"].get("propagation") == IMPORTED)

    def tap(self, layer: int, tap: str, n_documents: int | None) -> TapStatistics:
        """Return one tap of one layer, over the first `n_documents` documents or all.

        Raises:
            MismatchError: more documents are asked for than were collected.
        """
        n = self.n_documents if n_documents is None else n_documents
        if n > self.n_documents and self.is_imported:
            raise MismatchError(
                f"{self.directory}: was imported from an importance matrix, which does not tell documents apart; "
                f"nsamples {n} cannot be taken from it. Leave nsamples out, or collect the statistics: {_RUN}"
            )
        if n > self.n_documents:
            raise MismatchError(
                f"{self.directory}: holds {self.n_documents} documents, nsamples {n} were asked for. "
                f"Raise prepare.calibration_windows and run: {_RUN}"
            )
        n_tokens, number = self.manifest["calibration"]["window_tokens"], expert(tap)
        where = f"layer {layer}, {'' if number is None else f'expert {number}, '}tap {base(tap)!r}"
        return TapStatistics(where, n, n_tokens, self, layer, tap)

    def layer_values(self, layer: int, tap: str, statistic: str) -> NDArray[Any]:
        """Return one layer of an array, without its layer axis; neighbouring layers are read along with it.

        Of a tap inside an expert the expert's, without that axis; of its name without the number those of all experts.

        Raises:
            ArtifactError: the artifact does not hold this statistic, or its data are corrupt or missing.
        """
        group, number = base(tap), expert(tap)
        path = f"{group}/{statistic}"
        if path not in self._blocks or layer not in self._blocks[path][0]:
            array = self._array(group, statistic)
            per_block = max(1, _BLOCK_BYTES // (max(1, array.dtype.itemsize * math.prod(array.shape[1:]))))
            first = layer // per_block * per_block
            layers = range(first, first + per_block)
            self._blocks[path] = layers, self._read(array, slice(layers.start, layers.stop))
        layers, held = self._blocks[path]
        values = held[layer - layers.start]
        return np.asarray(values if number is None else values[number])

    def routed_tokens(self) -> NDArray[np.int64] | None:
        """Return (layers, experts) tokens that were routed to each expert; None where there are no experts."""
        if "n_tokens" not in self.manifest["arrays"].get("mlp_in", []):
            return None
        layers = range(self.manifest["n_layers"])
        return np.stack([self.layer_values(layer, "mlp_in", "n_tokens").sum(axis=1) for layer in layers])

    def taps_of(self, group: str) -> list[str]:
        """Return the taps whose arrays lie in a group: itself, or one for every expert."""
        if group not in EXPERT_TAPS or self._n_experts is None:
            return [group]
        return [of_expert(group, number) for number in range(self._n_experts)]

    @cached_property
    def _n_experts(self) -> int | None:
        return n_experts(module.input_tap for module in self.modules)

    def class_count(self) -> NDArray[np.int64]:
        """Return (M + 1,) tokens of each class and of all others.

        Raises:
            ArtifactError: the artifact holds no classes.
        """
        if self._counted is None:
            self._counted = self._read(self._array("classes", "count"), slice(None))
        return self._counted

    def class_token_ids(self) -> NDArray[np.int32]:
        """Return (M,) the token id of each class, most frequent first.

        Raises:
            ArtifactError: the artifact holds no classes.
        """
        return np.asarray(self._read(self._array("classes", "token_ids"), slice(None)))

    def token_ids(self) -> NDArray[np.int32]:
        """Return the (N, T) calibration tokens.

        Raises:
            ArtifactError: the artifact does not hold them, or they are corrupt.
        """
        return np.asarray(self.read(TOKEN_IDS))

    def weight_sums(self, module: str, name: str) -> NDArray[np.float32]:
        """Return a vector of a module's weight, for example `row_sum_sq`, (O,).

        Raises:
            ArtifactError: missing or corrupt.
        """
        held = self.all_weight_sums()
        if f"{module}.{name}" not in held:
            raise ArtifactError(f"{self.directory / WEIGHTS_FILE}: has no {name} of {module}. Run: {self._run}")
        return held[f"{module}.{name}"]

    def all_weight_sums(self) -> dict[str, NDArray[np.float32]]:
        """Return every vector of the weights, by `<module>.<row or column>_<statistic>`.

        Raises:
            ArtifactError: missing or corrupt.
        """
        path = self.directory / WEIGHTS_FILE
        if self._weights is None:
            self._weights = self._read_weights(path)
        return self._weights

    @property
    def array_paths(self) -> list[str]:
        """Paths of all arrays of the Zarr store, `<tap>/<array>`, the calibration tokens last."""
        held = [f"{group}/{name}" for group, names in sorted(self.manifest["arrays"].items()) for name in names]
        return [*held, *([TOKEN_IDS] if f"{TAPS}/{TOKEN_IDS}/zarr.json" in self.manifest["files"] else [])]

    def stored(self, path: str) -> Any:
        """Return one of `array_paths` for its `shape`, `dtype`, `chunks` and `attrs`; `read` checks the values.

        Raises:
            ArtifactError: the artifact does not hold it.
        """
        tap, _, name = path.rpartition("/")
        return self._array(tap, name)

    def read(self, path: str, layers: slice = slice(None)) -> NDArray[Any]:
        """Return an array, or some of its first axis; only the chunks that those lie in are read.

        Raises:
            ArtifactError: the artifact does not hold it, or its data are corrupt or missing.
        """
        return self._read(self.stored(path), layers)

    def _read_weights(self, path: Path) -> dict[str, NDArray[np.float32]]:
        if WEIGHTS_FILE not in self.manifest["files"]:
            raise ArtifactError(f"{path}: the manifest does not list this file. Run: {self._run}")
        content = read_listed(path, self.manifest["files"][WEIGHTS_FILE], self._run)  # some vectors of every module
        try:
            return dict(safetensors.numpy.load(content))
        except UNREADABLE as err:
            raise ArtifactError(f"{path}: not a readable safetensors file ({err}). Run: {self._run}") from err

    def _array(self, tap: str, name: str) -> Any:
        path = f"{tap}/{name}" if tap else name
        if path not in self._arrays:
            try:
                array: Any = self._root[path]
            except UNSOUND as err:
                if isinstance(err, KeyError) and f"{TAPS}/{path}/zarr.json" not in self.manifest["files"]:
                    raise ArtifactError(f"{self.directory}: {self._why_missing(tap, name)}. Run: {_RUN}") from None
                raise ArtifactError(
                    f"{self.directory}: {path} is no readable Zarr array ({err}). Run: {self._run}"
                ) from err
            where = self.directory / TAPS / path
            self._store.expect(path, require_stored(where, array, path, self.manifest["files"], self._run))
            self._arrays[path] = array
        return self._arrays[path]

    @property
    def _run(self) -> str:
        return _made_by(self.manifest)

    def _why_missing(self, tap: str, name: str) -> str:
        if self.is_imported:
            return (
                f"was imported from an importance matrix, which holds sums of squares alone, and has no "
                f"{tap}{'/' if tap else ''}{name}. Use a method that needs no more, as wanda does, or collect the "
                f"statistics on calibration text"
            )
        profile, collect = self.manifest["profile"], self.manifest["collect"]
        if (name.startswith("class") or tap == "classes") and not collect.get("classes", 1):
            return f"{tap}/{name} is needed; it was collected with collect.classes: 0, raise it"
        if (name.startswith("topic") or tap == "topics") and not collect.get("topics", {}).get("micro_topics", 1):
            return f"{tap}/{name} is needed; it was collected with collect.topics.micro_topics: 0, raise it"
        known, smallest = list(PROFILES), smallest_with(tap, name)
        if smallest and known.index(smallest) > known.index(profile):
            return f"profile {profile!r} keeps no {tap}/{name}, which is needed. Set collect.profile: {smallest}"
        if not tap:
            return f"holds no {name}"
        held = ", ".join(self.manifest["arrays"].get(tap, [])) or "nothing"
        return f"tap {tap!r} holds {held}; {name!r} is needed"

    def _read(self, array: Any, layers: slice) -> NDArray[Any]:
        try:
            values = np.asarray(array[layers])
        except UNSOUND as err:
            raise ArtifactError(f"{self.directory}: {array.name} is corrupt ({err}). Run: {self._run}") from err
        if not np.isfinite(values).all() or (values.dtype.kind == "i" and (values < 0).any()):
            raise ArtifactError(f"{self.directory}: {array.name} has missing or impossible values. Run: {self._run}")
        return values
