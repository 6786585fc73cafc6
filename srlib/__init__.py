"""Replications of published medical-image super-resolution systems, side by side."""

__version__ = "0.1.0"
