"""Calls into slots: queued in one of them, and made in all of them beforehand."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt

from trt_sam.cuda.ranges import marked
from trt_sam.errors import ContractError
from trt_sam.runner.core import Core
from trt_sam.runner.images.staging import Staging
from trt_sam.runner.lease import Lease
from trt_sam.runner.plans.plan import Plan
from trt_sam.runner.prompts import Kind, Known, Prompts
from trt_sam.runner.slot import Slot
from trt_sam.runner.submission import Submission

__all__ = ["Dispatch"]

Array = npt.NDArray[Any]

_NOTHING = contextlib.nullcontext()
_POLL_SECONDS = 0.001
"""Between two looks at the slots that a warm-up waits for."""


class Dispatch:
    """Puts a runner's calls into its slots.

    Args:
        core: of the runner.
        uploading: held while a feed's own image goes to the GPU.
    """

    def __init__(self, core: Core, uploading: threading.Lock) -> None:
        self._core = core
        self._uploading = uploading
        self.warming = threading.Lock()
        """Held by whoever warms up."""

    def submit(
        self,
        prompts: Prompts,
        image: int,
        timeout: float | None,
        give_back: Callable[[Lease, BaseException | None], None],
        *,
        embedding: Array | None = None,
        alone: bool = False,
    ) -> Submission[Any]:
        """Queue a call.

        Args:
            prompts: what is asked, and of what.
            image: number of the image; 0 where there is none.
            timeout: seconds to wait for a slot; None waits for ever.
            give_back: takes the slot back, and keeps the runner as long as the call is under way.
            embedding: an image for this call only.
            alone: record its inference also without copies.
        """
        core, lease = self._core, Lease(self._core.free)
        try:
            waits, began = core.free.empty() and timeout != 0, time.perf_counter()
            try:
                slot = core.take(lease, timeout)
            except BaseException:
                with core.lock:
                    core.counters.waited(began, waits)
                raise
            queued = time.perf_counter()
            with _NOTHING if embedding is None else self._uploading:
                own = None if embedding is None else self._staged(lease, embedding)
                with core.lock:
                    core.counters.waited(began, waits, queued)
                    try:
                        with marked("queue"):
                            plan = self._queue(slot, prompts, image, own, alone=alone)
                        core.counters.calls += 1
                    except BaseException as error:
                        core.failed(lease, error)
                        raise
            return Submission(lease, plan, give_back)
        except BaseException:
            lease.give_back()
            raise

    def warm_up(self, kinds: Sequence[tuple[Kind, Known]]) -> None:
        """Make the plans of these kinds in every slot, and run each engine's inference once; images and encoder."""
        core = self._core
        with self.warming:
            cold = set(core.slots)
            while cold:
                # One slot at a time: whoever holds some and waits for the rest could wait for a caller who does the same.
                lease = Lease(core.free)
                try:
                    slot = core.take(lease, None)
                    warm = slot not in cold
                    if not warm:
                        self._warm(lease, slot, kinds)
                        cold.discard(slot)
                finally:
                    lease.give_back()
                if warm:
                    time.sleep(_POLL_SECONDS)
        with core.lock:
            with core.device.active():
                core.open_images().allocate()
            encoder = core.encoder
            if encoder is not None:
                try:
                    with core.device.active():
                        encoder.warm_up()
                except BaseException as error:
                    core.settle(error, encoder.stream)
                    raise
            core.save_runtime_caches()
        if encoder is not None:
            with encoder.lock:
                core.check_open()
                with core.device.active():
                    encoder.stream.synchronize()

    def _warm(self, lease: Lease, slot: Slot, kinds: Sequence[tuple[Kind, Known]]) -> None:
        core = self._core
        try:
            for kind, known in kinds:
                with core.lock:
                    core.check_open()
                    with core.device.active():
                        slot.begin()
                        plan = core.calls.plan(slot, kind, known)
                        if (plan.call.masks, plan.call.bits) == ("all", False):  # the others share its inference
                            plan.rehearse()
                with slot.lock:
                    core.check_open()
                    with core.device.active():
                        slot.wait()
        except BaseException as error:
            core.give_back(lease, error)
            raise

    def _staged(self, lease: Lease, embedding: Array) -> Staging:
        """A feed's own image in staging memory; this waits where that is still read."""
        core = self._core
        try:
            images = core.open_images()
            with images.lock:
                core.check_open()
                with core.device.active():
                    return images.stage(embedding)
        except BaseException as error:
            core.give_back(lease, error)
            raise

    def _queue(self, slot: Slot, prompts: Prompts, image: int, own: Staging | None, *, alone: bool) -> Plan:
        core = self._core
        images = core.open_images()
        with core.device.active():
            if images.keeps:
                images.let_go()
            if slot.has_readers:
                slot.begin()
            plan = core.calls.plan(slot, prompts.kind, prompts.known)
            if alone:
                plan.program.record()
            prompts.fill(plan)
            if own is not None:
                slot.bring_own(own)
                plan.launch(None)
            elif image == 0:
                raise ContractError("there is no image; call set_image before")
            else:
                plan.launch(image, images.get(image))
        return plan
