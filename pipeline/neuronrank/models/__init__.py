"""Architectures as data: which linear modules a decoder layer has, and where its activations can be tapped.

One file per `config.model_type`, each with `LAYOUT`. Names only: nothing here imports torch or transformers.
"""

from dataclasses import dataclass
from typing import Literal

PROVIDES = ("LAYOUT",)

Part = Literal["attention", "mlp"]
Axis = Literal["row", "column"]
Section = Literal["q", "k", "v", "gate", "up"]
Fused = Literal["one after the other", "by key head"]
"""How q, k and v share the rows of one weight: all of q, then k, then v; or for each key head its queries, itself and
its values. Gate and up are always one after the other."""


@dataclass(frozen=True)
class LinearRole:
    """One linear module of a decoder layer and the taps whose factors its weights carry (METHODS section 1)."""

    path: str
    """Below the layer, for example `self_attn.q_proj`. Of an expert's module that of its weight in the checkpoint, with
    `{expert}` for the expert's number: in the model all experts share one parameter."""
    part: Part
    input_tap: str
    """Tap of the tensor that enters the module: one factor per input channel, on columns."""
    neuron_tap: str
    """Tap of the neurons that the module feeds or reads."""
    neuron_axis: Axis
    """Where that factor lies: rows of q, k, v, gate, up; columns of o, down."""
    section: Section | None = None
    """Which of its rows, when several modules share one weight."""

    @property
    def in_expert(self) -> bool:
        """Whether every expert of a mixture has such a module."""
        return "{expert}" in self.path


@dataclass(frozen=True)
class TapPoint:
    """Where a tensor is caught: at the input or the output of a submodule of the layer."""

    path: str
    side: Literal["input", "output"]
    section: Section | None = None
    """Which of an output's channels, when several modules share one weight."""


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
    fused: Fused = "one after the other"
    transposed: bool = False
    """Weights are stored as (I, O)."""
    intermediate: str | None = "intermediate_size"
    """What config.json calls the width of the MLP; None when it does not state it."""
    experts: str | None = None
    """Below the layer, the module that holds the experts of a mixture, each a gated MLP; None where there are none."""
