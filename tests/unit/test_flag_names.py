"""What the library says of a setting, in the words of who typed a command."""

from __future__ import annotations

import argparse

import pytest

from trt_sam.cli import by_flags


@pytest.mark.parametrize(
    ("words", "message", "said"),
    [
        ("--max-depth 0", "max_depth is 0, must be at least 1", "--max-depth is 0, must be at least 1"),
        ("--max-d=0", "max_depth is 0, must be at least 1", "--max-depth is 0, must be at least 1"),
        ("--old-name 0", "new_name is 0, must be at least 1", "--old-name is 0, must be at least 1"),
        ("--max-depth 3", "point is 2, must be at most max_depth 1", "--point is 2, must be at most --max-depth 1"),
        ("--min-iou 7", "limit min_iou is 7.0, must be from 0 to 1", "--min-iou is 7.0, must be from 0 to 1"),
        # Not typed: of a file, or of a default.
        ("--point 1", "max_depth is 0, must be at least 1", "max_depth is 0, must be at least 1"),
        ("--max-depth 1", "recipe a.toml: max_depth is 0, must be 1", "recipe a.toml: max_depth is 0, must be 1"),
        # Parts of paths, and what no flag is of.
        ("--point x", "point is 'max_depth', must be in /a/max_depth", "--point is 'max_depth', must be in /a/max_depth"),
        ("--point x", "other is 1, must be 2", "other is 1, must be 2"),
        ("--point-grid x", "point is 1, must be 2", "point is 1, must be 2"),
        ("--point x", "point not found: x", "point not found: x"),
    ],
)
def test_the_flag_that_was_typed_is_named(words: str, message: str, said: str) -> None:
    parser = argparse.ArgumentParser()
    for flags in (("--max-depth",), ("--new-name", "--old-name"), ("--point",), ("--point-grid",), ("--min-iou",)):
        parser.add_argument(*flags)
    assert by_flags(message, parser, words.split()) == said
