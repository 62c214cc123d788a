"""How many calibration tokens the router of a mixture sent to each expert, and which experts went short."""

from typing import Any

import numpy as np

from neuronrank.statistics_store import Statistics

_SHORT = 0.1
"""Of an even share: an expert with fewer tokens is reported."""
_NAMED = 20
"""So many are named in the log; `neuronrank inspect` names all."""


def describe_routing(statistics: Statistics) -> dict[str, Any] | None:
    """Return what `neuronrank inspect` says of the experts; None where there are none."""
    tokens = statistics.routed_tokens()
    if tokens is None:
        return None
    layer, expert = (int(index) for index in np.unravel_index(np.argmin(tokens), tokens.shape))
    return {
        "per_layer": tokens.shape[1],
        "fewest_tokens": {"layer": layer, "expert": expert, "tokens": int(tokens.min())},
        "without_tokens": int(np.count_nonzero(tokens == 0)),
        "below_a_tenth_of_an_even_share": [
            f"{layer}.{expert}: {tokens[layer, expert]}"
            for layer, expert in np.argwhere(tokens < _SHORT * tokens.mean(axis=1, keepdims=True)).tolist()
        ],
    }


def routing_lines(statistics: Statistics) -> list[str]:
    """Return what a collection tells of the experts: nothing where there are none."""
    found = describe_routing(statistics)
    if found is None:
        return []
    fewest, short = found["fewest_tokens"], found["below_a_tenth_of_an_even_share"]
    named = f" (layer.expert: tokens): {', '.join(short[:_NAMED])}{', …' if len(short) > _NAMED else ''}"
    lines = [
        f"experts: expert {fewest['expert']} of layer {fewest['layer']} saw the fewest tokens, {fewest['tokens']}; "
        f"{len(short)} have less than a tenth of an even share{named if short else ''}"
    ]
    if found["without_tokens"]:
        lines.append(f"experts: {found['without_tokens']} saw no token and cannot be scored. Use more text")
    return lines
