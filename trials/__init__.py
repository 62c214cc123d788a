"""Trials of what tests cannot try often enough: `python -m trials kills` and `flips`. Developed with, not installed."""
