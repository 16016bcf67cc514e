"""Adapter files: their layout and names."""
