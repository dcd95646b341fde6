"""The ONNX graph: export from PyTorch, its options and metadata, arithmetic, FP16 judged on a CPU."""
