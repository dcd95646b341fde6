"""One call of a runner: what may be given, how it is cut into pieces, what comes back."""
