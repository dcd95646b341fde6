"""What all tests share: the helpers in tests/fixtures, and the host-memory CUDA driver for tests marked `hostcuda`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `pytest` as well as `python -m pytest`

pytest_plugins = ["tests.fixtures.hostcuda.plugin"]
