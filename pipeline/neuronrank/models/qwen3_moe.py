"""Qwen3-MoE: Qwen3's attention, and in every layer a mixture of gated MLPs. The router stays dense."""

from neuronrank.models._families import mixture

_EXPERT = "mlp.experts.{expert}"

LAYOUT = mixture(
    f"{_EXPERT}.gate_proj", f"{_EXPERT}.up_proj", f"{_EXPERT}.down_proj", intermediate="moe_intermediate_size"
)
