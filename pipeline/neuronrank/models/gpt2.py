"""GPT-2: q, k and v share one weight, weights are stored as (I, O), and the MLP has no gate."""

from neuronrank.models import ModelLayout
from neuronrank.models._families import attention_roles, attention_taps, plain_roles, plain_taps

_ATTENTION = (*["attn.c_attn"] * 3, "attn.c_proj")
_MLP = ("mlp.c_fc", "mlp.c_proj")

LAYOUT = ModelLayout(
    layers="transformer.h",
    linears=attention_roles(*_ATTENTION) + plain_roles(*_MLP),
    taps=attention_taps(*_ATTENTION) | plain_taps(*_MLP),
    embeddings="transformer.wte",
    transposed=True,
    intermediate="n_inner",
)
