"""`import calibrators` is light, and its public names are there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def test_importing_it_loads_numpy_alone() -> None:
    heavy = ("torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "pycuda", "transformers", "PIL")
    code = (
        "import sys, calibrators\n"
        "assert all(hasattr(calibrators, name) for name in calibrators.__all__)\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
