"""Scoring methods, one file each; the file's name is the method's name.

A score is |W_ij|^weight_exp times a factor per channel (METHODS section 3); higher is kept. A file provides

- `TAP`: which tensor of each module the factor comes from: "input" (one factor per input channel, on columns),
  "neuron" (the neurons that the module feeds or reads, on rows or columns as the architecture says), or None;
- `STATISTICS`: the sums that it reads;
- `DEFAULT_GROUP`: what a weight competes with when the pattern names no group: "row" or "module";
- `Params`: a subclass of `MethodParams`;
- `channel_factor(tap, params)`: (C,) float64, finite, >= 0; not needed when `TAP` is None.

Numpy only: scoring needs neither torch nor the model.
"""

from pydantic import Field, PositiveInt

from neuronrank.params import Section


class MethodParams(Section):
    """What every method understands."""

    method: str
    weight_exp: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Exponent of |W_ij|; 0 ignores the weights."""
    nsamples: PositiveInt | None = None
    """Use the first so many calibration documents only; null uses all."""
