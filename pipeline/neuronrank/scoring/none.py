"""None: the part has no score and stays dense.

Source: METHODS section 4, selection.
Differs: nothing.
"""

from neuronrank.scoring import Element, MethodParams

PARTS = ("attention", "mlp")
READS = "nothing"
DEFAULT_GROUP = "module"


class Params(MethodParams):
    """No further knobs."""


def element(part: str, params: Params) -> Element | None:
    """Return None: nothing is scored."""
    del part, params
    return None
