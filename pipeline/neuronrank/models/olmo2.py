"""OLMo 2: modules as in Llama; norms after each part, so that `attn_in` and `mlp_in` are the residual stream."""

from neuronrank.models._families import LLAMA

LAYOUT = LLAMA
