"""Gemma 2: modules as in Llama; norms before and after each part, every other layer attends over a window."""

from neuronrank.models._families import LLAMA

LAYOUT = LLAMA
