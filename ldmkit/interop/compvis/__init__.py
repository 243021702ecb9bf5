"""Checkpoints in the layout of the paper's released code."""
