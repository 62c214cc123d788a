"""Tests that drive the real DVC."""
