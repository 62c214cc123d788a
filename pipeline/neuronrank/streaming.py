"""Run a model layer by layer through its own forward, with one layer's weights in memory at a time.

The model is built without weights. For each micro-batch its own forward runs once with every decoder layer replaced
by a recorder: that yields the hidden states that enter the first layer, and for every layer exactly the arguments
(masks, rotary embeddings, …) that the model gives it. Then layer after layer gets its weights, runs all
micro-batches with those arguments, and lets its weights go. No decoder block is called with guessed arguments.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from neuronrank.checkpoint import Checkpoint
from neuronrank.experts import run_one_after_the_other
from neuronrank.hidden_states import HiddenStates
from neuronrank.skeleton import Skeleton, release_


@dataclass
class MicroBatch:
    """Documents on their way through the layers."""

    rows: slice
    """Which documents."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    """Per layer, the further arguments that the model gave it."""


class StreamedModel:
    """A causal language model whose decoder layers hold weights only while they run."""

    def __init__(self, weights: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        """Build the model without weights and load all that lies outside its decoder layers.

        Raises:
            SourceError: the checkpoint cannot be read.
            UnknownName: no layout for this architecture.
            MismatchError: the checkpoint lacks a tensor that the architecture needs.
        """
        self.device = device
        self.skeleton = Skeleton(weights, dtype)
        self.skeleton.load_outside(device, with_head=False)
        self.layout, self.layers, self.weights = self.skeleton.layout, self.skeleton.layers, weights
        if self.layout.experts:
            run_one_after_the_other(self.skeleton.model)
        self.modules = self.skeleton.modules()
        """Of all layers, as a manifest lists them."""
        self._model: Any = self.skeleton.model

    @contextmanager
    def loaded_layer(self, index: int, tensors: dict[str, Tensor] | None = None) -> Iterator[nn.Module]:
        """Give layer `index` with its weights; they are released on leaving.

        Args:
            index: of the layer.
            tensors: of the layer, by the names that they have in the checkpoint; None reads them.

        Raises:
            MismatchError: the checkpoint lacks a tensor of this layer.
        """
        layer = self.skeleton.load_layer(index, self.device, tensors)
        try:
            yield layer
        finally:
            release_(layer)

    @torch.no_grad()
    def start(self, token_ids: Tensor, documents_per_batch: int, entering: Tensor | None) -> list[MicroBatch]:
        """Run everything that comes before the first layer, record what each layer will be given, and let go of it.

        Only once: the embeddings, which may be large, are gone afterwards.

        Args:
            token_ids: (N, T), every document of the same length, without padding.
            documents_per_batch: how many documents run at once.
            entering: (N, T, hidden_size), filled with the hidden states that enter the first layer; None when they are
                not needed.
        """
        batches: list[MicroBatch] = []
        recorders = [_Recorder(layer) for layer in self.layers]
        self._set_layers(nn.ModuleList(recorders))
        try:
            for first in range(0, len(token_ids), documents_per_batch):
                rows = slice(first, min(first + documents_per_batch, len(token_ids)))
                self._model.base_model(token_ids[rows].to(self.device), use_cache=False)
                calls = [recorder.call for recorder in recorders]
                if batches:
                    calls = [_share(call, known) for call, known in zip(calls, batches[0].calls, strict=True)]
                batches.append(MicroBatch(rows, calls))
                if entering is not None:
                    entering[rows] = recorders[0].hidden.cpu()
        finally:
            release_(self._model)
            self._set_layers(self.layers)
        return batches

    def hidden_states(self, token_ids: Tensor, directory: Path | None, both: bool = False) -> HiddenStates:
        """Allocate the hidden states of token_ids, (N, T), or find those of an interrupted run in a directory.

        In memory what leaves a layer takes the place of what entered it, unless both are wanted.
        """
        width = self._model.get_input_embeddings().weight.shape[1]
        return HiddenStates((*token_ids.shape, width), self.skeleton.dtype, directory, both)

    def _set_layers(self, layers: nn.ModuleList) -> None:
        parent, _, attribute = self.layout.layers.rpartition(".")
        setattr(self._model.get_submodule(parent), attribute, layers)

    @torch.no_grad()
    def run(self, layer: nn.Module, index: int, batch: MicroBatch, hidden: HiddenStates) -> Tensor:
        """Run one micro-batch through a loaded layer and return what leaves it, (B, T, H)."""
        arguments, keywords = batch.calls[index]
        output = layer(hidden.entering(index)[batch.rows].to(self.device), *arguments, **keywords)
        leaving: Tensor = output[0] if isinstance(output, tuple) else output
        return leaving


class _Recorder(nn.Module):
    """Stands in a decoder layer's place, keeps what it is called with and passes the hidden states on."""

    hidden: Tensor
    call: tuple[tuple[Any, ...], dict[str, Any]]

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "_layer", layer)  # not registered as a child: it must not be moved or listed

    def __getattr__(self, name: str) -> Any:
        """Answer for the layer what the model asks of it, for example its attention type."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_layer"), name)

    def forward(self, hidden: Tensor, *arguments: Any, **keywords: Any) -> Tensor:
        self.hidden, self.call = hidden, (arguments, keywords)
        return hidden


def _share(value: Any, known: Any) -> Any:
    """Return `value` with every tensor that equals the one at the same place in `known` replaced by that one.

    Masks and rotary embeddings are the same for all micro-batches of one size; keeping one copy bounds the memory.
    """
    if isinstance(value, Tensor) and isinstance(known, Tensor):
        return known if value.shape == known.shape and torch.equal(value, known) else value
    if type(value) is tuple and type(known) is tuple and len(value) == len(known):
        return tuple(_share(item, old) for item, old in zip(value, known, strict=True))
    if type(value) is dict and type(known) is dict:
        return {key: _share(item, known.get(key)) for key, item in value.items()}
    return value
