"""Names of taps: those inside an expert of a mixture carry its number, as in `mlp_in.3`. Needs no torch.

In an artifact the experts of a tap are an axis of its arrays.
"""

from collections.abc import Iterable

EXPERT_TAPS = ("mlp_in", "gate_pre", "neuron", "mlp_mid")
"""What lies inside an expert where the MLP is a mixture."""


def of_expert(tap: str, expert: int | None) -> str:
    """Return the name of a tap inside an expert; the tap's own where there are no experts."""
    return tap if expert is None else f"{tap}.{expert}"


def base(tap: str) -> str:
    """Return the name without the expert."""
    return tap.partition(".")[0]


def expert(tap: str) -> int | None:
    """Return which expert a tap is in; None where there are none."""
    number = tap.partition(".")[2]
    return int(number) if number else None


def block(layer: int, tap: str) -> str:
    """Return what the neurons of a tap belong to: the layer, `3`, or one of its experts, `3.7`."""
    return of_expert(str(layer), expert(tap))


def n_experts(taps: Iterable[str]) -> int | None:
    """Return how many experts taps are in; None where there are none."""
    found = {expert(tap) for tap in taps} - {None}
    return len(found) or None
