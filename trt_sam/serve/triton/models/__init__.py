"""What the models of the repository do, inside of Triton's Python backend."""
