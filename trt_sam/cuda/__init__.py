"""Devices, memory, streams, events, graphs and DLPack; the only package that imports PyCUDA."""
