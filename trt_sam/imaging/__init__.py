"""Photographs in and pictures out: reading, resizing to the frame, overlays, embedding files."""
