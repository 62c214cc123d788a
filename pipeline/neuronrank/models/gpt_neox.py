"""GPT-NeoX and Pythia: q, k and v share one weight, head by head, and the MLP has no gate."""

from neuronrank.models._families import fused_and_plain

LAYOUT = fused_and_plain(
    "gpt_neox.layers",
    "attention.query_key_value",
    "attention.dense",
    ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    lm_head="embed_out",
    embeddings="gpt_neox.embed_in",
    fused="by key head",
)
