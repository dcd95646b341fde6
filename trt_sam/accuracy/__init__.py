"""How far a graph or engine is from PyTorch: metrics, comparison, measurement and its report."""
