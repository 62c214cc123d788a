"""BLOOM: q, k and v share one weight, head by head; the MLP has no gate and is four times as wide as the model."""

from neuronrank.models import ModelLayout
from neuronrank.models._families import attention_roles, attention_taps, plain_roles, plain_taps

_ATTENTION = (*["self_attention.query_key_value"] * 3, "self_attention.dense")
_MLP = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")

LAYOUT = ModelLayout(
    layers="transformer.h",
    linears=attention_roles(*_ATTENTION) + plain_roles(*_MLP),
    taps=attention_taps(*_ATTENTION) | plain_taps(*_MLP),
    embeddings="transformer.word_embeddings",
    fused="by key head",
    intermediate=None,
)
