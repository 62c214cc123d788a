"""The forward pass of a mixture's experts, one after the other, which shows what each of them computes.

transformers holds all experts of a layer in two parameters, `gate_up_proj` (E, 2F, H) and `down_proj` (E, H, F), and
lets others provide the function that runs them. This one gives each expert its tokens in the documents' order.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from neuronrank.errors import MismatchError
from neuronrank.tap_names import of_expert

PARAMETERS = ("gate_up_proj", "down_proj")
_NAME = "one_after_the_other"
_LISTENER = "neuronrank_on_tap"
_PLAIN = {"has_gate": True, "has_bias": False, "is_transposed": False, "is_concatenated": True}
OnExpertTap = Callable[[str, Tensor, Tensor], None]


def run_one_after_the_other(model: Any) -> None:
    """Let a model's experts run by this file's function."""
    ALL_EXPERTS_FUNCTIONS.register(_NAME, _forward)
    model.set_experts_implementation(_NAME)


def require_understood(layer: nn.Module, path: str) -> int:
    """Return how many experts a layer has.

    Args:
        layer: of a model.
        path: of its experts, below it.

    Raises:
        MismatchError: they are not gated MLPs without biases whose weights lie as the function expects.
    """
    try:
        experts: Any = layer.get_submodule(path)
    except AttributeError as err:
        raise MismatchError(f"{type(layer).__name__}: has no experts {path!r}, which its layout names") from err
    found = {name: getattr(experts, name, None) for name in _PLAIN}
    shapes = {name: getattr(experts, name).ndim for name in PARAMETERS if hasattr(experts, name)}
    if found != _PLAIN or shapes != dict.fromkeys(PARAMETERS, 3):
        raise MismatchError(
            f"{type(layer).__name__}: experts {path!r} have parameters {shapes} and {found}; understood are "
            f"{' and '.join(PARAMETERS)} of 3 axes and {_PLAIN}"
        )
    return int(experts.num_experts)


@contextmanager
def tapped_experts(experts: nn.Module, on_tap: OnExpertTap) -> Iterator[None]:
    """Call `on_tap(tap, values, tokens)` for every tap of every expert, each time the experts run.

    Args:
        experts: of a layer; also called for an expert that no token is routed to.
        on_tap: gets the tap's name with the expert's number, its values (n, C), and which tokens those are, (n,).
    """
    setattr(experts, _LISTENER, on_tap)
    try:
        yield
    finally:
        delattr(experts, _LISTENER)


def _forward(experts: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
    """Run (tokens, H) through the experts that the router chose for each, (tokens, k), and add what they give."""
    on_tap: OnExpertTap | None = getattr(experts, _LISTENER, None)
    output = torch.zeros_like(hidden)
    for expert in range(experts.num_experts):
        tokens, position = torch.where(top_k_index == expert)  # in the order of the tokens
        x = hidden[tokens]
        gate, up = linear(x, experts.gate_up_proj[expert]).chunk(2, dim=-1)
        neurons = experts.act_fn(gate)
        middle = neurons * up
        if on_tap:
            for tap, values in (("mlp_in", x), ("gate_pre", gate), ("neuron", neurons), ("mlp_mid", middle)):
                on_tap(of_expert(tap, expert), values, tokens)
        found = linear(middle, experts.down_proj[expert]) * top_k_weights[tokens, position, None]
        output.index_add_(0, tokens, found.to(output.dtype))
    return output
