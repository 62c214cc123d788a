"""Phi-3: q, k and v share one weight, gate and up another."""

from neuronrank.models import ModelLayout
from neuronrank.models._families import attention_roles, attention_taps, gated_roles, gated_taps

_ATTENTION = (*["self_attn.qkv_proj"] * 3, "self_attn.o_proj")
_MLP = ("mlp.gate_up_proj", "mlp.gate_up_proj", "mlp.down_proj")

LAYOUT = ModelLayout(
    layers="model.layers",
    linears=attention_roles(*_ATTENTION) + gated_roles(*_MLP),
    taps=attention_taps(*_ATTENTION) | gated_taps(*_MLP, "mlp.activation_fn"),
)
