"""A call under way: wait for it, or ask whether it is done."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from trt_sam._plan import Decoded, Plan
from trt_sam._slot import Slot
from trt_sam.errors import InferenceError

__all__ = ["Submission"]

Result = TypeVar("Result")


class Submission:
    """What `DecoderRunner.submit` gives; it holds a slot until its result is taken or it is dropped. For one thread."""

    __slots__ = ("_give_back", "_plan", "_result", "_slot")

    def __init__(self, slot: Slot, plan: Plan, give_back: Callable[[Slot, BaseException | None], None]) -> None:
        self._slot: Slot | None = slot
        self._plan = plan
        self._give_back = give_back
        self._result: Decoded | None = None

    def done(self) -> bool:
        """Whether `result` would not wait for the GPU; returns at once.

        Raises:
            InferenceError: the work failed; the message says so if that closed the runner.
        """
        slot = self._slot
        if slot is None:
            return True
        try:
            with slot.lock:
                self._check(slot)
                with slot.device.active():
                    return slot.event.done()
        except BaseException as error:
            self._end(error)
            raise

    @property
    def device_arrays(self) -> Decoded:
        """The results of a call with `masks="device"`, at once: a DLPack consumer's stream waits for them, not the host."""
        if self._plan.call.masks != "device":
            raise InferenceError(f'this call was asked for masks="{self._plan.call.masks}"; ask for "device"')
        return self._plan.results

    def result(self, *, copy: bool = False) -> Decoded:
        """Wait, and give the slot back: the results are valid until its next use, or for good with `copy`.

        Raises:
            InferenceError: the work failed (the message says so if that closed the runner), or the runner was closed.
        """
        if self._slot is None and self._result is not None:
            return self._result

        def read(plan: Plan) -> Decoded:
            found = plan.finish()
            return found.copy() if copy and plan.call.masks != "device" else found

        self._result = self.collect(read)
        return self._result

    def collect(self, read: Callable[[Plan], Result]) -> Result:
        """Wait, give what `read` gives of the plan, and give the slot back; errors as `result`."""
        slot = self._slot
        if slot is None:
            raise InferenceError("this call has failed or was dropped; submit it again")
        try:
            with slot.lock:
                self._check(slot)
                with slot.device.active():
                    slot.wait()
                    found = read(self._plan)
        except BaseException as error:
            self._end(error)
            raise
        self._end(None)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._end(None)

    def __del__(self) -> None:
        # The next user of the slot waits for what is queued.
        self._end(None)

    def _end(self, error: BaseException | None) -> None:
        slot, self._slot = self._slot, None
        if slot is not None:
            self._give_back(slot, error)

    @staticmethod
    def _check(slot: Slot) -> None:
        if slot.closed:
            raise InferenceError("the runner was closed while this call was under way; open a new one")
