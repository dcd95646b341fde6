"""What all tests share: the helpers in tests/fixtures, and the host-memory CUDA driver for tests marked `hostcuda`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

pytest_plugins = ["fixtures.hostcuda.plugin"]
