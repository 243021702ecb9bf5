"""Tensors from files that nobody vouches for, without running code."""
