"""Calibration of the SAM decoder: feeds of SAM embeddings, histograms, and the choice of each tensor's range."""
