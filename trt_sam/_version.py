"""The version, below everything, so that a graph or a manifest can name it."""

__version__ = "0.1.0"
