"""Llama: separate q, k, v, o and a gated MLP; `act_fn` is a module, so a = phi(g) is its output."""

from neuronrank.models._families import LLAMA

LAYOUT = LLAMA
