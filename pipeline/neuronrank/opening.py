"""A statistics artifact opened from Python: named arrays with axes and units, read when they are indexed. No torch.

    stats = neuronrank.open_statistics("artifacts/statistics")
    print(stats)                              # every array: name, axes, type, units, definition
    stats["mlp_in/wanda_sum_sq"][3]           # (C,): layer 3; no other chunk is read

What is read goes through `statistics_store.Statistics`, as in the stages, and is checked as there.
"""

import copy
import math
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.errors import ArtifactError, UnknownName
from neuronrank.profiles import smallest_with
from neuronrank.registry import nearest
from neuronrank.sketch import EDGES
from neuronrank.statistics_schema import ARRAYS, OF_ALL_LAYERS, QUANTILES
from neuronrank.statistics_store import Module, Statistics
from neuronrank.tap_names import base, expert, n_experts
from neuronrank.tap_statistics import TapStatistics


class StatisticArray:
    """One array of an artifact. Indexing reads it and gives numpy; the description costs no reading of values."""

    def __init__(self, statistics: Statistics, path: str) -> None:
        """Describe an array.

        Args:
            statistics: that holds it.
            path: `<tap>/<array>`, of one expert `<tap>.<expert>/<array>`; or `token_ids`.

        Raises:
            ArtifactError: the store does not hold it.
        """
        tap, slash, name = path.rpartition("/")
        self.path = path
        self._statistics, self._stored_path, self._expert = statistics, f"{base(tap)}{slash}{name}", expert(tap)
        stored = statistics.stored(self._stored_path)
        about, shape = dict(stored.attrs), tuple(stored.shape)
        axes = tuple(str(axis) for axis in about.get("axes", []))
        of_one = self._expert is not None
        self.axes: tuple[str, ...] = (axes[0], *axes[2:]) if of_one else axes
        """Name of every axis; `names_on` of the statistics tells what lies along it."""
        self.shape: tuple[int, ...] = (shape[0], *shape[2:]) if of_one else shape
        self.dtype: np.dtype[Any] = np.dtype(stored.dtype)
        self.units: str = str(about.get("units", ""))
        self.definition: str = str(about.get("definition", OF_ALL_LAYERS.get(path, "")))
        self.derived: bool = bool(about.get("derived", False))
        """Whether it follows from other arrays, at the methods' default settings."""

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Return values as numpy would of the whole array.

        Where the first index is a number or a slice only those layers are read; otherwise all are.

        Raises:
            ArtifactError: the data are corrupt or missing.
            IndexError: outside the array.
        """
        first, rest = (index[0], index[1:]) if isinstance(index, tuple) and index else (index, ())
        if isinstance(first, slice):
            positions = range(self.shape[0])[first] or range(0)
            values = self._read(positions if positions.step > 0 else positions[::-1])
            return np.asarray((values if positions.step > 0 else values[::-1])[(slice(None), *rest)])
        if isinstance(first, int | np.integer) and not isinstance(first, bool):
            if not -self.shape[0] <= first < self.shape[0]:  # an IndexError also ends a loop over the array
                raise IndexError(f"{self.path}: index {first} is outside axis {self.axes[0]!r} of {self.shape[0]}")
            one = int(first) % self.shape[0]
            return np.asarray(self._read(range(one, one + 1))[(0, *rest)])
        return np.asarray(self._read(range(self.shape[0]))[index])

    def _read(self, positions: range) -> NDArray[Any]:
        values = self._statistics.read(self._stored_path, slice(positions.start, positions.stop, positions.step))
        return values if self._expert is None else values[:, self._expert]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError(f"{self.path}: lies on disk and cannot be had without a copy")
        return self[:] if dtype is None else self[:].astype(dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        axes = ", ".join(f"{axis} {size}" for axis, size in zip(self.axes, self.shape, strict=True))
        derived = " (derived)" if self.derived else ""
        return f"{self.path} [{axes}] {self.dtype}, {self.units}: {self.definition}{derived}"


class _Unchanging(Statistics):
    """Hands out read-only what it keeps and hands out again: an edit in place would stay, unseen."""

    def layer_values(self, layer: int, tap: str, statistic: str) -> NDArray[Any]:
        return _read_only(super().layer_values(layer, tap, statistic))

    def class_count(self) -> NDArray[np.int64]:
        return _read_only(super().class_count())

    def _read_weights(self, path: Path) -> dict[str, NDArray[np.float32]]:
        return {name: _read_only(values) for name, values in super()._read_weights(path).items()}


def _read_only(values: NDArray[Any]) -> NDArray[Any]:
    values.setflags(write=False)
    return values


class WeightSums(Mapping[str, NDArray[np.float32]]):
    """`<module>.<row or column>_<sum_abs, sum_sq or max_abs>` -> (O,) or (I,); read when first asked for."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        held = self._statistics.all_weight_sums()
        if name not in held:
            raise UnknownName(
                f"{self._statistics.directory}: no sums of weights {name!r}{nearest(name, list(held))}; "
                f"names are <module>.<row or column>_<sum_abs, sum_sq or max_abs>"
            )
        return held[name]

    def __contains__(self, name: object) -> bool:
        return name in self._statistics.all_weight_sums()

    def __iter__(self) -> Iterator[str]:
        return iter(self._statistics.all_weight_sums())

    def __len__(self) -> int:
        return len(self._statistics.all_weight_sums())


