"""Qwen2: modules as in Llama; q, k and v have biases."""

from neuronrank.models._families import LLAMA

LAYOUT = LLAMA
