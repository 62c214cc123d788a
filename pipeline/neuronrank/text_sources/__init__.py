"""Where text can come from, one file each: `Params`, and `documents(params)` that yields `Document`s in order."""

from typing import Any

from neuronrank.params import Section

PROVIDES = ("Params", "documents")


class TextParams(Section):
    """The text to calibrate on and the named texts to evaluate on."""

    calibration: dict[str, Any]
    evaluation: dict[str, dict[str, Any]]
