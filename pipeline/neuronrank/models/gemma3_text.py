"""Gemma 3, text only: modules as in Llama; norms before and after each part, queries and keys normalised."""

from neuronrank.models._families import LLAMA

LAYOUT = LLAMA
