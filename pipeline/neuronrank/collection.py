"""The one forward pass over the calibration documents: layer after layer, every tap counted."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from neuronrank.checkpoint import require_finite
from neuronrank.errors import NotFiniteError
from neuronrank.params import Section
from neuronrank.statistics.document_sums import Accumulator
from neuronrank.statistics.weight_sums import weight_sums
from neuronrank.streaming import StreamedModel
from neuronrank.taps import tapped


class CollectParams(Section):
    """How the forward pass runs; accumulation is float32 per document and float64 across them."""

    dtype: Literal["bfloat16", "float16", "float32"]
    documents_per_batch: PositiveInt


@dataclass(frozen=True)
class LayerStatistics:
    """All that is kept of one decoder layer."""

    index: int
    documents: dict[tuple[str, str], Tensor]
    """(tap, statistic) -> (N, C) float32."""
    weights: dict[str, Tensor]
    """`<module name>.<axis>_<statistic>` -> vector, float32."""
    modules: list[dict[str, Any]]
    """The layer's linear modules, as `statistics_store.Module` reads them."""


@torch.no_grad()
def collect_layers(model: StreamedModel, token_ids: Tensor, documents_per_batch: int) -> Iterator[LayerStatistics]:
    """Yield the statistics of layer 0, 1, … as each has seen all documents.

    Args:
        model: streamed; its decoder layers hold weights only while they run.
        token_ids: (N, T), every document of the same length, without padding.
        documents_per_batch: how many documents run at once. It bounds the memory of a layer's activations.

    Raises:
        NotFiniteError: a weight or an activation is NaN or infinite; names module or tap, and layer.
    """
    batches = model.start(token_ids, documents_per_batch)
    for index in range(len(model.layers)):
        accumulator = Accumulator(len(token_ids))
        with model.loaded_layer(index) as layer:
            weights, modules = _reduce_weights(model, index)
            for batch in batches:
                with tapped(layer, model.layout, partial(accumulator.update, batch.rows)):
                    model.advance(layer, index, batch)
        documents = accumulator.result()
        _require_finite_sums(f"layer {index}", documents)
        yield LayerStatistics(index, documents, weights, modules)


def _reduce_weights(model: StreamedModel, index: int) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    sums: dict[str, Tensor] = {}
    modules = []
    for linear in model.layout.linears:
        name = f"{model.layout.layers}.{index}.{linear.path}"
        weight = model.checkpoint.tensor(f"{name}.weight")  # as stored, whatever the forward pass's dtype
        require_finite(f"{name}.weight", weight)
        role = {key: value for key, value in asdict(linear).items() if key != "path"}
        modules.append({"name": name, "layer": index, "shape": list(weight.shape), **role})
        sums.update({f"{name}.{key}": vector for key, vector in weight_sums(weight).items()})
    return sums, modules


def _require_finite_sums(layer: str, documents: dict[tuple[str, str], Tensor]) -> None:
    for (tap, statistic), values in documents.items():
        n_bad = int((~torch.isfinite(values)).any(dim=0).sum())
        if n_bad:
            raise NotFiniteError(
                f"{layer}: {statistic} of tap {tap!r} is NaN or infinite in {n_bad} of {values.shape[1]} channels. "
                f"Are the weights sound, and does the model run in this dtype? Try collect.dtype: float32"
            )
