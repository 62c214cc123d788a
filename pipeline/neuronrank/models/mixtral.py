"""Mixtral: Llama's attention, and in every layer a mixture of gated MLPs. The router stays dense."""

from neuronrank.models._families import mixture

_EXPERT = "block_sparse_moe.experts.{expert}"

LAYOUT = mixture(f"{_EXPERT}.w1", f"{_EXPERT}.w3", f"{_EXPERT}.w2")
