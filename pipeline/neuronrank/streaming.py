"""Run a model layer by layer through its own forward, with one layer's weights in memory at a time.

The model is built without weights. For each micro-batch its own forward runs once with every decoder layer replaced
by a recorder: that yields the hidden states that enter the first layer, and for every layer exactly the arguments
(masks, rotary embeddings, …) that the model gives it. Then layer after layer gets its weights, runs all
micro-batches with those arguments, and lets its weights go. No decoder block is called with guessed arguments.

Relies on transformers' internal loading code (`core_model_loading`), which merges or renames checkpoint tensors where
an architecture needs it; that is why this file is the only one that imports it and the dependency is pinned to v5.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig

from neuronrank import registry
from neuronrank.checkpoint import Checkpoint
from neuronrank.errors import MismatchError, UnknownName
from neuronrank.hidden_states import HiddenStates
from neuronrank.models import ModelLayout


@dataclass
class MicroBatch:
    """Documents on their way through the layers."""

    rows: slice
    """Which documents."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    """Per layer, the further arguments that the model gave it."""


class StreamedModel:
    """A causal language model whose decoder layers hold weights only while they run."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device) -> None:
        """Build the model without weights and load all that lies outside its decoder layers.

        Raises:
            SourceError: the checkpoint cannot be read.
            UnknownName: no layout for this architecture.
            MismatchError: the checkpoint lacks a tensor that the architecture needs.
        """
        self.device, self._dtype = device, dtype
        config = AutoConfig.from_pretrained(checkpoint.directory, trust_remote_code=False)
        self.layout = layout_of(config.model_type)
        with init_empty_weights(include_buffers=False):
            self.model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).eval()
        self.layers: nn.ModuleList = self.model.get_submodule(self.layout.layers)
        self.checkpoint = checkpoint
        self._mapping = get_model_conversion_mapping(self.model)
        self._of_layer, outside = self._assign_tensors()
        self._load(outside)
        self.model.tie_weights()
        self._require_loaded(self.model, skip=self.layout.layers)
        for module in self.model.modules():  # rotary frequencies and the like; weights are loaded to their device
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))

    def _assign_tensors(self) -> tuple[list[list[str]], list[str]]:
        """Return the checkpoint's tensor names per layer, and those outside all layers."""
        renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        expected = self.model.state_dict()
        prefix = self.layout.layers + "."
        of_layer: list[list[str]] = [[] for _ in self.layers]
        outside = []
        for name in self.checkpoint.names:
            target, _ = rename_source_key(name, renamings, converters, self.model.base_model_prefix, expected)
            if target not in expected and any(re.search(pattern, target) for pattern in self._ignored_patterns()):
                continue
            if target.startswith(prefix):
                of_layer[int(target.removeprefix(prefix).split(".", 1)[0])].append(name)
            else:
                outside.append(name)
        return of_layer, outside

    def _ignored_patterns(self) -> set[str]:
        """Return what transformers itself ignores: old checkpoints carry rotary frequencies in every layer."""
        return {r"rotary_emb\.inv_freq$", *(self.model._keys_to_ignore_on_load_unexpected or ())}

    def _load(self, names: Sequence[str]) -> None:
        settings = LoadStateDictConfig(
            weight_mapping=deepcopy(self._mapping), dtype=self._dtype, device_map={"": self.device}
        )
        tensors = {name: self.checkpoint.tensor(name) for name in names}
        info, _ = convert_and_load_state_dict_in_model(self.model, tensors, settings, None)
        faults = {"unexpected": info.unexpected_keys, "wrong shape": info.mismatched_keys, "": info.conversion_errors}
        for kind, keys in faults.items():
            if keys:
                raise MismatchError(f"{self.checkpoint.directory}: {kind} tensors {sorted(map(str, keys))[:3]}")

    def _require_loaded(self, module: nn.Module, skip: str = "") -> None:
        for name, parameter in module.named_parameters():
            if parameter.is_meta and not (skip and name.startswith(skip + ".")):
                raise MismatchError(f"{self.checkpoint.directory}: has no tensor for {name!r} of this architecture")

    @contextmanager
    def loaded_layer(self, index: int) -> Iterator[nn.Module]:
        """Give layer `index` with its weights; they are released on leaving.

        Raises:
            MismatchError: the checkpoint lacks a tensor of this layer.
        """
        self._load(self._of_layer[index])
        layer = self.layers[index]
        self._require_loaded(layer)
        try:
            yield layer
        finally:
            for module in layer.modules():
                for name, parameter in module.named_parameters(recurse=False):
                    setattr(module, name, nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False))

    @torch.no_grad()
    def start(self, token_ids: Tensor, documents_per_batch: int, entering: Tensor | None) -> list[MicroBatch]:
        """Run everything that comes before the first layer, and record what each layer will be given.

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
                self.model.base_model(token_ids[rows].to(self.device), use_cache=False)
                calls = [recorder.call for recorder in recorders]
                if batches:
                    calls = [_share(call, known) for call, known in zip(calls, batches[0].calls, strict=True)]
                batches.append(MicroBatch(rows, calls))
                if entering is not None:
                    entering[rows] = recorders[0].hidden.cpu()
        finally:
            self._set_layers(self.layers)
        return batches

    def hidden_states(self, token_ids: Tensor, directory: Path | None) -> HiddenStates:
        """Allocate the hidden states of token_ids, (N, T), or find those of an interrupted run in a directory."""
        width = self.model.get_input_embeddings().weight.shape[1]
        return HiddenStates((*token_ids.shape, width), self._dtype, directory)

    def _set_layers(self, layers: nn.ModuleList) -> None:
        parent, _, attribute = self.layout.layers.rpartition(".")
        setattr(self.model.get_submodule(parent), attribute, layers)

    @torch.no_grad()
    def advance(self, layer: nn.Module, index: int, batch: MicroBatch, hidden: HiddenStates) -> None:
        """Run one micro-batch through a loaded layer."""
        arguments, keywords = batch.calls[index]
        output = layer(hidden.entering(index)[batch.rows].to(self.device), *arguments, **keywords)
        hidden.leaving(index)[batch.rows] = (output[0] if isinstance(output, tuple) else output).cpu()


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


def layout_of(model_type: str) -> ModelLayout:
    """Return the layout of an architecture.

    Raises:
        UnknownName: none is known; the message lists the known ones.
    """
    if model_type not in registry.names("models"):
        known = ", ".join(registry.names("models"))
        raise UnknownName(f"architecture {model_type!r}: not supported; supported: {known}. Add one: CONTRIBUTING.md")
    layout: ModelLayout = registry.load("models", model_type).LAYOUT
    return layout
