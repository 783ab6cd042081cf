"""Emergent misalignment, measured: a thin library that the notebooks read like prose."""

__version__ = "0.1.0"