class OpenStatistics:
    """A complete statistics artifact: what it was made of, and its arrays by name."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        """Read the manifest, and no array.

        Raises:
            ArtifactError: missing, incomplete, corrupt, or of another schema.
        """
        self.directory = Path(directory)
        self._statistics = _Unchanging(self.directory)
        self.manifest: Mapping[str, Any] = copy.deepcopy(self._statistics.manifest)
        """`model` (fingerprint), `calibration`, `collect` (settings), `profile`, `modules`, …, as stored; a copy, which
        nothing is read by."""
        self.n_layers: int = self._statistics.manifest["n_layers"]
        self.modules: Mapping[str, Module] = {module.name: module for module in self._statistics.modules}
        """Linear modules by name: layer, part, (O, I), and the taps of their input and neurons."""
        self.weights = WeightSums(self._statistics)
        """Sums along the rows and columns of every module's weight."""

    @cached_property
    def arrays(self) -> Mapping[str, StatisticArray]:
        """Every array by path: `<tap>/<array>`, `topics/<array>`, `classes/<array>` and `token_ids`.

        Where the MLP is a mixture an array of `mlp_in` holds all experts; `stats["mlp_in.7/…"]` gives one.
        """
        return {path: StatisticArray(self._statistics, path) for path in self._statistics.array_paths}

    def __getitem__(self, path: str) -> StatisticArray:
        """Return an array, unread.

        Raises:
            ArtifactError: its profile, or another setting, keeps no such array; says which does.
            UnknownName: there is no such array; names the nearest.
        """
        if path in self:
            return StatisticArray(self._statistics, path)
        tap, _, name = path.rpartition("/")
        held = self._statistics.array_paths
        known = tap in ("topics", "classes") and (path in OF_ALL_LAYERS or name in ARRAYS)
        if known or (tap and self._has_expert(tap) and smallest_with(tap, name)):
            self._statistics.stored(f"{base(tap)}/{name}")  # says why it is not there
        of_tap = ", ".join(one for one in held if one.startswith(f"{base(tap)}/"))
        known_here = of_tap or f"arrays of {', '.join(self._statistics.manifest['arrays'])}"
        raise UnknownName(f"{self.directory}: no array {path!r}{nearest(path, held)}; it holds {known_here}")

    def __contains__(self, path: object) -> bool:
        if not isinstance(path, str):
            return False
        tap, slash, name = path.rpartition("/")
        return f"{base(tap)}{slash}{name}" in self._statistics.array_paths and self._has_expert(tap)

    def _has_expert(self, tap: str) -> bool:
        number = tap.partition(".")[2]
        return not number or tap in self._statistics.taps_of(base(tap))

    def __iter__(self) -> Iterator[str]:
        return iter(self._statistics.array_paths)

    def __len__(self) -> int:
        return len(self._statistics.array_paths)

    @property
    def taps(self) -> list[str]:
        """Taps that arrays are held of, without those of topics and classes; experts are an axis, not taps."""
        return [group for group in sorted(self._statistics.manifest["arrays"]) if group not in ("topics", "classes")]

    def tap(self, layer: int, tap: str, n_documents: int | None = None) -> TapStatistics:
        """Return what the scoring methods read of a tap: totals, document frequencies, sketch, classes, topics.

        Args:
            layer: which, from 0.
            tap: for example `neuron`; inside an expert `neuron.7`.
            n_documents: the first so many; all when None.

        Raises:
            ArtifactError: there is no such layer.
            MismatchError: more documents are asked for than were collected.
        """
        if not 0 <= layer < self.n_layers:
            raise ArtifactError(f"{self.directory}: has no layer {layer}; its layers are 0 to {self.n_layers - 1}")
        return self._statistics.tap(layer, tap, n_documents)

    def names_on(self, axis: str) -> list[Any]:
        """Return what lies along an axis.

        Args:
            axis: `layer` and `expert` (numbers), `document` (where each begins: document, source, offset_tokens),
                `class` (token ids; the last, None, stands for all other tokens), `quantile`, `bin` (low, high] of |a|.

        Raises:
            UnknownName: what lies along it has no names, only numbers; or there is no such axis.
            ArtifactError: the artifact does not hold them.
        """
        if axis == "layer":
            return list(range(self.n_layers))
        if axis == "expert" and (experts := n_experts(module.input_tap for module in self.modules.values())):
            return list(range(experts))
        if axis == "document":
            if self._statistics.is_imported:
                raise ArtifactError(
                    f"{self.directory}: was imported from an importance matrix, which does not tell documents apart. "
                    f"To have them collect the statistics: dvc repro collect"
                )
            if "origins" not in self._statistics.manifest["calibration"]:
                raise ArtifactError(
                    f"{self.directory}: its manifest has no calibration.origins. Run: dvc repro collect"
                )
            return list(self._statistics.manifest["calibration"]["origins"])
        if axis == "class":
            return [*self._statistics.class_token_ids().tolist(), None]
        if axis == "quantile":
            return list(QUANTILES)
        if axis == "bin":
            edges = [0.0, *EDGES.tolist(), math.inf]
            return list(pairwise(edges))
        raise UnknownName(
            f"{self.directory}: axis {axis!r} has no names here; layer, document, class, quantile, bin and, in a "
            f"mixture, expert have"
        )

    def __str__(self) -> str:
        return "\n".join([repr(self), *(repr(array) for array in self.arrays.values())])

    def __repr__(self) -> str:
        profile = self._statistics.manifest["profile"]
        return f"{self.directory}: {len(self)} arrays of {self.n_layers} layers, profile {profile!r}"
