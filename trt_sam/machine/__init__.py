"""What the machine has: drivers, GPUs, installed packages, load and clocks."""
