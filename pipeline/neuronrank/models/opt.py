"""OPT: separate q, k, v, o and an MLP without a gate."""

from neuronrank.models import ModelLayout
from neuronrank.models._families import attention_roles, attention_taps, plain_roles, plain_taps

_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")

LAYOUT = ModelLayout(
    layers="model.decoder.layers",
    linears=attention_roles(*_ATTENTION) + plain_roles("fc1", "fc2"),
    taps=attention_taps(*_ATTENTION) | plain_taps("fc1", "fc2"),
    embeddings="model.decoder.embed_tokens",
    intermediate="ffn_dim",
)
