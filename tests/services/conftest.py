"""`make test-services` runs these, by the environment .venv-services, which has selenium, tritonclient and schemathesis."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest

from tests.services.process import ROOT, Service, start
from tests.services.ray_cluster import Cluster, start_cluster

if importlib.util.find_spec("selenium") is None:
    # `make test`, whose environment has none of this, collects the folder as well.
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(scope="session")
def service() -> Iterator[Service]:
    running = start()
    yield running
    if running.process.poll() is None:
        code = running.stop()
        assert code == 0, "".join(running.errors)
    failed = [line for line in running.lines if line["status"] >= 500 and line.get("code") != "not_ready"]
    assert not failed


@pytest.fixture(scope="session")
def astronaut() -> bytes:
    return (ROOT / "samples" / "astronaut.jpg").read_bytes()


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of Ray that has no workers yet."""
    cluster = start_cluster(tmp_path_factory.mktemp("ray"))
    yield cluster
    cluster.stop()
