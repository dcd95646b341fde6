"""KServe's protocol, version 2, as `tritonclient` speaks it: JSON with the extension for binary tensors."""
