"""Artifacts of earlier and present schemas, kept as they were written."""
