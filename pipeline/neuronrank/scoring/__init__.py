"""Scoring methods, one file each; the file's name is the method's name.

An element score is weight_multi * |W_ij|^weight_exp times a factor per channel, plus a term per channel (METHODS
section 3); higher is kept. A neuron score ranks whole MLP neurons for structured pruning. A file provides

- `PARTS`: the parts of a layer that it can score, of "attention" and "mlp";
- `READS`: what it reads of the artifact, in words, for `neuronrank methods`;
- `DEFAULT_GROUP`: what a weight competes with when the pattern names no group: "row" or "module";
- `Params`: a subclass of `MethodParams`;
- `element(part, params)`: an `Element`, or None when these parameters leave the part's elements without a score;
- `channel_factor(tap, params)`: (C,) float64, finite, >= 0, when its element score has a factor;
- `channel_term(tap, params)`: (C,) float64, finite, >= 0, when its element score has a term;
- `neuron_score(tap, gate_norm, params)`: (F,) float64, when it can rank neurons.

Numpy only: scoring needs neither torch nor the model.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from pydantic import Field, PositiveInt

from neuronrank.errors import UnknownName
from neuronrank.params import Section

PROVIDES = ("PARTS", "READS", "DEFAULT_GROUP", "Params", "element")

Channels = Literal["input", "neuron", "gate_pre"]
Weight = Literal["element", "row_norm", "neuron_norm"]


@dataclass(frozen=True)
class Element:
    """How a method scores single weights."""

    weight_exp: float
    """Exponent of the weight; 0 ignores the weights."""
    channels: Channels | None
    """Whose channels carry the factor or term: the module's input (columns), its neurons or their pre-activations
    (rows of q, k, v, gate, up; columns of o, down); None when there is neither."""
    weight_multi: float = 1.0
    """Multiplies the weight; 0 leaves the term alone."""
    weight: Weight = "element"
    """|W_ij|; or the L2 norm of the module's own weights of the neuron; or of the neuron's gate row."""

    def __post_init__(self) -> None:
        """Refuse words that no score is made of; they would silently mean the neurons, or |W_ij|."""
        for found, known in ((self.channels, (*get_args(Channels), None)), (self.weight, get_args(Weight))):
            if found not in known:
                raise UnknownName(f"Element: {found!r} is unknown; known: {', '.join(map(str, known))}")


class MethodParams(Section):
    """What every method understands."""

    method: str


class WeightedParams(MethodParams):
    """Of methods that multiply with a power of the weight."""

    weight_exp: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Exponent of |W_ij|; 0 ignores the weights."""


class SampledParams(WeightedParams):
    """Of methods that can use fewer documents than were collected."""

    nsamples: PositiveInt | None = None
    """Use the first so many calibration documents only; null uses all."""


class ClassParams(WeightedParams):
    """Of methods that compare token classes."""

    classes: PositiveInt = 512
    """The most frequent token ids; all other tokens form one more row."""
    element: bool = True
    """True multiplies |W_ij| with the score relative to its mean; false takes the score alone, per neuron."""
