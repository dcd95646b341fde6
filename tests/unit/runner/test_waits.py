"""Every wait of the runner is needed, and this suite sees it when one is missing: each is taken out in turn."""

from __future__ import annotations

import ast
import contextlib
import functools
import gc
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda.bindings import driver

import trt_sam
from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.photo_waits import use_photos
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_encoder import toy_photo
from tests.fixtures.toy_runner import clicks, encoder_of, expected, make, tokens
from trt_sam.contract import EMBEDDING_BYTES, EMBEDDING_SHAPE
from trt_sam.cuda import borrowed as _borrowed
from trt_sam.cuda import dlpack as _dlpack
from trt_sam.cuda.device import Device
from trt_sam.cuda.page_locked import page_locked
from trt_sam.cuda.streams import Event, Stream
from trt_sam.errors import ContractError, InferenceError
from trt_sam.recipe import GraphOptions
from trt_sam.runner import slot as _slot
from trt_sam.runner.images import uploads as _images
from trt_sam.runner.images.uploads import Handover
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
PLAIN = GraphOptions(precision="fp32")


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


class Foreign:
    """Another library's embedding on the device, whose upload may still be queued on that library's stream."""

    def __init__(self, device: Device, seed: int) -> None:
        self.stream, self.buffer = Stream(device), device.buffer(EMBEDDING_BYTES)
        self.host = page_locked(device, EMBEDDING_BYTES)
        self.host.view(np.float32)[:] = seed
        self.stream.upload(self.buffer.address, self.host)
        self.version, self.shape = 3, EMBEDDING_SHAPE

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": "<f4",
            "data": (self.buffer.address, False),
            "version": self.version,
            "stream": self.stream.handle,
        }


