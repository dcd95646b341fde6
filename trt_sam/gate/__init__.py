"""One verdict with limits on a decoder: what is asked of it, golden data, the layer that is to blame, and the reports."""
