"""Mistral: modules as in Llama; attention may slide over a window."""

from neuronrank.models._families import LLAMA

LAYOUT = LLAMA
