"""Device memory in and out without the host: DLPack and the CUDA array interface, over the host-memory driver."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from tests.fixtures.hostcuda import HostCuda
from tests.fixtures.toy_decoder import toy_embedding
from tests.fixtures.toy_runner import PLAIN, clicks, expected, opened, tokens
from trt_sam.contract import EMBEDDING_BYTES, EMBEDDING_SHAPE
from trt_sam.cuda.borrowed import borrow
from trt_sam.cuda.device import Device
from trt_sam.cuda.dlpack import DeviceArray
from trt_sam.cuda.page_locked import page_locked
from trt_sam.cuda.streams import Stream
from trt_sam.errors import ContractError, InferenceError

pytestmark = pytest.mark.hostcuda


class Slotlike:
    """What `DeviceArray` knows of a slot."""

    def __init__(self, device: Device, stream: Stream) -> None:
        self.device, self.stream, self.closed = device, stream, False
        self.lock, self.lent_to = threading.Lock(), set[int]().add
        self.owner = lambda: None


class Foreign:
    """Another library's array on the device; its upload is queued on that library's own stream."""

    def __init__(self, device: Device, seed: int, shape: tuple[int, ...] = EMBEDDING_SHAPE, dtype: str = "float32") -> None:
        self.device, self.stream, self.buffer = device, Stream(device), device.buffer(EMBEDDING_BYTES)
        self.host = page_locked(device, EMBEDDING_BYTES)
        self.host.view(np.float32)[:] = seed
        with device.active():
            self.stream.upload(self.buffer.address, self.host)
        self.array = DeviceArray(self.buffer.address, shape, dtype, Slotlike(device, self.stream))  # type: ignore[arg-type]
        self.on = 0

    def finish(self) -> None:
        with self.device.active():
            self.stream.synchronize()


class ByDlpack(Foreign):
    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, self.on

    def __dlpack__(self, *, stream: int | None = None) -> object:
        return self.array.__dlpack__(stream=stream)


class ByInterface(Foreign):
    strides: tuple[int, ...] | None = None
    version = 3

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        told = {**self.array.__cuda_array_interface__, "strides": self.strides, "version": self.version}
        if self.version < 3:
            del told["stream"]
        return told


@pytest.mark.parametrize("kind", [ByDlpack, ByInterface])
def test_an_embedding_on_the_device_never_passes_the_host(host_cuda: HostCuda, kind: type[Foreign]) -> None:
    given = clicks(1, 2, 2)
    with opened(host_cuda) as (runner, _):
        runner.warm_up([(2, 3)])
        foreign = kind(runner._core.device, 6)
        copies = host_cuda.count("cuMemcpyHtoDAsync"), host_cuda.count("cuMemcpyDtoHAsync")
        runner.set_image(foreign)
        assert (host_cuda.count("cuMemcpyHtoDAsync"), host_cuda.count("cuMemcpyDtoHAsync")) == copies
        # It is the caller's again, who may free it or write on.
        foreign.finish()
        foreign.buffer.close()
        found = runner.decode(*given, masks="all")
        wanted = expected(PLAIN, tokens(toy_embedding(6), *given))
        np.testing.assert_array_equal(found.low_res_masks, wanted["low_res_masks"])
        del foreign


def test_what_is_lent_is_kept_until_it_is_copied_and_nobody_waits_on_the_host(host_cuda: HostCuda) -> None:
    given, waits = clicks(1, 2, 2), ("cuStreamSynchronize", "cuEventSynchronize", "cuCtxSynchronize")
    with opened(host_cuda) as (runner, _):
        runner.warm_up([(2, 3)])
        foreign = ByInterface(runner._core.device, 6)
        theirs, lent, before = foreign.stream, weakref.ref(foreign), [host_cuda.count(name) for name in waits]
        runner.set_image(foreign)
        assert [host_cuda.count(name) for name in waits] == before
        del foreign
        gc.collect()
        assert lent() is not None, "its copy has not run"
        found = runner.decode(*given, masks="all")
        wanted = expected(PLAIN, tokens(toy_embedding(6), *given))
        np.testing.assert_array_equal(found.low_res_masks, wanted["low_res_masks"])
        runner.decode(*given)
        gc.collect()
        assert lent() is None
        with runner._core.device.active():
            theirs.synchronize()


def test_what_cannot_be_taken_is_refused_in_words(host_cuda: HostCuda) -> None:
    with opened(host_cuda) as (runner, _):
        device = runner._core.device
        half = ByDlpack(device, 1, dtype="float16")
        flat = ByDlpack(device, 1, shape=(256, 64, 64))
        strided = ByInterface(device, 1)
        strided.strides = (4, 4, 1024, 65536)
        elsewhere, freed = ByDlpack(device, 1), ByDlpack(device, 1)
        elsewhere.on = 1
        host = ByInterface(device, 1)
        host.array.address = host.host.ctypes.data
        taken = ByDlpack(device, 1)
        freed.finish()
        freed.buffer.close()  # last, or what is allocated next may lie there
        capsule = taken.array.__dlpack__(stream=-1)
        again = _Again(capsule)
        cases = [
            (half, r"image_embeddings is float16 on the GPU, must be float32; .*\.float\(\)"),
            (flat, r"has shape \[256, 64, 64\], must be \[1, 256, 64, 64\]"),
            (strided, r"not contiguous on the GPU; .*\.contiguous\(\)"),
            (elsewhere, r"on GPU 1, the runner on GPU 0; .*cuda:0"),
            (freed, r"where no GPU memory is allocated; was its source freed"),
            (host, r"where no GPU memory is allocated"),
        ]
        for source, words in cases:
            with pytest.raises(ContractError, match=words):
                runner.set_image(source)
        with device.active():
            borrow(again, "image_embeddings", EMBEDDING_SHAPE, device, Stream(device))
            with pytest.raises(ContractError, match="was it freed, or taken already"):
                borrow(again, "image_embeddings", EMBEDDING_SHAPE, device, Stream(device))
        assert runner.images_held == 0
        for source, _ in cases:
            source.finish()
        taken.finish()
        del cases, source, half, flat, strided, elsewhere, freed, host, taken, capsule, again


class _Again:
    """A source that gives the same capsule each time, which may be taken once."""

    def __init__(self, capsule: object) -> None:
        self._capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: int | None = None) -> object:
        return self._capsule


def test_an_interface_without_a_stream_waits_for_everybody(host_cuda: HostCuda) -> None:
    given = clicks(1, 1, 1)
    with opened(host_cuda) as (runner, _):
        foreign = ByInterface(runner._core.device, 6)
        foreign.version = 2
        runner.set_image(foreign)
        found = runner.decode(*given, masks="all")
        wanted = expected(PLAIN, tokens(toy_embedding(6), *given))
        np.testing.assert_array_equal(found.iou_predictions, wanted["iou_predictions"])


def test_results_on_the_device_are_taken_by_others(host_cuda: HostCuda) -> None:
    given = clicks(1, 3, 2)
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(5))
        call = runner.submit(*given, masks="device")
        arrays, device = call.device_arrays, runner._core.device
        assert arrays.masks is arrays.low_res_masks
        assert (arrays.masks.shape, str(arrays.masks.dtype)) == ((3, 4, 256, 256), "float32")
        told = arrays.iou_predictions.__cuda_array_interface__
        assert told["shape"] == (3, 4)
        assert told["data"][1] is False, "torch.as_tensor refuses what is read-only"
        with device.active():
            theirs, host = Stream(device), page_locked(device, 3 * 4 * 4)
            borrowed = borrow(arrays.iou_predictions, "scores", (3, 4), device, theirs)
            assert borrowed.address == told["data"][0]
            theirs.download(host, borrowed.address)
            theirs.synchronize()
        wanted = expected(PLAIN, tokens(toy_embedding(5), *given))["iou_predictions"]
        np.testing.assert_array_equal(host.view(np.float32).reshape(3, 4), wanted)
        assert call.result() is arrays
        del borrowed, host
    with pytest.raises(InferenceError, match="runner is closed, and its device memory"):
        arrays.masks.__dlpack__()
    with pytest.raises(InferenceError, match="runner is closed"):
        _ = arrays.masks.__cuda_array_interface__


def test_a_torch_tensor_of_the_host_is_taken_as_an_array(host_cuda: HostCuda) -> None:
    torch = pytest.importorskip("torch")
    given = clicks(1, 1, 1)
    with opened(host_cuda) as (runner, _):
        runner.set_image(torch.full(EMBEDDING_SHAPE, 4.0))
        found = runner.decode(*given, masks="all")
        wanted = expected(PLAIN, tokens(toy_embedding(4), *given))
        np.testing.assert_array_equal(found.iou_predictions, wanted["iou_predictions"])
        with pytest.raises(ContractError, match="is float16"):
            runner.set_image(torch.zeros(EMBEDDING_SHAPE, dtype=torch.float16))
        # Not contiguous, on the host: it is copied anyway.
        runner.set_image(np.asfortranarray(toy_embedding(4)))


def test_a_copy_or_another_device_is_refused_not_forgotten(host_cuda: HostCuda) -> None:
    with opened(host_cuda) as (runner, _):
        runner.set_image(toy_embedding(1))
        masks = runner.decode(*clicks(1, 1, 1), masks="device").masks
        assert isinstance(masks, DeviceArray)
        for asked in ({"copy": True}, {"dl_device": (1, 0)}, {"dl_device": (2, 1)}):
            with pytest.raises(BufferError, match="view"):
                masks.__dlpack__(stream=1, **asked)  # type: ignore[arg-type]
        # What torch passes for a view.
        masks.__dlpack__(stream=-1, copy=False, dl_device=masks.__dlpack_device__())
        masks.__dlpack__(stream=-1, copy=None, dl_device=None, max_version=(1, 0))
