"""Architectures as data: which linear modules a decoder layer has, and where its activations can be tapped.

One file per `config.model_type`, each with `LAYOUT`. Names only: nothing here imports torch or transformers.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

PROVIDES = ("LAYOUT",)

Part = Literal["attention", "mlp"]
Axis = Literal["row", "column"]


@dataclass(frozen=True)
class LinearRole:
    """One linear module of a decoder layer and the taps whose factors its weights carry (METHODS section 1)."""

    path: str
    """Below the layer, for example `self_attn.q_proj`."""
    part: Part
    input_tap: str
    """Tap of the tensor that enters the module: one factor per input channel, on columns."""
    neuron_tap: str
    """Tap of the neurons that the module feeds or reads."""
    neuron_axis: Axis
    """Where that factor lies: rows of q, k, v, gate, up; columns of o, down."""

    def entry(self, name: str, layer: int, shape: Sequence[int]) -> dict[str, Any]:
        """Return what a manifest says of one such module."""
        role = {key: value for key, value in asdict(self).items() if key != "path"}
        return {"name": name, "layer": layer, "shape": list(shape), **role}


@dataclass(frozen=True)
class TapPoint:
    """Where a tensor is caught: at the input or the output of a submodule of the layer."""

    path: str
    side: Literal["input", "output"]


@dataclass(frozen=True)
class ModelLayout:
    """The linear modules and taps of every decoder layer."""

    layers: str
    """Path of the list of decoder layers in the causal-LM model."""
    linears: tuple[LinearRole, ...]
    taps: dict[str, TapPoint]
    lm_head: str = "lm_head"
    """Path of the output projection."""
    embeddings: str = "model.embed_tokens"
    """Path of the token embeddings, to which the output projection may be tied."""
