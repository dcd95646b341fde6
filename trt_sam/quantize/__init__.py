"""QuantizeLinear and DequantizeLinear pairs in a graph: which products, with what shift and scale."""
