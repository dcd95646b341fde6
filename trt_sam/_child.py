"""A Python process beside this one, that imports what this one would, wherever it is started."""

from __future__ import annotations

import sys

__all__ = ["python_running"]


def python_running(code: str) -> list[str]:
    """The command of a Python that runs `code` without the current folder among its imports.

    A folder or file there that is named like a package must not be taken for it. Python's option for that, -P, came with 3.11.
    """
    return [sys.executable, "-c", f"import sys\nsys.path[:] = [place for place in sys.path if place]\n{code}"]
