"""Calibrate once, ask everything: pruning criteria for language models from one cached statistics artifact."""

__version__ = "0.1.0"
