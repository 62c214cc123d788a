"""What a collection will need, told before it starts: memory, disk and arithmetic, from shapes alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neuronrank.planned_arrays import PROJECTED, Shape, planned_arrays
from neuronrank.profiles import INPUTS, PROFILES, ProfileName
from neuronrank.sketch import N_BINS
from neuronrank.tap_names import EXPERT_TAPS, base, n_experts

_PROCESS = 700 << 20
"""Bytes of Python with torch, transformers and the compiled loops, before there is a model."""
_HEAP = 1.2
"""Of what the arrays take: what is let go is not always given back. With it, 0.9 and 1.7 GiB are told where 0.9 and 1.6
were measured (135M weights, 64 windows of 512 tokens; 3.2 billion weights, 4 windows of 64)."""
_STORED = {True: 0.35, False: 0.75}
"""Bytes on disk of a byte of the arrays, by whether the profile rounds; measured on a 135M model: 0.30 and 0.73."""


@dataclass(frozen=True)
class Needs:
    """Estimates."""

    ram_bytes: float
    """Of one process."""
    disk_bytes: float
    """While it runs: the artifact, and the hidden states between two layers."""
    flop: float
    """Of the forward pass: two for each multiply-add."""

    def __str__(self) -> str:
        """Return them for people."""
        return (
            f"needs about {self.ram_bytes / 2**30:.1f} GiB RAM, {self.disk_bytes / 2**30:.1f} GiB disk, "
            f"{self.flop / 1e9:,.0f} GFLOP"
        )


def collected_shape(modules: Sequence[dict[str, Any]], windows: tuple[int, int], kept: Mapping[str, Any]) -> Shape:
    """Return the shape of what is collected of a model.

    Args:
        modules: as a manifest lists them.
        windows: N and T.
        kept: `classes`, `micro_topics`, `gram` and `experts_per_token`.
    """
    widths: dict[str, int] = {}
    for module in modules:
        n_out, n_in = module["shape"]
        widths[base(module["input_tap"])] = n_in
        widths[base(module["neuron_tap"])] = n_out if module["neuron_axis"] == "row" else n_in
    widths["gate_pre"] = widths["neuron"]
    of_one = tuple((module["shape"][0], module["shape"][1]) for module in modules if module["layer"] == 0)
    n_layers = 1 + max(module["layer"] for module in modules)
    experts = n_experts(module["input_tap"] for module in modules)
    return Shape(n_layers, widths, of_one, *windows, experts=experts, **kept)


def predict(shape: Shape, profile_name: ProfileName, item_bytes: int, per_batch: int, outside_bytes: int) -> Needs:
    """Return what a collection will need.

    Args:
        shape: of `collected_shape`.
        profile_name: what is kept.
        item_bytes: of a number of the forward pass.
        per_batch: windows that run at once.
        outside_bytes: of the weights before the first layer.
    """
    profile, widths, n, t = (PROFILES[profile_name], shape.tap_width, shape.windows, shape.window_tokens)
    hidden = widths["attn_in"]
    weights = sum(n_out * n_in for n_out, n_in in shape.module_shapes)
    experts = shape.experts or 1
    of_experts = 3 * widths["mlp_in"] * widths["neuron"] * experts if shape.experts else 0
    used = weights - of_experts + of_experts * shape.experts_per_token / experts
    largest = max(n_out * n_in for n_out, n_in in shape.module_shapes)
    kept = sum(
        widths[tap]
        * (experts if tap in EXPERT_TAPS else 1)
        * (
            16 * n
            + 4 * N_BINS * (2 * (tap in profile.sketched) + (tap in profile.signed))
            + 16 * (shape.classes + 1) * (tap in profile.classed)
            + 8 * shape.micro_topics * len(profile.topical.get(tap, ()))
            + 12 * widths[tap] * (shape.gram and tap in INPUTS)
        )
        for tap in profile.taps
    )
    topics = n * t * 4 * (2 * PROJECTED + shape.micro_topics) if profile.topical and shape.micro_topics else 0
    batch = per_batch * t * item_bytes * (4 * hidden + 3 * widths["neuron"] + 4 * widths["attn_ctx"])
    layer = 2 * weights * item_bytes + 8 * largest + kept + topics + batch + n * t * hidden * item_bytes
    arrays = sum(array.raw_bytes for array in planned_arrays(shape, profile_name))
    attention = 2 * n * t * t * widths["attn_ctx"]  # causal: half of QK^T and of PV
    return Needs(
        ram_bytes=_PROCESS + _HEAP * max(layer, outside_bytes + batch),
        disk_bytes=arrays * _STORED[profile.rounded] + 2 * n * t * hidden * item_bytes,
        flop=shape.layers * (2.0 * n * t * used + attention),
    )
