"""Timings: each side in a process of its own, called as a service calls it."""
