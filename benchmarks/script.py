"""What the scripts of this folder share: how they end, and what they say on the way."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable


def finish(name: str, run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """The exit code of `run(args)`; 2 and one line for an error of the user's, 130 for Ctrl-C."""
    from trt_sam.errors import TrtSamError

    try:
        return run(args)
    except TrtSamError as error:
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; nothing was written", file=sys.stderr)
        return 130


def say(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)
