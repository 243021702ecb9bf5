"""Folders in the layout of the diffusers library."""
