"""GPT-NeoX and Pythia: q, k and v share one weight, head by head, and the MLP has no gate."""

from neuronrank.models import ModelLayout
from neuronrank.models._families import attention_roles, attention_taps, plain_roles, plain_taps

_ATTENTION = (*["attention.query_key_value"] * 3, "attention.dense")
_MLP = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")

LAYOUT = ModelLayout(
    layers="gpt_neox.layers",
    linears=attention_roles(*_ATTENTION) + plain_roles(*_MLP),
    taps=attention_taps(*_ATTENTION) | plain_taps(*_MLP),
    lm_head="embed_out",
    embeddings="gpt_neox.embed_in",
    fused="by key head",
)
