"""Which module of ours is which weight of a GGUF model, by the `gguf` package's own map of names. Needs no torch.

Only architectures whose conversion to GGUF leaves the order of input channels as it is, and whose modules llama.cpp
gives the same inputs. (Rows of q and k are permuted for Llama, which are outputs; experts are put into one tensor in
their order.)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import gguf

from neuronrank import registry
from neuronrank.errors import MismatchError, UnknownName
from neuronrank.models import ModelLayout
from neuronrank.tap_names import base, expert, n_experts

SUPPORTED = {
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
}
"""`config.model_type` -> the architecture that llama.cpp's converter makes of it."""

_OUTSIDE = (gguf.MODEL_TENSOR.OUTPUT, gguf.MODEL_TENSOR.TOKEN_EMBD)
_ROUTER = gguf.MODEL_TENSOR.FFN_GATE_INP


@dataclass(frozen=True)
class TapEntries:
    """The entries of an importance matrix that hold the sums of one tap."""

    layer: int
    tap: str
    """Of a mixture the tap's name without the expert's number."""
    n_channels: int
    names: tuple[str, ...]
    """Of the weights that the tap's tensor enters, `blk.0.attn_q.weight`; all have the same sums."""
    n_experts: int | None
    """How many experts' sums each entry holds; None where there are none."""


def tap_entries(architecture: str, modules: Sequence[dict[str, Any]], n_layers: int) -> list[TapEntries]:
    """Return which entries hold the sums of which tap, layer after layer.

    Args:
        architecture: `config.model_type`.
        modules: as a manifest lists them.
        n_layers: of the model.

    Raises:
        UnknownName: an architecture whose names are not known to correspond; lists those that are.
        MismatchError: modules of another architecture.
    """
    if architecture not in SUPPORTED:
        raise UnknownName(
            f"architecture {architecture!r}: importance matrices are not supported; supported: {', '.join(SUPPORTED)}"
        )
    found = _entries(architecture, modules, n_layers)
    if found is None:
        raise MismatchError(f"the modules are not those of architecture {architecture!r}: {modules[0]['name']}, …")
    return found


def entries_of_unknown(modules: Sequence[dict[str, Any]], n_layers: int) -> list[TapEntries]:
    """Return the same of modules whose architecture is not stated: the first whose layout has them all.

    Architectures with the same modules have the same names in GGUF.

    Raises:
        UnknownName: no supported architecture has such modules.
    """
    for architecture in SUPPORTED:
        found = _entries(architecture, modules, n_layers)
        if found is not None:
            return found
    raise UnknownName(
        f"modules like {modules[0]['name']!r}: of an architecture whose importance matrices are not supported; "
        f"supported: {', '.join(SUPPORTED)}"
    )


def names_without_tap(taps: Sequence[TapEntries]) -> set[str]:
    """Return names of weights that are not pruned, but that llama.cpp may measure: output head and routers."""
    outside = {gguf.TENSOR_NAMES[tensor] for tensor in _OUTSIDE}
    routers = {gguf.TENSOR_NAMES[_ROUTER].format(bid=tap.layer) for tap in taps if tap.n_experts is not None}
    return {f"{name}.weight" for name in outside | routers}


def _entries(architecture: str, modules: Sequence[dict[str, Any]], n_layers: int) -> list[TapEntries] | None:
    """Return the entries, or None when these are not the modules of the architecture's layout."""
    layout: ModelLayout = registry.load("models", architecture).LAYOUT
    names = gguf.get_tensor_name_map(SUPPORTED[architecture], n_layers)
    found = []
    for layer, of_layer in groupby(modules, key=lambda module: int(module["layer"])):
        members = list(of_layer)
        experts = n_experts(module["input_tap"] for module in members)
        expected = list(_expected(layout, layer, experts))
        if len(expected) != len(members):
            return None
        entering: dict[str, tuple[int, list[str]]] = {}
        for module, (path, key) in zip(members, expected, strict=True):
            name = names.get_name(key)
            if name is None or not f".{module['name']}".endswith(f".{path}"):
                return None
            entering.setdefault(base(module["input_tap"]), (module["shape"][1], []))[1].append(f"{name}.weight")
        inside = {base(module["input_tap"]) for module in members if expert(module["input_tap"]) is not None}
        for tap, (n_channels, weights) in entering.items():
            unique = tuple(dict.fromkeys(weights))
            found.append(TapEntries(layer, tap, n_channels, unique, experts if tap in inside else None))
    return found


def _expected(layout: ModelLayout, layer: int, experts: int | None) -> Iterator[tuple[str, str]]:
    """Yield of each module of a layer its path, and the key by which the map of names knows its weight."""
    dense = [role for role in layout.linears if not role.in_expert]
    inside = [role for role in layout.linears if role.in_expert]
    every = [(role, 0) for role in dense] + [(role, number) for number in range(experts or 0) for role in inside]
    for role, number in every:
        path = f"{layer}.{role.path.format(expert=number)}"
        section = f".{role.section}" if role.section else ""
        of_all = (name for name in role.path.split(".") if not name.startswith("{"))  # the expert's number
        yield path + section, ".".join([layout.layers, str(layer), *of_all])
