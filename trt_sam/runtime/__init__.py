"""Running a graph without a GPU: ONNX Runtime, PyTorch, and the predictor over any runner."""
