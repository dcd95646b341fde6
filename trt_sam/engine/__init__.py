"""TensorRT 10, 11 and RTX: building engines, their layers, sets of engines with a manifest."""
