"""Every wait of the runner is needed, and this suite sees it when one is missing: each is taken out in turn."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import trt_sam
from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.runner_waits import use_runner
from trt_sam.cuda import borrowed as _borrowed
from trt_sam.cuda import dlpack as _dlpack
from trt_sam.cuda.device import Device
from trt_sam.cuda.streams import Event, Stream
from trt_sam.runner import slot as _slot
from trt_sam.runner.images import uploads as _images
from trt_sam.runner.slot import Slot

pytestmark = pytest.mark.hostcuda

PACKAGE = Path(trt_sam.__file__).parent
SOURCES = (
    "cuda/borrowed.py",
    "cuda/dlpack.py",
    "runner/core.py",
    "runner/decoder_runner.py",
    "runner/dispatch.py",
    "runner/images/encoder.py",
    "runner/engine.py",
    "runner/images/calls.py",
    "runner/images/uploads.py",
    "runner/plans/outputs.py",
    "runner/plans/pixels.py",
    "runner/plans/plan.py",
    "runner/prompts.py",
    "runner/slot.py",
    "runner/images/staging.py",
    "runner/submission.py",
    "runner/images/submitted.py",
    "runner/plans/unpack.py",
)
WAITS = {"synchronize", "wait", "order"}
Site = tuple[str, int]


def sites_in_sources() -> set[Site]:
    """File and line of each wait that is written; `Slot.wait` itself is none, its callers are."""
    found = set()
    for name in SOURCES:
        tree = ast.parse((PACKAGE / name).read_text())
        inner = {
            node
            for scope in ast.walk(tree)
            if isinstance(scope, ast.ClassDef) and scope.name == "Slot"
            for method in scope.body
            if isinstance(method, ast.FunctionDef) and method.name == "wait"
            for node in ast.walk(method)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and node not in inner:
                called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if called in WAITS:
                    found.add((name, node.lineno))
    return found


class Skipper:
    """Makes the waits that are called from one place do nothing, and remembers all places."""

    def __init__(self, patch: pytest.MonkeyPatch, skipped: Site | None) -> None:
        self.skipped, self.seen = skipped, set[Site]()
        targets: list[tuple[Any, str]] = [
            (Stream, "synchronize"),
            (Stream, "wait"),
            (Event, "synchronize"),
            (Device, "synchronize"),
            (Slot, "wait"),
            (_borrowed, "order"),
            (_dlpack, "order"),
            (_slot, "order"),
            (_images, "order"),
        ]
        for owner, name in targets:
            patch.setattr(owner, name, self._around(getattr(owner, name)))

    def _around(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any) -> Any:
            frame = sys._getframe(1)
            file = Path(frame.f_code.co_filename)
            site = (file.relative_to(PACKAGE).as_posix() if file.is_relative_to(PACKAGE) else file.name, frame.f_lineno)
            inside = frame.f_code is Slot.wait.__wrapped__.__code__ if hasattr(Slot.wait, "__wrapped__") else False
            del frame  # kept by an exception's traceback it would keep all that the caller has
            if site[0] in SOURCES and not inside:
                self.seen.add(site)
                if site == self.skipped:
                    return None
            return original(*args)

        return call


def test_with_all_waits_nothing_is_wrong_and_all_are_used(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        skipper = Skipper(patch, None)
        assert use_runner(host_cuda) == []
    assert skipper.seen == sites_in_sources(), "a wait was added or removed: `use_runner` has to need it"


@pytest.mark.parametrize("site", sorted(sites_in_sources()), ids=lambda site: f"{site[0]}:{site[1]}")
def test_without_any_one_wait_something_is_wrong(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    with monkeypatch.context() as patch:
        skipper = Skipper(patch, site)
        wrong = use_runner(host_cuda)
    assert site in skipper.seen
    assert wrong, f"nobody saw that the wait at {site} was missing"
    host_cuda.reset()
