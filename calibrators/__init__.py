"""Calibration of the SAM decoder: feeds of SAM embeddings, histograms, and the choice of each tensor's range.

These names need numpy alone. `calibrators.collect` runs graphs in ONNX Runtime; `calibrators.pipeline` goes all the way from a
checkpoint to a quantized graph.
"""

from __future__ import annotations

from calibrators.feeds import CalibrationFeeds, FeedOptions, calibration_feeds
from calibrators.histogram import Histogram, histogram_of
from calibrators.thresholds import threshold

__all__ = ["CalibrationFeeds", "FeedOptions", "Histogram", "calibration_feeds", "histogram_of", "threshold"]
