"""Where a model can come from, one file each.

Every file has `Params` and `materialise(params, out) -> Weights`: it fills the directory `out` with a Hugging Face
model, or leaves it empty when the weights already lie on this machine.
"""

from pathlib import Path
from typing import NamedTuple

from neuronrank.params import Section

PROVIDES = ("Params", "materialise")


class ModelParams(Section):
    """What every source understands."""

    source: str
    architecture: str | None = None
    """The model's `config.model_type`, checked against the model. The pipeline needs it; `neuronrank run` does not."""


class Weights(NamedTuple):
    """Where a source put the weights."""

    directory: Path
    """A Hugging Face directory that can be read now."""
    pointer: dict[str, str]
    """What finds that directory again; empty when it is the artifact's own."""
