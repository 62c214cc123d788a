"""The one forward pass over the calibration documents: layer after layer, every tap counted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor

from neuronrank.accumulation import Accumulation
from neuronrank.checkpoint import Checkpoint, require_finite
from neuronrank.errors import NotFiniteError
from neuronrank.gathering import arrays_of_all, topics_of_all
from neuronrank.hidden_states import HiddenStates
from neuronrank.module_views import view_of
from neuronrank.params import Section
from neuronrank.profiles import PROFILES, ProfileName
from neuronrank.ranks import ALONE, Ranks
from neuronrank.statistics import Context, Tapped, class_moments
from neuronrank.statistics.weight_sums import weight_sums
from neuronrank.statistics_schema import TOTALS
from neuronrank.streaming import MicroBatch, StreamedModel
from neuronrank.taps import tapped
from neuronrank.topics import TopicParams, projected


class CollectParams(Section):
    """How the forward pass runs and what is kept of it."""

    dtype: Literal["bfloat16", "float16", "float32"]
    documents_per_batch: PositiveInt
    profile: ProfileName
    classes: NonNegativeInt
    """So many of the most frequent token ids get moments of their own; 0 leaves classes out. None with `lean`."""
    topics: TopicParams
    """None with `lean`."""
    gram: bool = False
    """Keep X^T X of every input tap: large."""


Arrays = dict[tuple[str, str], NDArray[Any]]


@dataclass(frozen=True)
class LayerStatistics:
    """All that is kept of one decoder layer."""

    index: int
    arrays: Arrays
    """(tap or `topics`, array) -> values, without the layer axis."""
    weights: dict[str, NDArray[np.float32]]
    """`<module name>.<axis>_<statistic>` -> vector."""


@dataclass(frozen=True)
class Classes:
    """The token classes of the calibration text, the same for all layers."""

    token_ids: NDArray[np.int32]
    """(M,), most frequent first."""
    count: NDArray[np.int64]
    """(M + 1,) tokens; the last is all others."""
    of_token: Tensor
    """(N, T) int64."""


@dataclass(frozen=True)
class Fitted:
    """What an earlier artifact was fitted with, for statistics that are to be merged with it."""

    class_token_ids: NDArray[np.int32]
    """(M,)."""
    centroids: Callable[[int], NDArray[np.float32]]
    """Layer -> (K, 128)."""


@dataclass(frozen=True)
class Route:
    """How documents get from layer to layer."""

    directory: Path | None = None
    """Where hidden states are kept in files; None keeps them in memory."""
    first: int = 0
    """Layer to begin with, when an interrupted run has completed those before it and left its files."""
    prune: Callable[[LayerStatistics], Checkpoint] | None = None
    """Given a layer's statistics, returns the weights with which its documents run on; None leaves them as they are."""
    fitted: Fitted | None = None
    """Topics of an earlier artifact; None fits them."""
    ranks: Ranks = ALONE
    """Each process runs its own documents. What all of them found is given to the first; the others get nothing."""


def find_classes(token_ids: Tensor, params: CollectParams, fitted: Fitted | None = None) -> Classes:
    """Choose the token classes that the parameters ask for; none with a profile that keeps none.

    Args:
        token_ids: (N, T).
        params: number of classes and profile.
        fitted: its classes are taken, whatever is frequent here.
    """
    if fitted is not None:
        counted, of_given = class_moments.given_classes(token_ids, torch.from_numpy(fitted.class_token_ids))
        return Classes(fitted.class_token_ids, counted.numpy(), of_given)
    wanted = params.classes if PROFILES[params.profile].classed else 0
    ids, count, of_token = class_moments.token_classes(token_ids, wanted)
    return Classes(ids.numpy().astype(np.int32), count.numpy(), of_token)


