"""Commands that messages advise, as tests try them."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Sequence

__all__ = ["advised", "parses"]

_KNOWN = {"--precision": "int8", "--checkpoint": "standin", "--images": "2"}
"""Values that parsers check, for those that a message does not know."""
_UNKNOWN = ("CHECKPOINT", "VALUE")


def advised(message: str) -> list[str]:
    """The words of the one command that ends a message, without the program's name; it must parse."""
    _, program, command = message.strip().rpartition("trt-sam ")
    assert program, message
    words = shlex.split(command)
    assert parses(words), command
    return words


def parses(words: Sequence[str]) -> bool:
    """Whether the words are a subcommand with flags that it takes; CHECKPOINT and VALUE stand for something."""
    name, *flags = words
    parser = argparse.ArgumentParser()
    importlib.import_module(f"trt_sam.commands.{re.sub('[^a-z]', '', name)}").add_arguments(parser)
    filled = [_KNOWN.get(flag, word) if word in _UNKNOWN else word for flag, word in zip(words, flags, strict=False)]
    try:
        parser.parse_args(filled)
    except SystemExit:
        return False
    return True
