"""Falcon: q, k and v share one weight, key head by key head (one key head with `multi_query`); no gate in the MLP."""

from neuronrank.models._families import fused_and_plain

LAYOUT = fused_and_plain(
    "transformer.h",
    "self_attention.query_key_value",
    "self_attention.dense",
    ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    embeddings="transformer.word_embeddings",
    fused="by key head",
    intermediate="ffn_hidden_size",
)
