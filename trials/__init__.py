"""Trials of what tests cannot try often enough: `python -m trials kills`. Developed with, not installed."""
