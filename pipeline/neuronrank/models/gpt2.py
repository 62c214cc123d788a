"""GPT-2: q, k and v share one weight, weights are stored as (I, O), and the MLP has no gate."""

from neuronrank.models._families import fused_and_plain

LAYOUT = fused_and_plain(
    "transformer.h",
    "attn.c_attn",
    "attn.c_proj",
    ("mlp.c_fc", "mlp.c_proj"),
    embeddings="transformer.wte",
    transposed=True,
    intermediate="n_inner",
)
