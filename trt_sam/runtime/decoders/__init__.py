"""The decoder's graphs in ONNX Runtime: one, or those of a set, of which the quickest that fits takes a call."""
