"""Statistics by the published procedure: every layer sees what the layers before it give once they are pruned.

Wanda and SparseGPT prune a layer and run the calibration documents through it again before they look at the next one
(Sun et al. 2023, arXiv:2306.11695; Frantar and Alistarh 2023, arXiv:2301.00774). Such statistics serve one recipe and
one pattern. Scoring and pruning from them as usual gives the masks that were used on the way.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from neuronrank.checkpoint import Checkpoint, ModelArtifact
from neuronrank.collecting import Propagation
from neuronrank.collection import Classes, LayerStatistics
from neuronrank.compatibility import why_not_by_layer
from neuronrank.errors import ArtifactError, ParamsError
from neuronrank.masked_checkpoint import MaskedCheckpoint
from neuronrank.masking import whole_weights
from neuronrank.patterns import Pattern
from neuronrank.pruning import iter_masks
from neuronrank.recipes import Recipe
from neuronrank.scores import SEQUENTIAL, compute_factors, score_header, scored_parts
from neuronrank.statistics_store import Statistics, module_of
from neuronrank.statistics_writer import StatisticsWriter


def sequential(model: ModelArtifact, recipe: Recipe, pattern: Pattern) -> Propagation:
    """Return how documents run on when every layer is pruned before, for `collecting.collect_statistics`.

    Args:
        model: that is collected from.
        recipe: a method for each part.
        pattern: rule and selection.

    Raises:
        ParamsError: the pattern compares weights of all layers, or prunes the output head.
    """
    why = why_not_by_layer(pattern)
    if why:
        raise ParamsError(f"propagation {SEQUENTIAL}: {why}")

    def prune(
        manifest: dict[str, Any], writer: StatisticsWriter, classes: Classes, layer: LayerStatistics
    ) -> Checkpoint:
        seen = _OneLayer(manifest, layer, writer.stored(layer.arrays), classes)
        header = score_header(manifest, "sequential", recipe)
        header["modules"] = [module for module in header["modules"] if module["layer"] == layer.index]
        chosen = [m for m in header["modules"] if pattern.selects(m["part"], layer.index, header["n_layers"])]
        if not any(module["part"] in header["parts"] for module in chosen):
            return model.checkpoint()  # a layer that the pattern leaves out
        masks = iter_masks(model, compute_factors(seen, recipe), header, pattern)
        return MaskedCheckpoint(model, _MadeMasks({weight: keep for weight, keep, _ in whole_weights(model, masks)}))

    described = {
        "propagation": SEQUENTIAL,
        "sequential": {"parts": scored_parts(recipe), "pattern": pattern.params.model_dump(mode="json")},
    }
    return Propagation(described, prune)


class _MadeMasks:
    """Masks that were just made, as `masked_checkpoint.Masks`."""

    untied: dict[str, str] = {}  # noqa: RUF012 - never filled

    def __init__(self, kept: dict[str, NDArray[np.bool_]]) -> None:
        self._kept = kept

    @property
    def weights(self) -> list[str]:
        return sorted(self._kept)

    def keep(self, weight: str) -> NDArray[np.bool_]:
        return self._kept[weight]


class _OneLayer(Statistics):
    """The statistics of one layer, as the artifact will hold them, before there is an artifact."""

    def __init__(
        self,
        manifest: dict[str, Any],
        layer: LayerStatistics,
        stored: dict[tuple[str, str], NDArray[Any]],
        classes: Classes,
    ) -> None:
        self.directory = Path(f"layer {layer.index}")
        self.manifest = {"profile": "", "arrays": {}, **manifest}
        self.modules = [module_of(entry) for entry in manifest["modules"] if entry["layer"] == layer.index]
        self.n_documents = manifest["calibration"]["n_windows"]
        self._layer, self._stored, self._class_count = layer, stored, classes.count

    def layer_values(self, layer: int, tap: str, statistic: str) -> NDArray[Any]:
        """Return an array of the layer."""
        del layer
        if (tap, statistic) not in self._stored:
            raise ArtifactError(f"{self.directory}: the profile keeps no {tap}/{statistic}, which is needed")
        return self._stored[tap, statistic]

    def class_count(self) -> NDArray[np.int64]:
        """Return (M + 1,) tokens of each class and of all others."""
        return self._class_count

    def weight_sums(self, module: str, name: str) -> NDArray[np.float32]:
        """Return a vector of a module's weight."""
        return self._layer.weights[f"{module}.{name}"]
