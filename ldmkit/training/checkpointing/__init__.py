"""Checkpoints: a stage's state, written whole or not at all."""
