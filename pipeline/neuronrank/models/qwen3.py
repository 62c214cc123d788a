"""Qwen3: modules as in Llama; queries and keys are normalised after their projections, which is after the taps."""

from neuronrank.models._families import LLAMA

LAYOUT = LLAMA
