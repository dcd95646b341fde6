"""Host memory that the GPU copies from and to by itself; it alone outlives its device."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from trt_sam.cuda.accounts import count, forked, keep_forever
from trt_sam.cuda.device import Device, guard
from trt_sam.errors import InferenceError

__all__ = ["page_locked"]

Bytes = npt.NDArray[np.uint8]


def page_locked(device: Device, nbytes: int) -> Bytes:
    """Page-locked host memory, uninitialized: uint8 [nbytes].

    It can be read and written as long as any view of it lives, also after the device is closed.
    """
    return np.asarray(_PageLocked(device, nbytes))


class _PageLocked:
    """The owner of page-locked memory; numpy views keep it alive, the last one to go frees it on whatever thread it is."""

    def __init__(self, device: Device, nbytes: int) -> None:
        self._device = device
        self._allocation: Any = None
        flags = device.driver.host_alloc_flags.PORTABLE
        with device.active(), guard(f"allocating {nbytes / 2**20:.1f} MiB of page-locked memory"):
            array = device.driver.pagelocked_empty(nbytes, np.uint8, mem_flags=flags)
        self._allocation = array.base
        self.__array_interface__ = {**array.__array_interface__, "data": (array.ctypes.data, False)}
        self._nbytes = nbytes
        count("host_bytes", nbytes)

    def __del__(self) -> None:
        if self._allocation is None or sys.is_finalizing():
            return
        if forked():
            keep_forever(self._allocation)
            return
        count("host_bytes", -self._nbytes)
        with contextlib.suppress(InferenceError), self._device.active():
            self._allocation.free()