def use(cuda: HostCuda) -> list[str]:
    """A use of the runner in which each wait matters; gives what went wrong."""
    wrong: list[str] = []
    with contextlib.ExitStack() as stack:
        try:
            runner, _ = make(cuda, PLAIN, image_bytes=EMBEDDING_BYTES, encoder=encoder_of(cuda)[0])
            stack.callback(runner.close)
            device = runner._core.device

            def same(found: Any, seed: int, given: tuple[Any, Any], what: str) -> None:
                wanted = expected(PLAIN, tokens(toy_embedding(seed), *given))
                if not np.array_equal(found.low_res_masks, wanted["low_res_masks"]):
                    wrong.append(f"wrong masks: {what}")

            def best(found: Any, given: tuple[Any, Any], what: str) -> None:
                if not (np.isfinite(found.low_res_masks).all() and np.isfinite(found.iou_predictions).all()):
                    wrong.append(f"poison in the outputs: {what}")

            first, second = clicks(1, 2, 2), clicks(2, 2, 2)
            runner.warm_up([(2, 3)])
            if cuda.count("queued"):
                wrong.append("work is queued after warm_up")
            for seed in (2, 3, 4):
                runner.set_image(toy_embedding(seed))
            same(runner.decode(*first, masks="all"), 4, first, "decode")
            best(runner.decode(*first), first, "best")
            # The image changes while a call that reads its memory is queued.
            runner.set_image(toy_embedding(5))
            late = runner.submit(*second, masks="all")
            runner.submit_image(toy_embedding(6)).result()
            if cuda.count("queued"):
                wrong.append("work is queued after an image was waited for")
            same(late.result(), 5, second, "image changed under way")
            # An image of another library, which may write there again when it was taken.
            with device.active():
                foreign = Foreign(device, 7)
            runner.set_image(foreign)
            with device.active():
                again = page_locked(device, EMBEDDING_BYTES)
                again.view(np.float32)[:] = 1
                foreign.stream.upload(foreign.buffer.address, again)
                foreign.stream.synchronize()
            foreign.host = again = None  # type: ignore[assignment]
            same(runner.decode(*first, masks="all"), 7, first, "foreign image")
            # One whose interface does not say whose work is to be waited for.
            with device.active():
                foreign = Foreign(device, 7)
            foreign.version = 2
            runner.set_image(foreign)
            foreign.buffer.close()
            with device.active():
                foreign.stream.synchronize()
            foreign.host = None  # type: ignore[assignment]
            same(runner.decode(*first, masks="all"), 7, first, "foreign image, version 2")
            # One that was taken on another thread, for a stream that is not the runner's.
            with device.active():
                foreign, between = Foreign(device, 7), Stream(device)
                handed = Handover(foreign, device, between)
            runner.use_image(runner.submit_image(handed).result())
            handed.close()
            with device.active():
                foreign.stream.synchronize()
            foreign.host = None  # type: ignore[assignment]
            same(runner.decode(*first, masks="all"), 7, first, "an image handed over")
            # A call whose result nobody takes; the next one writes other inputs.
            runner.submit(*first)
            same(runner.decode(*second, masks="all"), 7, second, "after a dropped call")
            # A call that fails half-way; the next one writes other inputs.
            cuda.fail("cuGraphLaunch")
            with contextlib.suppress(InferenceError):
                runner.decode(*clicks(3, 3, 2))  # between two buckets: the copy to the GPU is queued before
            if cuda.count("queued"):
                wrong.append("work left queued by a call that failed")
            same(runner.decode(*second, masks="all"), 7, second, "after a failed call")
            cuda.fail("cuMemcpyHtoDAsync")
            with contextlib.suppress(InferenceError):
                runner.set_image(toy_embedding(8))  # which took the memory of the one before
            runner.set_image(toy_embedding(7))
            # Results for a stream of somebody else, which nobody has waited for on the host.
            with device.active():
                theirs, host = Stream(device), page_locked(device, 2 * 4 * 4)
                late = runner.submit(*first, masks="device")
                late.device_arrays.iou_predictions.__dlpack__(stream=theirs.handle)
                theirs.download(host, late.device_arrays.iou_predictions.address)
                theirs.synchronize()
            wanted = expected(PLAIN, tokens(toy_embedding(7), *first))["iou_predictions"]
            if not np.array_equal(host.view(np.float32).reshape(2, 4), wanted):
                wrong.append("a consumer's stream was not made to wait")
            late.result()
            # They read on while the slot's next call is queued.
            with device.active():
                theirs.download(host, late.device_arrays.iou_predictions.address)
            runner.decode(*second, masks="device")
            with device.active():
                theirs.synchronize()
            if not np.array_equal(host.view(np.float32).reshape(2, 4), wanted):
                wrong.append("the next call did not wait for a reader")
            # One that has released, whose stream nobody asks again.
            late = runner.submit(*first, masks="device")
            late.device_arrays.iou_predictions.__dlpack__(stream=theirs.handle)
            with device.active():
                theirs.download(host, late.device_arrays.iou_predictions.address)
            late.device_arrays.release(theirs.handle)
            late.result()
            runner.decode(*second, masks="device")
            with device.active():
                theirs.synchronize()
            if not np.array_equal(host.view(np.float32).reshape(2, 4), wanted):
                wrong.append("the next call did not wait for a reader that had released")
            # A reader in the default stream of this thread, which is another one on the thread of the next call.
            late = runner.submit(*first, masks="device")
            late.device_arrays.iou_predictions.__dlpack__(stream=2)
            with device.active():
                driver.cuMemcpyDtoHAsync(host.ctypes.data, late.device_arrays.iou_predictions.address, host.nbytes, 2)
            late.result()
            thread = threading.Thread(target=runner.decode, args=second, kwargs={"masks": "device"})
            thread.start()
            thread.join()
            with device.active():
                driver.cuStreamSynchronize(2)
            if not np.array_equal(host.view(np.float32).reshape(2, 4), wanted):
                wrong.append("a call on another thread did not wait for a reader in a thread's default stream")
            del host
            # A feed with an image of its own.
            found = runner.run(tokens(toy_embedding(9), *first))
            if not np.array_equal(found["low_res_masks"], expected(PLAIN, tokens(toy_embedding(9), *first))["low_res_masks"]):
                wrong.append("wrong masks: a feed's own image")
            feed = tokens(toy_embedding(7), *first)
            runner.device_times(feed, 2)
            use_photos(runner, cuda, wrong, same)
            # What was queued for an image that is refused; only close waits for that and for the call.
            with device.active():
                foreign = Foreign(device, 7)
            foreign.shape = (256, 64, 64)
            with contextlib.suppress(ContractError):
                runner.set_image(foreign)
            with device.active():
                foreign.stream.synchronize()
            foreign.host = None  # type: ignore[assignment]
            runner.submit(*first)
            # Here only close waits for a photo.
            runner, _ = make(cuda, PLAIN, encoder=encoder_of(cuda)[0])
            stack.callback(runner.close)
            runner.add_image(toy_photo(1))
        except Exception as error:
            # Without a wait anything may come of it, of PyCUDA too.
            wrong.append(f"raised {error}")
    gc.collect()  # errors keep what their frames had
    return wrong + cuda.violations


def test_with_all_waits_nothing_is_wrong_and_all_are_used(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        skipper = Skipper(patch, None)
        assert use(host_cuda) == []
    assert skipper.seen == sites_in_sources(), "a wait was added or removed: `use` has to need it"


@pytest.mark.parametrize("site", sorted(sites_in_sources()), ids=lambda site: f"{site[0]}:{site[1]}")
def test_without_any_one_wait_something_is_wrong(host_cuda: HostCuda, monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    with monkeypatch.context() as patch:
        skipper = Skipper(patch, site)
        wrong = use(host_cuda)
    assert site in skipper.seen
    assert wrong, f"nobody saw that the wait at {site} was missing"
    host_cuda.reset()
