"""Ranges for Nsight Systems: where they are asked for, by the package that makes them."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import clicks, opened
from trt_sam.cuda import ranges


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    names = list[str]()

    def annotate(name: str, domain: str) -> contextlib.AbstractContextManager[None]:
        names.append(f"{domain}: {name}")
        return contextlib.nullcontext()

    monkeypatch.setitem(sys.modules, "nvtx", SimpleNamespace(annotate=annotate))
    ranges._annotate.cache_clear()
    yield names
    ranges._annotate.cache_clear()


@pytest.mark.hostcuda
def test_a_call_is_marked_where_that_is_asked(host_cuda: HostCuda, heard: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for asked, wanted in (("1", ["trt_sam: trt_sam.image", "trt_sam: trt_sam.queue", "trt_sam: trt_sam.wait"]), ("0", [])):
        monkeypatch.setenv("TRT_SAM_NVTX", asked)
        ranges._annotate.cache_clear()
        heard.clear()
        with opened(host_cuda) as (runner, _):
            runner.set_image(toy_embedding(1))
            runner.decode(*clicks(1, 1, 1))
        assert heard == wanted


def test_without_the_package_nothing_is_marked(heard: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRT_SAM_NVTX", "1")
    monkeypatch.setitem(sys.modules, "nvtx", None)
    ranges._annotate.cache_clear()
    with ranges.marked("anything"):
        assert heard == []
