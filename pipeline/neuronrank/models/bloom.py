"""BLOOM: q, k and v share one weight, head by head; the MLP has no gate and is four times as wide as the model."""

from neuronrank.models._families import fused_and_plain

LAYOUT = fused_and_plain(
    "transformer.h",
    "self_attention.query_key_value",
    "self_attention.dense",
    ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    embeddings="transformer.word_embeddings",
    fused="by key head",
    intermediate=None,
)
