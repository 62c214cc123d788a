"""Tests: hand-computed goldens, naive references, real DVC."""
