"""What all tests share: decoder graphs, the helpers in tests/fixtures, and the host-memory CUDA driver (mark `hostcuda`)."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))  # for `pytest` as well as `python -m pytest`

pytest_plugins = ["tests.fixtures.hostcuda.plugin"]


_REMOVE = pytest.StashKey[Callable[[], None]]()


def pytest_configure(config: pytest.Config) -> None:
    from tests.fixtures.shared import open_shared_folder

    # A run in the background of a script is started with Ctrl-C ignored, and would hand that down to what tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[_REMOVE] = open_shared_folder()


def pytest_unconfigure(config: pytest.Config) -> None:
    config.stash[_REMOVE]()


@pytest.fixture
def empty_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's cache is a folder of this test's own, with nothing in it."""
    monkeypatch.setenv("TRT_SAM_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def golden() -> Path:
    """The golden data of the stand-in that are in the package."""
    from trt_sam.gate.golden import shipped_golden
    from trt_sam.model.checkpoint import load_checkpoint

    path = shipped_golden(load_checkpoint("standin").sha256)
    assert path is not None
    return path


@pytest.fixture(scope="session")
def graphs() -> dict[str, Path]:
    """Decoder graphs by name (see `helpers.write_graphs`); do not change them."""
    from helpers import write_graphs

    from tests.fixtures.shared import made_once

    folder = made_once("decoder_graphs", write_graphs)
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def mobile_sam() -> Path:
    """MobileSAM's official checkpoint file (see `real_weights`)."""
    from real_weights import checkpoint_file

    return checkpoint_file("mobile_sam")


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """Two threads on cores that others use wait for each other longer than they work."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
