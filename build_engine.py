#!/usr/bin/env python3
"""The engine build from a bare checkout: `python build_engine.py ...` is `trt-sam build ...`."""

from __future__ import annotations

import sys

from trt_sam.cli import main

if __name__ == "__main__":
    sys.exit(main(["build", *sys.argv[1:]]))