@torch.no_grad()
def collect_layers(
    model: StreamedModel,
    token_ids: Tensor,
    params: CollectParams,
    classes: Classes,
    route: Route = Route(),
) -> Iterator[LayerStatistics]:
    """Yield the statistics of layer 0, 1, … as each has seen all documents.

    Args:
        model: streamed; its decoder layers hold weights only while they run.
        token_ids: (N, T), every document of the same length, without padding.
        params: what to keep. `documents_per_batch` bounds the memory of a layer's activations.
        classes: of `find_classes`.
        route: how documents get from layer to layer.

    Raises:
        NotFiniteError: a weight or an activation is NaN or infinite; names module or tap, and layer.
        ParamsError: more micro-topics than tokens.
    """
    profile, ranks = PROFILES[params.profile], route.ranks
    n_topics = params.topics.micro_topics if profile.topical else 0
    shares = ranks.shares(len(token_ids), params.documents_per_batch)
    own = shares[ranks.rank]
    hidden = model.hidden_states(token_ids[own], route.directory, both=route.prune is not None)
    batches = model.start(token_ids[own], params.documents_per_batch, None if route.first else hidden.entering(0))
    for index in range(route.first, len(model.layers)):
        topics = None
        if n_topics:
            entering = projected(hidden.entering(index), [batch.rows for batch in batches], params.topics, model.device)
            centroids = route.fitted.centroids(index) if route.fitted else None
            topics = topics_of_all(entering, params.topics, index, centroids, shares, ranks)
        context = Context(
            n_documents=own.stop - own.start,
            profile=profile,
            class_of_token=classes.of_token[own],
            n_classes=len(classes.token_ids),
            topic_of_token=topics.labels[own] if topics else token_ids[own],
            n_topics=n_topics,
            gram=params.gram,
        )
        tensors = model.skeleton.read_layer(index)
        weights = layer_weight_sums(model.modules, index, tensors) if ranks.first else {}
        with model.loaded_layer(index, tensors) as layer:
            del tensors  # the layer holds them, converted where it needs to
            arrays = _count(model, layer, index, batches, hidden, context)
        arrays = arrays_of_all(arrays, classes.of_token, len(classes.count), shares, ranks)
        arrays |= {("topics", name): values for name, values in topics.arrays.items()} if topics else {}
        found = LayerStatistics(index, arrays, weights)
        if route.prune:
            with model.loaded_layer(index, model.skeleton.read_layer(index, route.prune(found))) as layer:
                for batch in batches:
                    hidden.leaving(index)[batch.rows] = model.run(layer, index, batch, hidden).cpu()
        yield found
        ranks.wait()  # until the layer is written: another's hidden states may be needed to run it again


def _count(
    model: StreamedModel,
    layer: torch.nn.Module,
    index: int,
    batches: list[MicroBatch],
    hidden: HiddenStates,
    context: Context,
) -> Arrays:
    """Run all documents through one layer, keep what leaves it, and return what its accumulators found."""
    sections, n_tokens = model.skeleton.sections(index), context.class_of_token.shape[1]
    accumulation = Accumulation(context)
    for batch in batches:

        def on_tap(tap: str, values: Tensor, tokens: Tensor | None, rows: slice = batch.rows) -> None:
            accumulation.add(tap, Tapped.of(values, rows, n_tokens, tokens))

        with tapped(layer, model.layout, sections, on_tap):
            output = model.run(layer, index, batch, hidden)
        hidden.leaving(index)[batch.rows] = output.cpu()
    found = accumulation.result()
    _require_finite_sums(f"layer {index}", {key: values for key, values in found.items() if key[1] in TOTALS})
    return {key: values.numpy() for key, values in found.items()}


def layer_weight_sums(
    modules: Sequence[Mapping[str, Any]], index: int, tensors: Mapping[str, Tensor]
) -> dict[str, NDArray[np.float32]]:
    """Return the sums over rows and columns of a layer's weights, by `<module>.<axis>_<statistic>`.

    Args:
        modules: of all layers, as a manifest lists them.
        index: of the layer.
        tensors: of the layer, as they are stored.

    Raises:
        NotFiniteError, SourceError: a weight is NaN or infinite, or of a type that is not a plain float.
    """
    sums: dict[str, NDArray[np.float32]] = {}
    for module in modules:
        if module["layer"] == index:
            weight = tensors[module["weight"]]  # as stored, whatever the forward pass's dtype
            require_finite(module["weight"], weight)
            found = weight_sums(view_of(weight, module))
            sums.update({f"{module['name']}.{key}": vector.numpy() for key, vector in found.items()})
    return sums


def _require_finite_sums(layer: str, documents: dict[tuple[str, str], Tensor]) -> None:
    for (tap, statistic), values in documents.items():
        n_bad = int((~torch.isfinite(values)).any(dim=0).sum())
        if n_bad:
            raise NotFiniteError(
                f"{layer}: {statistic} of tap {tap!r} is NaN or infinite in {n_bad} of {values.shape[1]} channels. "
                f"Are the weights sound, and does the model run in this dtype? Try collect.dtype: float32"
            )
