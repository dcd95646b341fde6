"""Real checkpoints for tests: fetched once into the user's cache, and a skip with its reason where no source answers.

`def test_x(mobile_sam: Path)` takes the fixture of conftest; `checkpoint_file("mobile_sam")` is the same as a function. A
source that answers with anything else than the file fails the test.
"""

from __future__ import annotations

from pathlib import Path

import pytest

__all__ = ["checkpoint_file"]


def checkpoint_file(name: str) -> Path:
    """The verified file of a checkpoint of the catalogue; skips the test where none of its sources answers."""
    from trt_sam.download import NoSourceError, fetch

    try:
        return fetch(name)
    except NoSourceError as error:
        pytest.skip(f"the weights of {name} cannot be had here: {error}")
