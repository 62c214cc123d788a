"""A model without weights, and which tensor of the checkpoint is which of its parameters.

Relies on transformers' internal loading code (`core_model_loading`), which merges or renames checkpoint tensors where
an architecture needs it; that is why this file is the only one that imports it and the dependency is pinned to v5.
"""

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.initialization import no_init_weights
from transformers.modeling_utils import LoadStateDictConfig
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from neuronrank import registry
from neuronrank.checkpoint import Checkpoint
from neuronrank.errors import MismatchError, UnknownName
from neuronrank.experts import PARAMETERS, require_understood
from neuronrank.models import LinearRole, ModelLayout
from neuronrank.module_views import Rows
from neuronrank.sections import section_rows
from neuronrank.tap_names import of_expert

_LINEAR = (nn.Linear, Conv1D)


class Skeleton:
    """A causal language model whose parameters are on the meta device until they are loaded."""

    def __init__(self, weights: Checkpoint, dtype: torch.dtype) -> None:
        """Build the model; no tensor is read.

        Raises:
            SourceError: the checkpoint cannot be read.
            UnknownName: no layout for this architecture, or linear modules that its layout does not know.
            MismatchError: the model has not the modules of its layout.
        """
        self.weights, self.dtype = weights, dtype
        config = AutoConfig.from_pretrained(weights.directory, trust_remote_code=False)
        if weights.untied:
            config.tie_word_embeddings = False
        self.layout = layout_of(config.model_type)
        with init_empty_weights(include_buffers=False), no_init_weights():  # what would be drawn is loaded instead
            self.model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).eval()
        self.layers: nn.ModuleList = self.model.get_submodule(self.layout.layers)
        self._mapping = get_model_conversion_mapping(self.model)
        self.of_layer: list[list[str]] = [[] for _ in self.layers]
        """The checkpoint's tensor names per layer."""
        self.outside: list[str] = []
        """Those outside all layers."""
        self._stored_as: dict[str, list[str]] = {}
        self._assign_tensors()
        for layer in self.layers:
            self._require_known(layer)

    def _assign_tensors(self) -> None:
        renamings = [entry for entry in self._mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in self._mapping if isinstance(entry, WeightConverter)]
        expected = self.model.state_dict()
        prefix = self.layout.layers + "."
        for name in self.weights.names:
            target, _ = rename_source_key(name, renamings, converters, self.model.base_model_prefix, expected)
            if target not in expected and any(re.search(pattern, target) for pattern in self._ignored_patterns()):
                continue
            self._stored_as.setdefault(target, []).append(name)
            if target.startswith(prefix):
                self.of_layer[int(target.removeprefix(prefix).split(".", 1)[0])].append(name)
            else:
                self.outside.append(name)

    def _ignored_patterns(self) -> set[str]:
        """Return what transformers itself ignores: old checkpoints carry rotary frequencies in every layer."""
        return {r"rotary_emb\.inv_freq$", *(self.model._keys_to_ignore_on_load_unexpected or ())}

    def _require_known(self, layer: nn.Module) -> None:
        """Refuse a layer with other linear modules than its layout names: they would be left out without a word."""
        found = {path for path, module in layer.named_modules() if isinstance(module, _LINEAR)}
        known = {role.path for role in self.layout.linears if not role.in_expert}
        in_experts = [role.path for role in self.layout.linears if role.in_expert]
        if found - known:
            raise UnknownName(
                f"architecture {self.model.config.model_type!r}: with this configuration a layer has linear modules "
                f"{sorted(found - known)}, which its layout does not know. Known: "
                f"{', '.join([*sorted(known), *in_experts])}. See docs/ARCHITECTURES.md"
            )
        if known - found:
            raise MismatchError(f"{type(layer).__name__}: has no linear modules {sorted(known - found)} of its layout")
        if self.layout.experts:
            require_understood(layer, self.layout.experts)

    def load(self, tensors: dict[str, torch.Tensor], device: torch.device) -> None:
        """Give parameters the values of these tensors of a checkpoint, converted where the architecture needs it.

        Args:
            tensors: by the names that they have in the checkpoint.
            device: where to.

        Raises:
            MismatchError: a tensor does not fit.
        """
        settings = LoadStateDictConfig(
            weight_mapping=deepcopy(self._mapping), dtype=self.dtype, device_map={"": device}
        )
        with _no_progress_bar():  # one for every layer
            info, _ = convert_and_load_state_dict_in_model(self.model, tensors, settings, None)
        faults = {"unexpected": info.unexpected_keys, "wrong shape": info.mismatched_keys, "": info.conversion_errors}
        for kind, keys in faults.items():
            if keys:
                raise MismatchError(f"{self.weights.directory}: {kind} tensors {sorted(map(str, keys))[:3]}")

    def load_outside(self, device: torch.device, with_head: bool = True) -> None:
        """Load all that lies outside the decoder layers, and move the buffers of the whole model.

        Args:
            device: where to.
            with_head: the output head too.

        Raises:
            MismatchError: the checkpoint lacks a tensor that the architecture needs.
        """
        head = self.layout.lm_head + "."
        left = set() if with_head else self._of_head
        self.load({name: self.weights.tensor(name) for name in self.outside if name not in left}, device)
        self.model.tie_weights()
        for name, parameter in self.model.named_parameters():
            if not name.startswith(self.layout.layers + ".") and (with_head or not name.startswith(head)):
                self._require_loaded(name, parameter)
        for module in self.model.modules():  # rotary frequencies and the like; weights are loaded to their device
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.to(device))

    def load_layer(self, index: int, device: torch.device, tensors: dict[str, torch.Tensor] | None = None) -> nn.Module:
        """Load one decoder layer and return it.

        Args:
            index: of the layer.
            device: where to.
            tensors: of the layer, by the names that they have in the checkpoint; None reads them.

        Raises:
            MismatchError: the checkpoint lacks a tensor of it, or one does not fit.
        """
        self.load(self.read_layer(index) if tensors is None else tensors, device)
        for name, parameter in self.layers[index].named_parameters(prefix=f"{self.layout.layers}.{index}"):
            self._require_loaded(name, parameter)
        return self.layers[index]

    def read_layer(self, index: int, weights: Checkpoint | None = None) -> dict[str, torch.Tensor]:
        """Read a layer's tensors as they are stored, from another checkpoint of the same names if one is given."""
        return {name: (weights or self.weights).tensor(name) for name in self.of_layer[index]}

    def _require_loaded(self, name: str, parameter: nn.Parameter) -> None:
        if parameter.is_meta:
            raise MismatchError(f"{self.weights.directory}: has no tensor for {name!r} of this architecture")

    def modules(self) -> list[dict[str, Any]]:
        """Return the linear modules of all layers, as a manifest lists them; no tensor is read.

        Raises:
            MismatchError: the checkpoint lacks a weight, or a weight cannot be what the layout says.
        """
        found = []
        for index, layer in enumerate(self.layers):
            found += [self._module(index, role) for role in self.layout.linears if not role.in_expert]
            if self.layout.experts:
                for expert in range(require_understood(layer, self.layout.experts)):
                    found += [self._module(index, role, expert) for role in self.layout.linears if role.in_expert]
        return found

    def _module(self, index: int, role: LinearRole, expert: int | None = None) -> dict[str, Any]:
        if expert is None:
            path = f"{self.layout.layers}.{index}.{role.path}"
            weight = self._weight(f"{path}.weight")
        else:
            weight = self._expert_weight(index, role.path.format(expert=expert))
            path = weight.removesuffix(".weight")
        stored = self.weights.shape(weight)
        n_out, n_in = reversed(stored) if self.layout.transposed else stored
        rows = None
        if role.section is not None:
            n_heads = self.model.config.num_attention_heads
            rows = section_rows(role.section, n_out, self._context_width(index), n_heads, self.layout.fused)
            n_out = n_out // rows.period * rows.block
        return {
            "name": path if role.section is None else f"{path}.{role.section}",
            "layer": index,
            "part": role.part,
            "shape": [n_out, n_in],
            "input_tap": of_expert(role.input_tap, expert),
            "neuron_tap": of_expert(role.neuron_tap, expert),
            "neuron_axis": role.neuron_axis,
            "weight": weight,
            "rows": None if rows is None else [rows.offset, rows.block, rows.period],
            "transposed": self.layout.transposed,
        }

    @property
    def outside_bytes(self) -> int:
        """Bytes of the weights outside the decoder layers and the output head, in the type that they are loaded in."""
        before = [name for name in self.outside if name not in self._of_head]
        return sum(math.prod(self.weights.shape(name)) for name in before) * self.dtype.itemsize

    @property
    def _of_head(self) -> set[str]:
        head = self.layout.lm_head + "."
        return {name for key, names in self._stored_as.items() if key.startswith(head) for name in names}

    def sections(self, index: int) -> dict[tuple[str, str], Rows]:
        """Return (path, section) -> rows, for the modules of a layer that share a weight."""
        return {
            (role.path, role.section): Rows(*self._module(index, role)["rows"])
            for role in self.layout.linears
            if role.section is not None
        }

    def output_head(self) -> dict[str, Any]:
        """Return `module`, the stored tensors of it (`weight`, None without one) and `embeddings`, and if it is `tied`.

        Raises:
            MismatchError: the checkpoint has no embeddings.
        """
        own = self._stored_as.get(f"{self.layout.lm_head}.weight", [None])
        return {
            "module": self.layout.lm_head,
            "weight": own[0],
            "embeddings": self._weight(f"{self.layout.embeddings}.weight"),
            "tied": bool(self.model.config.tie_word_embeddings),
        }

    def _weight(self, parameter: str) -> str:
        names = self._stored_as.get(parameter, [])
        if len(names) != 1:
            raise MismatchError(f"{self.weights.directory}: has no tensor for {parameter!r} of this architecture")
        return names[0]

    def _expert_weight(self, index: int, path: str) -> str:
        """Return the checkpoint's tensor of one expert's module: one of those that make up the experts' parameters."""
        parameters = (f"{self.layout.layers}.{index}.{self.layout.experts}.{name}" for name in PARAMETERS)
        stored = [name for parameter in parameters for name in self._stored_as.get(parameter, [])]
        found = [name for name in stored if name.endswith(f".{path}.weight")]
        if len(found) != 1:
            raise MismatchError(
                f"{self.weights.directory}: has no tensor '…{path}.weight' for the experts of layer {index}, but "
                f"{len(stored)} others. Expected: every expert's modules as tensors of their own, as published"
            )
        return found[0]

    def _context_width(self, index: int) -> int:
        """Return the width of what enters the attention's output projection: all query heads together."""
        (output,) = (role for role in self.layout.linears if role.neuron_tap == "attn_ctx")
        shape = self.weights.shape(self._weight(f"{self.layout.layers}.{index}.{output.path}.weight"))
        return shape[0] if self.layout.transposed else shape[1]


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


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


def manifest_of(skeleton: Skeleton) -> dict[str, Any]:
    """Return the model's part of a statistics manifest, but for its fingerprint."""
    return {"n_layers": len(skeleton.layers), "lm_head": skeleton.output_head(), "modules": skeleton.modules()}


def release_(module: nn.Module) -> None:
    """Let go of a module's parameters: they are on the meta device again."""
    for part in module.modules():
        for name, parameter in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False))
